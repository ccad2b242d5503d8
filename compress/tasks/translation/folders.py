"""Folders of a user's own pictures for translation.

Aligned pairs are one of two: a folder with the sub-folders `A` (inputs) and `B` (targets) and the same names in both, whatever the suffix; or
pictures that show input and target side by side, input on the left, as pix2pix keeps them. Unpaired data are `A` and `B` without relation.

Pictures are 8-bit RGB. An input may be grey, as drawings and masks often are saved: it is read as RGB with three equal channels, and that is noted. A
grey target is refused, for a generator would learn to answer in grey. Transparency is refused: transparent pixels have no colour. What cannot be read
or is too small is left out and noted, with its partner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mcompress.compress.tasks.photographs import SUFFIXES, UNREADABLE, Photo, PhotoSet, as_rgb, first_reasons, why_unreadable
from mcompress.compress.tasks.translation.pairs import Pair
from mcompress.errors import PlanError, Problems

SMALLEST_SIDE = 32
MOST_PROBLEMS = 50
"""Problems that one message lists; of further ones it says how many there are."""
INPUTS, TARGETS = "A", "B"


@dataclass(frozen=True)
class PairSet:
    """Pairs, and what was left out or converted (`name: why`)."""

    pairs: tuple[Pair, ...]
    skipped: tuple[str, ...]


@dataclass
class _Reading:
    """What reading the folder that target-file field `place` names has shown."""

    place: str
    folder: Path
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    grey: list[str] = field(default_factory=list)

    def picture(self, path: Path, *, grey_allowed: bool) -> Tensor | None:
        """uint8 (3, H, W); None for a picture that is refused or cannot be read."""
        name = path.relative_to(self.folder).as_posix()
        try:
            with Image.open(path) as image:
                mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
                if mode not in ("RGB", "P", "1", "L") or (mode in ("1", "L") and not grey_allowed):
                    self.problems.append(f"{self.place}: '{name}' {_refusal(mode)}")
                    return None
                array = as_rgb(image)
        except UNREADABLE as error:
            self.skipped.append(f"{name}: {why_unreadable(path, error)}")
            return None
        if mode in ("1", "L"):
            self.grey.append(name)
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()

    def large_enough(self, name: str, picture: Tensor) -> bool:
        """Whether both sides are at least `SMALLEST_SIDE`; else it is noted."""
        if min(picture.shape[1:]) < SMALLEST_SIDE:
            self.skipped.append(f"{name}: {_size(picture)} pixels, at least {SMALLEST_SIDE} are needed on each side")
            return False
        return True

    def finish(self, usable: int, wanted: str) -> tuple[str, ...]:
        """What was left out or converted. Raises `PlanError` for problems, or if nothing is usable."""
        if self.problems:
            more = len(self.problems) - MOST_PROBLEMS
            raise PlanError(self.problems[:MOST_PROBLEMS] + ([f"{self.place}: and {more} more problems like these"] if more > 0 else []))
        if not usable:
            raise PlanError([f"{self.place}: folder '{self.folder}' holds no usable {wanted} ({_needed()}){first_reasons(self.skipped)}"])
        grey = [f"{self.grey[0]}: grey, as {len(self.grey)} inputs are in all; read as RGB with three equal channels"] if self.grey else []
        return (*self.skipped, *grey)


def aligned(folder: Path, place: str) -> PairSet:
    """The pairs of a folder that the target file names in `place`. Raises `PlanError`, which lists every problem, or if no pair is left."""
    reading = _Reading(place, _existing(folder, place))
    found = _two_folders(reading) if _has_two_folders(reading) else _side_by_side(reading)
    pairs = tuple(pair for pair in found if reading.large_enough(pair.name, pair.input))
    return PairSet(pairs, reading.finish(len(pairs), "pair"))


def inputs(folder: Path, place: str) -> PhotoSet:
    """Every picture below a folder, as inputs. Raises `PlanError`."""
    return _pictures(_Reading(place, _existing(folder, place)), folder, "input", grey_allowed=True)


def unlabelled(folder: Path | None, place: str) -> PhotoSet:
    """The same of a folder that need not be given."""
    return PhotoSet(()) if folder is None else inputs(folder, place)


def two_domains(folder: Path, place: str) -> tuple[PhotoSet, PhotoSet]:
    """The pictures in `A`, and those in `B`, which need not have to do with each other. Raises `PlanError`."""
    reading = _Reading(place, _existing(folder, place))
    if not _has_two_folders(reading):
        raise PlanError([f"{place}: unpaired data need the folders '{folder}/{INPUTS}' (inputs) and '{folder}/{TARGETS}' (targets); make them"])
    problems = Problems()
    ones = problems.of(lambda: _pictures(_Reading(place, folder), folder / INPUTS, "input", grey_allowed=True))
    others = problems.of(lambda: _pictures(_Reading(place, folder), folder / TARGETS, "target", grey_allowed=False))
    if ones is None or others is None:
        raise PlanError(problems.found)
    return ones, others


def held_out_inputs(folder: Path, place: str) -> PhotoSet:
    """The inputs to judge unpaired results on: the pictures in `A` if there is one, else all below the folder. Raises `PlanError`."""
    return inputs(folder / INPUTS if (folder / INPUTS).is_dir() else folder, place)


def _existing(folder: Path, place: str) -> Path:
    if not folder.is_dir():
        raise PlanError([f"{place}: data folder '{folder}' does not exist; give a folder that holds {', '.join(SUFFIXES)} files"])
    return folder


def _has_two_folders(reading: _Reading) -> bool:
    there = [(reading.folder / name).is_dir() for name in (INPUTS, TARGETS)]
    if there[0] != there[1]:
        missing = reading.folder / (TARGETS if there[0] else INPUTS)
        raise PlanError([f"{reading.place}: '{missing}' does not exist; inputs are in {INPUTS} and targets in {TARGETS}, and both are needed"])
    return all(there)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().replace("/", "_")  # one level, because pictures of it are filed under its name


def _by_name(reading: _Reading, folder: Path, *, with_suffix: bool = True) -> dict[str, Path]:
    """The pictures below a folder by their name, which only one may have."""
    named: dict[str, Path] = {}
    for path in _files(folder):
        name = _name(path if with_suffix else path.with_suffix(""), folder)
        if name in named:
            both = f"'{_shown(named[name], reading)}' and '{_shown(path, reading)}'"
            reading.problems.append(f"{reading.place}: {both} have one name, '{name}', and results are filed by name; rename or remove one")
        named.setdefault(name, path)
    return named


def _two_folders(reading: _Reading) -> Iterator[Pair]:
    ones, others = (_by_name(reading, reading.folder / side, with_suffix=False) for side in (INPUTS, TARGETS))
    for name in sorted(ones.keys() ^ others.keys()):
        path, lacks = (ones[name], TARGETS) if name in ones else (others[name], INPUTS)
        alone = f"'{_shown(path, reading)}' has no partner in {lacks}"
        reading.problems.append(f"{reading.place}: {alone}; each name must be in both, so add a picture '{name}' to {lacks} or remove this one")
    for name in sorted(ones.keys() & others.keys()):
        one = reading.picture(ones[name], grey_allowed=True)
        other = reading.picture(others[name], grey_allowed=False)
        if one is None or other is None:
            continue
        if one.shape != other.shape:
            sizes = f"'{_shown(ones[name], reading)}' has {_size(one)} pixels and '{_shown(others[name], reading)}' {_size(other)}"
            reading.problems.append(f"{reading.place}: {sizes}; both of a pair must have the same size, so resize or crop one of them")
            continue
        yield Pair(name, one, other)


def _side_by_side(reading: _Reading) -> Iterator[Pair]:
    for name, path in _by_name(reading, reading.folder).items():
        both = reading.picture(path, grey_allowed=False)
        if both is None:
            continue
        half, rest = divmod(both.shape[2], 2)
        if rest:
            odd = f"'{_shown(path, reading)}' is {both.shape[2]} pixels wide"
            what = f"it must show input and target side by side in equal halves, so cut it, or put inputs in {INPUTS} and targets in {TARGETS}"
            reading.problems.append(f"{reading.place}: {odd}; {what}")
            continue
        yield Pair(name, both[:, :, :half].contiguous(), both[:, :, half:].contiguous())


def _pictures(reading: _Reading, folder: Path, wanted: str, *, grey_allowed: bool) -> PhotoSet:
    read = ((name, reading.picture(path, grey_allowed=grey_allowed)) for name, path in _by_name(reading, folder).items())
    photos = tuple(Photo(name, picture) for name, picture in read if picture is not None and reading.large_enough(name, picture))
    return PhotoSet(photos, reading.finish(len(photos), wanted))


def _shown(path: Path, reading: _Reading) -> str:
    return path.relative_to(reading.folder).as_posix()


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]}"


def _needed() -> str:
    return f"{', '.join(SUFFIXES)}, at least {SMALLEST_SIDE} pixels a side"


def _refusal(mode: str) -> str:
    if mode in ("1", "L"):
        return f"is grey, and targets must be in colour (inputs in {INPUTS} may be grey); save it as 8-bit RGB if its colours are right"
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in mode:
        return f"is {mode}, and transparent pixels have no colour; put it on a background and save it as 8-bit RGB"
    return f"is {mode}; pictures must be 8-bit RGB, so save it as that"
