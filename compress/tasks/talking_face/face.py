"""A real face whose mouth is opened and widened by exact amounts.

A mouth is (opening, width): the gap between the inner edges of the lips in the middle, and the distance of the mouth's corners, both in units of
`NEUTRAL_WIDTH`. The portrait is cut along the line between its lips and both sides are moved smoothly, the jaw with the lower lip, so that the inner
edges of the lips lie on the curves of `lip_edges`; what is between them is drawn: a dark hollow, teeth, tongue. Nothing outside `MOVING` is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.portraits import DENSITY, MARGIN, MOUTH, REACH, SIDE, STEP, Floats, Portrait

NEUTRAL_WIDTH = 28.0
"""Distance of the corners of a mouth of width 1, in pixels of the canonical frame."""
OPENINGS, WIDTHS = (0.0, 0.5), (0.6, 1.25)
"""What `render` takes."""
CANONICAL: NDArray[np.float64] = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""The pose of a face that stands as the canonical frame has it. A pose is `frame = pose @ (x, y, 1)` for a canonical place (x, y)."""
HIGHEST = 13.0
"""Canonical pixels above `MOUTH` from which on nothing moves: the upper half of a frame must not tell what the mouth does."""
MOVING = ((MOUTH[0] - 38.0, MOUTH[0] + 38.0), (MOUTH[1] - HIGHEST, MOUTH[1] + 47.0))
"""Canonical columns and rows within which a mouth's movement changes pixels."""

RISE = 0.25
"""The share of the opening by which the upper lip rises; the lower one sinks by the rest, because most of it is the jaw's."""
FULLNESS = 0.8
"""Exponent of the opening's outline: 1 is a parabola, 1/2 an ellipse."""
BOW = 1.4
"""Canonical pixels by which the corners of a mouth of width 1 lie above the middle of its closed line."""
DROP = 0.16
"""How far the corners sink with the jaw, as a share of the opening."""
JAW = 0.75
"""How far the chin follows the lower lip."""
HOLLOW = (0.17, 0.055, 0.05)
TEETH = (0.92, 0.86, 0.78)
TONGUE = (0.56, 0.24, 0.23)

Places = Floats | NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """How a clip's picture differs from the photograph: `gain` (red, green, blue), `gamma`, `saturation`, and light that grows by `slope` (right,
    down) across the frame.
    """

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    saturation: float = 1.0
    slope: tuple[float, float] = (0.0, 0.0)


PLAIN = Look()


def lip_edges(opening: float, width: float, x: Floats) -> tuple[Floats, Floats]:
    """Heights below `MOUTH` of the inner edges of the upper and the lower lip at `x` pixels to the right of it; one height beyond the corners."""
    half, gap = width * NEUTRAL_WIDTH / 2, opening * NEUTRAL_WIDTH
    square = np.minimum((x / half) ** 2, 1)
    line = (DROP * gap - BOW * width) * square
    bulge = gap * (1 - square) ** FULLNESS
    return (line - RISE * bulge).astype(np.float32), (line + (1 - RISE) * bulge).astype(np.float32)


def render(portrait: Portrait, opening: float, width: float, pose: NDArray[np.float64] = CANONICAL, look: Look = PLAIN) -> NDArray[np.uint8]:
    """The face with this mouth, (96, 96, 3). Raises `ValueError` for a mouth outside `OPENINGS` and `WIDTHS`."""
    if not (OPENINGS[0] <= opening <= OPENINGS[1] and WIDTHS[0] <= width <= WIDTHS[1]):
        raise ValueError(f"a mouth of opening {opening:.3f} and width {width:.3f} cannot be drawn; openings {OPENINGS} and widths {WIDTHS} can")
    inverse = np.linalg.inv(pose[:, :2])
    centres = np.arange(SIDE, dtype=np.float64) + 0.5
    x = (inverse[0, 0] * (centres - pose[0, 2])[None] + inverse[0, 1] * (centres - pose[1, 2])[:, None] - MOUTH[0]).astype(np.float32)
    y = (inverse[1, 0] * (centres - pose[0, 2])[None] + inverse[1, 1] * (centres - pose[1, 2])[:, None] - MOUTH[1]).astype(np.float32)
    return _coloured(paint(portrait, opening, width, x, y), look, (centres / SIDE - 0.5).astype(np.float32))


