"""Training state in one file that is replaced as a whole; read with `weights_only`, so nothing in it is executed.

The file is PyTorch's, followed by the SHA-256 of everything before it: PyTorch's reader does not notice a changed byte among the weights, and a
training that continued from one would end with other weights than it says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import warnings
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
DIGEST_BYTES = 32
_UNREADABLE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)
"""What PyTorch's reader raises for bytes that it did not write."""


class NoCheckpoints:
    """A `CheckpointStore` that keeps nothing: a training is run from start to end."""

    def load(self) -> dict[str, object] | None:
        """None."""
        return None

    def save(self, state: dict[str, object]) -> None:
        """Nothing."""


class FileCheckpoints:
    """A `CheckpointStore` on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_suffix(".problem")  # a file, so that a process that is killed after it began again does not take the reason with it

    @property
    def problem(self) -> str | None:
        """Why a state that was there could not be used, now or in a process before this one; None if that never happened."""
        return self._note.read_text(encoding="utf-8") if self._note.exists() else None

    def load(self) -> dict[str, object] | None:
        """The last complete state; None if there is none, or if it is damaged (then `problem` says so and training starts again)."""
        if not self.path.exists():
            return None
        damage = self._damage()
        if damage is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what is odd about a damaged file is an error below, or nothing
                    state = torch.load(self.path, weights_only=True)
                if isinstance(state, dict):
                    return dict(state)
                damage = f"it holds a {type(state).__name__}, not a training state"
            except _UNREADABLE as error:
                damage = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"{self.path.name} cannot be used ({damage}); the training started again from its first step"
        logger.warning("training checkpoint %s", problem)
        self._note.write_text(problem, encoding="utf-8")
        return None

    def save(self, state: dict[str, object]) -> None:
        """Write beside, then rename. Raises `OSError` or, from PyTorch's writer, `RuntimeError` when the disk is full; the last state stays."""
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with temporary.open("ab") as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def _damage(self) -> str | None:
        """What is wrong with the file's bytes, or None."""
        size = self.path.stat().st_size
        if size <= DIGEST_BYTES:
            return f"it has {size} bytes and is cut off"
        sha, left = hashlib.sha256(), size - DIGEST_BYTES
        with self.path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                sha.update(block)
                left -= len(block)
            if sha.digest() != file.read(DIGEST_BYTES):
                return "its digest does not match its content: it was cut off or changed"
        return None
