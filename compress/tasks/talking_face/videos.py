"""Clips from folders of numbered pictures and from video files, at 25 frames a second. What is converted or left out is noted."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.as_shown import as_shown, notes_on
from mcompress.compress.tasks.talking_face.containers import READABLE, Damage, declared_length, has_decoder, opened, picture_track, timed_pictures
from mcompress.compress.tasks.talking_face.frame_folders import folder_frames
from mcompress.compress.tasks.talking_face.frame_times import Pace, Timed, at_25
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND, Frames, check_length, check_size, stack
from mcompress.errors import PlanError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SHORT = Fraction(1, 5)
"""Seconds by which a video may be shorter than it says: a frame or two at the end of slow ones."""


def read_frames(source: Path, place: str) -> Frames:
    """A clip from a folder of numbered pictures or a video file; target-file field `place` names it.

    A video that is damaged midway is read until there. Raises `PlanError` for what is no clip or is too large, and `MissingBackendError` if a video
    is to be read without PyAV.
    """
    if source.is_dir():
        return folder_frames(source, place)
    with opened(source, place) as container:
        return _Pictures(source.name, place).read(container)


class _Pictures:
    """Reads the pictures of one video."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.shown = name, f"{place}: '{name}'"
        self.notes: list[str] = []
        self.pace, self.damage = Pace(), Damage()

    def read(self, container: InputContainer) -> Frames:
        track = picture_track(container)
        if track is None:
            others = ", ".join(sorted({"sound" if stream.type == "audio" else stream.type for stream in container.streams})) or "nothing"
            raise PlanError([f"{self.shown} has no pictures, only {others}; give a video file ({READABLE})"])
        if len(container.streams.video) > 1:
            self.notes.append(f"{self.name}: has {len(container.streams.video)} picture tracks; track {track.index} is read")
        length = declared_length(track)
        self._check_beforehand(track, length)
        pictures = self._at_25(container, track)
        if not pictures:
            raise PlanError(
                [f"{self.shown}: no picture of it can be read ({self.damage.reason or 'it holds none'}); give a whole file of {READABLE}"]
            )
        self._note_end(length)
        return Frames(stack(pictures), float(FRAMES_PER_SECOND), (*self.pace.notes(self.name), *self.notes))

    def _check_beforehand(self, track: VideoStream, length: Fraction | None) -> None:
        """What the file says of itself suffices to refuse it without decoding."""
        if not has_decoder(track) or not track.width or not track.height:
            return
        check_size(track.width, track.height, self.shown)
        if length is not None:
            check_length(round(length * FRAMES_PER_SECOND), track.width, track.height, self.shown)

    def _at_25(self, container: InputContainer, track: VideoStream) -> list[NDArray[np.uint8]]:
        aspect = track.sample_aspect_ratio if has_decoder(track) else None
        pictures: list[NDArray[np.uint8]] = []
        converted: VideoFrame | None = None
        for frame in at_25(self._timed(container, track, aspect or Fraction(1)), self.pace):
            if frame is not converted:
                picture, converted = as_shown(frame, aspect or Fraction(1)), frame
                check_size(picture.shape[1], picture.shape[0], self.shown)
                if pictures and picture.shape != pictures[0].shape:
                    raise PlanError([f"{self.shown} is turned by another angle midway; cut it there"])
            pictures.append(picture)
            check_length(len(pictures), picture.shape[1], picture.shape[0], self.shown, more=True)
        return pictures

    def _timed(self, container: InputContainer, track: VideoStream, aspect: Fraction) -> Iterator[Timed[VideoFrame]]:
        """Pictures with their times, until their size changes."""
        step = 1 / (track.average_rate or track.guessed_rate or Fraction(FRAMES_PER_SECOND))
        base = track.time_base or Fraction(1)
        following, untimed, size = Fraction(0), 0, None
        for said, frame in timed_pictures(container, track, self.damage):
            if size is None:
                self.notes += [f"{self.name}: {note}" for note in notes_on(frame, aspect)]
            elif size != (frame.width, frame.height):
                self.damage.reason, self.damage.stopped = f"its size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} pixels", True
                break
            size = (frame.width, frame.height)
            untimed += frame.pts is None
            time = following if said is None else said
            following = time + (frame.duration * base or step)
            yield Timed(time, frame.duration * base, frame)
        if untimed:
            self.notes.append(f"{self.name}: {untimed} frames do not say when they are shown; taken as {float(1 / step):.2f} a second")

    def _note_end(self, length: Fraction | None) -> None:
        read = self.pace.end - self.pace.first
        if self.damage.stopped:
            self.notes.append(f"{self.name}: damaged after {float(read):.2f} s ({self.damage.reason}); what is before that is used")
        elif length is not None and length - read > SHORT:
            self.notes.append(f"{self.name}: ends after {float(read):.2f} s of {float(length):.2f} s, as if cut off; what is there is used")
        elif self.damage.unreadable:
            self.notes.append(f"{self.name}: {self.damage.unreadable} packets before its first picture cannot be read; left out")
