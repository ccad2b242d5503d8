"""Real video files for tests, encoded with PyAV: frames that carry their number, tones, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)
TICK = Fraction(1, 60000)
BITS = 8
BAR = 12
"""Pixels across a bar of a numbered picture."""


def numbered(number: int) -> NDArray[np.uint8]:
    """A picture (64, 96, 3) with the bits of its number as black and white bars."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    return np.broadcast_to(np.repeat(np.array(bits, dtype=np.uint8), BAR)[None, :, None], (64, BITS * BAR, 3)).copy()


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number of a picture (3, H, W) that was encoded."""
    bars = picture.mean(axis=(0, 1)).reshape(BITS, BAR).mean(axis=1)
    assert np.abs(bars - 127.5).min() > 90
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 127.5)


def tone(seconds: float, rate_hz: int = 16000) -> NDArray[np.float32]:
    """A sweep with a beat: unlike itself at any other time."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def encode(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    times: Sequence[Fraction] | None = None,
    *,
    rate: Fraction | int = 25,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: NDArray[np.float32] | None = None,
    sound_from: Fraction = Fraction(0),
    sound_rate_hz: int = 16000,
    layout: str = "mono",
    turned: tuple[float, bool] | None = None,
    aspect: Fraction | None = None,
    colours: tuple[int, int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Write a video whose suffix names its container.

    `times` in seconds, else by `rate`. `turned`: degrees and mirrored. `colours`: matrix and range.
    """
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "12", "preset": "veryfast"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.options |= options or {}
        stream.codec_context.thread_count = 1
        if turned is not None:
            stream.set_display_rotation(turned[0], hflip=turned[1])
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        base = TICK if times else 1 / Fraction(rate)
        stream.codec_context.time_base = base
        track = container.add_stream("aac", rate=sound_rate_hz, layout=layout) if sound is not None else None
        for number, picture in enumerate(pictures):
            if not number:
                stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], pixels
                if colours is not None:
                    stream.codec_context.colorspace, stream.codec_context.color_range = colours
            kind = {} if colours is None else {"dst_colorspace": {1: "ITU709", 6: "ITU601"}[colours[0]], "dst_color_range": colours[1]}
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels, **kind)
            frame.pts, frame.time_base = (round(times[number] / TICK) if times else number), base
            container.mux(stream.encode(frame))
        if track is not None and sound is not None:
            channels = sound if sound.ndim == 2 else sound[None]
            for start in range(0, channels.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels[:, start : start + 1024]), format="fltp", layout=layout)
                block.sample_rate, block.time_base = sound_rate_hz, Fraction(1, sound_rate_hz)
                block.pts = start + round(sound_from * sound_rate_hz)
                container.mux(track.encode(block))
            container.mux(track.encode())
        container.mux(stream.encode())
