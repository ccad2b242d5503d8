"""The sound of video files. It begins with the first picture, so that sample 0 belongs to frame 0."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.containers import Damage, decoded_sound, opened, picture_track, timed_pictures
from mcompress.errors import PlanError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SLIP_S = 0.05
"""How far a piece of sound may lie from the end of the one before, because containers round times. More is a gap."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4000, 192000
LONGEST_S = 3600
"""A track is held in memory whole."""
ZERO_AND_FULL = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "flt": (0.0, 1.0), "dbl": (0.0, 1.0)}
"""Of each sample format: what stands for 0, and for 1 above that."""


@dataclass(frozen=True)
class SoundTrack:
    """Mono float32 samples (N,), nominally in [-1, 1], from the time of the first picture on, and what was converted (`name: what`)."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    notes: tuple[str, ...]


def read_sound_track(video: Path, place: str) -> SoundTrack | None:
    """The first sound track of a file that target-file field `place` names, the mean of its channels at its own rate; None if there is no sound.

    Where a piece is damaged or missing there is silence. Raises `PlanError` for what cannot be read, and `MissingBackendError` without PyAV.
    """
    start = _first_picture_time(video, place)
    with opened(video, place) as container:
        if not container.streams.audio:
            return None
        track, damage = container.streams.audio[0], Damage()
        joined = _Joined(f"{place}: '{video.name}'", start)
        for frame in decoded_sound(container, track, damage):
            joined.add(frame)
        tracks = len(container.streams.audio)
        notes = [f"has {tracks} sound tracks; the first is read"] if tracks > 1 else []
        return joined.finish(video.name, damage, notes)


def _first_picture_time(video: Path, place: str) -> Fraction | None:
    """Seconds; None without pictures, or where they do not say when they are shown."""
    with opened(video, place) as container:
        track = picture_track(container)
        if track is None:
            return None
        time, _ = next(timed_pictures(container, track, Damage()), (None, None))
        return time


class _Joined:
    """The pieces of a sound track, put together by their times."""

    def __init__(self, shown: str, start: Fraction | None) -> None:
        self.shown, self.start = shown, start
        self.pieces: list[NDArray[np.float32]] = []
        self.rate_hz, self.channels, self.gaps = 0, 0, 0
        self.position: int | None = None
        """Where the next sample belongs, from `start`; below 0 while no picture is shown."""

    def add(self, frame: AudioFrame) -> None:
        """Put the samples of `frame` where its time says, after silence if that is not directly behind those before."""
        self._check_rate(frame.sample_rate)
        samples = _mono(frame)
        self.channels = max(self.channels, len(frame.layout.channels))
        place = self._place(frame)
        if self.position is None:
            self._silence(place)
            self.position = place
        elif place - self.position > SLIP_S * self.rate_hz:
            self.gaps += 1
            self._silence(place - max(0, self.position))
            self.position = place
        before = min(len(samples), max(0, -self.position))
        self.pieces.append(samples[before:])
        self.position += len(samples)
        if self.position > LONGEST_S * self.rate_hz:
            raise PlanError([f"{self.shown}: its sound is longer than {LONGEST_S} s, which is the most; cut it"])

    def finish(self, name: str, damage: Damage, notes: list[str]) -> SoundTrack:
        """The whole track. Raises `PlanError` if nothing was added from the first picture on."""
        if self.position is None or self.position <= 0:
            why = damage.reason or "none of it belongs to pictures"
            raise PlanError([f"{self.shown}: its sound cannot be read ({why}); give a whole file, or the sound as a WAV file"])
        if self.channels > 1:
            notes.append(f"sound of {self.channels} channels; their mean is taken")
        if self.gaps:
            notes.append(f"{self.gaps} gaps in the sound; silence is put there")
        if damage.unreadable:
            how = "and it ends there" if damage.stopped else "and left out"
            notes.append(f"{damage.unreadable} pieces of the sound cannot be read ({damage.reason}) {how}")
        return SoundTrack(np.concatenate(self.pieces), self.rate_hz, tuple(f"{name}: {note}" for note in notes))

    def _check_rate(self, rate_hz: int) -> None:
        if self.rate_hz and rate_hz != self.rate_hz:
            raise PlanError([f"{self.shown}: its sound changes from {self.rate_hz} to {rate_hz} Hz midway; convert it to one rate"])
        if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
            raise PlanError(
                [f"{self.shown}: its sound has {rate_hz} Hz; {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz are allowed, so convert it to 16000 Hz"]
            )
        self.rate_hz = rate_hz

    def _place(self, frame: AudioFrame) -> int:
        """Where `frame` says that it belongs, in samples from `start`; behind the one before if it does not say."""
        if frame.pts is None or frame.time_base is None:
            return self.position or 0
        time = frame.pts * frame.time_base
        self.start = time if self.start is None else self.start
        return round((time - self.start) * self.rate_hz)

    def _silence(self, count: int) -> None:
        if count > LONGEST_S * self.rate_hz:
            raise PlanError(
                [f"{self.shown}: its sound has a gap of {count / self.rate_hz:.0f} s; {LONGEST_S} s is the most for a track, so its times are wrong"]
            )
        self.pieces.append(np.zeros(max(0, count), dtype=np.float32))


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """The mean of the channels, (N,)."""
    values = frame.to_ndarray()
    channels = len(frame.layout.channels)
    each = values if frame.format.is_planar else values.reshape(-1, channels).T
    zero, full = ZERO_AND_FULL[frame.format.name.removesuffix("p")]
    mono: NDArray[np.float64] = ((each.astype(np.float64) - zero) / full).mean(axis=0)
    return mono.astype(np.float32)
