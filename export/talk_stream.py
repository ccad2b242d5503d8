"""Faces from speech that arrives in chunks of any size, and how late they come.

Needs numpy. This file is part of mcompress and is copied into the bundles of talking faces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mcompress.compress.tasks.talking_face.mel import MelSettings, MelStream, window_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcompress.export.replay import Real


class FaceStream:
    """One face for each video frame, as soon as the sound that it needs is there.

    Every face is the same bit for bit, however the sound is cut into chunks: mel columns are computed one hop at a time. Frames whose windows would
    go beyond the end of the sound take its last columns, as in training. What `__init__` sets is the whole state: the columns of a window, and fewer
    samples than n_fft and a hop. `generator`: mel columns (bands, frames_per_window) to a face.
    """

    def __init__(self, generator: Callable[[Real], Real], mel: MelSettings) -> None:
        self.frames, self.samples = 0, 0
        """Faces made and samples received so far."""
        self._generator, self._mel, self._stream = generator, mel, MelStream(mel)
        self._waiting: Real = np.zeros(0, np.float32)  # less than a hop of samples
        self._columns: Real = np.zeros((mel.bands, 0), np.float32)  # from column `_first` on
        self._first = 0

    def feed(self, samples: Real) -> list[Real]:
        """The faces that further samples (n,) in [-1, 1] complete. Raises `ValueError` for samples that `MelStream` refuses."""
        self.samples += len(samples)
        waiting = np.concatenate([self._waiting, samples])
        whole = len(waiting) // self._mel.hop * self._mel.hop
        for start in range(0, whole, self._mel.hop):
            self._take(self._stream.feed(waiting[start : start + self._mel.hop]))
        self._waiting = waiting[whole:]
        made = []
        while window_start(self.frames, self._mel) + self._mel.frames_per_window <= self._stream.columns:
            made.append(self._next())
        return made

    def finish(self) -> list[Real]:
        """The faces that are left when the sound has ended. Raises `ValueError` for less sound than a window, or if ended."""
        self._take(self._stream.feed(self._waiting))
        self._take(self._stream.finish())
        if self._stream.columns < self._mel.frames_per_window:
            raise ValueError(f"the sound has {self._stream.columns} mel columns; one window needs {self._mel.frames_per_window}")
        count = int(self.samples * self._mel.video_fps / self._mel.sample_rate_hz)
        return [self._next() for _ in range(self.frames, count)]

    def _take(self, columns: Real) -> None:
        self._columns = np.concatenate([self._columns, columns], axis=1)

    def _next(self) -> Real:
        wide = self._mel.frames_per_window
        start = min(window_start(self.frames, self._mel), self._stream.columns - wide)
        self._columns, self._first = self._columns[:, start - self._first :].copy(), start
        self.frames += 1
        return self._generator(self._columns[:, :wide])


class Clock:
    """Time as it would be if the sound came from a microphone: work begins when a chunk is there and the work before it is done."""

    def __init__(self, mel: MelSettings) -> None:
        self.worked_s, self.greatest_delay_s = 0.0, 0.0
        """All work so far; how much later than its own time a frame could be shown at worst."""
        self._mel, self._now_s, self._frames = mel, 0.0, 0

    def passed(self, samples: int, worked_s: float, frames: int) -> None:
        """`samples` have arrived in all, and the work on the last of them took so long and made so many frames."""
        self._now_s = max(self._now_s, samples / self._mel.sample_rate_hz) + worked_s
        self.worked_s += worked_s
        if frames:
            self.greatest_delay_s = max(self.greatest_delay_s, self._now_s - self._frames / self._mel.video_fps)
        self._frames += frames
