"""How a clip shows its face: where the head is in each frame, and what light and camera make of its colours. Functions of a random generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.face import Look

CENTRE = (48.0, 56.0)
"""The canonical place about which heads turn and grow."""
SHIFT, ANGLE_DEG, SCALE, ASPECT = 2.5, 4.0, 0.05, 0.03
"""How far a clip's head may stand from the canonical frame: pixels along each axis, degrees, shares."""
SWAY, SWAY_DEG, SWAY_SCALE = (0.5, 0.4), 0.8, 0.005
"""How far it moves about that over a clip: pixels across and down, degrees, share. Little: faces are cut out along a box that follows them."""
SWAY_HZ = (0.12, 0.7)


def random_poses(generator: np.random.Generator, frames: int, fps: int) -> NDArray[np.float64]:
    """Poses (frames, 2, 3) as `face.render` takes them: half of the heads mirrored, each moving slowly."""
    mirror = float(generator.choice([-1.0, 1.0]))
    stretch = 1 + float(generator.uniform(-ASPECT, ASPECT))
    shape = np.diag([mirror * stretch, 1 / stretch])
    offset = generator.uniform(-SHIFT, SHIFT, 2)
    angle, scale = float(generator.uniform(-ANGLE_DEG, ANGLE_DEG)), 1 + float(generator.uniform(-SCALE, SCALE))
    times = np.arange(frames) / fps
    across, down, turn, grow = (_sway(generator, times) for _ in range(4))
    angles = np.deg2rad(angle + SWAY_DEG * turn)
    scales = scale + SWAY_SCALE * grow
    cos, sin = scales * np.cos(angles), scales * np.sin(angles)
    matrices = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2) @ shape
    places = np.array(CENTRE) + offset + np.stack([SWAY[0] * across, SWAY[1] * down], axis=-1)
    poses: NDArray[np.float64] = np.concatenate([matrices, (places - matrices @ np.array(CENTRE))[..., None]], axis=-1)
    return poses


def random_look(generator: np.random.Generator) -> Look:
    """Lightness, tint, contrast, saturation, and the side that light comes from."""
    light = float(generator.uniform(0.88, 1.08))
    tint = generator.uniform(-0.04, 0.04, 3)
    red, green, blue = (light * (1 + float(one)) for one in tint - tint.mean())
    across, down = (float(slope) for slope in generator.uniform(-0.15, 0.15, 2))
    return Look((red, green, blue), float(generator.uniform(0.85, 1.25)), float(generator.uniform(0.7, 1.25)), (across, down))


def _sway(generator: np.random.Generator, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slow movement within -1 to 1."""
    total = np.zeros(len(times_s))
    for share in (0.65, 0.35):
        total += share * np.sin(2 * np.pi * (float(generator.uniform(*SWAY_HZ)) * times_s + float(generator.random())))
    return total
