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

from pydantic import JsonValue
from safetensors import SafetensorError

from mcompress.errors import DiskFullError, UsageError

logger = logging.getLogger(__name__)
ENTRY_FILE = "entry.json"


def digest_of(parts: JsonValue) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder, whether it was there before, how long computing it took (the last attempt), and the notes of a rebuild."""

    folder: Path
    cached: bool
    seconds: float
    rebuilt_because: str | None = None


class Cache:
    """Entries under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: list[Path] = []
        """Folders of the entries that `get` gave, in order."""

    def has(self, parts: dict[str, JsonValue]) -> bool:
        """Whether an entry for these parts exists; its content is checked when it is used."""
        return (self.root / digest_of(parts) / ENTRY_FILE).is_file()

    def nearest(self, parts: dict[str, JsonValue]) -> list[str]:
        """Which parts of the key differ from the most similar entry of the same name; empty if there is none."""
        best: list[str] | None = None
        for path in self.root.glob(f"*/{ENTRY_FILE}"):
            try:
                other = json.loads(path.read_text(encoding="utf-8"))["parts"]
            except (OSError, ValueError, KeyError):
                continue
            if other.get("name") == parts.get("name"):
                changed = sorted(k for k in parts.keys() | other.keys() if parts.get(k) != other.get(k))
                best = changed if best is None or len(changed) < len(best) else best
        return best or []

    def get(self, parts: dict[str, JsonValue], build: Callable[[Path, Path], None], *, force: bool = False) -> Entry:
        """The entry for `parts`; `build(folder, work)` computes it into `folder`, and may keep state for resuming in `work`.

        Raises `DiskFullError` when the disk is full, and `UsageError` when another process is computing the same entry.
        """
        entry = self._get(parts, build, force=force)
        self.used.append(entry.folder)
        return entry

    def _get(self, parts: dict[str, JsonValue], build: Callable[[Path, Path], None], *, force: bool) -> Entry:
        key = digest_of(parts)
        final, work = self.root / key, self.root / f"{key}.work"
        if not force and final.exists() and problem_of(final) is None:
            return _complete(final)
        busy = f"another mcompress process is computing '{parts['name']}' in {self.root}"
        with locked(self.root / "locks" / key, busy), disk_full_named(self.root):
            because = None
            if final.exists():  # looked at again: another process may have finished it while this one waited for the lock
                problem = "--force" if force else problem_of(final)
                if problem is None:
                    return _complete(final)
                if not force:
                    because = f"{parts['name']}: the cache entry {key[:12]} is damaged ({problem}); it was removed and computed again"
                    logger.warning(because)
                shutil.rmtree(final)
            if force:
                shutil.rmtree(work, ignore_errors=True)
            temporary = self.root / f"{key}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            work.mkdir(exist_ok=True)
            started = time.monotonic()
            build(temporary, work)
            seconds = time.monotonic() - started
            record = {"parts": parts, "seconds": seconds, "files": _digests(temporary)}
            (temporary / ENTRY_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
            temporary.replace(final)
            shutil.rmtree(work, ignore_errors=True)
        return Entry(final, cached=False, seconds=seconds, rebuilt_because=because)


def _complete(folder: Path) -> Entry:
    return Entry(folder, cached=True, seconds=json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))["seconds"])


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ENTRY_FILE)
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem_of(folder: Path) -> str | None:
    """What is wrong with an entry's files; None if they are what was written."""
    try:
        wanted = json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))["files"]
        present = _digests(folder)
    except (OSError, ValueError, KeyError) as error:
        return f"{ENTRY_FILE} cannot be read: {error}"
    wrong = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    return f"{', '.join(wrong[:3])} changed" if wrong else None


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock that the operating system releases when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(f"{message} (process {holder}); wait for it, or give another folder with --out") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


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
