"""Sound files: WAV to the mono samples at 16 kHz that the mel input takes, and back. What `wav` refuses is a `PlanError` here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.io import wavfile

from mcompress.compress.tasks.talking_face.wav import Sound, SoundError, as_heard, read_wav
from mcompress.errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mcompress.compress.tasks.talking_face.wav import Floats

__all__ = ["Sound", "read_sound", "sound_of", "write_wav"]


def read_sound(path: Path) -> Sound:
    """The sound of a WAV file: 8, 16, 24 or 32-bit integers or 32 or 64-bit floats, any channels, 8 to 192 kHz.

    Channels are mixed down to their mean, other rates resampled, and what is louder than full scale scaled down, each with a note. Raises `PlanError`
    for a file that is missing, damaged, truncated or no such WAV, for silence (a peak below -60 dBFS; 8 bit: -39 dBFS) and for less than 200 ms.
    """
    try:
        return read_wav(path)
    except SoundError as error:
        raise PlanError([str(error)]) from error


def sound_of(samples: NDArray[np.float32], rate_hz: int, name: str) -> Sound:
    """The sound of decoded mono samples (n,), nominally in [-1, 1], of a video's track for example. Notes and errors as of `read_sound`."""
    try:
        return as_heard(samples[:, None], rate_hz, "f4", name, name)
    except SoundError as error:
        raise PlanError([str(error)]) from error


def write_wav(path: Path, samples: Floats, sample_rate_hz: int) -> None:
    """Write mono samples (n,) in [-1, 1] as 16-bit PCM, whole or not at all; what `read_sound` read from 16 bit is written back bit for bit.

    1 becomes 32767, the largest there is. Raises `ValueError` for another shape, an empty sound, values outside [-1, 1] and rates below 1 Hz.
    """
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples have shape {samples.shape}; they must have one axis that is not empty")
    if samples.dtype.kind != "f" or not (np.abs(samples) <= 1).all():
        raise ValueError(
            f"samples are {samples.dtype}, from {samples.min()} to {samples.max()}; they must be floating point in [-1, 1], so scale them"
        )
    if sample_rate_hz < 1:
        raise ValueError(f"the rate is {sample_rate_hz} Hz; it must be at least 1 Hz")
    temporary = path.with_name(path.name + ".tmp")
    wavfile.write(temporary, sample_rate_hz, np.minimum(np.rint(samples * 32768.0), 32767).astype(np.int16))
    temporary.replace(path)
