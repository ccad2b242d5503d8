"""Video and sound files through PyAV, which brings FFmpeg's libraries: opening them, and decoding what can be decoded.

PyAV is imported only when a file is opened. Files are read as what they are, never followed: containers that name other files or addresses, as
playlists do, are not among `CONTAINERS`, and no protocol but that of files is allowed.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.compress.tasks.photographs import SUFFIXES
from mcompress.errors import MissingBackendError, PlanError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif,yuv4mpegpipe,wav,mp3,aac,flac"
READABLE = "MP4, MOV, Matroska, WebM or AVI"
"""The common ones of them, for messages."""
NO_DECODER = "PyAV cannot decode its format"


def require_av() -> None:
    """Raise `MissingBackendError` unless PyAV is installed; imports nothing."""
    if importlib.util.find_spec("av") is None:
        raise MissingBackendError(
            "video files need PyAV, which is not installed. Install with: pip install 'mcompress[video]'. "
            "A folder of numbered pictures and a WAV file need nothing more."
        )


@contextlib.contextmanager
def opened(path: Path, place: str) -> Iterator[InputContainer]:
    """The container in a file, open for the time of the `with` block. Raises `PlanError` for a file that is none, and `MissingBackendError`."""
    require_av()
    import av

    if not path.is_file():
        raise PlanError([f"{place}: '{path}' does not exist; give a video file ({READABLE}) or a folder of numbered pictures"])
    if path.suffix.lower() in SUFFIXES:
        raise PlanError([f"{place}: '{path.name}' is one picture; give a video file ({READABLE}) or a folder of numbered pictures"])
    if not path.stat().st_size:
        raise PlanError([f"{place}: '{path.name}' is empty; give a video file ({READABLE})"])
    try:
        # `file:`, because a name may have a colon; without it, what stands before the colon would be taken for a protocol
        limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        container = av.open(f"file:{path}", "r", container_options=limits, metadata_errors="replace")
    except av.FFmpegError as error:
        reason = "its container is of a kind that is not read" if isinstance(error, av.ArgumentError) else _reason(error)
        raise PlanError([f"{place}: '{path.name}' cannot be read as a video ({reason}); give a whole file of {READABLE}"]) from error
    with container:
        yield container


def picture_track(container: InputContainer) -> VideoStream | None:
    """The first track that moves: not the cover picture of a song."""
    import av

    moving = (stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic)
    return next(moving, None)


def has_decoder(track: VideoStream | AudioStream) -> bool:
    """Whether this PyAV can decode the format of a track."""
    return getattr(track, "codec_context", None) is not None


@dataclass
class Damage:
    """What decoding a track has met."""

    unreadable: int = 0
    """Packets that were left out."""
    reason: str = ""
    """Of the first one, or of the end of reading."""
    stopped: bool = False
    """Whether reading ended at an error."""
    tolerated: bool = field(default=False)
    """Whether reading goes on behind damage."""

    def meets(self, error: Exception, started: bool) -> None:
        """Note an error in a packet."""
        self.unreadable += 1
        self.reason = self.reason or _reason(error)
        self.stopped = started and not self.tolerated


def timed_pictures(container: InputContainer, track: VideoStream, damage: Damage) -> Iterator[tuple[Fraction | None, VideoFrame]]:
    """The pictures of a track in the order in which they are shown, and when (seconds; None where that is not said), until the first that is damaged.

    Those behind it build on it. Damaged packets before the first picture are left out: a recording may begin in the middle of a sequence.
    """
    base, stored_first = track.time_base or Fraction(1), None
    for picture in _pictures(container, track, damage):
        time = picture.pts
        if container.format.name == "avi":  # which says when packets are stored, not when pictures are shown; both go at one pace
            stored_first = picture.dts if stored_first is None else stored_first
            time = None if picture.dts is None or stored_first is None else picture.dts - stored_first
        yield None if time is None else time * base, picture


def _pictures(container: InputContainer, track: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    import av

    if not has_decoder(track):
        damage.reason = NO_DECODER
        return
    # Without this the decoder hides damage: it fills it with what was near, and a face is quickly no face any more.
    track.codec_context.options = {"err_detect": "explode"}
    started = False
    try:
        for packet in container.demux(track):
            try:
                pictures = packet.decode()
            except av.FFmpegError as error:
                damage.meets(error, started)
                if damage.stopped:
                    return
                continue
            for picture in pictures:
                if picture.is_corrupt and not started:
                    continue
                started = True
                yield picture
    except av.FFmpegError as error:
        damage.meets(error, True)


def decoded_sound(container: InputContainer, track: AudioStream, damage: Damage) -> Iterator[AudioFrame]:
    """The sound of a track; packets that are damaged are left out, for those after them do not depend on them."""
    import av

    if not has_decoder(track):
        damage.reason = NO_DECODER
        return
    damage.tolerated = True
    try:
        for packet in container.demux(track):
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                damage.meets(error, True)
    except av.FFmpegError as error:
        damage.meets(error, True)
        damage.stopped = True


def declared_length(track: VideoStream) -> Fraction | None:
    """How long a track says that it is, in seconds; None where it does not say."""
    if track.duration is not None and track.time_base is not None:
        return track.duration * track.time_base
    hours, _, rest = track.metadata.get("DURATION", "").partition(":")  # as Matroska's tags have it: 00:00:02.000000000
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    """FFmpeg's own words, without the path."""
    return str(getattr(error, "strerror", None) or error)
