"""Training state in one file that is replaced as a whole; read with `weights_only`, so nothing in it is executed."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


class FileCheckpoints:
    """A `CheckpointStore` on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, object] | None:
        """The last complete state; None if there is none or it cannot be read."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("the training checkpoint %s cannot be read (%s); training starts again", self.path.name, error)
            return None
        return dict(state)

    def save(self, state: dict[str, object]) -> None:
        """Write beside, then rename."""
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
