"""Frames and sound as a video that browsers, phones and players show: H.264 and AAC in MP4."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.tasks.talking_face.containers import require_av
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND, LARGEST_SIDE
from mcompress.compress.tasks.talking_face.mp4 import missing_codecs, writing
from mcompress.errors import MissingBackendError, UsageError

SAMPLE_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""That AAC has and browsers play."""
SMALLEST_SIDE, FASTEST = 16, 120
"""Pixels a side, and frames a second."""


def write_video(path: Path, frames: Tensor, samples: NDArray[np.float32], sample_rate_hz: int, fps: float = FRAMES_PER_SECOND) -> tuple[str, ...]:
    """Write frames, uint8 RGB (T, 3, H, W), and mono samples (N,) in [-1, 1], which begin together, to an MP4 file; without samples it has no sound.

    The same input gives the same bytes with the same PyAV. The index stands first, so that it plays while it loads. A file that is there is replaced
    once the new one is whole. Returns what was changed (`name: what`): sides made even, samples clipped. Raises `UsageError` for input that cannot be
    written, `MissingBackendError` without PyAV or its H.264 encoder, and `OSError`.
    """
    require_av()
    import av

    for codec in missing_codecs():
        raise MissingBackendError(
            f"this PyAV {av.__version__} cannot write {codec}; install the one from PyPI: pip install --force-reinstall 'mcompress[video]'"
        )
    _check(frames, samples, sample_rate_hz, fps)
    notes = _changes(path.name, frames, samples)
    rate, heard = Fraction(fps).limit_denominator(1001), 0
    with writing(path, frames.shape[3], frames.shape[2], rate, sample_rate_hz if len(samples) else None) as video:
        for number, pixels in enumerate(frames, 1):
            video.show(pixels.permute(1, 2, 0).numpy())
            until = len(samples) if number == len(frames) else min(len(samples), ceil(number * sample_rate_hz / rate))
            video.hear(samples[heard:until])
            heard = until
    return notes


def _check(frames: Tensor, samples: NDArray[np.float32], sample_rate_hz: int, fps: float) -> None:
    shape, kind = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if kind != "uint8" or len(shape) != 4 or shape[1] != 3 or not shape[0]:
        raise UsageError(f"frames are {kind} {shape}; a video needs at least one, as uint8 (T, 3, H, W)")
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in shape[2:]):
        raise UsageError(f"frames have {shape[3]}x{shape[2]} pixels; {SMALLEST_SIDE} to {LARGEST_SIDE} on each side can be written")
    if not 1 <= fps <= FASTEST:
        raise UsageError(f"{fps:g} frames a second cannot be written; 1 to {FASTEST} can")
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise UsageError(f"samples are {samples.dtype} {samples.shape}; they must be float32 (N,), one channel")
    if not np.isfinite(samples).all():
        raise UsageError("samples hold NaN or infinity; they must be numbers from -1 to 1")
    if len(samples) and sample_rate_hz not in SAMPLE_RATES_HZ:
        raise UsageError(f"sound of {sample_rate_hz} Hz cannot be written as AAC; resample it to one of {', '.join(map(str, SAMPLE_RATES_HZ))}")


def _changes(name: str, frames: Tensor, samples: NDArray[np.float32]) -> tuple[str, ...]:
    notes = []
    height, width = frames.shape[2:]
    if height % 2 or width % 2:
        notes.append(f"{name}: {width}x{height} pixels; the last row or column is shown twice, for the colours of a video need even sides")
    loud = int((np.abs(samples) > 1).sum())
    if loud:
        notes.append(f"{name}: {loud} of {len(samples)} samples lie outside -1 to 1; clipped")
    return tuple(notes)
