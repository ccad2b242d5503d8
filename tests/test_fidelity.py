"""Likeness of two pictures, its means and worst cases, and the outputs that files are compared with: computed once, whatever the number of files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import CompanionNetwork
from mcompress.compress.tasks import photographs
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.errors import ParityError
from mcompress.evaluate import References, score_file, score_network
from mcompress.export.fidelity import fidelity_of, likeness, quality_worst
from mcompress.record import HIGHEST_DB, Fidelity, PictureRecord

UNIT = (0.0, 1.0)
Array = np.ndarray


def picture(seed: int = 0, side: int = 48, channels: int = 3, low: int = 20, high: int = 230) -> Array:
    """Smooth and coloured; 8-bit values away from black and white, so that no step is clipped."""
    rough = torch.rand((1, channels, 6, 6), generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(rough, size=(side, side), mode="bicubic").clamp(0, 1)
    tint = torch.linspace(1.0, 0.4, channels)[None, :, None, None]
    return ((low + (high - low) * smooth * tint).round() / 255).numpy().astype(np.float32)


def test_a_picture_is_exactly_like_itself() -> None:
    found = likeness(picture(), picture(), UNIT)
    assert (found.psnr_db, found.ssim, found.colour_shift, found.largest_shift, found.delta_e) == (HIGHEST_DB, 1.0, (0.0, 0.0, 0.0), 0.0, 0.0)


@pytest.mark.parametrize("output_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("steps", [1, -3])
def test_one_step_more_everywhere_is_a_colour_shift_of_one_step(steps: int, output_range: tuple[float, float]) -> None:
    low, high = output_range
    reference = (low + (high - low) * picture()).astype(np.float32)
    found = likeness((reference + np.float32((high - low) * steps / 255)).astype(np.float32), reference, output_range)
    assert found.colour_shift == (steps, steps, steps)
    assert found.largest_shift == abs(steps)
    assert found.psnr_db == pytest.approx(20 * math.log10(255 / abs(steps)), abs=1e-3)


def test_a_shift_of_one_channel_is_told_by_channel() -> None:
    shifted = picture()
    shifted[:, 1] -= np.float32(2 / 255)
    found = likeness(shifted, picture(), UNIT)
    assert found.colour_shift == (0.0, -2.0, 0.0)
    assert found.largest_shift == 2.0


def test_swapped_channels_are_a_colour_shift() -> None:
    found = likeness(np.ascontiguousarray(picture()[:, ::-1]), picture(), UNIT)
    assert found.colour_shift[0] == pytest.approx(-found.colour_shift[2], abs=1e-3)
    assert found.largest_shift > 20
    assert found.delta_e is not None
    assert found.delta_e > 5


def test_what_a_screen_clips_makes_no_difference() -> None:
    bright = picture(low=0, high=255)
    over = np.where(bright >= bright.max(), np.float32(3.0), bright)
    assert likeness(over, np.where(over == 3.0, np.float32(1.0), bright), UNIT).psnr_db == HIGHEST_DB


def test_psnr_and_ssim_are_their_definitions() -> None:
    """Two windows' worth of ten-line numpy: the mean square over all values, and SSIM at one pixel, weighted by the Gaussian by hand."""
    one, other = picture(1, side=11), picture(2, side=11)
    found = likeness(one, other, UNIT)
    assert found.psnr_db == pytest.approx(-10 * math.log10(np.square(one.astype(np.float64) - other).mean()), abs=1e-3)
    x = np.arange(-5, 6)
    weights = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for a, b in zip(one[0].astype(np.float64), other[0].astype(np.float64), strict=True):
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb, cov = ((weights * p).sum() - m for p, m in ((a * a, ma * ma), (b * b, mb * mb), (a * b, ma * mb)))
        values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert found.ssim == pytest.approx(np.mean(values), abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.001, 0.2))
def test_more_noise_is_never_more_alike(seed: int, amount: float) -> None:
    noise = np.random.default_rng(seed).normal(0, 1, (1, 3, 24, 24)).astype(np.float32)
    reference = picture(seed, side=24)
    little, much = (likeness(reference + np.float32(amount * factor) * noise, reference, UNIT) for factor in (0.5, 1.0))
    assert little.psnr_db > much.psnr_db
    assert little.ssim is not None
    assert much.ssim is not None
    assert little.ssim >= much.ssim - 1e-3


