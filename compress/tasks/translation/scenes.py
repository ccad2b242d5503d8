"""Procedural pairs for image translation: contour drawings of many small solids, and the same solids coloured, lit and casting soft shadows.

A scene is a function of (seed, index, size) alone and its pair is exact. What a solid looks like follows from its kind, its proportions and how it
is turned, all of which its outline tells; nothing depends on where in the picture it stands, so that crops are as good as whole pictures. Solids have
the same size in pixels whatever the size of the picture. The one light comes from above on the left: augmentation must not mirror these pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.translation import looks, shapes
from mcompress.compress.tasks.translation.shapes import Cast, Floats

SMALLEST_SIZE, LARGEST_SIZE = 32, 1024
SAMPLES = 2
"""Rays per pixel and axis."""
CELL = 25.0
"""Pixels between neighbouring places of solids, before they are moved at random."""
JITTER = 9.0
ABSENT = 0.22
"""The share of places that stay empty."""
RADII = (8.0, 22.0)
"""Pixels, of the ball around a solid."""
LIGHT = (-0.48, -0.56, 0.675)
"""Towards the light: x to the right, y down, z to the viewer."""
AMBIENT, DIFFUSE, SPECULAR, GLOSS = 0.42, 0.72, 0.5, 28
BACKGROUND = (0.87, 0.885, 0.91)
SHADOW_STEPS, SHADOW_REACH, SHADOW_DEPTH = 20, 9.0, 0.5
"""Samples of a shadow, how far it falls (pixels), and how dark it is where everything is covered."""
JUMP = 0.45
"""A step in depth, in radii, that is drawn as a contour within a solid that folds: a ring in front of itself."""


Angles = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """A kind of solid: how often it comes, where rays meet it, its colours, how far its axis tilts away from the viewer (degrees).

    `spin`: the angle (degrees) within which it is turned about its axis: none where that does not show, and no more than its symmetry tells apart.
    """

    name: str
    share: float
    cast: Cast
    look: looks.Look
    tilt: tuple[float, float]
    spin: float
    folds: bool = False
    """Whether one can see through it, or a part of it in front of another."""


KINDS = (
    Kind("sphere", 0.13, shapes.sphere, looks.sphere, (0.0, 1.0), 0.0),
    Kind("cylinder", 0.13, shapes.cylinder, looks.cylinder, (25.0, 80.0), 0.0),
    Kind("cone", 0.11, shapes.cone, looks.cone, (45.0, 125.0), 0.0),
    Kind("box", 0.13, shapes.box, looks.box, (25.0, 70.0), 180.0),
    Kind("pyramid", 0.10, shapes.pyramid, looks.pyramid, (20.0, 110.0), 90.0),
    Kind("ring", 0.11, shapes.ring, looks.ring, (15.0, 65.0), 0.0, folds=True),
    Kind("prism", 0.08, shapes.prism, looks.prism, (25.0, 75.0), 60.0),
    Kind("rounded", 0.07, shapes.rounded, looks.rounded, (20.0, 70.0), 90.0),
    Kind("capsule", 0.06, shapes.capsule, looks.capsule, (35.0, 85.0), 0.0),
    Kind("octahedron", 0.03, shapes.octahedron, looks.octahedron, (25.0, 85.0), 90.0),
    Kind("dome", 0.03, shapes.dome, looks.dome, (30.0, 75.0), 0.0),
    Kind("lens", 0.02, shapes.lens, looks.lens, (35.0, 75.0), 0.0),
)


@dataclass(frozen=True)
class Solids:
    """The solids of a scene, back to front: kind (n), centre (n, 2) and radius (n) in pixels, stretch (n), and axes (n, 3, 3).

    Rows of `axes` are the x, y and z axis of a solid's frame in the picture's coordinates: x to the right, y down, z to the viewer.
    """

    kind: NDArray[np.int64]
    centre: Floats
    radius: Floats
    stretch: Floats
    axes: Floats


@dataclass(frozen=True)
class Scene:
    """One scene: `edges` and `shaded`, uint8 (3, size, size); at `SAMPLES` rays per pixel and axis, which solid (-1: none) and which of its faces."""

    edges: NDArray[np.uint8]
    shaded: NDArray[np.uint8]
    solid: NDArray[np.int64]
    face: NDArray[np.int64]
    solids: Solids


def scene(seed: int, index: int, size: int) -> Scene:
    """The scene with this seed and index, `size` pixels a side. Raises `ValueError` for a size outside 32 to 1024."""
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError(f"a scene of {size} pixels a side cannot be drawn; {SMALLEST_SIZE} to {LARGEST_SIZE} can")
    solids = _place(np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index]))), size)
    return _draw(solids, size)


def _place(generator: np.random.Generator, size: int) -> Solids:
    """A jittered grid of solids that reaches over the picture's border, in a random order of depth."""
    places = np.arange(-CELL / 2, size + CELL, CELL)
    grid = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    count = len(grid)
    centre = grid + generator.uniform(-JITTER, JITTER, (count, 2))
    shares = np.array([kind.share for kind in KINDS])
    kind = generator.choice(len(KINDS), count, p=shares / shares.sum())
    radius = RADII[0] + (RADII[1] - RADII[0]) * generator.beta(1.4, 1.6, count)
    stretch = generator.random(count)
    stretch = np.where(kind == 0, (radius - RADII[0]) / (RADII[1] - RADII[0]), stretch)  # a sphere has no proportions; its size shows
    low, high = (np.array([k.tilt[side] for k in KINDS])[kind] for side in (0, 1))
    tilt = np.deg2rad(low + (high - low) * generator.random(count))
    turn = 2 * np.pi * generator.random(count)
    spin = np.deg2rad(np.array([k.spin for k in KINDS])[kind] * generator.random(count))
    keep = generator.random(count) > ABSENT
    order = generator.permutation(count)
    order = order[keep[order]]
    axes = _frames(tilt, turn, spin)
    return Solids(kind[order], *(value[order].astype(np.float32) for value in (centre, radius, stretch, axes)))


