"""Folders of a user's own pictures with captions, in one of two forms.

Either the folder holds `metadata.jsonl`, a JSON object a line with `file_name` and `text`, as Hugging Face's imagefolder reads it; or each picture has
its caption beside it, in a .txt of its name. A picture is turned as its EXIF says, cut to the shape that the original draws, around its middle, and
resized to that size. What cannot be read is left out and noted; what is missing or stands there twice is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mcompress.compress.tasks.photographs import SUFFIXES, UNREADABLE, first_reasons, read_photo, why_unreadable
from mcompress.compress.tasks.text_to_image.original import AT_ONCE
from mcompress.errors import PlanError

METADATA, FILE_NAME, TEXT = "metadata.jsonl", "file_name", "text"
FORMS = f"pictures ({', '.join(SUFFIXES)}), each with its caption in a .txt of its name, or {METADATA} with {FILE_NAME} and {TEXT}"
FEWEST = {"data.training": 2, "data.held_out": 1}
"""One of the training pictures is for validation."""
MOST_JUDGED = 90
"""Held-out captions that are drawn and judged, as many as the embedded data have: the original draws each of them in all its steps."""
LONGEST_SHOWN = 60
"""Letters of a caption in a message."""
MOST_PROBLEMS = 50
"""Problems that one message lists; of further ones it says how many there are."""


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
        fitted = ImageOps.fit(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


@dataclass(frozen=True)
class CaptionedFolder:
    """What a folder holds, and what was left out or converted (`name: what and why`)."""

    pictures: FolderPictures
    notes: tuple[str, ...]


@dataclass
class _Reading:
    """What reading the folder that target-file field `place` names has shown."""

    place: str
    folder: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, what: str) -> None:
        self.problems.append(f"{self.place}: {what}")

    def checked(self) -> None:
        """Raises `PlanError` for what was found so far."""
        if self.problems:
            raise PlanError(limited(self.problems, self.place))

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


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
    reading, there = _Reading(place, folder), [path for path, _, _ in state]
    told = _of_metadata(reading, there) if folder / METADATA in there else _of_text_files(reading, there)
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


def _judged(reading: _Reading, files: list[Path]) -> list[Path]:
    """At most `MOST_JUDGED`, spread evenly."""
    if len(files) <= MOST_JUDGED:
        return files
    reading.notes.append(f"{reading.folder.name}: of {len(files)} captions {MOST_JUDGED} are drawn and judged, spread evenly; more take too long")
    return [files[index * len(files) // MOST_JUDGED] for index in range(MOST_JUDGED)]


def _shape(reading: _Reading, path: Path) -> tuple[int, int] | None:
    """Height and width of a picture; None, with a note, for one that is left out."""
    try:
        with Image.open(path) as image:
            see_through = image.has_transparency_data and image.convert("RGBA").getextrema()[3] != (255, 255)
        if see_through:
            reading.notes.append(f"{reading.name(path)}: left out, for transparent pixels have no colour; put it on a background and save it as RGB")
            return None
        _, height, width = read_photo(path).shape
    except UNREADABLE as error:
        reading.notes.append(f"{reading.name(path)}: {why_unreadable(path, error)}; left out")
        return None
    return height, width


def _of_text_files(reading: _Reading, there: Sequence[Path]) -> dict[Path, str]:
    """Caption of each picture."""
    if any(path.name in ("metadata.csv", "metadata.parquet") for path in there):
        reading.problem(
            f"'{reading.folder}' describes its pictures in another form; save it as {METADATA}, a JSON object with {FILE_NAME} and {TEXT} a line"
        )
        return {}
    beside: dict[Path, Path] = {}
    told: dict[Path, str] = {}
    for path in (path for path in there if path.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        if text in beside:
            both = f"'{reading.name(beside[text])}' and '{reading.name(path)}'"
            reading.problem(f"{both} have one name, and the caption '{reading.name(text)}' would be that of both; rename or remove one")
        elif text not in there:
            hint = "an empty one stands for no caption"
            reading.problem(f"'{reading.name(path)}' has no caption; write it into '{reading.name(text)}' ({hint}), or remove the picture")
        else:
            told[path] = _text_of(reading, text)
        beside.setdefault(text, path)
    alone = [reading.name(path) for path in there if path.suffix == ".txt" and path not in beside]
    if alone:
        reading.notes.append(f"{alone[0]}: no picture has its name, so it is left out{_many(alone)}")
    return told


def _text_of(reading: _Reading, path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        reading.problem(f"caption '{reading.name(path)}' cannot be read as UTF-8 ({error}); save it as that")
        return ""


def _of_metadata(reading: _Reading, there: Sequence[Path]) -> dict[Path, str]:
    """Caption of each picture that the file names."""
    told: dict[Path, str] = {}
    lines: dict[Path, int] = {}
    try:
        text = (reading.folder / METADATA).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reading.problem(f"'{METADATA}' cannot be read as UTF-8 ({error}); save it as that")
        return told
    for number, line in enumerate(text.split("\n"), 1):
        entry = _entry(reading, line, f"{METADATA}:{number}") if line.strip() else None
        if entry is None:
            continue
        path, caption = reading.folder / entry[0], entry[1]
        if path in lines:
            reading.problem(f"{METADATA}:{number} names '{entry[0]}', as line {lines[path]} does; keep one of them")
        elif path not in there:
            reading.problem(f"{METADATA}:{number}: there is no file '{entry[0]}' in the folder; add it, or remove the line")
        else:
            told[path] = caption
        lines.setdefault(path, number)
    unnamed = [reading.name(path) for path in there if path.suffix.lower() in SUFFIXES and path not in lines]
    if unnamed and not reading.problems:
        reading.notes.append(f"{unnamed[0]}: {METADATA} does not name it, so it is left out{_many(unnamed)}")
    return told


def _entry(reading: _Reading, line: str, where: str) -> tuple[str, str] | None:
    """File name and caption of a line; None, with a problem, for any other line."""
    try:
        found: object = json.loads(line)
    except ValueError as error:
        reading.problem(f"{where} cannot be read as JSON ({error}); each line must be an object, for example {_example()}")
        return None
    name, text = (found.get(key) for key in (FILE_NAME, TEXT)) if isinstance(found, Mapping) else (None, None)
    if not isinstance(found, Mapping) or not isinstance(name, str) or not isinstance(text, str):
        seen = f"has {', '.join(map(repr, found)) or 'nothing'}" if isinstance(found, Mapping) else f"is a {type(found).__name__}"
        reading.problem(f"{where} {seen}; it must have {FILE_NAME} and {TEXT}, both text, for example {_example()}")
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        reading.problem(f"{where} names '{name}', outside of the folder; pictures must be in it, with names relative to it")
        return None
    return name, " ".join(text.split())


def _example() -> str:
    return json.dumps({FILE_NAME: "0001.png", TEXT: "a red car"})


def _many(names: Sequence[str]) -> str:
    return f", as {len(names)} files are in all" if len(names) > 1 else ""


def limited(problems: Sequence[str], place: str) -> list[str]:
    """The first `MOST_PROBLEMS`, and how many more there are."""
    more = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([f"{place}: and {more} more problems like these"] if more > 0 else [])]


def shortened(text: str) -> str:
    """The text as a message shows it."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
