"""Run a file with a fixed input size on a picture of any size: overlapping tiles, mirrored at the border where the picture is smaller."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
OVERLAP = 16  # at most; low-resolution pixels on each side that are computed and thrown away, about the receptive field of our generators


def run_tiled(run: Callable[[Array], Array], picture: Array, tile: tuple[int, int], scale: int) -> Array:
    """Apply `run` ((1, C, th, tw) -> (1, C', scale*th, scale*tw)) to `picture` (1, C, H, W) -> (1, C', scale*H, scale*W)."""
    height, width = picture.shape[2:]
    padded = _mirror(picture, max(height, tile[0]), max(width, tile[1]))
    overlap = tuple(min(OVERLAP, side // 4) for side in tile)
    rows, columns = (_starts(padded.shape[2 + axis], tile[axis], overlap[axis]) for axis in (0, 1))
    out: Array | None = None
    for top in rows:
        for left in columns:
            made = run(np.ascontiguousarray(padded[:, :, top : top + tile[0], left : left + tile[1]]))
            if out is None:
                out = np.zeros((1, made.shape[1], padded.shape[2] * scale, padded.shape[3] * scale), dtype=np.float32)
            skip_top, skip_left = (margin if start > 0 else 0 for start, margin in zip((top, left), overlap, strict=True))
            out[:, :, (top + skip_top) * scale : (top + tile[0]) * scale, (left + skip_left) * scale : (left + tile[1]) * scale] = made[
                :, :, skip_top * scale :, skip_left * scale :
            ]
    assert out is not None  # noqa: S101  (there is always at least one tile)
    return out[:, :, : height * scale, : width * scale]


def _mirror(picture: Array, height: int, width: int) -> Array:
    below, right = height - picture.shape[2], width - picture.shape[3]
    return np.pad(picture, ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect") if below or right else picture


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    step = max(1, tile - 2 * overlap)
    starts = list(range(0, max(1, length - tile + 1), step))
    if starts[-1] + tile < length:
        starts.append(length - tile)
    return starts
