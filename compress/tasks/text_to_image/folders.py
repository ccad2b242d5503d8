"""Folders of a user's own pictures with captions, in one of two forms.

Either the folder holds `metadata.jsonl`, a JSON object a line with `file_name` and `text`, as Hugging Face's imagefolder reads it; or each picture
has its caption beside it, in a .txt of its name. A picture is turned as its EXIF says, cut to the shape that the original draws, around its middle,
and resized to that size. What cannot be read is left out and noted; what is missing or stands there twice is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcompress.compress.tasks.photographs import SUFFIXES, UNREADABLE, first_reasons, read_photo, why_unreadable
from mcompress.compress.tasks.text_to_image.caption_files import FILE_NAME, METADATA, TEXT, Reading, of_metadata, of_text_files
from mcompress.compress.tasks.text_to_image.original import AT_ONCE
from mcompress.errors import PlanError

FORMS = f"pictures ({', '.join(SUFFIXES)}), each with its caption in a .txt of its name, or {METADATA} with {FILE_NAME} and {TEXT}"
FEWEST = {"data.training": 2, "data.held_out": 1}
"""One of the training pictures is for validation."""
MOST_JUDGED = 90
"""Held-out captions that are drawn and judged, as many as the embedded data have: the original draws each of them in all its steps."""


@dataclass(frozen=True)
class FolderPictures:
    """Pictures in files with their captions, each read when it is needed: a `Captioned`."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    size: tuple[int, int]
    """Height and width to which all are brought, pixels."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files, the captions and the size."""
        sha = sha256(json.dumps([self.captions, self.size]).encode())
        for path in self.files:
            with path.open("rb") as file:
                sha.update(file_digest(file, "sha256").digest())
        return sha.hexdigest()

    def pictures(self) -> Iterator[Tensor]:
        """(N, 3, H, W) in [-1, 1]. Raises `PlanError` for a file that can no longer be read."""
        for first in range(0, len(self.files), AT_ONCE):
            yield torch.stack([self._picture(path) for path in self.files[first : first + AT_ONCE]])

    def _picture(self, path: Path) -> Tensor:
        try:
            pixels = read_photo(path)
        except UNREADABLE as error:
            raise PlanError([f"picture '{path}' {why_unreadable(path, error)}, and it could be before; restore it and run again"]) from error
        height, width = self.size
        scale = min(pixels.shape[1] / height, pixels.shape[2] / width)
        cut = _middle(pixels, [max(1, round(height * scale)), max(1, round(width * scale))])
        fitted = Image.fromarray(cut.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


@dataclass(frozen=True)
class CaptionedFolder:
    """What a folder holds, and what was left out or converted (`name: what and why`)."""

    pictures: FolderPictures
    notes: tuple[str, ...]


def _middle(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (3, h, w) of a picture (3, H, W)."""
    top, left = ((whole - part) // 2 for whole, part in zip(pixels.shape[1:], size, strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def captioned_folder(folder: Path, place: str, size: tuple[int, int]) -> CaptionedFolder:
    """The pictures of the folder that the target-file field `place` names, brought to `size` (height, width). Raises `PlanError`.

    What was read is kept until a file changes, because the tasks of all three networks ask for it.
    """
    if not folder.is_dir():
        raise PlanError([f"{place}: data folder '{folder}' does not exist; give a folder that holds {FORMS}"])
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return _read(folder, place, size, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found))


@lru_cache(maxsize=2)
def _read(folder: Path, place: str, size: tuple[int, int], state: tuple[tuple[Path, int, int], ...]) -> CaptionedFolder:
    reading, there = Reading(place, folder), [path for path, _, _ in state]
    told = of_metadata(reading, there) if folder / METADATA in there else of_text_files(reading, there)
    reading.checked()
    shapes = {path: shape for path in told if (shape := _shape(reading, path)) is not None}
    small = [reading.name(path) for path, shape in shapes.items() if shape[0] < size[0] or shape[1] < size[1]]
    if small:
        seen = next(shape for path, shape in shapes.items() if reading.name(path) == small[0])
        many = f", as {len(small)} pictures are in all" if len(small) > 1 else ""
        reading.notes.append(f"{small[0]}: {seen[1]}x{seen[0]} pixels, enlarged to the {size[1]}x{size[0]} that the original draws{many}")
    fewest = FEWEST.get(place, 1)
    if len(shapes) < fewest:
        count = "no usable picture" if not shapes else f"{len(shapes)} usable picture"
        raise PlanError([f"{place}: folder '{folder}' holds {count}; at least {fewest} are needed: {FORMS}{first_reasons(reading.notes)}"])
    kept = _judged(reading, list(shapes)) if place == "data.held_out" else list(shapes)
    empty = [reading.name(path) for path in kept if not told[path]]
    if len(empty) == len(kept):
        raise PlanError([f"{place}: all {len(kept)} captions in '{folder}' are empty, and pictures follow from captions; say what the pictures show"])
    if empty:
        many = f", as {len(empty)} captions are in all" if len(empty) > 1 else ""
        reading.notes.append(f"{empty[0]}: its caption is empty{many}; it stands for what is drawn without one, which guidance needs")
    return CaptionedFolder(FolderPictures(tuple(kept), tuple(told[path] for path in kept), size), tuple(f"{place}: {note}" for note in reading.notes))


def _judged(reading: Reading, files: list[Path]) -> list[Path]:
    """At most `MOST_JUDGED`, spread evenly."""
    if len(files) <= MOST_JUDGED:
        return files
    reading.notes.append(f"{reading.folder.name}: of {len(files)} captions {MOST_JUDGED} are drawn and judged, spread evenly; more take too long")
    return [files[index * len(files) // MOST_JUDGED] for index in range(MOST_JUDGED)]


def _shape(reading: Reading, path: Path) -> tuple[int, int] | None:
    """Height and width of a picture; None, with a note, for one that is left out."""
    try:
        with Image.open(path) as image:
            see_through = image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
        if see_through:
            reading.notes.append(f"{reading.name(path)}: left out, for transparent pixels have no colour; put it on a background and save it as RGB")
            return None
        _, height, width = read_photo(path).shape
    except UNREADABLE as error:
        reading.notes.append(f"{reading.name(path)}: {why_unreadable(path, error)}; left out")
        return None
    return height, width
