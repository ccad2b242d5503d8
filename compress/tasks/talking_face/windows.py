"""The speech of every video frame, as the networks of this task take it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.tasks.talking_face.mel import MelSettings, log_mel, mel_windows

SETTINGS = MelSettings()


def windows_of(samples: NDArray[np.float32], frames: int) -> Tensor:
    """The mel windows of `frames` video frames, float32 (frames, 1, 80, 16)."""
    return torch.from_numpy(mel_windows(log_mel(samples, SETTINGS), SETTINGS, frames)).unsqueeze(1)
