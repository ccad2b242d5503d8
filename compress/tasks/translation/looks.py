"""How each kind of solid is coloured: patterns in the solid's own frame, so that they follow its axis.

A colour is float32 (3, M), in [0, 1], before lighting. `scenes` turns the frames of solids so that a colour can be told from the outline alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mcompress.compress.tasks.translation.shapes import Faces, Floats, box_halves, ring_tube


@dataclass(frozen=True)
class Surface:
    """M points on solids of one kind: where in their frame (3, M), the solid's stretch (M), and the label of the face (M), as `shapes` gives it."""

    point: Floats
    stretch: Floats
    face: Faces


Look = Callable[[Surface], Floats]


def _rgb(code: str) -> Floats:
    return np.array([[int(code[i : i + 2], 16)] for i in (0, 2, 4)], np.float32) / np.float32(255)


def _mix(one: Floats, other: Floats, share: Floats) -> Floats:
    mixed: Floats = one + (other - one) * share
    return mixed


def _wave(phase: Floats) -> Floats:
    """A square wave with soft flanks: 0 or 1, period 1 in `phase`."""
    wave: Floats = np.clip(0.5 + 2.5 * np.sin(2 * np.pi * phase), 0, 1)
    return wave


def sphere(at: Surface) -> Floats:
    """One warm colour: red small, orange large."""
    return _mix(_rgb("d7263d"), _rgb("f46036"), at.stretch)


def lens(at: Surface) -> Floats:
    """A silver saucer with lime rings around its axis."""
    return _mix(_rgb("b8c4cc"), _rgb("a4de02"), _wave(2.0 * np.hypot(at.point[0], at.point[1]) - 0.1))


def dome(at: Surface) -> Floats:
    """Half a melon: striped green outside, red with a pale rim on the flat side."""
    skin = _mix(_rgb("1b7a3d"), _rgb("8fd14f"), _wave(np.arctan2(at.point[1], at.point[0]) * (8 / (2 * np.pi))))
    width = np.hypot(at.point[0], at.point[1])
    flesh = _mix(_rgb("ef3e5b"), _rgb("f6f3d8"), np.clip((width - 0.72) * 12, 0, 1))
    return np.where(at.face == 1, flesh, skin)


def cylinder(at: Surface) -> Floats:
    """Blue and white bands across the axis, a pale lid."""
    bands = _mix(_rgb("1f4e9e"), _rgb("e8eef7"), _wave(1.9 * at.point[2] + 0.25))
    return np.where(at.face == 1, _mix(_rgb("9db8e3"), _rgb("5b86c9"), _wave(1.6 * np.hypot(at.point[0], at.point[1]))), bands)


def cone(at: Surface) -> Floats:
    """A traffic cone: orange with a white band, dark below."""
    band = np.clip(1.5 - np.abs(at.point[2] + 0.05) * 8, 0, 1)
    return np.where(at.face == 1, _rgb("4a4e57"), _mix(_rgb("ff6b1a"), _rgb("fafafa"), band))


def pyramid(at: Surface) -> Floats:
    """Courses of sandstone, lighter towards the top; a brown base."""
    courses = _mix(_rgb("c9922e"), _rgb("f2d27a"), _wave(2.6 * at.point[2]))
    return np.where(at.face == 4, _rgb("6b4423"), _mix(courses, _rgb("fff3c4"), np.clip(at.point[2] * 2 - 0.9, 0, 1)))


def box(at: Surface) -> Floats:
    """A parcel in teal: a ribbon across the middle of each face, magenta on the ends and yellow along the sides."""
    x, y, _ = (np.abs(value / half) for value, half in zip(at.point, box_halves(at.stretch), strict=True))
    base = _mix(_rgb("13a89e"), _rgb("0b6e8a"), at.stretch)
    ribbon = np.where(at.face == 2, np.minimum(x, y), np.where(at.face == 0, y, x))
    band = np.clip(2.0 - ribbon * 8, 0, 1)
    tape = np.where(at.face == 2, _rgb("d81e8c"), _rgb("ffd23f"))
    return _mix(base, tape, band)


def prism(at: Surface) -> Floats:
    """A pencil: yellow sides striped along the axis, and wood with a graphite core at the ends."""
    sides = np.where(at.face == 1, _rgb("f7b500"), np.where(at.face == 0, _rgb("d99100"), _rgb("ffd65c")))
    width = np.hypot(at.point[0], at.point[1])
    return np.where(at.face == 3, _mix(_rgb("2b2b33"), _rgb("e9c79a"), np.clip((width - 0.22) * 10, 0, 1)), sides)


def octahedron(at: Surface) -> Floats:
    """A gem whose facets go from cyan to deep blue."""
    shades = np.stack([_rgb("7df9ff"), _rgb("34c6f4"), _rgb("1496d4"), _rgb("0a63b0")])[:, :, 0]
    colour: Floats = shades.T[:, at.face] * (0.85 + 0.3 * np.abs(at.point[2]))
    return colour


def capsule(at: Surface) -> Floats:
    """A pill: crimson half, cream half."""
    return _mix(_rgb("f4ecd8"), _rgb("b3123f"), np.clip(0.5 + at.point[2] * 14, 0, 1))


def rounded(at: Surface) -> Floats:
    """Violet with a pale spot on each of its six cushions, as a die has."""
    largest = np.max(np.abs(at.point), axis=0)
    off = np.sqrt(np.maximum(np.sum(at.point**2, axis=0) - largest**2, 0)) / largest
    return _mix(_rgb("f3e9ff"), _rgb("6a2fb5"), np.clip((off - 0.34) * 9, 0, 1))


def ring(at: Surface) -> Floats:
    """Pink icing on dough: icing on the side that faces the viewer, with sprinkles of white along the tube."""
    height = at.point[2] / ring_tube(at.stretch)
    icing = _mix(
        _rgb("ff77b7"), _rgb("fff0f7"), _wave(np.arctan2(at.point[1], at.point[0]) * (7 / (2 * np.pi)) + 0.25) * np.clip(height * 3 - 1, 0, 1)
    )
    return _mix(_rgb("b5763a"), icing, np.clip(0.5 + height * 5, 0, 1))
