"""Solids for procedural scenes, and where parallel rays meet them.

Every solid lies inside the unit ball of its own frame, its axis along z. The viewer is at depth +infinity, so a ray meets a solid first at its
largest depth. A convex solid is what slabs, half-spaces and quadrics have in common: each gives an interval of depths, and the solid's interval is
their intersection. `stretch`, in [0, 1], sets a solid's proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Faces = NDArray[np.int64]
Flags = NDArray[np.bool_]

FAR = 1e3
RING_STEPS, ROUNDED_STEPS = 26, 9
HALF_ROOT_3 = 0.8660254
UP = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Hits:
    """Where M rays first meet a solid: depth (M), outward normal (3, M), which of the solid's faces (M), and whether they meet it at all (M)."""

    depth: Floats
    normal: Floats
    face: Faces
    met: Flags


@dataclass(frozen=True)
class _Part:
    """The depths (M) between which rays are inside one convex part, and the part's normal (3, M) where they enter; empty where near < far."""

    near: Floats
    far: Floats
    normal: Floats


@dataclass(frozen=True)
class Rays:
    """M parallel rays per solid, in its frame: `origin + depth * direction`, both (3, M), and the solid's stretch (M)."""

    origin: Floats
    direction: Floats
    stretch: Floats

    def at(self, depth: Floats) -> Floats:
        """The points (3, M) at these depths (M)."""
        return f32(self.origin + depth * self.direction)

    def from_height(self, height: Floats | float) -> Rays:
        """The same rays seen from `height` on the axis."""
        return Rays(np.stack([self.origin[0], self.origin[1], self.origin[2] - height]), self.direction, self.stretch)


Cast = Callable[[Rays], Hits]


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _unit(vector: NDArray[np.floating]) -> Floats:
    return f32(vector / np.sqrt(np.maximum(_dot(vector, vector), np.float32(1e-12))))


def f32(values: NDArray[np.floating]) -> Floats:
    """The values as float32, not copied where they are."""
    return values.astype(np.float32, copy=False)


def _column(values: Sequence[float | Floats], like: Floats) -> Floats:
    return np.stack([np.broadcast_to(np.asarray(value, np.float32), like.shape) for value in values])


def _slope(normal: Floats, direction: Floats) -> Floats:
    slope = _dot(normal, direction)
    return np.where(np.abs(slope) < 1e-5, np.float32(1e-5), slope)


def _slab(rays: Rays, normal: Sequence[float | Floats], half: float | Floats) -> _Part:
    """|normal · p| <= half."""
    n = _column(normal, rays.origin[0])
    along, slope = _dot(n, rays.origin), _slope(n, rays.direction)
    one, other = (half - along) / slope, (-half - along) / slope
    return _Part(np.maximum(one, other), np.minimum(one, other), f32(n * np.sign(slope)))


def _half_space(rays: Rays, normal: Sequence[float | Floats], limit: float | Floats) -> _Part:
    """normal · p <= limit."""
    n = _column(normal, rays.origin[0])
    slope = _slope(n, rays.direction)
    depth = (limit - _dot(n, rays.origin)) / slope
    far = np.float32(FAR)
    return _Part(np.where(slope > 0, depth, far), np.where(slope > 0, -far, depth), n)


def _quadric(rays: Rays, weights: Sequence[float | Floats], level: float | Floats) -> _Part:
    """w0·x² + w1·y² + w2·z² <= level, for rays along which the left side is convex."""
    w = _column(weights, rays.origin[0])
    a, b, c = _dot(w * rays.direction, rays.direction), _dot(w * rays.direction, rays.origin), _dot(w * rays.origin, rays.origin) - level
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    far = np.float32(FAR)
    near = np.where(inside > 0, (root - b) / a, -far)
    normal = w * rays.at(near)
    return _Part(near, np.where(inside > 0, (-root - b) / a, far), f32(normal))


