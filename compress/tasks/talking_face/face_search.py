"""Finds faces in one picture and cuts them out: what `finding` does to clips, for programs that have no torch.

The detector is scikit-image's cascade of local binary patterns (S. Liao et al., "Learning Multi-scale Block Local Binary Patterns for Face
Recognition", ICB 2007) with the upright frontal faces that its wheel carries. The cascade only says whether a window is a face. To get a place that
is finer than its grid of windows, and few false alarms, a picture is searched at several sizes and mirrored, and windows that agree vote.

Coordinates: x to the right, y down, in pixels of the picture, from the outer corner of its first pixel.

This file needs numpy, Pillow and, where faces are looked for, scikit-image, and is copied into bundles, whose `talk.py` cuts faces with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACE_SIDE = 96
"""Pixels a side of a cut-out face."""
SEARCHED = (120, 140, 160, 180, 210)
"""Pixels of a frame's shorter side at which it is searched; sizes that have little in common, so that false alarms do not agree."""
SMALLEST_WINDOW, SMALLEST_SHARE = 24, 0.12
"""The cascade's own window in pixels, and the smallest window as a share of the shorter side."""
GROWTH, STRIDE = 1.15, 1.25
"""From one window size to the next, and pixels from a window to the next one at the cascade's own size."""
SAME = 0.4
"""Intersection over union from which two windows show the same face."""
WITHIN = 0.5
"""The share of the smaller of two windows that lies in the other, from which they cannot be two faces."""
LEAST_VOTES = 20
"""Windows that must agree. Frontal faces of about 100 pixels get 70 to 140; the most that other textures got in 19 photographs was 12."""
BORDER = 1 / 3
"""The mirrored border, as a share of the shorter side, with which a frame is searched again where a face may reach over its edge."""
FILLS = 0.8
"""The share of the shorter side from which a box may be that small only because windows end where the frame ends."""
ENLARGED, LOWERED = 1.2, 0.07
"""From a window of the cascade, which ends above the chin, to a box: its side, and how far its middle lies lower, in sides of the window.

Fitted to two photographs whose landmarks are known, so that a closed mouth is at half the width and two thirds of the height.
"""
SMALLEST_FACE = "a sixth"
"""Of the shorter side, for messages: the least box that is found reliably."""


class _Cascade(Protocol):
    def detect_multi_scale(
        self,
        img: NDArray[np.uint8],
        scale_factor: float,
        step_ratio: float,
        min_size: tuple[int, int],
        max_size: tuple[int, int],
        min_neighbor_number: int,
        intersection_score_threshold: float,
    ) -> list[dict[str, int]]: ...


@dataclass(frozen=True)
class Box:
    """A square that holds a face: left and upper border and side, in pixels; it may reach beyond the frame."""

    x: float
    y: float
    side: float


def search_faces(picture: NDArray[np.uint8]) -> tuple[Box, ...]:
    """The faces of a picture (H, W, 3), the surest first. Raises `ImportError` without scikit-image."""
    grey = Image.fromarray(picture).convert("L")
    boxes = _search(grey)
    if boxes and all(_lies_within(box, grey.width, grey.height) for box in boxes):
        return boxes
    border = round(min(grey.size) * BORDER)
    around = _search(Image.fromarray(np.pad(np.asarray(grey), border, mode="symmetric")))
    moved = (Box(box.x - border, box.y - border, box.side) for box in around)
    inside = tuple(box for box in moved if 0 <= box.x + box.side / 2 <= grey.width and 0 <= box.y + box.side / 2 <= grey.height)
    return inside if len(inside) >= len(boxes) else boxes  # the border makes all else look smaller


def _lies_within(box: Box, width: int, height: int) -> bool:
    edges = min(box.x, box.y, width - box.x - box.side, height - box.y - box.side)
    return edges >= 0 and box.side < FILLS * min(width, height)


def no_face() -> str:
    """What is wrong, and what to do."""
    return f"no face found; one must be upright, look at the camera and span at least {SMALLEST_FACE} of the shorter side: crop to one face"