def test_pictures_that_are_small_or_grey_lack_a_measure() -> None:
    assert likeness(picture(side=10), picture(side=10), UNIT).ssim is None
    grey = likeness(picture(channels=1), picture(channels=1), UNIT)
    assert (grey.delta_e, grey.colour_shift, grey.ssim) == (None, (0.0,), 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_naming_whose_it_is(value: float) -> None:
    broken = picture()
    broken[0, 0, 3, 4] = value
    with pytest.raises(ParityError, match=r"the file returned NaN or infinity in 1 of 6912 values"):
        likeness(broken, picture(), UNIT)
    with pytest.raises(ParityError, match="the network that the file is compared with"):
        likeness(picture(), broken, UNIT)
    with pytest.raises(ParityError, match="shape"):
        likeness(picture(side=24), picture(), UNIT)


def among_many(ruined: int | None, count: int = 40) -> tuple[dict[str, PictureRecord], Fidelity]:
    pictures = {}
    for index in range(count):
        reference = picture(index, side=24)
        noise = np.random.default_rng(index).normal(0, 0.3 if index == ruined else 0.01, reference.shape).astype(np.float32)
        pictures[f"photo{index}"] = PictureRecord(
            quality={"psnr_db": 10.0 if index == ruined else 30.0}, against={"teacher": likeness(reference + noise, reference, UNIT)}
        )
    return pictures, fidelity_of(pictures)["teacher"]


def test_one_ruined_picture_among_many_is_the_worst_case_though_the_mean_hardly_moves() -> None:
    (_, whole), (pictures, damaged) = among_many(None), among_many(17)
    assert whole.mean.psnr_db - damaged.mean.psnr_db < 1.0
    assert whole.worst["psnr_db"].value - damaged.worst["psnr_db"].value > 20
    assert {damaged.worst[field].picture for field in ("psnr_db", "ssim", "delta_e")} == {"photo17"}
    assert quality_worst(pictures)["psnr_db"].model_dump() == {"picture": "photo17", "value": 10.0}


def test_opposite_shifts_do_not_cancel_in_the_mean() -> None:
    up, down = (likeness(picture() + np.float32(sign * 2 / 255), picture(), UNIT) for sign in (1, -1))
    found = fidelity_of({"a": PictureRecord(quality={}, against={"t": up}), "b": PictureRecord(quality={}, against={"t": down})})["t"]
    assert found.mean.colour_shift == (0.0, 0.0, 0.0)
    assert found.mean.largest_shift == 2.0


class Enlarging(nn.Module):
    """Nearest enlargement by four, and how often it was asked."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.shapes = gain, list[tuple[int, ...]]()

    def forward(self, value: Tensor) -> Tensor:
        self.shapes.append(tuple(value.shape))
        return functional.interpolate(value, scale_factor=4.0, mode="nearest") * self.gain


def companion(network: nn.Module) -> CompanionNetwork:
    return CompanionNetwork(ModelSpec("enlarging", {}, (), (1, 3, 16, 16)), network)


@pytest.fixture(scope="module")
def pair_task() -> SuperResolution:
    some = photographs.embedded_photos(photographs.HELD_OUT_PHOTOS[:2]).photos
    return SuperResolution(
        photographs.PhotoSet(()), photographs.PhotoSet(tuple(photographs.Photo(p.name, p.pixels[:, 100:228, 100:260]) for p in some))
    )


def runner(change: Callable[[Array], Array] = lambda made: made) -> Callable[[Array], Array]:
    return lambda tile: change(np.repeat(np.repeat(tile, 4, axis=2), 4, axis=3))


def test_a_picture_that_is_exactly_right_has_a_figure_that_json_can_hold(tmp_path: Path) -> None:
    flat = SuperResolution(photographs.PhotoSet(()), photographs.PhotoSet((photographs.Photo("black", torch.zeros(3, 64, 64, dtype=torch.uint8)),)))
    (sample,) = flat.held_out()
    assert flat.quality(sample.truth, sample.truth) == np.inf
    with References(flat, companion(Enlarging()), companion(Enlarging()), tmp_path) as references:
        found = score_file(flat, runner(), (1, 3, 16, 16), references, None, "file")
    assert found["black"].quality == {flat.metric: HIGHEST_DB}
    assert score_network(flat, Enlarging(), None, "student") == {"black": {flat.metric: HIGHEST_DB}}


def test_references_are_computed_once_for_all_files(pair_task: SuperResolution, tmp_path: Path) -> None:
    teacher, student, shape = Enlarging(0.9), Enlarging(), (1, 3, 16, 16)
    with References(pair_task, companion(teacher), companion(student), tmp_path / "cache") as references:
        assert (teacher.shapes, student.shapes) == ([], []), "nothing is computed for files that are all cached"
        first = score_file(pair_task, runner(), shape, references, None, "file")
        asked = len(student.shapes)
        again = score_file(pair_task, runner(), shape, references, tmp_path / "pictures", "file")
        swapped = score_file(pair_task, runner(lambda made: made[:, ::-1]), shape, references, None, "file")
        assert not list((tmp_path / "cache").iterdir()), "the file has no name, so nothing stays behind where the process is killed"
    assert teacher.shapes == [tuple(sample.picture.shape) for sample in pair_task.held_out()], "whole pictures"
    assert set(student.shapes) == {shape}, "the tiles of the file"
    assert len(student.shapes) == asked
    assert first == again
    names = [sample.name for sample in pair_task.held_out()]
    assert list(first) == names
    for name in names:
        assert first[name].against["float_student"].psnr_db == HIGHEST_DB
        assert first[name].against["teacher"].psnr_db < 40
        assert max(first[name].against["teacher"].colour_shift) > 0, "brighter than the teacher"
        assert swapped[name].against["float_student"].largest_shift > 1
        assert (tmp_path / "pictures" / name / "file.png").is_file()


def test_a_file_that_computes_nan_on_one_sample_is_named(pair_task: SuperResolution, tmp_path: Path) -> None:
    calls = iter(range(10_000))

    def late(made: Array) -> Array:
        return made if next(calls) < 12 else np.full_like(made, np.nan)

    second = pair_task.held_out()[1].name
    with (
        References(pair_task, companion(Enlarging()), companion(Enlarging()), tmp_path) as references,
        pytest.raises(ParityError, match=f"held-out sample '{second}': the file returned NaN"),
    ):
        score_file(pair_task, runner(late), (1, 3, 16, 16), references, None, "file")
