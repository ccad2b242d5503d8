"""Captions of a user's own pictures as files say them: `metadata.jsonl`, or a .txt beside each picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcompress.compress.tasks.photographs import SUFFIXES
from mcompress.errors import PlanError

METADATA, FILE_NAME, TEXT = "metadata.jsonl", "file_name", "text"
LONGEST_SHOWN = 60
"""Letters of a caption in a message."""
MOST_PROBLEMS = 50
"""Problems that one message lists; of further ones it says how many there are."""


@dataclass
class Reading:
    """What reading the folder that target-file field `place` names has shown."""

    place: str
    folder: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, what: str) -> None:
        """Note what is wrong."""
        self.problems.append(f"{self.place}: {what}")

    def checked(self) -> None:
        """Raises `PlanError` for what was found so far."""
        if self.problems:
            raise PlanError(limited(self.problems, self.place))

    def name(self, path: Path) -> str:
        """Of a file, as messages show it."""
        return path.relative_to(self.folder).as_posix()


def of_text_files(reading: Reading, there: Sequence[Path]) -> dict[Path, str]:
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


def _text_of(reading: Reading, path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        reading.problem(f"caption '{reading.name(path)}' cannot be read as UTF-8 ({error}); save it as that")
        return ""


def of_metadata(reading: Reading, there: Sequence[Path]) -> dict[Path, str]:
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


def _entry(reading: Reading, line: str, where: str) -> tuple[str, str] | None:
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
