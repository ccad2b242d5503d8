"""Folders of numbered pictures as clips of 25 frames a second."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcompress.compress.tasks.photographs import SUFFIXES, UNREADABLE, as_rgb, why_unreadable
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND, Frames, check_length, check_size, stack
from mcompress.errors import PlanError


def folder_frames(folder: Path, place: str) -> Frames:
    """The pictures of a folder in the order of their numbers (2 before 10), at 25 a second, which is what a folder cannot say otherwise.

    Raises `PlanError` if there are none, if their names do not tell the order, or if one cannot be read or has another size: a frame that is left out
    would move all later ones against the sound.
    """
    paths = _in_order(folder, place)
    notes = [*_missing(folder, paths)]
    pictures: list[NDArray[np.uint8]] = []
    grey = []
    for path in paths:
        shown = f"{place}: frame '{path.name}' of '{folder.name}'"
        picture, is_grey = _picture(path, shown)
        height, width = picture.shape[:2]
        if not pictures:
            check_size(width, height, shown)
            check_length(len(paths), width, height, f"{place}: '{folder.name}'")
        elif picture.shape != pictures[0].shape:
            first = "x".join(str(side) for side in pictures[0].shape[1::-1])
            raise PlanError(
                [f"{shown} is {width}x{height} pixels and '{paths[0].name}' {first}; frames must have one size, so scale or crop them alike"]
            )
        pictures.append(picture)
        grey += [path.name] if is_grey else []
    if grey:
        notes.append(f"{folder.name}: '{grey[0]}' is grey, as {len(grey)} of {len(paths)} frames are; read as RGB with three equal channels")
    return Frames(stack(pictures), float(FRAMES_PER_SECOND), tuple(notes))


def _in_order(folder: Path, place: str) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise PlanError([f"{place}: folder '{folder}' holds no frame; it must hold pictures ({', '.join(SUFFIXES)}) named by number, as 0001.png"])
    numbers: dict[tuple[int, ...], Path] = {}
    first, *_ = found = sorted(found)
    for path in found:
        if _words(path) != _words(first) or not _numbers(path):
            other = "has no number" if not _numbers(path) else f"is not named like '{first.name}'"
            raise PlanError(
                [f"{place}: '{path.name}' of '{folder.name}' {other}; frames must be named alike and by number, as 0001.png, so rename or remove it"]
            )
        if _numbers(path) in numbers:
            both = f"'{numbers[_numbers(path)].name}' and '{path.name}'"
            raise PlanError([f"{place}: {both} of '{folder.name}' have one number; remove one of them"])
        numbers[_numbers(path)] = path
    return [numbers[number] for number in sorted(numbers)]


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall("[0-9]+", path.stem))


def _words(path: Path) -> list[str]:
    return re.split("[0-9]+", path.stem)


def _missing(folder: Path, paths: list[Path]) -> list[str]:
    """A note if a number is missing, where one number counts the frames."""
    counting = [column for column in zip(*map(_numbers, paths), strict=True) if len(set(column)) > 1]
    if len(counting) != 1:
        return []
    gaps = [before + 1 for before, after in zip(counting[0], counting[0][1:], strict=False) if after > before + 1]
    if not gaps:
        return []
    count = counting[0][-1] - counting[0][0] + 1 - len(paths)
    return [f"{folder.name}: {count} numbers are missing (the first is {gaps[0]}); frames are taken to follow each other all the same"]


def _picture(path: Path, shown: str) -> tuple[NDArray[np.uint8], bool]:
    """Pixels (H, W, 3), and whether they are grey."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode == "F" or mode.startswith("I"):
                raise PlanError([f"{shown} is {mode}, more than 8 bits; save it as 8-bit RGB"])
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise PlanError([f"{shown} is transparent in places, which have no colour; put it on a background and save it as 8-bit RGB"])
            return as_rgb(image), mode in ("1", "L", "LA")
    except UNREADABLE as error:
        raise PlanError([f"{shown} {why_unreadable(path, error)}; restore it, or remove it and those after it"]) from error
