"""A held-out clip whole: what networks get of it, its sound, and where the clip was drawn, the exact truth about its mouth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.clips import synthetic_clip
from mcompress.compress.tasks.talking_face.embedded import recording
from mcompress.compress.tasks.talking_face.recordings import Recording, sound_with
from mcompress.errors import PlanError

PLACE = "data.held_out"
MOST_FRAMES = 100
"""Of a user's clip that are performed: 4 s, as long as an embedded one."""


@dataclass(frozen=True)
class KnownMouth:
    """`mouths` (T, 2): opening and width; `poses` (T, 2, 3); `face`: whose it is; as `clips.Clip` has them."""

    mouths: NDArray[np.float64]
    poses: NDArray[np.float64]
    face: str


@dataclass(frozen=True)
class Footage:
    """`samples` (n,) are float32 in [-1, 1], mono at 16 kHz, and begin with the first frame."""

    recording: Recording
    samples: NDArray[np.float32]
    mouth: KnownMouth | None
    """None where nobody knows it."""


def known_footage(seed: int) -> Footage:
    """The embedded clip with this seed."""
    clip = synthetic_clip(seed)
    return Footage(recording(seed), clip.samples, KnownMouth(clip.mouths, clip.poses, clip.face))


def given_footage(found: Recording) -> Footage:
    """The first 4 s of a clip that was read from a user's folder, with its sound. Raises `PlanError` if the clip is gone."""
    if found.source is None:
        raise ValueError(f"clip '{found.name}' was read from no file")
    if not found.source.exists():
        raise PlanError([f"{PLACE}: '{found.source}' is gone since the clip '{found.name}' was read from it; put it back"])
    samples = sound_with(found.source, PLACE, []).samples  # what was converted was noted when the clip was read
    return Footage(replace(found, faces=found.faces[:MOST_FRAMES], windows=found.windows[:MOST_FRAMES]), samples, None)