def several(count: int) -> str:
    """What is wrong, and what to do."""
    return f"several faces ({count}), and one is needed: crop to one face"


def cut_face(picture: NDArray[np.uint8], box: Box, side: int = FACE_SIDE) -> NDArray[np.uint8]:
    """Cut a box out of a picture (H, W, 3) and resize it: uint8 (side, side, 3).

    Borders need not lie between pixels. Reduction is antialiased (bicubic). What a box has beyond its picture is mirrored. Raises `ValueError` for a
    box whose middle lies outside, or of less than a pixel.
    """
    height, width = picture.shape[:2]
    right, bottom = box.x + box.side, box.y + box.side
    if not (box.side >= 1 and 0 <= box.x + box.side / 2 <= width and 0 <= box.y + box.side / 2 <= height):
        where = f"x {box.x:g}, y {box.y:g}, side {box.side:g}"
        raise ValueError(f"({where}) does not fit a frame of {width}x{height} pixels; its middle must be inside and its side at least 1")
    over = max(0, int(np.ceil(max(-box.x, -box.y, right - width, bottom - height))))
    pixels = np.pad(picture, ((over, over), (over, over), (0, 0)), mode="symmetric")
    edges = (box.x + over, box.y + over, right + over, bottom + over)
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BICUBIC, box=edges))


@cache
def _cascade() -> _Cascade:
    # a third of a second, for which only those who look for faces should wait
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return cast("_Cascade", Cascade(lbp_frontal_face_cascade_filename()))


def _search(grey: Image.Image) -> tuple[Box, ...]:
    """Boxes by falling number of votes."""
    windows = []
    for shorter in SEARCHED:
        scale = shorter / min(grey.size)
        size = (round(grey.width * scale), round(grey.height * scale))
        resized = np.asarray(grey.resize(size, Image.Resampling.LANCZOS))
        for mirrored in (False, True):
            found = _windows(np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized)
            if mirrored:
                found[:, 0] = size[0] - found[:, 0] - found[:, 2]
            windows.append(found / scale)
    return _vote(np.concatenate(windows))


def _windows(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Every window that the cascade takes for a face, none merged: (N, 3) of left, upper border and side."""
    shorter = min(grey.shape)
    smallest = max(SMALLEST_WINDOW, round(shorter * SMALLEST_SHARE))
    found = _cascade().detect_multi_scale(
        img=grey,
        scale_factor=GROWTH,
        step_ratio=STRIDE,
        min_size=(smallest, smallest),
        max_size=(shorter, shorter),
        min_neighbor_number=1,
        intersection_score_threshold=1.1,  # a share, so that nothing is merged
    )
    return np.array([(one["c"], one["r"], one["width"]) for one in found], dtype=np.float64).reshape(-1, 3)


def _vote(windows: NDArray[np.float64]) -> tuple[Box, ...]:
    """The window with which most others agree is a face, and so on among those that lie apart from it."""
    windows = windows[np.lexsort(windows.T)]  # in an order that does not depend on how the cascade's threads came along
    faces: list[tuple[int, Box]] = []
    while len(windows):
        areas = windows[:, 2] ** 2
        shared = _shared(windows)
        same = shared > SAME * (areas[:, None] + areas - shared)
        first = int(same.sum(axis=1).argmax())
        votes = int(same[first].sum())
        if votes < LEAST_VOTES:
            break
        x, y, side = windows[same[first]].mean(axis=0).tolist()
        larger = side * ENLARGED
        faces.append((votes, Box(x + (side - larger) / 2, y + (side - larger) / 2 + LOWERED * side, larger)))
        windows = windows[~(same[first] | (shared[first] > WITHIN * np.minimum(areas[first], areas)))]
    return tuple(box for _, box in sorted(faces, key=lambda face: -face[0]))


def _shared(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each two windows share, (N, N)."""
    starts, ends = windows[:, :2], windows[:, :2] + windows[:, 2:]
    overlap = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
    return cast("NDArray[np.float64]", np.clip(overlap, 0, None).prod(axis=2))
