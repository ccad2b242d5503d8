"""Clips of the talking face: one seed, one clip, and what parts of the data share."""

from __future__ import annotations

import numpy as np
import torch

from mcompress.compress.tasks.talking_face.clips import CLIPS, Clip, synthetic_clip
from mcompress.compress.tasks.talking_face.face import NEUTRAL_WIDTH
from mcompress.compress.tasks.talking_face.heads import random_poses
from mcompress.compress.tasks.talking_face.lips import measure_mouths
from mcompress.compress.tasks.talking_face.mouths import mouths_at
from mcompress.compress.tasks.talking_face.portraits import FACES, MOUTH, SIDE
from mcompress.compress.tasks.talking_face.speech import voice_of


def same(one: Clip, other: Clip) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("samples", "mouths", "poses"))
    return arrays and torch.equal(one.frames, other.frames) and (one.name, one.face, one.phonemes) == (other.name, other.face, other.phonemes)


def test_a_clip_is_a_function_of_its_seed() -> None:
    assert same(synthetic_clip(3, 1.0), synthetic_clip(3, 1.0))
    assert not torch.equal(synthetic_clip(3, 1.0).frames, synthetic_clip(5, 1.0).frames)  # the same face


def test_the_parts_of_a_clip_fit_together() -> None:
    for seed in (3, 4):
        clip = synthetic_clip(seed, 2.0)
        assert clip.samples.shape == (32000,)
        assert clip.frames.shape == (50, 3, SIDE, SIDE)
        assert clip.frames.dtype == torch.uint8
        assert clip.mouths.shape == (50, 2)
        assert clip.poses.shape == (50, 2, 3)
        assert np.array_equal(clip.mouths, mouths_at(clip.phonemes, (np.arange(50) + 0.5) / 25))
        error = np.abs(measure_mouths(clip.frames, clip.poses, clip.face).mouths - clip.mouths)
        assert (error.mean(axis=0) < (0.006, 0.01)).all()
        assert (error.max(axis=0) < (0.02, 0.04)).all()


def test_no_seed_is_in_two_parts_and_each_has_its_own_voice_and_every_face() -> None:
    seeds = [seed for part in CLIPS.values() for seed in part]
    assert len(seeds) == len(set(seeds)) == len({voice_of(seed) for seed in seeds})
    for part in CLIPS.values():
        assert {FACES[seed % len(FACES)] for seed in part} == set(FACES)
    assert {voice_of(seed).pitch_hz > 150 for seed in CLIPS["held_out"]} == {True, False}


def test_heads_move_slowly_and_keep_the_mouth_in_the_lower_half() -> None:
    generator = np.random.default_rng(0)
    mirrored = 0
    for _ in range(60):
        poses = random_poses(generator, 100, 25)
        mirrored += np.linalg.det(poses[0, :, :2]) < 0
        assert np.abs(np.diff(poses @ np.array([*MOUTH, 1.0]), axis=0)).max() < 0.6  # pixels from frame to frame
        assert np.ptp(poses @ np.array([*MOUTH, 1.0]), axis=0).max() > 0.2
        reach = 0.63 * NEUTRAL_WIDTH
        for x, y in ((-reach, -7.0), (reach, -7.0), (0.0, -7.0), (0.0, 18.0), (-reach, 4.0), (reach, 4.0)):  # around the widest mouth and its lips
            place = poses @ np.array([MOUTH[0] + x, MOUTH[1] + y, 1.0])
            assert place[:, 1].min() > SIDE / 2
            assert place.max() < SIDE
            assert place.min() > 0
    assert 15 < mirrored < 45
