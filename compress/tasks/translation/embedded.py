"""The pairs that come with mcompress, for runs without folders of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from mcompress.compress.tasks.translation.pairs import Pair
from mcompress.compress.tasks.translation.scenes import scene

TRAINING_SCENES, TRAINING_SIZE, TRAINING_SEED = 96, 128, 1
HELD_OUT_SCENES, HELD_OUT_SIZE, HELD_OUT_SEED = 6, 256, 2


@dataclass(frozen=True)
class EmbeddedPairs:
    """Pairs to train on and pairs held out, and whether a pair mirrored left to right is as good as the pair."""

    training: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    mirrors: bool


def scene_pairs(seed: int, count: int, size: int) -> tuple[Pair, ...]:
    """`count` procedural pairs of `size` pixels a side: contours, and shaded solids."""
    drawn = (scene(seed, index, size) for index in range(count))
    return tuple(Pair(f"objects_{seed}_{index:04d}", torch.from_numpy(s.edges), torch.from_numpy(s.shaded)) for index, s in enumerate(drawn))


@lru_cache(maxsize=1)
def objects() -> EmbeddedPairs:
    """Edges to shaded objects. Light comes from the left, so these must not be mirrored."""
    training = scene_pairs(TRAINING_SEED, TRAINING_SCENES, TRAINING_SIZE)
    return EmbeddedPairs(training, scene_pairs(HELD_OUT_SEED, HELD_OUT_SCENES, HELD_OUT_SIZE), mirrors=False)
