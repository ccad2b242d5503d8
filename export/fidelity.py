"""How like another network's pictures are those of an exported file: PSNR, SSIM, colour shift and CIEDE2000, per picture, as mean and as worst case.

Pictures are float (1, C, H, W), clipped to the task's output range as a screen clips them, and not rounded: what stays below one 8-bit step counts as
well. Numpy and scikit-image only; importing this module imports neither torch nor scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ParityError
from mcompress.record import HIGHEST_DB, Fidelity, Likeness, PictureRecord, WorstPicture

TEACHER, FLOAT_STUDENT = "teacher", "float_student"
REFERENCES: Mapping[str, str] = {TEACHER: "the teacher", FLOAT_STUDENT: "the float student"}
"""What pictures are compared with, as people read it."""
STEPS = 255.0
"""8-bit steps in the output range."""
SSIM_SIGMA = 1.5
SSIM_SIDE = 11
"""Side of SSIM's Gaussian window, pixels. Both as in Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity"."""
HIGHER_IS_BETTER: Mapping[str, bool] = {"psnr_db": True, "ssim": True, "largest_shift": False, "delta_e": False}
"""Fields of `Likeness` that have a worst case."""

Picture = NDArray[np.float32]


def likeness(found: Picture, reference: Picture, output_range: tuple[float, float]) -> Likeness:
    """Compare (1, C, H, W) with a picture of the same shape; values of both are in `output_range` (low, high).

    PSNR over all values with the range as peak; SSIM per channel with a Gaussian window, mean over channels and pixels; colour shift in 8-bit steps
    of the range; CIEDE2000 of RGB, taken as sRGB. Raises `ParityError` for other shapes, NaN or infinity.
    """
    if found.shape != reference.shape or found.ndim != 4 or found.shape[0] != 1:
        raise ParityError(f"a picture has shape {found.shape}, what it is compared with {reference.shape}; both must be (1, C, H, W) and the same")
    for who, values, so in (
        ("the file", found, "it must not be used"),
        ("the network that the file is compared with", reference, "mend the network; nothing can be compared with it"),
    ):
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            raise ParityError(f"{who} returned NaN or infinity in {wrong} of {values.size} values of a picture: {so}")
    one, other = (_unit(values[0], output_range) for values in (found, reference))
    difference = one.astype(np.float64) - other
    shift = tuple(round(STEPS * float(channel.mean()), 4) for channel in difference)
    return Likeness(
        psnr_db=round(_psnr_db(difference), 4),
        ssim=_ssim(one, other),
        colour_shift=shift,
        largest_shift=max(map(abs, shift)),
        delta_e=_delta_e(one, other),
    )


def quality_worst(pictures: Mapping[str, PictureRecord]) -> dict[str, WorstPicture]:
    """Metric of the task -> the picture with the lowest value; a task's metric is better where it is higher."""
    metrics = dict.fromkeys(metric for picture in pictures.values() for metric in picture.quality)
    return {
        metric: _worst({name: picture.quality[metric] for name, picture in pictures.items() if metric in picture.quality}, higher_is_better=True)
        for metric in metrics
    }


def fidelity_of(pictures: Mapping[str, PictureRecord]) -> dict[str, Fidelity]:
    """Reference -> mean and worst cases over all pictures that were compared with it."""
    references = dict.fromkeys(reference for picture in pictures.values() for reference in picture.against)
    found = {}
    for reference in references:
        compared = {name: picture.against[reference] for name, picture in pictures.items() if reference in picture.against}
        worst = {}
        for field, higher_is_better in HIGHER_IS_BETTER.items():
            values = {name: value for name, one in compared.items() if (value := value_of(one, field)) is not None}
            if values:
                worst[field] = _worst(values, higher_is_better=higher_is_better)
        found[reference] = Fidelity(mean=_mean(tuple(compared.values())), worst=worst)
    return found


def value_of(found: Likeness, field: str) -> float | None:
    """One of the fields of `HIGHER_IS_BETTER`."""
    values = {"psnr_db": found.psnr_db, "ssim": found.ssim, "largest_shift": found.largest_shift, "delta_e": found.delta_e}
    return values[field]


def _unit(values: Picture, output_range: tuple[float, float]) -> Picture:
    """Clipped, and scaled to 0 to 1."""
    low, high = output_range
    return ((np.clip(values, low, high) - np.float32(low)) / np.float32(high - low)).astype(np.float32)


def _psnr_db(difference: NDArray[np.float64]) -> float:
    noise = float(np.square(difference).mean())
    return HIGHEST_DB if noise == 0 else min(HIGHEST_DB, -10 * math.log10(noise))


def _ssim(one: Picture, other: Picture) -> float | None:
    from skimage.metrics import structural_similarity

    if min(one.shape[1:]) < SSIM_SIDE:
        return None
    value = structural_similarity(
        one, other, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=SSIM_SIGMA, win_size=SSIM_SIDE, use_sample_covariance=False
    )
    return round(min(1.0, max(-1.0, float(value))), 6)


def _delta_e(one: Picture, other: Picture) -> float | None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    if one.shape[0] != 3:
        return None
    colours = (rgb2lab(values, channel_axis=0) for values in (one, other))
    return round(float(np.mean(deltaE_ciede2000(*colours, channel_axis=0), dtype=np.float64)), 4)


def _mean(found: Sequence[Likeness]) -> Likeness:
    ssims, colours = ([value for one in found if (value := value_of(one, field)) is not None] for field in ("ssim", "delta_e"))
    channels = zip(*(one.colour_shift for one in found), strict=True)
    return Likeness(
        psnr_db=_rounded([one.psnr_db for one in found]),
        ssim=round(float(np.mean(ssims)), 6) if ssims else None,
        colour_shift=tuple(_rounded(channel) for channel in channels),
        largest_shift=_rounded([one.largest_shift for one in found]),
        delta_e=_rounded(colours) if colours else None,
    )


def _rounded(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _worst(values: Mapping[str, float], *, higher_is_better: bool) -> WorstPicture:
    """The first of them where several are as bad."""
    choose: Callable[..., str] = min if higher_is_better else max
    name = choose(values, key=values.__getitem__)
    return WorstPicture(picture=name, value=values[name])
