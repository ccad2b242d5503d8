"""Pairs from photographs: edges that Canny's detector finds in a photograph, and the photograph.

Settings are fixed, and belong to the pairs: scikit-image's `canny` on luma in [0, 1], a Gaussian of `SIGMA` pixels, thresholds `LOW` and `HIGH` on
the Sobel gradient. Edges are black, one pixel wide, on white.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcompress.compress.tasks.photographs import LUMA, Photo
from mcompress.compress.tasks.translation.pairs import Pair

SIGMA, LOW, HIGH = 1.4, 0.06, 0.15


def canny_edges(pixels: Tensor) -> Tensor:
    """The edges of a picture, black on white: uint8 (3, H, W) -> uint8 (3, H, W), three equal channels."""
    from skimage.feature import canny  # takes a third of a second to import, which only runs on photographs should wait for

    luma = np.tensordot(np.array(LUMA), pixels.numpy() / 255.0, axes=1)
    found = canny(luma, sigma=SIGMA, low_threshold=LOW, high_threshold=HIGH)
    drawn = torch.from_numpy(np.where(found, 0, 255).astype(np.uint8))
    return drawn.expand(3, -1, -1).contiguous()


def photo_pairs(photo: Photo, size: int, most: int) -> tuple[Pair, ...]:
    """At most `most` squares of `size` pixels that do not overlap, spread evenly over the photograph; none where it is smaller than one.

    Edges are found in the whole photograph before it is cut, so that none ends at a border for want of context.
    """
    height, width = photo.pixels.shape[1:]
    rows, columns = height // size, width // size
    count = min(rows * columns, most)
    edges = canny_edges(photo.pixels) if count else photo.pixels
    pairs = []
    for place in [number * rows * columns // count for number in range(count)]:
        top = (height - rows * size) // 2 + place // columns * size
        left = (width - columns * size) // 2 + place % columns * size
        square = (slice(None), slice(top, top + size), slice(left, left + size))
        pairs.append(Pair(f"{photo.name}_{place:03d}", edges[square].contiguous(), photo.pixels[square].contiguous()))
    return tuple(pairs)
