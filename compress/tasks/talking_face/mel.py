"""Sound to log-mel windows, one for each video frame: the audio input of Wav2Lip-style networks. The reference that an app's own version must match.

This file needs Python 3.8, numpy and nothing else, so that it can be copied and ported alone. Steps, on samples in [-1, 1]:

1. pre-emphasis: y[n] = x[n] - preemphasis * x[n - 1], with x[-1] = 0;
2. y is extended by n_fft / 2 samples on both sides by reflection that does not repeat the end sample (`... y[2] y[1] | y[0] y[1] y[2] ...`), so that
   column k is centred on sample k * hop. The networks were trained with librosa 0.7, whose `stft` reflects; since 0.10 it pads with zeros by default
   (librosa pull request 1382), and its `pad_mode="reflect"` is needed to get the same;
3. n_fft samples every hop samples, times a periodic Hann window, magnitude of the discrete Fourier transform;
4. triangular mel filters on Slaney's scale, each of area 1 over hertz (M. Slaney, Auditory Toolbox version 2, technical report 1998-010);
5. dB = 20 log10(max(10^(floor_db / 20), mel)) - reference_db;
6. floor_db..0 dB is mapped to -largest..largest, and what lies outside is clipped.

At the defaults there are 80 columns a second. Video frame i takes the 16 columns (200 ms) that begin at column int(80 * i / 25).

`log_mel` takes a whole sound. `MelStream` takes it in chunks and gives the same columns as soon as they are known. Both compute in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # older releases of numpy lack these; annotations are not evaluated
    from numpy.typing import ArrayLike, NDArray

COLUMNS_AT_ONCE = 512
"""Columns that are computed together: a bound on memory, without influence on values."""


@dataclass(frozen=True)
class MelSettings:
    """Everything that the mel input depends on; the defaults are Wav2Lip's. Raises `ValueError` for settings that cannot work together."""

    sample_rate_hz: int = 16000
    n_fft: int = 800
    """Samples of one transform; even."""
    window: int = 800
    """Samples under the window, with zeros on both sides where it is shorter than n_fft."""
    window_shape: str = "hann_periodic"
    padding: str = "reflect"
    hop: int = 200
    """Samples from one column to the next; less than half of n_fft."""
    bands: int = 80
    mel_scale: str = "slaney"
    mel_norm: str = "area"
    lowest_hz: float = 55.0
    highest_hz: float = 7600.0
    preemphasis: float = 0.97
    reference_db: float = 20.0
    """The level (dB, of a mel magnitude) that counts as 0 dB."""
    floor_db: float = -100.0
    """The level under the reference that becomes -largest; also the least mel magnitude whose logarithm is taken."""
    largest: float = 4.0
    """Values are in [-largest, largest]."""
    frames_per_window: int = 16
    """Mel columns that the network sees at once."""
    video_fps: float = 25.0

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            only = getattr(MelSettings, name)  # the default
            for good, what in (
                (not isinstance(value, int) or value >= 1, "at least 1"),
                (not isinstance(value, float) or math.isfinite(value), "finite"),
                (not isinstance(value, str) or value == only, f"{only!r}, the only one that is implemented"),
            ):
                _require(good, name, value, what)
        _require(self.n_fft % 2 == 0, "n_fft", self.n_fft, "even")
        _require(self.window <= self.n_fft, "window", self.window, f"at most n_fft, {self.n_fft}")
        _require(self.hop < self.n_fft // 2, "hop", self.hop, f"less than half of n_fft, {self.n_fft // 2}")
        _require(self.lowest_hz >= 0, "lowest_hz", self.lowest_hz, "at least 0")
        highest = f"above lowest_hz, {self.lowest_hz}, and at most half of sample_rate_hz, {self.sample_rate_hz / 2}"
        _require(self.lowest_hz < self.highest_hz <= self.sample_rate_hz / 2, "highest_hz", self.highest_hz, highest)
        _require(0 <= self.preemphasis < 1, "preemphasis", self.preemphasis, "at least 0 and below 1")
        _require(self.floor_db < 0, "floor_db", self.floor_db, "below 0")
        _require(self.largest > 0, "largest", self.largest, "above 0")
        _require(self.video_fps > 0, "video_fps", self.video_fps, "above 0")

    def as_dict(self) -> dict[str, int | float | str]:
        """Every setting by its name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> MelSettings:
        """The settings that `as_dict` gave. Raises `ValueError` for a name that is missing or unknown, and for a value of another type."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        unknown, missing = sorted(set(values) - set(kinds)), sorted(set(kinds) - set(values))
        if unknown or missing:
            raise ValueError(f"mel settings: unknown are {unknown}, missing are {missing}; the names must be {sorted(kinds)}")
        for name, kind in kinds.items():
            good = isinstance(values[name], (int, float) if kind is float else kind) and not isinstance(values[name], bool)
            _require(good, name, values[name], {int: "a whole number", float: "a number", str: "text"}[kind])
        return cls(**{name: float(values[name]) if kind is float else values[name] for name, kind in kinds.items()})  # type: ignore[arg-type]  # looked at


def hann_window(settings: MelSettings) -> NDArray[np.float64]:
    """The periodic Hann window in the middle of n_fft values, the others 0: float64 (n_fft,)."""
    left = (settings.n_fft - settings.window) // 2
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.window) / settings.window)
    return np.pad(hann, (left, settings.n_fft - settings.window - left))