def _common(parts: Sequence[_Part], faces: Sequence[int] | None = None) -> Hits:
    """The intersection of convex parts; `faces` are the labels of the parts, their order if left out."""
    depth, far, normal = parts[0].near, parts[0].far, parts[0].normal
    labels = range(len(parts)) if faces is None else faces
    face = np.full(depth.shape, labels[0], np.int64)
    for label, part in zip(labels[1:], parts[1:], strict=True):
        nearer = part.near < depth
        depth, far = np.where(nearer, part.near, depth), np.maximum(far, part.far)
        normal = np.where(nearer, part.normal, normal)
        face = np.where(nearer, label, face)
    return Hits(depth, _unit(normal), face, depth > far)


def sphere(rays: Rays) -> Hits:
    """The unit ball."""
    return _common([_quadric(rays, (1.0, 1.0, 1.0), 1.0)])


def lens(rays: Rays) -> Hits:
    """A flattened ball."""
    return _common([_quadric(rays, (1.0, 1.0, f32(1 / (0.3 + 0.2 * rays.stretch) ** 2)), 1.0)])


def dome(rays: Rays) -> Hits:
    """Half a ball, its flat side towards +z."""
    return _common([_quadric(rays, (1.0, 1.0, 1.0), 1.0), _half_space(rays, UP, 0.1 + 0.15 * rays.stretch)])


def cylinder(rays: Rays) -> Hits:
    """Half as long as wide up to twice."""
    half = cylinder_half(rays.stretch)
    return _common([_quadric(rays, (1.0, 1.0, 0.0), 1 - half**2), _slab(rays, UP, half)])


def cylinder_half(stretch: Floats) -> Floats:
    """Half the length of a cylinder, of a prism too."""
    return 0.45 + 0.4 * stretch


def cone(rays: Rays) -> Hits:
    """Apex at z = 1, base at z = -0.6 (-0.8 at full stretch); from more than 33 degrees off its axis, where rays cut only one nappe."""
    base = -0.6 - 0.2 * rays.stretch
    slope = np.sqrt(1 - base**2) / (1 - base)
    side = _quadric(rays.from_height(1.0), (1.0, 1.0, -(slope**2)), 0.0)
    return _common([side, _half_space(rays, (0.0, 0.0, -1.0), -base), _half_space(rays, UP, 1.0)])


def pyramid(rays: Rays) -> Hits:
    """A square base at z = -0.45 (-0.65) and four equal sides."""
    base = -0.45 - 0.2 * rays.stretch
    half = np.sqrt((1 - base**2) / 2)
    length = np.sqrt((1 - base) ** 2 + half**2)
    out, up = f32((1 - base) / length), f32(half / length)
    sides: list[tuple[float | Floats, ...]] = [(out, 0.0, up), (-out, 0.0, up), (0.0, out, up), (0.0, -out, up)]
    parts = [_half_space(rays, normal, up) for normal in sides]
    return _common([*parts, _half_space(rays, (0.0, 0.0, -1.0), -base)])


def box(rays: Rays) -> Hits:
    """A brick, longest along its axis."""
    return _common([_slab(rays, axis, half) for axis, half in zip(np.eye(3).tolist(), box_halves(rays.stretch), strict=True)])


def box_halves(stretch: Floats) -> tuple[Floats, Floats, Floats]:
    """Half the sides of a box, all different; its corners are on the unit sphere."""
    x, y, z = 0.55 - 0.1 * stretch, 0.4, 0.7 + 0.4 * stretch
    length = np.sqrt(x**2 + y**2 + z**2)
    return f32(x / length), f32(y / length), f32(z / length)


def prism(rays: Rays) -> Hits:
    """A hexagonal prism."""
    half = cylinder_half(rays.stretch) - 0.1
    across = HALF_ROOT_3 * np.sqrt(1 - half**2)
    sides = [(1.0, 0.0, 0.0), (0.5, HALF_ROOT_3, 0.0), (-0.5, HALF_ROOT_3, 0.0)]
    return _common([*(_slab(rays, side, across) for side in sides), _slab(rays, UP, half)])


