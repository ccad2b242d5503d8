"""Held-out pictures for the report: what is shown whole, what is zoomed, and as which bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MOST_PHOTOS = 6
WIDEST = 1000  # pixels; what a page column shows
DETAIL = 96  # side of the zoomed region at full size, pixels: twelve 8x8 blocks, about a fingernail on a phone
STRIDE = 8
WEBP_QUALITY = 86

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Detail:
    """One variant of a zoomed region, as a data URI of its own pixels; `zoom` is how much larger than others a pixel is shown."""

    variant: str
    uri: str


@dataclass(frozen=True)
class Photograph:
    """One held-out photograph: two whole pictures to compare, and the same region of every variant."""

    name: str
    width: int
    height: int
    left: str | None
    left_uri: str
    right: str
    right_uri: str
    reduced: bool
    """True if the whole pictures are shown smaller than they are."""
    details: tuple[Detail, ...]
    box: tuple[float, float, float, float]
    """The zoomed region: left, top, width, height in percent of the whole picture."""
    missing: tuple[str, ...]


def photographs(samples: Path, baseline: str) -> tuple[tuple[Photograph, ...], int]:
    """The pictures of `samples/<photo>/<variant>.png`, at most `MOST_PHOTOS`, and how many photographs there are.

    `baseline` is the variant that costs nothing, for example `bicubic`.
    """
    shown = [made for made in (_photograph(folder, baseline) for folder in sample_folders(samples)) if made is not None]
    return tuple(shown[:MOST_PHOTOS]), len(shown)


def sample_folders(samples: Path) -> list[Path]:
    """One per held-out sample, sorted by name; none where there is no such folder."""
    return sorted(path for path in samples.iterdir() if path.is_dir()) if samples.is_dir() else []


def _photograph(folder: Path, baseline: str) -> Photograph | None:
    variants = ("input", baseline, "teacher", "student", "compressed", "truth")
    found = {variant: pixels for variant in variants if (pixels := read_picture(folder / f"{variant}.png")) is not None}
    whole = {variant: pixels for variant, pixels in found.items() if variant != "input"}
    if not whole:
        return None
    right = next(v for v in ("compressed", "student", "teacher", baseline, "truth") if v in whole)
    left = next((v for v in (baseline, "teacher", "truth") if v in whole and v != right), None)
    height, width = whole[right].shape[:2]
    same = {variant: pixels for variant, pixels in whole.items() if pixels.shape == whole[right].shape}
    top, start, side = detail_region(same.get("truth", whole[right]), same.get(baseline))
    return Photograph(
        name=folder.name,
        width=width,
        height=height,
        left=left,
        left_uri=photo_uri(whole[left]) if left else "",
        right=right,
        right_uri=photo_uri(whole[right]),
        reduced=width > WIDEST,
        details=tuple(
            Detail(v, detail_uri(found[v], (top, start, side), (height, width))) for v in variants if v in found and (v == "input" or v in same)
        ),
        box=box_of((top, start, side), (height, width)),
        missing=tuple(v for v in variants if v not in found),
    )


@dataclass(frozen=True)
class WorstPlace:
    """Where a picture of the compressed network is least like the teacher's: the same square of each, as data URIs of their own pixels."""

    name: str
    side: int
    details: tuple[Detail, ...]


def worst_place(samples: Path, name: str) -> WorstPlace | None:
    """In the pictures of `samples/<name>/`; None where one of the two is missing or has another size."""
    found = {
        variant: pixels for variant in ("truth", "teacher", "compressed") if (pixels := read_picture(samples / name / f"{variant}.png")) is not None
    }
    if "teacher" not in found or "compressed" not in found or found["teacher"].shape != found["compressed"].shape:
        return None
    region = detail_region(found["teacher"], found["compressed"])
    shape = found["teacher"].shape
    details = tuple(Detail(variant, detail_uri(pixels, region, shape[:2])) for variant, pixels in found.items() if pixels.shape == shape)
    return WorstPlace(name, region[2], details)


def read_picture(path: Path) -> Pixels | None:
    """RGB, uint8 (H, W, 3); None for a file that is missing or no picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError):
        return None


def detail_region(truth: Pixels, trivial: Pixels | None, side: int = DETAIL) -> tuple[int, int, int]:
    """(top, left, side) of the square where a trivial enlargement loses most, or where the picture changes most if there is none.

    It looks at no compressed picture, so it cannot favour one. `truth` and `trivial` are uint8 (H, W, 3) of one shape.
    """
    height, width = truth.shape[:2]
    side = min(side, height, width)
    luma = truth.astype(np.float64).mean(axis=2)
    if trivial is not None:
        energy = (luma - trivial.astype(np.float64).mean(axis=2)) ** 2
    else:
        energy = np.zeros_like(luma)
        energy[:, 1:] += np.diff(luma, axis=1) ** 2
        energy[1:, :] += np.diff(luma, axis=0) ** 2
    # The root keeps one hard edge from winning over a region that is full of detail.
    summed = np.pad(np.sqrt(energy).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = np.arange(0, height - side + 1, STRIDE), np.arange(0, width - side + 1, STRIDE)
    boxes = (
        summed[np.ix_(tops + side, lefts + side)]
        - summed[np.ix_(tops, lefts + side)]
        - summed[np.ix_(tops + side, lefts)]
        + summed[np.ix_(tops, lefts)]
    )
    row, column = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(tops[row]), int(lefts[column]), side


def box_of(region: tuple[int, int, int], full: tuple[int, int]) -> tuple[float, float, float, float]:
    """A region (top, left, side) as the page frames it: left, top, width, height in percent of a picture of the size `full` (H, W)."""
    (top, left, side), (height, width) = region, full
    return 100 * left / width, 100 * top / height, 100 * side / width, 100 * side / height


def detail_uri(pixels: Pixels, region: tuple[int, int, int], full: tuple[int, int]) -> str:
    """The pixels of a region (top, left, side), which is given for pictures of the size `full` (H, W), as a data URI."""
    top, left, side = region
    ratio = pixels.shape[0] / full[0]
    low = (round(top * ratio), round(left * ratio), max(1, round(side * ratio)))
    return _uri(Image.fromarray(pixels[low[0] : low[0] + low[2], low[1] : low[1] + low[2]]), "png")


def photo_uri(pixels: Pixels, widest: int = WIDEST) -> str:
    """A whole picture as a data URI, made smaller where it has more than `widest` columns."""
    image = Image.fromarray(pixels)
    if image.width > widest:
        image = image.resize((widest, max(1, round(image.height * widest / image.width))), Image.Resampling.LANCZOS)
    return _uri(image, "webp")


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "webp":
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def scores(name: str, per_model: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """variant -> metric -> value of one photograph, from model -> sample -> metric -> value."""
    return {variant: dict(samples[name]) for variant, samples in per_model.items() if name in samples}
