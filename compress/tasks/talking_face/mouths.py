"""How the mouth moves with the sounds of an utterance: the exact truth that lips are measured against.

Sounds pull the lips towards their shapes with strengths that fade around them (dominance functions, as in Cohen and Massaro, "Modeling coarticulation
in synthetic visual speech", in Models and Techniques in Computer Animation (1993)), so that each frame is a compromise between neighbours and
movement starts before its sound. Lips are pressed together exactly as long as m, b and p are closed; shapes are after the usual viseme classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.phonemes import BILABIALS, Timed
from mcompress.compress.tasks.talking_face.speech import Utterance

FRAMES_PER_S = 25
FADE_S = 0.055
"""How far from a sound its pull has faded to 1/e."""
PRESS_S = 0.05
"""How long lips take from a closure to being free."""
NEAREST = 1e-6
"""The least pull, so that the mouth is somewhere in long silences, too."""


@dataclass(frozen=True)
class Shape:
    """What a sound wants: opening and width in neutral mouth widths, with which strengths, and what it moves to where it glides."""

    opening: float
    width: float
    opening_strength: float = 1.0
    width_strength: float = 1.0
    glide: tuple[float, float] | None = None


SHAPES: dict[str, Shape] = {
    "i": Shape(0.13, 1.2),
    "ih": Shape(0.18, 1.09),
    "eh": Shape(0.28, 1.08),
    "ae": Shape(0.37, 1.1),
    "a": Shape(0.45, 1.0),
    "aw": Shape(0.34, 0.8),
    "oo": Shape(0.17, 0.76),
    "u": Shape(0.11, 0.65),
    "uh": Shape(0.27, 0.98),
    "e": Shape(0.24, 1.11, glide=(0.14, 1.17)),
    "o": Shape(0.26, 0.76, glide=(0.14, 0.67)),
    "ai": Shape(0.44, 1.02, glide=(0.16, 1.13)),
    "au": Shape(0.42, 1.0, glide=(0.15, 0.7)),
    "m": Shape(0.0, 0.98, 2.5, 0.4),
    "n": Shape(0.12, 1.03, 0.8, 0.3),
    "w": Shape(0.08, 0.64, 1.5, 2.0),
    "r": Shape(0.13, 0.82, 0.9, 0.8),
    "l": Shape(0.19, 1.02, 0.8, 0.3),
    "f": Shape(0.04, 1.02, 2.5, 0.5),
    "v": Shape(0.04, 1.02, 2.5, 0.5),
    "s": Shape(0.07, 1.12, 1.5, 0.6),
    "sh": Shape(0.11, 0.78, 1.5, 1.5),
    "h": Shape(0.2, 1.0, 0.2, 0.2),
    "p": Shape(0.0, 0.98, 2.5, 0.4),
    "b": Shape(0.0, 0.98, 2.5, 0.4),
    "t": Shape(0.1, 1.04, 1.2, 0.3),
    "d": Shape(0.1, 1.04, 1.2, 0.3),
    "k": Shape(0.17, 1.0, 0.6, 0.2),
    "sil": Shape(0.0, 1.0, 0.8, 0.5),
}


def mouth_track(utterance: Utterance, fps: int = FRAMES_PER_S) -> NDArray[np.float64]:
    """(opening, width) of each frame of an utterance, (frames, 2), as `face.render` takes them: in the middle of the time that a frame is shown."""
    return mouths_at(utterance.phonemes, frame_times(utterance.duration_s, fps))


def frame_times(duration_s: float, fps: int = FRAMES_PER_S) -> NDArray[np.float64]:
    """The middle of each frame that is shown in full, in seconds."""
    return (np.arange(int(duration_s * fps + 1e-6)) + 0.5) / fps


def mouths_at(phonemes: tuple[Timed, ...], times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same (n, 2) at any times (n)."""
    start, end = np.array([timed.start_s for timed in phonemes]), np.array([timed.end_s for timed in phonemes])
    shapes = [SHAPES[timed.phoneme] for timed in phonemes]
    early = np.array([(shape.opening, shape.width) for shape in shapes])
    late = np.array([shape.glide or (shape.opening, shape.width) for shape in shapes])
    strength = np.array([(shape.opening_strength, shape.width_strength) for shape in shapes])
    share = np.clip((times_s[:, None] - start) / (end - start), 0, 1)
    wanted = early + (late - early) * (share**2 * (3 - 2 * share))[..., None]
    core = 0.5 * (end - start)
    beyond = np.maximum(np.abs(times_s[:, None] - 0.5 * (start + end)) - 0.4 * core, 0)  # the pull is whole in the inner two fifths
    pull = strength * np.maximum(np.exp(-((beyond / FADE_S) ** 1.5)), NEAREST)[..., None]
    mouths: NDArray[np.float64] = (pull * wanted).sum(axis=1) / pull.sum(axis=1)
    mouths[:, 0] *= _free(phonemes, times_s)
    return mouths


def _free(phonemes: tuple[Timed, ...], times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """How free the lips are to part (n): 0 while m, b or p is closed, 1 from `PRESS_S` off it."""
    free = np.ones(len(times_s))
    for timed in phonemes:
        if timed.phoneme in BILABIALS:
            shut, released = timed.closure_s
            apart = np.clip(np.maximum(shut - times_s, times_s - released) / PRESS_S, 0, 1)
            free = np.minimum(free, apart**2 * (3 - 2 * apart))
    return free
