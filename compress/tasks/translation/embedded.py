"""The pairs that come with mcompress, for runs without folders of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS, TRAINING_PHOTOS, embedded_photos
from mcompress.compress.tasks.translation.pairs import Pair
from mcompress.compress.tasks.translation.photo_edges import photo_pairs
from mcompress.compress.tasks.translation.scenes import scene

TRAINING_SCENES, TRAINING_SIZE, TRAINING_SEED = 96, 128, 1
HELD_OUT_SCENES, HELD_OUT_SIZE, HELD_OUT_SEED = 6, 256, 2
SQUARES_OF_A_PHOTO = 16
"""Squares of `TRAINING_SIZE` that one photograph gives at most, so that the largest does not outweigh the others."""


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


@lru_cache(maxsize=1)
def photographs() -> EmbeddedPairs:
    """Edges to photographs: squares of the training photographs, and one square of each held-out photograph."""
    training = (photo_pairs(photo, TRAINING_SIZE, SQUARES_OF_A_PHOTO) for photo in embedded_photos(TRAINING_PHOTOS).photos)
    held_out = (photo_pairs(photo, HELD_OUT_SIZE, 1) for photo in embedded_photos(HELD_OUT_PHOTOS).photos)
    return EmbeddedPairs(tuple(pair for pairs in training for pair in pairs), tuple(pair for pairs in held_out for pair in pairs), mirrors=True)


EMBEDDED = {"objects": objects, "photographs": photographs}
