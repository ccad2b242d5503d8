"""Captions of the embedded scenes: one figure, of which the colour, the texture, the shape and the place are said.

Every eighth combination is held out: none of its pictures is ever trained on, so what a network draws for it shows whether it understood the words.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

COLOURS = {
    "red": (0.93, 0.16, 0.18),
    "green": (0.15, 0.72, 0.25),
    "blue": (0.18, 0.35, 0.95),
    "yellow": (0.98, 0.86, 0.15),
    "pink": (0.96, 0.42, 0.82),
    "cyan": (0.20, 0.84, 0.90),
}
"""Word -> RGB."""
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLACES = {
    "in the middle": (0.5, 0.5),
    "at the top left": (0.3, 0.3),
    "at the top right": (0.7, 0.3),
    "at the bottom left": (0.3, 0.7),
    "at the bottom right": (0.7, 0.7),
}
"""Words -> x to the right and y down, in sides of the picture."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "texture": TEXTURES, "shape": SHAPES, "place": tuple(PLACES)}
HELD_OUT_EVERY = 8


@dataclass(frozen=True)
class Scene:
    """What is in a picture: for each of `ATTRIBUTES`, which of its values."""

    colour: int
    texture: int
    shape: int
    place: int

    @property
    def caption(self) -> str:
        """`a red striped circle at the top left`."""
        colour, texture, shape, place = (values[which] for values, which in zip(ATTRIBUTES.values(), self.values, strict=True))
        return f"a {colour} {texture} {shape} {place}"

    @property
    def values(self) -> tuple[int, int, int, int]:
        """In the order of `ATTRIBUTES`."""
        return self.colour, self.texture, self.shape, self.place


def every_scene() -> list[Scene]:
    """All 720 combinations."""
    return [Scene(*values) for values in itertools.product(*(range(len(values)) for values in ATTRIBUTES.values()))]


def is_held_out(scene: Scene) -> bool:
    """Whether no picture of it is trained on. Every value of every attribute, and every pair of them, is seen in training."""
    return (scene.colour + 3 * scene.texture + 5 * scene.shape + 2 * scene.place) % HELD_OUT_EVERY == 0


def scenes(*, held_out: bool) -> list[Scene]:
    """The combinations that are trained on, or those that are held out."""
    return [scene for scene in every_scene() if is_held_out(scene) == held_out]


def words() -> tuple[str, ...]:
    """Every word of every caption, sorted."""
    return tuple(sorted({word for scene in every_scene() for word in scene.caption.split()}))
