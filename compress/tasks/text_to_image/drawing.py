"""Pictures of captioned scenes: one figure on a dim background, smooth at its edges.

What a caption does not say is drawn at random: how large the figure is, where exactly it stands, how it is turned, how its texture lies, and the
background. So a caption has many pictures, and what a network draws for it can be compared with them as a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcompress.compress.tasks.text_to_image.captions import COLOURS, PLACES, SHAPES, TEXTURES, Scene

SIDE = 32
"""Pixels."""
RADIUS = (6.8, 8.6)
"""Pixels, of the circle around a figure."""
SHIFT = 1.2
"""Pixels by which a figure stands off its place, at most, along each axis."""
TURN = math.radians(12.0)
PERIOD = {"striped": 5.6, "dotted": 5.0, "checked": 7.6}
"""Pixels."""
DOT_RADIUS = 1.5
BRIGHTNESS = (0.12, 0.42)
"""Of the background, at its top and at its bottom."""
TINT = 0.06
SHADE = 0.28
"""What is left of a colour on the dark fields of a checked figure."""
STAR_WAIST = 0.45
"""Radius of the inner corners of a star in that of its tips."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Places x to the right and y down, in radii of the figure -> about the distance to its edge, negative inside."""


def _box(x: Tensor, y: Tensor, wide: float, tall: float) -> Tensor:
    return torch.maximum(x.abs() - wide, y.abs() - tall)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.radians(30.0)
    sides = torch.maximum(y, torch.maximum(math.cos(slope) * x - math.sin(slope) * y, -math.cos(slope) * x - math.sin(slope) * y))
    return sides - 0.55


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2  # from the nearest tip, the first of which is at the top
    radius = torch.sqrt(x * x + y * y)
    along, across = radius * torch.cos(angle), radius * torch.sin(angle).abs()
    inner = STAR_WAIST * math.cos(sector / 2), STAR_WAIST * math.sin(sector / 2)
    length = math.hypot(1.0 - inner[0], inner[1])
    normal = inner[1] / length, (1.0 - inner[0]) / length
    return (along - 1.0) * normal[0] + across * normal[1]


DISTANCES: dict[str, Distance] = {
    "circle": lambda x, y: torch.sqrt(x * x + y * y) - 0.9,
    "square": lambda x, y: _box(x, y, 0.76, 0.76),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: (torch.sqrt(x * x + y * y) - 0.72).abs() - 0.26,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95)),
}


def draw(scenes: Sequence[Scene], generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, 32, 32), RGB in [-1, 1], one of each scene."""
    count = len(scenes)

    def between(low: float, high: float) -> Tensor:
        return (torch.rand(count, generator=generator) * (high - low) + low)[:, None, None]

    places = torch.tensor([PLACES[list(PLACES)[scene.place]] for scene in scenes]) * SIDE
    centre_x, centre_y = (places[:, axis, None, None] + between(-SHIFT, SHIFT) for axis in (0, 1))
    radius, turn, phase_x, phase_y = between(*RADIUS), between(-TURN, TURN), between(0.0, 1.0), between(0.0, 1.0)
    rows = torch.arange(SIDE) + 0.5
    x, y = rows[None, None, :] - centre_x, rows[None, :, None] - centre_y
    x, y = torch.cos(turn) * x + torch.sin(turn) * y, torch.cos(turn) * y - torch.sin(turn) * x
    distance = torch.empty(count, SIDE, SIDE)
    mix = torch.zeros(count, 1, SIDE, SIDE)
    figure = torch.tensor([COLOURS[list(COLOURS)[scene.colour]] for scene in scenes])[:, :, None, None]
    other = torch.ones(count, 3, 1, 1)
    for name in SHAPES:
        rows_of = [index for index, scene in enumerate(scenes) if SHAPES[scene.shape] == name]
        distance[rows_of] = DISTANCES[name](x[rows_of] / radius[rows_of], y[rows_of] / radius[rows_of])
    for name, period in PERIOD.items():
        rows_of = [index for index, scene in enumerate(scenes) if TEXTURES[scene.texture] == name]
        along, across = x[rows_of] / period + phase_x[rows_of], y[rows_of] / period + phase_y[rows_of]
        mix[rows_of, 0] = _texture(name, along, across, period)
        if name == "checked":
            other[rows_of] = SHADE * figure[rows_of]
    inside = (0.5 - distance * radius).clamp(0.0, 1.0)[:, None]
    height = torch.linspace(0.0, 1.0, SIDE)[None, None, :, None]
    top, bottom, tint = between(*BRIGHTNESS), between(*BRIGHTNESS), torch.rand(count, 3, 1, 1, generator=generator)
    background = top[:, None] * (1 - height) + bottom[:, None] * height + TINT * (tint - 0.5)
    coloured = figure * (1 - mix) + other * mix
    return (background * (1 - inside) + coloured * inside) * 2.0 - 1.0


def _texture(name: str, along: Tensor, across: Tensor, period: float) -> Tensor:
    """Share of the other colour, 0 to 1, at places given in periods."""
    if name == "striped":
        return _smooth((torch.remainder(along + across, 1.0) - 0.5).abs() - 0.25, period)
    if name == "dotted":
        x, y = torch.remainder(along, 1.0) - 0.5, torch.remainder(across, 1.0) - 0.5
        return _smooth(torch.sqrt(x * x + y * y) - DOT_RADIUS / period, period)
    x, y = (torch.remainder(one, 1.0) - 0.5 for one in (along, across))
    return _smooth((x.abs() - 0.25) * (y.abs() - 0.25) * 4.0, period)


def _smooth(distance: Tensor, period: float) -> Tensor:
    """1 where the distance to the edge, in periods, is negative, 0 where it is positive; a pixel wide in between."""
    return (0.5 - distance * period).clamp(0.0, 1.0)
