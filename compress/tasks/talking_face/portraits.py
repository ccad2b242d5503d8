"""Real faces: two frontal portraits inside the wheels that the project needs anyway, and where their eyes and lips are.

They are the astronaut of scikit-image and the naval officer of matplotlib, both works of the United States government and so in the public domain. A
portrait is turned and scaled so that the mouths of all lie alike in the canonical frame: 96x96 pixels, x to the right, y down, a pixel's centre at
its number plus a half, the middle of the closed mouth at `MOUTH`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage

from mcompress.compress.tasks.photographs import embedded_photos
from mcompress.errors import PlanError

Floats = NDArray[np.float32]
Points = tuple[tuple[float, float], ...]
SIDE = 96
"""Pixels a side of a frame."""
MOUTH = (48.0, 65.0)
"""Middle of the closed mouth in the canonical frame."""
DENSITY = 2
"""Samples per canonical pixel and axis of a portrait's picture, so that reading between them blurs little."""
MARGIN = 24
"""Canonical pixels of the picture beyond each border of the frame, for poses that look there."""
SOFTNESS = 0.5
"""Standard deviation, in canonical pixels, of the blur before reduction: finer detail than a frame can show would flicker as the head moves."""
REACH = 40.0
"""Canonical pixels to each side of the mouth's middle for which the edges of the lips are tabulated."""
STEP = 0.25
"""Canonical pixels between entries of those tables."""


@dataclass(frozen=True)
class Landmarks:
    """Where a face is in a photograph of `size` (width, height), in its pixels.

    `pupils` and `corners` (of the mouth): the left and the right one in the picture. `upper`, `lower`: points of the inner edges of the lips from
    left to right, the same where the mouth is closed. `rest`: height of the line that the lips make when closed, in the middle. `eyes_to_mouth`:
    canonical pixels from between the pupils to that line, which sets the scale.
    """

    package: str
    path: str
    size: tuple[int, int]
    pupils: Points
    corners: Points
    upper: Points
    lower: Points
    rest: float
    eyes_to_mouth: float


_SMILE_X = (205.0, 208.0, 212.0, 216.0, 220.0, 226.0, 231.0, 235.0, 240.0)
_SMILE_UPPER = (140.2, 141.3, 141.8, 142.2, 143.0, 143.1, 142.9, 142.2, 140.9)
_SMILE_LOWER = (143.2, 146.0, 148.5, 150.3, 150.9, 150.9, 150.1, 148.0, 145.4)
_CLOSED_X = (235.5, 240.0, 250.0, 257.0, 265.0, 270.0, 278.0, 290.0, 300.0)
_CLOSED_Y = (280.4, 279.4, 279.0, 279.8, 280.7, 280.4, 279.4, 277.2, 276.3)
LANDMARKS = {
    "astronaut": Landmarks(
        "skimage",
        "data/astronaut.png",
        (512, 512),
        pupils=((203.0, 101.5), (246.5, 103.3)),
        corners=((202.6, 139.7), (244.9, 141.0)),
        upper=tuple(zip(_SMILE_X, _SMILE_UPPER, strict=True)),
        lower=tuple(zip(_SMILE_X, _SMILE_LOWER, strict=True)),
        rest=146.0,
        eyes_to_mouth=34.0,
    ),
    "officer": Landmarks(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        (512, 600),
        pupils=((226.2, 189.5), (306.0, 187.1)),
        corners=((227.5, 281.3), (307.5, 279.0)),
        upper=tuple(zip(_CLOSED_X, _CLOSED_Y, strict=True)),
        lower=tuple(zip(_CLOSED_X, _CLOSED_Y, strict=True)),
        rest=280.3,
        eyes_to_mouth=35.0,
    ),
}
FACES = tuple(LANDMARKS)


@dataclass(frozen=True)
class Portrait:
    """A face in the canonical frame.

    `picture`: (rows, columns, 3) in [0, 1], `DENSITY` samples per pixel, with `MARGIN` around the frame. `half_width`: from the middle of its mouth
    to a corner. `upper`, `lower`: heights of the inner edges of its lips below `MOUTH`, at `table_x()`, level beyond the corners.
    """

    name: str
    picture: Floats
    half_width: float
    upper: Floats
    lower: Floats


def table_x() -> Floats:
    """Places of a portrait's tables: canonical pixels to the right of `MOUTH`."""
    return np.arange(-REACH, REACH + STEP, STEP, dtype=np.float32)


@cache
def portrait(name: str) -> Portrait:
    """The face with this name, one of `FACES`. Raises `PlanError` if the photograph is not the one whose landmarks are known."""
    marks = LANDMARKS[name]
    (photo,) = embedded_photos(((marks.package, marks.path),)).photos
    if tuple(photo.pixels.shape) != (3, marks.size[1], marks.size[0]):
        sizes = f"has {photo.pixels.shape[2]}x{photo.pixels.shape[1]} pixels, not {marks.size[0]}x{marks.size[1]}"
        raise PlanError([f"the photograph {marks.path} of {marks.package} {sizes}; install the version that pyproject.toml names"])
    to_photo, origin = _placement(marks)
    to_canonical = np.linalg.inv(to_photo).T
    corners = (np.array(marks.corners) - origin) @ to_canonical
    half_width = float(corners[1, 0])
    inside = np.clip(table_x(), -half_width, half_width)

    def table(edge: Points) -> Floats:
        points = np.vstack([corners[:1], (np.array(edge) - origin) @ to_canonical, corners[1:]])
        heights: Floats = interpolate.PchipInterpolator(points[:, 0], points[:, 1], extrapolate=True)(inside).astype(np.float32)
        return heights

    picture = photo.pixels.permute(1, 2, 0).numpy().astype(np.float32) / np.float32(255)
    return Portrait(name, _resampled(picture, to_photo, origin), half_width, table(marks.upper), table(marks.lower))


def _placement(marks: Landmarks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(matrix, origin): a place in the photograph is `matrix @ (canonical - MOUTH) + origin`."""
    pupils, corners = np.array(marks.pupils), np.array(marks.corners)
    across = (pupils[1] - pupils[0]) / np.linalg.norm(pupils[1] - pupils[0]) + (corners[1] - corners[0]) / np.linalg.norm(corners[1] - corners[0])
    cos, sin = across / np.linalg.norm(across)
    origin = np.array([corners[:, 0].mean(), marks.rest])
    scale = np.linalg.norm(pupils.mean(axis=0) - origin) / marks.eyes_to_mouth
    return scale * np.array([[cos, -sin], [sin, cos]]), origin


def _resampled(photo: Floats, to_photo: NDArray[np.float64], origin: NDArray[np.float64]) -> Floats:
    """`Portrait.picture`."""
    places = (np.arange((SIDE + 2 * MARGIN) * DENSITY) + 0.5) / DENSITY - MARGIN
    grid = np.stack(np.meshgrid(places - MOUTH[0], places - MOUTH[1]), axis=-1) @ to_photo.T + origin
    blur = SOFTNESS * float(np.sqrt(np.linalg.det(to_photo)))
    coordinates = np.stack([grid[..., 1], grid[..., 0]]) - 0.5  # pixel centres are at whole numbers there
    blurred = (ndimage.gaussian_filter(photo[..., channel], blur) for channel in range(3))
    channels = [ndimage.map_coordinates(channel, coordinates, order=3, mode="nearest") for channel in blurred]
    picture: Floats = np.clip(np.stack(channels, axis=-1), 0, 1).astype(np.float32)
    return picture