def paint(portrait: Portrait, opening: float, width: float, x: Floats, y: Floats) -> Floats:
    """Colours (..., 3) in [0, 1] at canonical places, given from `MOUTH`."""
    upper, lower = lip_edges(opening, width, x)
    source_x, source_y = _origins(portrait, opening, width, x, y, upper, lower)
    colour = _read(portrait.picture, source_x, source_y)
    half = width * NEUTRAL_WIDTH / 2
    within = np.abs(x) < half
    covered = np.where(within, np.clip(y - upper + 0.5, 0, 1) + np.clip(lower - y + 0.5, 0, 1) - 1, 0)[..., None]  # of a pixel, by the gap
    outside = np.maximum(np.maximum(upper - y, y - lower), 0)
    fold = np.where(within, 1 - (x / half) ** 8, 0) * np.exp(-0.5 * (outside / 0.8) ** 2)  # lips curve inwards where they meet
    red = np.where(within, 1 - (x / half) ** 4, 0) * _bump(outside / 3.8)
    colour = colour * (1 - (0.38 * fold[..., None] + 0.13 * red[..., None] * np.array((0.1, 1.0, 0.9), np.float32)))
    shown: Floats = colour + np.maximum(covered, 0) * (_inside(opening, width, x, y, upper) - colour)
    return shown


def _bump(distance: Places) -> Floats:
    """1 at 0, level there, and 0 from 1 on."""
    square = np.minimum(distance * distance, np.float32(1))
    bump: Floats = (1 - square) * (1 - square)
    return bump


