"""Held-out pictures of a network whose output is as large as its input: input, target and what each network makes of it, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mcompress.record import Run
from mcompress.reports import wording
from mcompress.reports.pictures import MOST_PHOTOS, box_of, detail_region, detail_uri, photo_uri, read_picture, sample_folders

DETAIL = 64  # side of the square that is shown magnified, pixels
WIDEST = 512  # pixels; twice what a column of six shows, for dense screens
NETWORKS = ("teacher", "student", "distilled", "compressed")


@dataclass(frozen=True)
class StripPicture:
    """One picture of a strip: what it is, itself, and its square, both as data URIs."""

    variant: str
    title: str
    note: str
    uri: str
    detail_uri: str


@dataclass(frozen=True)
class Strip:
    """One held-out sample."""

    name: str
    width: int
    height: int
    pictures: tuple[StripPicture, ...]
    box: tuple[float, float, float, float]
    """The magnified square: left, top, width, height in percent of the whole picture."""
    missing: tuple[str, ...]


def strips(samples: Path, run: Run) -> tuple[tuple[Strip, ...], int]:
    """The pictures of `samples/<sample>/<variant>.png`, at most `MOST_PHOTOS`, and how many samples there are."""
    titles = _titles(run)
    shown = [made for made in (_strip(folder, titles) for folder in sample_folders(samples)) if made is not None]
    return tuple(shown[:MOST_PHOTOS]), len(shown)


def _titles(run: Run) -> dict[str, tuple[str, str]]:
    """Variant -> (title, note), in the order in which they are shown.

    Without pairs there is no target: the truth is what the teacher makes of the input, which is shown already.
    """
    truth = wording.truth_title(run)
    searched = any(stage.name == "search" for stage in run.stages)
    notes = {"student": "as the search left it" if searched else "as it started", "distilled": "trained, in float"}
    networks = [name for name in NETWORKS if name in run.models]
    if "distilled" in networks and "student" in networks and run.models["distilled"].spec == run.models["student"].spec and _same_quality(run):
        networks.remove("distilled")  # nothing was trained after the student was made
        notes["student"] = "in float"
    return {"input": ("input", ""), **({"truth": (truth, "")} if truth else {}), **{name: (name, notes.get(name, "")) for name in networks}}


def _same_quality(run: Run) -> bool:
    return run.models["distilled"].quality_per_sample == run.models["student"].quality_per_sample


def _strip(folder: Path, titles: Mapping[str, tuple[str, str]]) -> Strip | None:
    found = {variant: pixels for variant in titles if (pixels := read_picture(folder / f"{variant}.png")) is not None}
    if not found:
        return None
    height, width = next(iter(found.values())).shape[:2]
    same = {variant: pixels for variant, pixels in found.items() if pixels.shape[:2] == (height, width)}
    region = detail_region(same.get("truth", same.get("teacher", next(iter(same.values())))), None, DETAIL)
    pictures = (StripPicture(v, *titles[v], photo_uri(p, WIDEST), detail_uri(p, region, (height, width))) for v, p in same.items())
    return Strip(
        name=folder.name,
        width=width,
        height=height,
        pictures=tuple(pictures),
        box=box_of(region, (height, width)),
        missing=tuple(titles[variant][0] for variant in titles if variant not in same),
    )
