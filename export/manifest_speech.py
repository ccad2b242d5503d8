"""The sections of a manifest that talking faces have: how sound becomes an input, and how frames are made while it arrives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mcompress.export.manifest_part import Part


class MelParameters(Part):
    """Everything that a log-mel spectrogram depends on, under the names of `MelSettings` in the bundle's `mel.py`, which computes it.

    Levels are in dB of a mel magnitude. Values lie in [-largest, largest]: `floor_db` under `reference_db` becomes the lower end.
    """

    sample_rate_hz: int = Field(ge=1)
    n_fft: int = Field(ge=2)
    window: int = Field(ge=1)
    window_shape: Literal["hann_periodic"]
    padding: Literal["reflect"]
    hop: int = Field(ge=1)
    bands: int = Field(ge=1)
    mel_scale: Literal["slaney"]
    mel_norm: Literal["area"]
    lowest_hz: float = Field(ge=0)
    highest_hz: float = Field(gt=0)
    preemphasis: float = Field(ge=0, lt=1)
    reference_db: float
    floor_db: float = Field(lt=0)
    largest: float = Field(gt=0)
    frames_per_window: int = Field(ge=1)
    """Columns that the network takes for one video frame."""
    video_fps: float = Field(gt=0)


class Speech(Part):
    """How sound becomes an input, and which part of it belongs to which video frame.

    Video frame k, from 0, takes the columns that begin with floor(k * columns_per_frame). A sound of n samples has
    floor(n * video_fps / sample_rate_hz) frames; those whose columns would go beyond its end take its last ones.
    """

    input: str
    """The input that takes a window, of `frames_per_window` columns."""
    mel: MelParameters
    columns_per_s: float = Field(gt=0)
    columns_per_frame: float = Field(gt=0)
    reference: str
    """The file of the bundle that computes all of it with numpy alone."""


class Component(Part):
    """A network of a pipeline: what it takes and gives, by the names in the files."""

    name: str
    inputs: tuple[str, ...] = Field(min_length=1)
    outputs: tuple[str, ...] = Field(min_length=1)


class Streaming(Part):
    """How frames are made while sound arrives.

    Video frame k needs samples_before_first_frame + samples_per_column * floor(k * columns_per_frame) samples of sound.
    """

    state: Literal["none"]
    """What a network keeps from one chunk to the next. `none`: frames can be made in any order, and a stream begins anywhere."""
    components: tuple[Component, ...] = Field(min_length=1)
    """In the order in which they are executed."""
    frames_per_chunk: int = Field(ge=1)
    """Video frames of one execution."""
    samples_before_first_frame: int = Field(ge=1)
    samples_per_column: int = Field(ge=1)
    look_ahead_s: float = Field(ge=0)
    """The most by which the sound that a frame needs goes on after the frame's own time: a live picture is so late at least."""