def magnitudes(frames: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitude of the discrete Fourier transform, not scaled: (n, n_fft) samples to (n, n_fft / 2 + 1) bins, sample_rate_hz / n_fft apart."""
    return np.abs(np.fft.rfft(frames * window, axis=1))


def mel_filters(settings: MelSettings) -> NDArray[np.float64]:
    """Weights of the Fourier bins in each mel band: (bands, n_fft / 2 + 1), in 1 / Hz. Raises `ValueError` for a band that no bin falls into.

    Band b rises from edge b to edge b + 1 and falls to edge b + 2; the edges are evenly spaced in mel from lowest_hz to highest_hz.
    """
    lowest, highest = _hz_to_mel(np.array([settings.lowest_hz, settings.highest_hz]))
    edges = _mel_to_hz(np.linspace(lowest, highest, settings.bands + 2))[:, None]
    bins = np.arange(settings.n_fft // 2 + 1) * settings.sample_rate_hz / settings.n_fft
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0.0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    empty = np.flatnonzero(triangles.sum(axis=1) == 0)
    if len(empty):
        what = f"mel band {empty[0]} of {settings.bands} contains none of the bins of n_fft {settings.n_fft}"
        raise ValueError(f"{what}; each must contain one, so take fewer bands or a larger n_fft")
    return triangles * 2 / (upper - lower)


def log_mel(samples: ArrayLike, settings: MelSettings) -> NDArray[np.float32]:
    """The log-mel spectrogram of a whole sound: n samples in [-1, 1] to (bands, 1 + n // hop), in [-largest, largest].

    Raises `ValueError` for fewer than n_fft samples, for values that are not finite or not floating point, and for more than one axis.
    """
    values = _checked(samples)
    _check_length(len(values), settings)
    padded = np.pad(_emphasised(values, 0.0, settings), settings.n_fft // 2, mode="reflect")
    return _columns(padded, hann_window(settings), mel_filters(settings), settings)


def window_start(frame: int, settings: MelSettings) -> int:
    """The first mel column of video frame `frame` (from 0), wherever the sound ends."""
    return int(frame * settings.sample_rate_hz / (settings.hop * settings.video_fps))


def mel_windows(mel: NDArray[np.float32], settings: MelSettings, video_frames: int | None = None) -> NDArray[np.float32]:
    """The mel columns of each video frame: (bands, columns) to (video frames, bands, frames_per_window).

    Frame i begins at column `window_start(i)`. At the end of the sound: the first frame whose window would go beyond the last column takes the last
    frames_per_window columns instead and is the last frame, as in Wav2Lip; the video then ends 95 to 148 ms before the sound (at the defaults).
    With `video_frames` there are so many frames, and all whose windows would go beyond the end take the last columns; each must begin before the end.

    Raises `ValueError` for another shape, fewer columns than a window, and `video_frames` that the sound does not reach.
    """
    if mel.ndim != 2 or mel.shape[0] != settings.bands:
        raise ValueError(f"the mel spectrogram has shape {mel.shape}; it must have two axes, {settings.bands} bands and columns")
    columns, wide = mel.shape[1], settings.frames_per_window
    if columns < wide:
        raise ValueError(f"the mel spectrogram has {columns} columns; one window needs {wide}, so give a longer sound")
    most = math.ceil(columns * settings.hop * settings.video_fps / settings.sample_rate_hz)
    if video_frames is None:
        video_frames = 1 + sum(window_start(frame, settings) + wide <= columns for frame in range(most))
    elif not 1 <= video_frames <= most:
        raise ValueError(f"video_frames is {video_frames}; for {columns} mel columns it must be 1 to {most}, so give a longer sound or fewer frames")
    starts = [min(window_start(frame, settings), columns - wide) for frame in range(video_frames)]
    return np.stack([mel[:, start : start + wide] for start in starts])


class MelStream:
    """The log-mel spectrogram of a sound that arrives in chunks of any size; the columns are those of `log_mel` of the whole, to float rounding.

    Column k is known with sample k * hop + n_fft / 2 - 1 (at the defaults 25 ms after its middle), column 0 one sample later. What `__init__` sets is
    the whole state; between chunks it holds fewer than n_fft samples.
    """

    def __init__(self, settings: MelSettings) -> None:
        """Before the first sample."""
        self.settings = settings
        self.samples, self.columns = 0, 0
        """Samples received and columns given so far."""
        self.finished = False
        self._window, self._filters = hann_window(settings), mel_filters(settings)
        self._previous = 0.0  # the last sample, for pre-emphasis
        self._held = np.zeros(0)  # emphasised samples from where the next column begins; before there is a column, all of them
        self._begun = False  # whether `_held` has begun with the reflected samples

    def feed(self, samples: ArrayLike) -> NDArray[np.float32]:
        """The columns that further samples (n,) in [-1, 1] complete: (bands, new columns), often none.

        Raises `ValueError` after `finish`, and for samples that `log_mel` refuses, but of any number; the state then stays as it was.
        """
        self._check_open()
        values = _checked(samples)
        if len(values):
            self._held = np.concatenate([self._held, _emphasised(values, self._previous, self.settings)])
            self._previous = float(values[-1])
            self.samples += len(values)
        half = self.settings.n_fft // 2
        if not self._begun and self.samples > half:
            self._held = np.concatenate([self._held[half:0:-1], self._held])
            self._begun = True
        return self._complete()

    def finish(self) -> NDArray[np.float32]:
        """The columns that are left when the sound has ended: (bands, new columns). Raises `ValueError` for less than n_fft samples, or if ended."""
        self._check_open()
        _check_length(self.samples, self.settings)
        self.finished = True
        self._held = np.concatenate([self._held, self._held[-2 : -2 - self.settings.n_fft // 2 : -1]])
        return self._complete()

    def _complete(self) -> NDArray[np.float32]:
        new = _columns(self._held if self._begun else self._held[:0], self._window, self._filters, self.settings)
        self._held = self._held[new.shape[1] * self.settings.hop :].copy()  # not a view, which would keep all that was heard
        self.columns += new.shape[1]
        return new

    def _check_open(self) -> None:
        if self.finished:
            raise ValueError("this stream is finished; a sound must be fed before that, so make a new MelStream for another one")


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: 3 mel for 200 Hz up to 1000 Hz (15 mel), above it 27 mel for each factor of 6.4."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def _emphasised(values: NDArray[np.float64], previous: float, settings: MelSettings) -> NDArray[np.float64]:
    return values - settings.preemphasis * np.concatenate([[previous], values[:-1]])


def _columns(sound: NDArray[np.float64], window: NDArray[np.float64], filters: NDArray[np.float64], settings: MelSettings) -> NDArray[np.float32]:
    """Steps 3 to 6 for emphasised, extended sound that begins where a column does: as many columns as it holds, (bands, columns)."""
    count = max(0, 1 + (len(sound) - settings.n_fft) // settings.hop)
    columns = np.zeros((settings.bands, count), np.float32)
    for first in range(0, count, COLUMNS_AT_ONCE):
        starts = settings.hop * np.arange(first, min(first + COLUMNS_AT_ONCE, count))
        mel = magnitudes(sound[starts[:, None] + np.arange(settings.n_fft)], window) @ filters.T
        level_db = 20 * np.log10(np.maximum(10 ** (settings.floor_db / 20), mel)) - settings.reference_db
        scaled = 2 * settings.largest * (level_db - settings.floor_db) / -settings.floor_db - settings.largest
        columns[:, first : first + COLUMNS_AT_ONCE] = np.clip(scaled, -settings.largest, settings.largest).T
    return columns


def _checked(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples)
    if values.ndim != 1:
        raise ValueError(f"samples have shape {values.shape}; they must have one axis, so mix channels down first")
    if values.dtype.kind != "f":
        raise ValueError(f"samples are {values.dtype}; they must be floating point in [-1, 1], so divide 16-bit integers by 32768")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} is {values[wrong[0]]}, one of {len(wrong)} that are not finite; all must be numbers in [-1, 1]")
    return values.astype(np.float64)


def _check_length(samples: int, settings: MelSettings) -> None:
    if samples < settings.n_fft:
        raise ValueError(f"the sound has {samples} samples; it must have at least {settings.n_fft}, as many as one transform takes")


def _require(good: bool, name: str, value: object, what: str) -> None:
    if not good:
        raise ValueError(f"mel setting {name} is {value!r}; it must be {what}")