def octahedron(rays: Rays) -> Hits:
    """A gem: |x| + |y| + |z| <= 1 with a narrower waist."""
    waist = 0.7 + 0.3 * rays.stretch
    length = np.sqrt(2 / waist**2 + 1)
    side, up = f32(1 / (waist * length)), f32(1 / length)
    signs = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)]
    return _common([_slab(rays, (a * side, b * side, up), up) for a, b in signs])


def capsule_half(stretch: Floats) -> Floats:
    """Half the distance between the centres of a capsule's round ends."""
    return 0.45 + 0.2 * stretch


def capsule(rays: Rays) -> Hits:
    """A cylinder with round ends: the union of three convex parts, of which a ray meets the nearest first."""
    half = capsule_half(rays.stretch)
    radius = 1 - half
    middle = _common([_quadric(rays, (1.0, 1.0, 0.0), radius**2), _slab(rays, UP, half)])
    depth, met = np.where(middle.met, middle.depth, np.float32(-FAR)), middle.met
    for sign in (1, -1):
        end = _quadric(rays.from_height(sign * half), (1.0, 1.0, 1.0), radius**2)
        depth, met = np.maximum(depth, end.near), met | (end.near > end.far)
    point = rays.at(depth)
    point[2] -= np.clip(point[2], -half, half)
    return Hits(depth, _unit(point), np.zeros(depth.shape, np.int64), met)


def rounded(rays: Rays) -> Hits:
    """A superellipsoid, x⁴ + y⁴ + z⁴ <= 1 scaled into the unit ball; the quartic is convex, so Newton's method reaches it from outside."""
    scale = np.float32(3**0.25)
    o, d = rays.origin * scale, rays.direction * scale
    dd, do, oo = d * d, d * o, o * o
    a4, a3, a2, a1, a0 = _dot(dd, dd), 4 * _dot(dd, do), 6 * _dot(dd, oo), 4 * _dot(do, oo), _dot(oo, oo)
    depth = np.full(a0.shape, 1.05, np.float32)
    for _ in range(ROUNDED_STEPS):
        value = (((a4 * depth + a3) * depth + a2) * depth + a1) * depth + a0 - 1
        rise = ((4 * a4 * depth + 3 * a3) * depth + 2 * a2) * depth + a1
        depth = np.maximum(depth - value / np.maximum(rise, 1e-2), -1.1)  # beside the solid there is no root, and the step has no end
    point = o + depth * d
    return Hits(depth, _unit(f32(point * point * point)), np.zeros(depth.shape, np.int64), _dot(point * point, point * point) < 1.02)


def ring_tube(stretch: Floats) -> Floats:
    """The radius of a ring's tube; the tube's centre is at 1 minus it."""
    return 0.22 + 0.12 * stretch


def ring(rays: Rays) -> Hits:
    """A torus, found by stepping along each ray by the distance to the surface."""
    tube = ring_tube(rays.stretch)
    middle = 1 - tube
    depth = np.full(tube.shape, 1.0, np.float32)
    gap = np.zeros_like(depth)
    for _ in range(RING_STEPS):
        point = rays.at(depth)
        gap = np.sqrt((np.sqrt(point[0] ** 2 + point[1] ** 2) - middle) ** 2 + point[2] ** 2) - tube
        depth = np.maximum(depth - gap, -1.5)
    point = rays.at(depth)
    wide = np.maximum(np.sqrt(point[0] ** 2 + point[1] ** 2), 1e-6)
    core = np.stack([point[0] / wide * middle, point[1] / wide * middle, np.zeros_like(wide)])
    return Hits(depth, _unit(point - core), np.zeros(depth.shape, np.int64), (gap < 0.006) & (depth > -1.2))
