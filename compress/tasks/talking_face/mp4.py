"""An MP4 file that grows frame by frame, with H.264 and AAC, which browsers, phones and players show.

This file needs numpy and PyAV, and is copied into bundles, whose `talk.py` writes its video with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

CODECS = ("libx264", "aac")
QUALITY = "18"
"""x264's constant rate factor; 18 is next to invisible, 23 its default."""
SOUND_BITS_PER_SECOND = 96_000
BLOCK = 1024
"""Samples of one packet of AAC."""
BT709, LIMITED = 1, 1
"""Primaries, transfer, matrix and range in the numbers of ITU-T H.273 and FFmpeg: said in the file, because players guess otherwise."""


class Mp4:
    """An open file; the caller gives pictures and sound turn by turn, as they are played. The same input gives the same bytes with the same PyAV."""

    def __init__(self, container: OutputContainer, width: int, height: int, rate: Fraction, sample_rate_hz: int | None) -> None:
        self._container, self._rate, self._frames, self._samples = container, rate, 0, 0
        # One thread: how x264 spreads its work changes its decisions.
        self._picture = container.add_stream("libx264", rate=rate, options={"crf": QUALITY, "preset": "medium", "threads": "1"})
        self._picture.width, self._picture.height, self._picture.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = self._picture.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        self._sound = None if sample_rate_hz is None else container.add_stream("aac", rate=sample_rate_hz, layout="mono")
        self._sample_rate_hz = sample_rate_hz
        if self._sound is not None:
            self._sound.bit_rate = SOUND_BITS_PER_SECOND
        self._heard: NDArray[np.float32] = np.zeros(0, np.float32)

    def show(self, picture: NDArray[np.uint8]) -> None:
        """The next frame, RGB (H, W, 3)."""
        frame = _encodable(picture)
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._container.mux(self._picture.encode(frame))
        self._frames += 1

    def hear(self, samples: NDArray[np.float32]) -> None:
        """The next samples (n,), clipped to [-1, 1]. Raises `ValueError` for a file without a sound track."""
        self._heard = np.concatenate([self._heard, samples.clip(-1, 1)])
        whole = len(self._heard) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._encode(self._heard[start : start + BLOCK])
        self._heard = self._heard[whole:]

    def finish(self) -> None:
        """What is left in the encoders."""
        self._container.mux(self._picture.encode())
        if len(self._heard):
            self._encode(self._heard)
        if self._sound is not None:
            self._container.mux(self._sound.encode())

    def _encode(self, samples: NDArray[np.float32]) -> None:
        import av

        if self._sound is None or self._sample_rate_hz is None:
            raise ValueError("the file was opened without a sound track; give it a sample rate")
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = self._sample_rate_hz, self._samples, Fraction(1, self._sample_rate_hz)
        self._container.mux(self._sound.encode(block))
        self._samples += len(samples)


@contextmanager
def writing(path: Path, width: int, height: int, rate: Fraction, sample_rate_hz: int | None = None) -> Iterator[Mp4]:
    """A new file for frames of this size, `rate` a second, with a sound track where it has a rate.

    The index stands first, so that it plays while it loads. Odd sides are made even by showing the last row or column twice, because the colours of a
    video need them. A file that is there is replaced once the new one is whole. Raises what PyAV raises, and `OSError`.
    """
    import av

    whole = path.with_name(f".{path.name}.part")
    try:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}  # bitexact: without the library's version and times in the file
        with av.open(f"file:{whole}", "w", format="mp4", container_options=options) as container:
            video = Mp4(container, width, height, rate, sample_rate_hz)
            yield video
            video.finish()
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


def missing_codecs() -> tuple[str, ...]:
    """Those that this PyAV cannot write."""
    import av

    return tuple(codec for codec in CODECS if codec not in av.codecs_available)


def _encodable(picture: NDArray[np.uint8]) -> VideoFrame:
    """RGB (H, W, 3) as YUV with colours at half the resolution and even sides."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    height, width = picture.shape[:2]
    rgb = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    quality = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=quality, threads=1)
