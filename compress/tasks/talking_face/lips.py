"""The mouth of a picture: which opening and width does the rendered mouth have that the picture resembles most?

The frame is laid back into the canonical frame by its pose and compared with the face's own mouths on a grid of openings and widths; between the
grid's points a quadratic is fitted. Lightness, contrast, tint and light that grows across the face are fitted to each frame and each channel, so that
they do not count. Blur does so little: a generator's soft lips are matched by where their edges lie, and a mean of two mouths by one between them.

Mean errors on frames that `render` drew, over all mouths and over poses and looks of clips, in neutral mouth widths: 0.003 of opening and 0.004 of
width (95 of 100 within 0.008 and 0.013). After a blur of 1.5 pixels they are 0.009 and 0.018 (`BLURRED`), and width is read too small.
`tests/test_talking_face_mouths.py` sets bounds to them.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mcompress.compress.tasks.talking_face.face import OPENINGS, WIDTHS, paint
from mcompress.compress.tasks.talking_face.portraits import MOUTH, SIDE, Floats, portrait

COLUMNS, ROWS = (-24, 24), (-13, 22)
"""The patch that is compared, canonical pixels from `MOUTH`."""
BLUR = 0.9
"""Standard deviation in pixels of the blur of both sides, so that reading the frame between its pixels, which blurs as well, makes no difference."""
OPENING_STEPS, WIDTH_STEPS = 20, 13


class Blurred(NamedTuple):
    """Mean errors, neutral mouth widths, in a frame that was blurred by `sigma` pixels."""

    sigma: float
    opening: float
    width: float


BLURRED = Blurred(1.5, 0.009, 0.018)
CURVE_NOTE = (
    "Blur makes a mouth read too narrow: measured on frames drawn with known mouths, after a blur of "
    f"{BLURRED.sigma} pixels the width of the right mouth is off by {BLURRED.width} on average, and its opening by {BLURRED.opening}."
)


class Mouths(NamedTuple):
    """`mouths` (T, 2): opening and width as in `face`. `explained` (T): the share of the patch's variance that the nearest mouth explains, at most 1.

    Where `explained` is far below that of real frames the picture shows no mouth, and the numbers say nothing.
    """

    mouths: NDArray[np.float64]
    explained: NDArray[np.float64]


def measure_mouth(frame: NDArray[np.uint8], pose: NDArray[np.float64], face: str) -> tuple[float, float]:
    """Opening and width in a frame (96, 96, 3) of the face of this name, standing as `pose` (2, 3) says."""
    found = measure_mouths(torch.from_numpy(frame).permute(2, 0, 1)[None], pose[None], face).mouths[0]
    return float(found[0]), float(found[1])


def measure_mouths(frames: Tensor, poses: NDArray[np.float64], face: str) -> Mouths:
    """The same for frames (T, 3, 96, 96) in 0 to 255, whatever their type, and poses (T, 2, 3)."""
    patches = _weighted(np.stack([_patch(frame, pose) for frame, pose in zip(frames.detach().float().cpu().numpy(), poses, strict=True)]))
    energy = (patches**2).sum(axis=(1, 2))
    likeness = np.einsum("tcp,kcp->tkc", patches, _templates(face), optimize=True)
    kept = (np.maximum(likeness, 0) ** 2).sum(axis=2)
    explained = (kept / np.maximum(energy, 1e-9)[:, None]).reshape(len(kept), OPENING_STEPS + 1, WIDTH_STEPS + 1)
    places = np.stack([_peak(surface) for surface in explained])
    low, high = np.array([OPENINGS[0], WIDTHS[0]]), np.array([OPENINGS[1], WIDTHS[1]])
    return Mouths(low + places * (high - low) / (OPENING_STEPS, WIDTH_STEPS), explained.max(axis=(1, 2)).astype(np.float64))


def _grid() -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.arange(*COLUMNS) + 0.5, np.arange(*ROWS) + 0.5)
    return x.astype(np.float32), y.astype(np.float32)


@cache
def _templates(face: str) -> Floats:
    """Every mouth of the grid, (K, 3, P), weighted and of unit length in each channel."""
    x, y = _grid()
    edge = 4  # pixels more on each side, so that the blur sees what is there
    wide_x = np.pad(x, edge, mode="reflect", reflect_type="odd")
    wide_y = np.pad(y, edge, mode="reflect", reflect_type="odd")
    mouths = product(np.linspace(*OPENINGS, OPENING_STEPS + 1), np.linspace(*WIDTHS, WIDTH_STEPS + 1))
    painted = (paint(portrait(face), float(opening), float(width), wide_x, wide_y) for opening, width in mouths)
    blurred = (ndimage.gaussian_filter(np.clip(colour, 0, 1), (BLUR, BLUR, 0)) for colour in painted)
    patches = _weighted(np.stack([colour[edge:-edge, edge:-edge].transpose(2, 0, 1).reshape(3, -1) for colour in blurred]))
    normed: Floats = patches / np.linalg.norm(patches, axis=2, keepdims=True)
    return normed


def _patch(frame: Floats, pose: NDArray[np.float64]) -> Floats:
    """The patch of a frame (3, 96, 96), (3, P)."""
    x, y = _grid()
    column = pose[0, 0] * (x + MOUTH[0]) + pose[0, 1] * (y + MOUTH[1]) + pose[0, 2] - 0.5
    row = pose[1, 0] * (x + MOUTH[0]) + pose[1, 1] * (y + MOUTH[1]) + pose[1, 2] - 0.5
    column, row = np.clip(column, 0, SIDE - 1.001), np.clip(row, 0, SIDE - 1.001)
    soft = ndimage.gaussian_filter(frame, (0, BLUR, BLUR)).reshape(3, -1)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, low = (column - left).ravel(), (row - top).ravel()
    start = (top * SIDE + left).ravel()
    first = soft[:, start] * (1 - right) + soft[:, start + 1] * right
    second = soft[:, start + SIDE] * (1 - right) + soft[:, start + SIDE + 1] * right
    between: Floats = (first * (1 - low) + second * low).astype(np.float32)
    return between


@cache
def _window() -> tuple[Floats, Floats]:
    """Weights (P), greatest around the lips, and an orthonormal basis (P, 3) of weighted light that is even or grows across the patch."""
    x, y = _grid()
    weights = np.exp(-0.25 * ((x / 15) ** 2 + ((y - 3) / 11) ** 2)).ravel()
    even, _ = np.linalg.qr(np.stack([np.ones(x.size), x.ravel(), y.ravel()], axis=1) * weights[:, None])
    return weights.astype(np.float32), even.astype(np.float32)


def _weighted(patches: Floats) -> Floats:
    """Patches (N, 3, P), weighted and without what even light explains."""
    weights, even = _window()
    weighted = patches * weights
    rest: Floats = np.subtract(weighted, (weighted @ even) @ even.T)
    return rest


@cache
def _quadratic() -> NDArray[np.float64]:
    """(6, 9): least squares coefficients of 1, i, j, ii, ij, jj from a 3x3 neighbourhood."""
    i, j = (side.ravel() for side in np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij"))
    return np.linalg.pinv(np.stack([np.ones(9), i, j, i * i, i * j, j * j], axis=1))


def _peak(surface: Floats) -> NDArray[np.float64]:
    """Where a surface is greatest, in steps of its grid: the summit of the quadratic around its greatest entry, at most one step from it."""
    best = np.array(np.unravel_index(int(surface.argmax()), surface.shape))
    size = np.array(surface.shape)
    middle = np.clip(best, 1, size - 2)
    around = surface[middle[0] - 1 : middle[0] + 2, middle[1] - 1 : middle[1] + 2].astype(np.float64)
    _, along, across, curve, twist, bend = _quadratic() @ around.ravel()
    hessian = np.array([[2 * curve, twist], [twist, 2 * bend]])
    if np.linalg.eigvalsh(hessian)[1] >= 0:  # no summit there
        return best.astype(np.float64)
    summit = middle + np.linalg.solve(hessian, [-along, -across])
    return np.clip(np.clip(summit, best - 1, best + 1), 0, size - 1)
