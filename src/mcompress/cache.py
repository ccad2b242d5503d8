"""The content-addressed cache of everything that a run computes.

An entry is a folder named by its key, the SHA-256 of whatever determines its content. It is written to a temporary sibling and renamed whole, so
an entry either exists completely or not at all. `entry.json` holds the digest of every file; an entry whose files do not match is removed, said,
and computed again. Long work keeps its state in `<key>.work` and resumes from it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError

from mcompress.errors import DiskFullError, UsageError

logger = logging.getLogger(__name__)
ENTRY_FILE = "entry.json"
POLL_S = 0.2  # how often a process that waits for another one looks again


def json_digest(parts: JsonValue) -> str:
    """SHA-256 of canonical JSON; what names a cache entry."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder, whether it was there before, how long computing it took, and the notes of a rebuild.

    `seconds` is the time of the process that finished it; `continued` says that an earlier process, whose time is not in it, had begun.
    """

    folder: Path
    cached: bool
    seconds: float
    continued: bool = False
    rebuilt_because: str | None = None


class _EntryFile(BaseModel):
    """What `entry.json` holds: the parts of the key, how computing it went, and file name -> SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    parts: dict[str, JsonValue]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    continued: bool = False
    files: dict[str, str]


class Cache:
    """Entries under one folder. `note` is told when a process waits for another one that computes the same entry; left out, the log is."""

    def __init__(self, root: Path, *, note: Callable[[str], None] = logger.info) -> None:
        self.root = root
        self._note = note
        self.used: list[Path] = []
        """Folders of the entries that `get` gave, in order."""

    def has(self, parts: dict[str, JsonValue]) -> bool:
        """Whether an entry for these parts exists; its content is checked when it is used."""
        return (self.root / json_digest(parts) / ENTRY_FILE).is_file()

    def find(self, parts: dict[str, JsonValue]) -> Path | None:
        """The folder of the entry for these parts, whole or damaged (`problem_of`); None if there is none."""
        folder = self.root / json_digest(parts)
        return folder if folder.exists() else None

    def nearest(self, parts: dict[str, JsonValue]) -> list[str]:
        """Which parts of the key differ from the most similar entry of the same name; empty if there is none."""
        best: list[str] | None = None
        for path in self.root.glob(f"*/{ENTRY_FILE}"):
            try:
                other = _read(path.parent).parts
            except (OSError, ValueError, RecursionError):
                continue
            if other.get("name") == parts.get("name"):
                changed = sorted(k for k in parts.keys() | other.keys() if parts.get(k) != other.get(k))
                best = changed if best is None or len(changed) < len(best) else best
        return best or []

    def get(self, parts: dict[str, JsonValue], build: Callable[[Path, Path], None], *, force: bool = False) -> Entry:
        """The entry for `parts`; `build(folder, work)` computes it into `folder`, and may keep state for resuming in `work`.

        Where another process is computing the same entry, waits for it and takes what it finished. Raises `DiskFullError` when the disk is full.
        """
        entry = self._get(parts, build, force=force)
        self.used.append(entry.folder)
        return entry

    def _get(self, parts: dict[str, JsonValue], build: Callable[[Path, Path], None], *, force: bool) -> Entry:
        key = json_digest(parts)
        final, work = self.root / key, self.root / f"{key}.work"
        if not force and final.exists() and problem_of(final) is None:
            return _complete(final)

        def waiting(holder: str) -> None:
            self._note(f"waiting for process {holder}, which is computing '{parts['name']}' in {self.root}")

        with locked_after(self.root / "locks" / key, waiting), disk_full_named(self.root):
            because = None
            if final.exists():  # looked at again: another process may have finished it while this one waited for the lock
                problem = "--force" if force else problem_of(final)
                if problem is None:
                    return _complete(final)
                if not force:
                    because = f"{parts['name']}: the cache entry {key[:12]} is damaged ({problem}); it was removed and computed again"
                    logger.warning(because)
                _remove(final)
            if force:
                shutil.rmtree(work, ignore_errors=True)
            temporary = self.root / f"{key}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            work.mkdir(exist_ok=True)
            continued = any(work.iterdir())
            started = time.monotonic()
            build(temporary, work)
            seconds = time.monotonic() - started
            record = _EntryFile(parts=parts, seconds=seconds, continued=continued, files=_digests(temporary))
            (temporary / ENTRY_FILE).write_text(json.dumps(record.model_dump(), indent=1), encoding="utf-8")
            temporary.replace(final)
            shutil.rmtree(work, ignore_errors=True)
        return Entry(final, cached=False, seconds=seconds, continued=continued, rebuilt_because=because)


def _complete(folder: Path) -> Entry:
    record = _read(folder)
    return Entry(folder, cached=True, seconds=record.seconds, continued=record.continued)


def _read(folder: Path) -> _EntryFile:
    """Raises `OSError`, `ValueError` or `RecursionError` for a file that is not there or was not written by this module."""
    return _EntryFile.model_validate(json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8")))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ENTRY_FILE)
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem_of(folder: Path) -> str | None:
    """What is wrong with an entry; None if it is what was written: `entry.json` whole and of this key, every file with its digest, none besides."""
    try:
        record = _read(folder)
        present = _digests(folder)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{ENTRY_FILE} is damaged: {'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        return f"{ENTRY_FILE} cannot be read: {error}"
    if json_digest(record.parts) != folder.name:
        return f"{ENTRY_FILE} is damaged: its parts are not those of the entry's key"
    wanted = record.files
    wrong = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    return f"{', '.join(wrong[:3])} changed" if wrong else None


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock that the operating system releases when the process ends, however it ends.

    Raises `UsageError` with `message` at once where another process holds it.
    """
    with _open_lock(path) as file:
        if not _taken(file):
            raise UsageError(f"{message} (process {_holder(file)}); wait for it, or give another folder with --out")
        yield


@contextmanager
def locked_after(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the same lock, after whoever holds it; `waiting` is told once per holder which process that is."""
    with _open_lock(path) as file:
        told = None
        while not _taken(file):
            holder = _holder(file)
            if holder != told:
                waiting(holder)
                told = holder
            time.sleep(POLL_S)
        yield


def _open_lock(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+")


def _taken(file: TextIO) -> bool:
    """Whether the lock could be taken; the file then says by whom."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


@contextmanager
def disk_full_named(where: Path) -> Iterator[None]:
    """Turn "no space left" into an error that says where and what is kept."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # torch's and safetensors' writers report a full disk without an errno.
        if full or any(text in str(error) for text in ("No space left", "enforce fail at inline_container", "file write failed", "os error 28")):
            free_mb = shutil.disk_usage(where).free / 1e6
            raise DiskFullError(
                f"no space left while writing to '{where}' ({free_mb:.0f} MB free). What was finished is kept; free some space or give "
                "another folder with --out, then run the same command again"
            ) from error
        raise