def _origins(portrait: Portrait, opening: float, width: float, x: Floats, y: Floats, upper: Floats, lower: Floats) -> tuple[Floats, Floats]:
    """Where in the portrait what is seen at (x, y) comes from, given from `MOUTH`. Exact on the edges of the lips; only there is the map torn.

    How far movement reaches, in pixels, was chosen by looking, within what folds nowhere and leaves everything outside `MOVING`.
    """
    half = width * NEUTRAL_WIDTH / 2
    above, below = np.maximum(upper - y, 0), np.maximum(y - lower, 0)
    reach = x / half
    whole = (portrait.half_width - half) / (1 - (half / 34) ** 2) ** 2  # so that it is all of the way at the corners
    sideways = whole * reach * np.exp((1 - reach * reach) / 2) * _bump(x / 34)
    column = np.clip((x + sideways + REACH) / STEP, 0, len(portrait.upper) - 1)
    beside = _bump(np.maximum(np.abs(x) - half, 0) / 14)
    lift = np.subtract(upper, _entry(portrait.upper, column)) * beside
    sink = np.subtract(lower, _entry(portrait.lower, column)) * beside
    middle = (1 - RISE) * opening * NEUTRAL_WIDTH - float(portrait.lower[len(portrait.lower) // 2])
    chin = JAW * middle * _bump(x / 38) * _bump(np.maximum(y - 14, 0) / 33)
    thicker = beside * np.float32(1 - np.sqrt(half / portrait.half_width))  # lips drawn together are fuller
    lip = _bump(below / 20)
    up = (lift - thicker * above * _bump(above / 8)) * _bump(above / (upper + HIGHEST))
    down = sink * lip + chin * (1 - lip) + thicker * below * _bump(below / 9)
    top, bottom = -RISE * opening * NEUTRAL_WIDTH - BOW * width, (1 - RISE) * opening * NEUTRAL_WIDTH  # all of the gap is between them
    near = _bump(np.maximum(top - y, 0) / (top + HIGHEST)) * _bump(np.maximum(y - bottom, 0) / 20)
    return x + sideways * near, y - np.where(y < upper, up, down)


def _entry(table: Floats, place: Places) -> Floats:
    low = np.minimum(place.astype(np.int32), len(table) - 2)
    here = table.take(low)
    between: Floats = here + (table.take(low + 1) - here) * (place - low)
    return between


def _read(picture: Floats, x: Floats, y: Floats) -> Floats:
    """The picture's colours at places given from `MOUTH`, bilinear; beyond its border, those of the border."""
    rows, columns = picture.shape[:2]
    column = np.clip((x + (MOUTH[0] + MARGIN)) * DENSITY - 0.5, 0, columns - 1.001)
    row = np.clip((y + (MOUTH[1] + MARGIN)) * DENSITY - 0.5, 0, rows - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, low = (column - left)[..., None], (row - top)[..., None]
    flat, start = picture.reshape(-1, 3), top * columns + left
    first: Floats = flat.take(start, axis=0)
    first += (flat.take(start + 1, axis=0) - first) * right
    second = flat.take(start + columns, axis=0)
    second += (flat.take(start + columns + 1, axis=0) - second) * right
    first += (second - first) * low
    return first


def _inside(opening: float, width: float, x: Floats, y: Floats, upper: Floats) -> Floats:
    """What is seen between the lips: upper teeth stay, lower teeth and tongue sink with the jaw, and all of it lies in the lips' shade."""
    half, gap = width * NEUTRAL_WIDTH / 2, opening * NEUTRAL_WIDTH
    colour = np.broadcast_to(np.array(HOLLOW, np.float32), (*x.shape, 3)).copy()
    sunk = (1 - RISE) * gap
    tongue = np.clip((y - sunk + 0.32 * gap + 1.2 + (x / half) ** 2 * 3) / 2.5, 0, 1) * min(1.0, gap / 6) * 0.8
    colour += tongue[..., None] * (np.array(TONGUE, np.float32) - colour)
    arch = (x / (0.5 * NEUTRAL_WIDTH)) ** 2
    bared = float(np.clip((width - 0.68) / 0.3, 0.12, 1))  # rounded lips hide teeth
    upper_teeth = np.clip(2.6 - 2.2 * arch - y + 0.5, 0, 1) * (arch < 1)
    lower_teeth = np.clip(y - (sunk - 1.3 + 1.6 * arch) + 0.5, 0, 1) * (arch < 0.6) * min(1.0, gap / 8) * 0.75
    between = np.abs((x + 1.7) % 3.4 - 1.7)  # from the middle of a mouth to the nearest gap between teeth, pixels
    for teeth in (lower_teeth, upper_teeth):
        light = (1 - 0.45 * arch) * (1 - 0.12 * np.exp(-0.5 * (between / 0.45) ** 2))
        colour += (teeth * bared)[..., None] * (np.array(TEETH, np.float32) * light[..., None] - colour)
    shade = 0.55 + 0.45 * np.clip((y - upper) / 2.5, 0, 1)
    shaded: Floats = colour * shade[..., None]
    return shaded


def _coloured(colour: Floats, look: Look, across: Floats) -> NDArray[np.uint8]:
    """8 bits after `look`; `across` is the place along an axis from -1/2 to 1/2."""
    if look.gamma != 1:
        colour = np.maximum(colour, 0) ** np.float32(look.gamma)
    if look.saturation != 1:
        grey = colour @ np.array((0.299, 0.587, 0.114), np.float32)
        colour = grey[..., None] + (colour - grey[..., None]) * np.float32(look.saturation)
    light = 1 + look.slope[0] * across[None, :] + look.slope[1] * across[:, None]
    colour = colour * light[..., None] * np.array(look.gain, np.float32)
    return np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
