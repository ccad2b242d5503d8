"""Frames and sound as a video that browsers, phones and players show: H.264 and AAC in MP4."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.tasks.talking_face.containers import require_av
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND, LARGEST_SIDE
from mcompress.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame

SAMPLE_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""That AAC has and browsers play."""
QUALITY = "18"
"""x264's constant rate factor; 18 is next to invisible, 23 its default."""
SOUND_BITS_PER_SECOND = 96_000
BLOCK = 1024
"""Samples of one packet of AAC."""
BT709, LIMITED = 1, 1
"""Primaries, transfer, matrix and range in the numbers of ITU-T H.273 and FFmpeg: said in the file, because players guess otherwise."""
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

    for codec in ("libx264", "aac"):
        if codec not in av.codecs_available:
            raise MissingBackendError(
                f"this PyAV {av.__version__} cannot write {codec}; install the one from PyPI: pip install --force-reinstall 'mcompress[video]'"
            )
    _check(frames, samples, sample_rate_hz, fps)
    notes = _changes(path.name, frames, samples)
    whole = path.with_name(f".{path.name}.part")
    try:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}  # bitexact: without the library's version and times in the file
        with av.open(f"file:{whole}", "w", format="mp4", container_options=options) as container:
            _write(container, frames, samples, sample_rate_hz, Fraction(fps).limit_denominator(1001))
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
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


def _write(container: OutputContainer, frames: Tensor, samples: NDArray[np.float32], sample_rate_hz: int, rate: Fraction) -> None:
    """Both tracks, turn by turn as they are played."""
    import av

    height, width = frames.shape[2:]
    # One thread: how x264 spreads its work changes its decisions.
    picture = container.add_stream("libx264", rate=rate, options={"crf": QUALITY, "preset": "medium", "threads": "1"})
    picture.width, picture.height, picture.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = picture.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED
    sound = container.add_stream("aac", rate=sample_rate_hz, layout="mono") if len(samples) else None
    if sound is not None:
        sound.bit_rate = SOUND_BITS_PER_SECOND
    clipped, written = samples.clip(-1, 1), 0
    for number, pixels in enumerate(frames):
        frame = _encodable(pixels)
        frame.pts, frame.time_base = number, 1 / rate
        container.mux(picture.encode(frame))
        until = len(samples) if number == len(frames) - 1 else (number + 1) * sample_rate_hz / rate
        while sound is not None and written < until:
            block = av.AudioFrame.from_ndarray(clipped[None, written : written + BLOCK], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = sample_rate_hz, written, Fraction(1, sample_rate_hz)
            container.mux(sound.encode(block))
            written += BLOCK
    container.mux(picture.encode())
    if sound is not None:
        container.mux(sound.encode())


def _encodable(pixels: Tensor) -> VideoFrame:
    """uint8 (3, H, W) as YUV with colours at half the resolution and even sides."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    height, width = pixels.shape[1:]
    rgb = np.pad(pixels.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    quality = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=quality, threads=1)
