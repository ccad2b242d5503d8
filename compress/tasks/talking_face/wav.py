"""WAV files to the mono samples at 16 kHz that the mel input takes.

What is converted on the way (channels, rate, level) is noted as `name: what and why`. What cannot be used is refused: compressed formats, files whose
header promises more than they hold, silence, and sound shorter than one mel window.

This file needs numpy, scipy and `mel.py`, and is copied into bundles, whose `talk.py` reads speech with it.
"""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.compress.tasks.talking_face.mel import MelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32] | NDArray[np.float64]

SETTINGS = MelSettings()
SHORTEST_MS = 1000 * SETTINGS.frames_per_window * SETTINGS.hop // SETTINGS.sample_rate_hz
"""One mel window."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8000, 192_000
"""Telephones to studio recorders; another rate stands in a damaged header."""
SILENT_DBFS = -60.0
"""A peak below this is silence: 33 steps of 16 bit, less than the hum of most microphones."""
LARGEST_FLOAT = 32768.0
"""Floating-point samples above this are no sound; up to it they may be integers that somebody forgot to divide."""
PCM, IEEE_FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
BITS = {PCM: (8, 16, 24, 32), IEEE_FLOAT: (32, 64)}
FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31, "f4": 1.0, "f8": 1.0}
"""What becomes 1, by what scipy reads; 24 bits stand in the upper part of 32."""


class SoundError(ValueError):
    """Sound that cannot be used: what is wrong, the value seen, what is allowed, what to do."""


@dataclass(frozen=True)
class Sound:
    """Samples, float32 (n,) in [-1, 1], 16000 a second, and what was converted (`name: what and why`)."""

    samples: NDArray[np.float32]
    notes: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Seconds from the first sample to the end of the last."""
        return len(self.samples) / SETTINGS.sample_rate_hz


def read_wav(path: Path) -> Sound:
    """The sound of a WAV file: 8, 16, 24 or 32-bit integers or 32 or 64-bit floats, any channels, 8 to 192 kHz.

    Channels are mixed down to their mean, other rates resampled, and what is louder than full scale scaled down, each with a note.

    Raises `SoundError` for a file that is missing, damaged, truncated or no such WAV, for silence (a peak below -60 dBFS; 8 bit: -39 dBFS) and for
    less than 200 ms.
    """
    rate_hz, raw = _decoded(path)
    kind = f"{raw.dtype.kind}{raw.dtype.itemsize}"
    channels = _in_floats(raw.reshape(len(raw), -1), kind, path)
    return as_heard(channels, rate_hz, kind, str(path), path.name)