def _frames(tilt: Angles, turn: Angles, spin: Angles) -> Angles:
    """`Solids.axes` from angles in radians. Without spin, x lies in the picture plane, across the axis."""
    axis = np.stack([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)], axis=-1)
    across = np.stack([-np.sin(turn), np.cos(turn), np.zeros_like(turn)], axis=-1)
    third = np.cross(axis, across)
    cos, sin = np.cos(spin)[:, None], np.sin(spin)[:, None]
    return np.stack([cos * across + sin * third, cos * third - sin * across, axis], axis=1)


def _rays(solids: Solids, which: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Samples of the picture inside the discs of the solids `which`: solid (M), sample number (M), and place in the disc (2, M), in radii."""
    owners, numbers, offsets = [], [], []
    for solid in which:
        (x, y), radius = solids.centre[solid] * SAMPLES, solids.radius[solid] * SAMPLES
        columns = np.arange(max(0, int(x - radius)), min(side, int(x + radius) + 2))
        rows = np.arange(max(0, int(y - radius)), min(side, int(y + radius) + 2))
        u, v = (columns + np.float32(0.5) - x) / radius, (rows + np.float32(0.5) - y) / radius
        row, column = np.nonzero(u[None, :] ** 2 + v[:, None] ** 2 < 1)
        owners.append(np.full(len(row), solid))
        numbers.append(rows[row] * side + columns[column])
        offsets.append(np.stack([u.take(column), v.take(row)]))
    if not owners:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((2, 0), np.float32)
    return np.concatenate(owners), np.concatenate(numbers), np.concatenate(offsets, axis=1).astype(np.float32)


def _draw(solids: Solids, size: int) -> Scene:
    side = size * SAMPLES
    found = [_meet(kind, solids, side) for kind in range(len(KINDS))]
    owner, number, depth, face, colour = (np.concatenate([part[k] for part in found], axis=-1) for k in range(5))
    order = np.argsort(owner, kind="stable")  # later solids are nearer; of repeated indices, the last assignment stays
    top = np.full(side * side, -1)
    top[number[order]] = order
    shown = np.nonzero(top >= 0)[0]
    top = top[shown]
    which, faces = np.full(side * side, -1), np.zeros(side * side, np.int64)
    depths = np.zeros(side * side, np.float32)
    which[shown], faces[shown] = owner.take(top), face.take(top)
    folds = np.array([kind.folds for kind in KINDS])[solids.kind]
    depths[shown] = depth.take(top) * folds.take(which[shown])
    picture = np.empty((3, side * side), np.float32)
    for channel in range(3):
        picture[channel] = BACKGROUND[channel]
        picture[channel, shown] = colour[channel].take(top)
    grid = which.reshape(side, side)
    shaded = _reduce(picture.reshape(3, side, side) * (1 - SHADOW_DEPTH * _shadow(grid)))
    lines = _reduce(1 - _lines(grid, faces.reshape(side, side), depths.reshape(side, side))[None])
    return Scene(np.repeat(_bytes(lines), 3, axis=0), _bytes(shaded), grid, faces.reshape(side, side), solids)


def _meet(kind: int, solids: Solids, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, NDArray[np.int64], Floats]:
    """Where the solids of one kind are seen: solid, sample number, depth in radii, face, and the lit colour (3, M)."""
    owner, number, offset = _rays(solids, np.nonzero(solids.kind == kind)[0], side)
    right, down, viewer = (np.ascontiguousarray(solids.axes[:, :, k].T) for k in range(3))  # of the picture, in the solids' frames
    origin = right.take(owner, axis=1) * offset[0] + down.take(owner, axis=1) * offset[1]
    rays = shapes.Rays(origin, viewer.take(owner, axis=1), solids.stretch.take(owner))
    hits = KINDS[kind].cast(rays)
    met = np.nonzero(hits.met)[0]
    owner, depth, face = owner.take(met), hits.depth.take(met), hits.face.take(met)
    point = rays.at(hits.depth).take(met, axis=1)
    colour = KINDS[kind].look(looks.Surface(point, rays.stretch.take(met), face))
    return owner, number.take(met), depth, face, _lit(colour, hits.normal.take(met, axis=1), solids.axes, owner)


def _lit(colour: Floats, normal: Floats, axes: Floats, owner: NDArray[np.int64]) -> Floats:
    """Lambert's law with ambient light, and Blinn's highlight."""
    light = np.array(LIGHT, np.float32)
    halfway = light + np.array((0.0, 0.0, 1.0), np.float32)
    towards, glint = ((axes @ vector).T.take(owner, axis=1) for vector in (light, halfway / np.linalg.norm(halfway)))
    lambert = np.maximum((normal * towards).sum(axis=0), 0)
    shine = np.maximum((normal * glint).sum(axis=0), 0) ** np.float32(GLOSS)
    lit: Floats = colour * (AMBIENT + DIFFUSE * lambert) + SPECULAR * shine
    return lit


def _shadow(which: NDArray[np.int64]) -> Floats:
    """How much of the way towards the light is covered by nearer solids, in [0, 1], (side, side)."""
    side = len(which)
    margin = int(SHADOW_REACH * SAMPLES * 1.6)
    padded = np.pad(which.astype(np.int16), margin, mode="edge")
    here = padded[margin:-margin, margin:-margin]
    total = np.zeros((side, side), np.float32)
    for step in range(SHADOW_STEPS):
        reach = SHADOW_REACH * SAMPLES * (step + 0.5) / SHADOW_STEPS
        spread = reach * 0.45
        x = round(LIGHT[0] * reach + spread * np.cos(step * 2.4))
        y = round(LIGHT[1] * reach + spread * np.sin(step * 2.4))
        total += padded[margin + y : margin + y + side, margin + x : margin + x + side] > here
    return shapes.f32(total / SHADOW_STEPS)


def _lines(which: NDArray[np.int64], face: NDArray[np.int64], depth: Floats) -> Floats:
    """1 on contours and creases: where the solid or the face changes, or one solid jumps in depth."""
    part = which * 16 + face
    line = np.zeros(which.shape, np.bool_)
    for axis in (0, 1):
        one = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        other = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        changes = (part[one] != part[other]) | (np.abs(depth[one] - depth[other]) > JUMP)
        line[one] |= changes
        line[other] |= changes
    return line.astype(np.float32)


def _reduce(picture: Floats) -> Floats:
    """The mean of each pixel's samples, (C, side, side) -> (C, size, size)."""
    total = np.zeros((picture.shape[0], picture.shape[1] // SAMPLES, picture.shape[2] // SAMPLES), np.float32)
    for row in range(SAMPLES):
        for column in range(SAMPLES):
            total += picture[:, row::SAMPLES, column::SAMPLES]
    return shapes.f32(total / SAMPLES**2)


def _bytes(picture: Floats) -> NDArray[np.uint8]:
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
