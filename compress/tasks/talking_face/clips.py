"""Clips of a talking face, made from a seed: speech, the face's frames, and the exact truth about its mouth.

The seeds of `CLIPS` are fixed. Each clip has an utterance, a voice, a look and a head movement of its own, so those of held-out clips were neither
trained on nor validated on. Shared are the two photographs, which the clips take in turns, the table of sounds and mouth shapes, and the ranges that
voices, looks and movements are drawn from: held-out clips show new speech by known faces in new light, not new people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.tasks.talking_face.face import render
from mcompress.compress.tasks.talking_face.heads import random_look, random_poses
from mcompress.compress.tasks.talking_face.mouths import FRAMES_PER_S, mouth_track
from mcompress.compress.tasks.talking_face.phonemes import Timed
from mcompress.compress.tasks.talking_face.portraits import FACES, portrait
from mcompress.compress.tasks.talking_face.speech import utterance

Part = Literal["training", "validation", "held_out"]
CLIP_S = 4.0
CLIPS: dict[Part, tuple[int, ...]] = {
    "training": tuple(range(1000, 1048)),
    "validation": tuple(range(2000, 2004)),
    "held_out": tuple(range(3000, 3008)),
}
"""Seeds of the clips of each part; no seed is in two."""


@dataclass(frozen=True)
class Clip:
    """A clip at 16 kHz and 25 frames per second.

    `samples` (n): float32 within -0.9 to 0.9. `frames` (T, 3, 96, 96): uint8 RGB; frame k is shown from k/25 s on for 1/25 s. `mouths` (T, 2):
    opening and width in the middle of that time, as `face` defines them. `poses` (T, 2, 3): from the canonical frame to the frame. `face`: one of
    `FACES`. `phonemes`: what is said and when.
    """

    name: str
    samples: NDArray[np.float32]
    frames: Tensor
    mouths: NDArray[np.float64]
    poses: NDArray[np.float64]
    face: str
    phonemes: tuple[Timed, ...]


def synthetic_clip(seed: int, duration_s: float = CLIP_S) -> Clip:
    """The clip with this seed. Raises `ValueError` for one too short to say anything (`speech.SHORTEST_S`)."""
    spoken = utterance(seed, duration_s)
    mouths = mouth_track(spoken)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3])))
    poses, look = random_poses(generator, len(mouths), FRAMES_PER_S), random_look(generator)
    face = FACES[seed % len(FACES)]
    shown = np.stack([render(portrait(face), float(o), float(w), pose, look) for (o, w), pose in zip(mouths, poses, strict=True)])
    frames = torch.from_numpy(shown).permute(0, 3, 1, 2).contiguous()
    return Clip(f"{face}-{seed}", spoken.samples, frames, mouths, poses, face, spoken.phonemes)


def clips(part: Part) -> tuple[Clip, ...]:
    """Every clip of a part, about a third of a second of work each."""
    return tuple(synthetic_clip(seed) for seed in CLIPS[part])