def as_heard(channels: Floats, rate_hz: int, kind: str, shown: str, name: str) -> Sound:
    """Samples (n, channels) as networks hear them, with notes and errors as of `read_wav`.

    `kind` is numpy's of what was decoded, one of `FULL_SCALE`. `shown` stands for the sound in errors, `name` in notes.
    """
    if len(channels) * 1000 < SHORTEST_MS * rate_hz:
        long = f"lasts {1000 * len(channels) / rate_hz:.6g} ms"  # a sample at 192 kHz is 0.005 ms
        raise SoundError(f"sound '{shown}' {long}; it must last at least {SHORTEST_MS} ms, one mel window, so give a longer recording")
    notes = []
    if kind == "u1":
        notes.append(f"{name}: 8 bit, which adds rounding noise of -53 dBFS; a recording of 16 bit is better")
    samples: Floats = channels.mean(axis=1)
    _refuse_silence(samples, channels, kind, shown)
    if channels.shape[1] > 1:
        notes.append(f"{name}: {channels.shape[1]} channels, mixed down to their mean, because the network hears one")
    if rate_hz != SETTINGS.sample_rate_hz:
        from scipy.signal import resample_poly  # imported where it is used, so that a script can say that scipy is missing

        common = math.gcd(rate_hz, SETTINGS.sample_rate_hz)
        samples = resample_poly(samples, SETTINGS.sample_rate_hz // common, rate_hz // common)
        lacks = f"; it has nothing above {rate_hz // 2} Hz, and the network hears up to {SETTINGS.highest_hz:.0f} Hz"
        notes.append(f"{name}: {rate_hz} Hz, resampled to {SETTINGS.sample_rate_hz} Hz{lacks if rate_hz < 2 * SETTINGS.highest_hz else ''}")
    peak = float(np.abs(samples).max())
    if peak > 1:
        samples = samples / peak
        notes.append(f"{name}: its peak is {peak:.4g} times full scale; scaled down, because samples must be in [-1, 1]")
    return Sound(np.clip(samples, -1, 1).astype(np.float32), tuple(notes))


def _in_floats(raw: NDArray[np.generic], kind: str, path: Path) -> Floats:
    """(n, channels), full scale at 1. Raises `SoundError` for floats that are no sound."""
    if kind == "f8":
        values: Floats = raw.astype(np.float64)
    else:
        values = (raw.astype(np.float32) - (128.0 if kind == "u1" else 0.0)) / np.float32(FULL_SCALE[kind])
    wrong = np.argwhere(~(np.abs(values) <= LARGEST_FLOAT))
    if len(wrong):
        first = f"sample {wrong[0][0]} of sound '{path}' is {values[tuple(wrong[0])]}, one of {len(wrong)} that are no sound"
        raise SoundError(f"{first}; floating-point samples must be in [-1, 1], so repair what wrote the file")
    return values


def _refuse_silence(samples: Floats, channels: Floats, kind: str, shown: str) -> None:
    """Raises `SoundError` unless the peak around the mean reaches `SILENT_DBFS`: around it, because a constant is not heard.

    In 8 bit, silence may flicker between two neighbouring values, so that it must reach more than one step.
    """
    least = 1.5 / FULL_SCALE[kind] if kind == "u1" else 10 ** (SILENT_DBFS / 20)
    peak = _peak_around_mean(samples)
    if peak >= least:
        return
    level = f"its peak is {20 * math.log10(peak):.0f} dBFS" if peak else "all its samples are equal"
    must = f"{level}, and it must reach {20 * math.log10(least):.0f} dBFS"
    if max(map(_peak_around_mean, channels.T)) >= least:
        mixed = f"is silent when its {channels.shape[1]} channels are mixed"
        raise SoundError(f"sound '{shown}' {mixed}: {must}; they cancel each other, so save one of its channels alone")
    raise SoundError(f"sound '{shown}' is silent: {must}; give a recording in which somebody speaks")


def _peak_around_mean(samples: Floats) -> float:
    return float(np.abs(samples - samples.mean()).max())


def _decoded(path: Path) -> tuple[int, NDArray[np.generic]]:
    """Rate (Hz) and samples as the file holds them, (n,) or (n, channels). Raises `SoundError`."""
    if not path.is_file():
        raise SoundError(f"sound '{path}' does not exist or is no file; give a WAV file")
    from scipy.io import wavfile

    try:
        _check_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks without sound; that the sound is whole has been checked
            rate_hz, values = wavfile.read(path)
    except (OSError, ValueError, struct.error) as error:
        allowed = "it must be a whole WAV of 8, 16, 24 or 32-bit integers or 32 or 64-bit floats"
        convert = f"write it again, or convert it with: ffmpeg -i {path.name} -ac 1 -ar {SETTINGS.sample_rate_hz} -c:a pcm_s16le NEW.wav"
        raise SoundError(f"sound '{path}' cannot be read ({error}); {allowed}, so {convert}") from error
    return int(rate_hz), values


def _check_header(path: Path) -> None:
    """Raises `ValueError` or `struct.error` where scipy would read a part, misread, or fail in ways of its own.

    A WAV file is `RIFF size WAVE` and chunks (`name size bytes`, even lengths): `fmt ` tells how `data` is to be read. RIFX is the same, big-endian.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(12)
        if magic[:4] not in (b"RIFF", b"RIFX") or magic[8:] != b"WAVE":
            raise ValueError(f"it begins with {magic!r}, and a WAV file with RIFF and WAVE" if magic else "it is empty")
        order = "<" if magic[:4] == b"RIFF" else ">"
        end = min(length, 8 + struct.unpack(order + "I", magic[4:8])[0])
        frame_bytes, sounds = 0, 0
        while file.tell() + 8 <= end:
            name, size = struct.unpack(order + "4sI", file.read(8))
            start = file.tell()
            if name == b"fmt " and not frame_bytes:
                frame_bytes = _checked_format(file.read(min(size, 40)), order)
            elif name == b"data" and frame_bytes and not sounds:
                if start + size > length:
                    raise ValueError(f"truncated, or written to a pipe: its header promises {size} bytes of sound, and there are {length - start}")
                if not size or size % frame_bytes:
                    raise ValueError(f"it holds {size} bytes of sound, and that must be a multiple of {frame_bytes} above 0")
                sounds += 1
            elif name in (b"fmt ", b"data"):
                raise ValueError("its format must be told once, and before its one sound")
            file.seek(start + size + size % 2)
    if not sounds:
        raise ValueError(f"truncated: its {length} bytes hold no sound")


def _checked_format(fields: bytes, order: str) -> int:
    """The bytes of one sample of all channels, from the chunk `fmt `. Raises `ValueError` for a format that is not read here."""
    tag, channels, rate_hz, _, frame_bytes, bits = struct.unpack(order + "HHIIHH", fields[:16])
    if tag == EXTENSIBLE:
        (tag,) = struct.unpack(order + "H", fields[24:26])
    if bits not in BITS.get(tag, ()):
        raise ValueError(f"its samples are {bits}-bit of format {tag:#06x}; format {PCM} (integers) and {IEEE_FLOAT} (floats) are read")
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise ValueError(f"its rate is {rate_hz} Hz; {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz are read")
    if not channels or frame_bytes != channels * bits // 8:
        raise ValueError(f"its {channels} channels of {bits} bits take {frame_bytes} bytes, and that must be {channels * bits // 8} and above 0")
    return int(frame_bytes)
