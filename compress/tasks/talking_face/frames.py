"""What the frames of a clip are, and how large and how many they may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcompress.errors import PlanError

FRAMES_PER_SECOND = 25
"""Of every clip: what the networks are trained on."""
SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
"""Pixels on each side of a frame."""
MOST_BYTES = 2 * 2**30
"""Of all frames of a clip, decoded: a clip is held in memory whole."""


@dataclass(frozen=True)
class Frames:
    """A clip: pictures, uint8 (T, 3, H, W), `fps` of them a second, and what was converted or left out (`name: what`)."""

    pictures: Tensor
    fps: float
    notes: tuple[str, ...]


def check_size(width: int, height: int, shown: str) -> None:
    """Raise `PlanError` for frames of absurd size. `shown` begins the message: the place and the name."""
    if not (SMALLEST_SIDE <= width <= LARGEST_SIDE and SMALLEST_SIDE <= height <= LARGEST_SIDE):
        raise PlanError([f"{shown} is {width}x{height} pixels; {SMALLEST_SIDE} to {LARGEST_SIDE} on each side are allowed, so scale it to that"])


def check_length(count: int, width: int, height: int, shown: str, *, more: bool = False) -> None:
    """Raise `PlanError` if `count` frames of this size, or `more`, do not fit into `MOST_BYTES`."""
    most = MOST_BYTES // (3 * width * height)
    if count <= most:
        return
    large = f"{'at least ' if more else ''}{count} frames of {width}x{height} pixels at {FRAMES_PER_SECOND} a second"
    advice = f"cut it to {most / FRAMES_PER_SECOND:.1f} s"
    if not more:
        least = (most / count) ** 0.5
        advice += ", or scale it to {}x{} or less".format(*(int(side * least) // 2 * 2 for side in (width, height)))
    raise PlanError([f"{shown} has {large}, {count * 3 * width * height / 1e9:.1f} GB; {MOST_BYTES / 1e9:.1f} GB are allowed, so {advice}"])


def stack(pictures: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Pictures (H, W, 3) of one size as uint8 (T, 3, H, W). A list is emptied on the way, so that no picture is held twice."""
    kept = pictures if isinstance(pictures, list) else list(pictures)
    count, (height, width) = len(kept), kept[0].shape[:2]
    frames = torch.empty((count, 3, height, width), dtype=torch.uint8)
    for number in range(count - 1, -1, -1):
        frames[number] = torch.from_numpy(kept.pop()).permute(2, 0, 1)
    return frames
