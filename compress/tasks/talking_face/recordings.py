"""Clips as networks see them: faces of 96x96 pixels and, for each frame, the mel window of its sound; from the embedded clips or a user's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from mcompress.compress.tasks.talking_face.finding import FACE_SIDE, crop_faces
from mcompress.compress.tasks.talking_face.following import follow_face
from mcompress.compress.tasks.talking_face.sound import Sound, read_sound, sound_of
from mcompress.compress.tasks.talking_face.sound_tracks import read_sound_track
from mcompress.compress.tasks.talking_face.videos import read_frames
from mcompress.compress.tasks.talking_face.windows import windows_of
from mcompress.errors import PlanError, Problems

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Recording:
    """Faces are uint8 (T, 3, 96, 96) RGB, 25 a second; windows float32 (T, 1, 80, 16) in [-4, 4], the 200 ms of speech that begin with each frame."""

    name: str
    faces: Tensor
    windows: Tensor
    source: Path | None = None
    """The file or folder that it was read from; None for an embedded one."""


def digest_of(recordings: Sequence[Recording]) -> str:
    """SHA-256 of names, faces and windows."""
    found = sha256()
    for one in recordings:
        found.update(one.name.encode())
        found.update(one.faces.numpy().tobytes())
        found.update(one.windows.numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class RecordingSet:
    """Recordings, their SHA-256, and what was converted, left out or interpolated (`name: what`)."""

    recordings: Sequence[Recording]
    digest: str
    notes: tuple[str, ...] = ()


def read_recordings(folder: Path, place: str) -> RecordingSet:
    """Every clip of a folder that target-file field `place` names: videos with sound, and sub-folders of numbered frames with one WAV beside them.

    Raises `PlanError` with what is wrong with each clip, and `MissingBackendError` where videos are to be read without PyAV.
    """
    if not folder.is_dir():
        raise PlanError([f"{place}: folder '{folder}' does not exist; give a folder of {_wanted()}"])
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))  # hidden ones are not the user's
    sources = [path for path in entries if path.is_dir() or path.suffix.lower() in VIDEOS]
    others = [path.name for path in entries if path not in sources]
    if not sources:
        seen = f"'{others[0]}'{f' and {len(others) - 1} other files' if len(others) > 1 else ''}, and no clip" if others else "no clip"
        raise PlanError([f"{place}: folder '{folder}' holds {seen}; it must hold {_wanted()}"])
    problems, notes = Problems(*_named_twice(sources, place)), list[str]()
    if others:
        many = f", the first of {len(others)} such files" if len(others) > 1 else ""
        notes.append(f"{others[0]}: neither a video ({', '.join(VIDEOS)}) nor a folder of pictures{many}; left out")
    found = [made for source in sources if (made := problems.of(partial(_read, source, place, notes))) is not None]
    if problems.found:
        raise PlanError(problems.found)
    return RecordingSet(tuple(found), digest_of(found), tuple(notes))


def _name(source: Path) -> str:
    return source.name if source.is_dir() else source.stem  # what stands behind a point in a folder's name is no suffix


def _named_twice(sources: Sequence[Path], place: str) -> Iterator[str]:
    """Clips that have the name of one before them."""
    named: dict[str, Path] = {}
    for source in sources:
        first = named.setdefault(_name(source), source)
        if first != source:
            both = f"'{first.name}' and '{source.name}' have one name, '{_name(source)}'"
            yield f"{place}: {both}, and results are filed by name; rename or remove one"


def _wanted() -> str:
    return f"videos with sound ({', '.join(VIDEOS)}), or sub-folders of numbered pictures (0001.png) with one WAV file each"


def _read(source: Path, place: str, notes: list[str]) -> Recording:
    frames = read_frames(source, place)
    sound = sound_with(source, place, notes)
    count = min(len(frames.pictures), max(1, int(sound.duration_s * frames.fps)))
    if count < len(frames.pictures):
        notes.append(f"{source.name}: its sound ends after {sound.duration_s:.2f} s; the {len(frames.pictures) - count} frames behind are left out")
    notes += [*frames.notes, *sound.notes]
    with _at(place):
        faces = _faces(frames.pictures[:count], source.name, notes)
    return Recording(_name(source), faces, windows_of(sound.samples, count), source)


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Errors begin with the place."""
    try:
        yield
    except PlanError as error:
        raise PlanError([f"{place}: {problem}" for problem in error.problems]) from error


def _faces(pictures: Tensor, name: str, notes: list[str]) -> Tensor:
    side = pictures.shape[-1]
    if pictures.shape[-2:] == (FACE_SIDE, FACE_SIDE):
        notes.append(f"{name}: its frames are {side}x{side} pixels and are taken as faces that have been cut out already")
        return pictures
    track = follow_face(pictures, name)
    notes += track.notes
    return crop_faces(pictures, track.boxes)


def sound_with(source: Path, place: str, notes: list[str]) -> Sound:
    """The speech of a clip: a video's own, or the one WAV in a folder of pictures. What was converted goes to `notes`. Raises `PlanError`."""
    if not source.is_dir():
        track = read_sound_track(source, place)
        if track is None:
            raise PlanError([f"{place}: '{source.name}' has no sound; lips can only be learned from speech, so give a video with its sound"])
        notes += track.notes
        with _at(place):
            return sound_of(track.samples, track.sample_rate_hz, source.name)
    files = list(_wavs(source))
    if len(files) != 1:
        seen = f"{len(files)} WAV files" if files else "no WAV file"
        raise PlanError([f"{place}: '{source.name}' holds {seen} beside its pictures; it must hold one, the speech of these frames"])
    with _at(place):
        sound = read_sound(files[0])
    return Sound(sound.samples, tuple(f"{source.name}/{note}" for note in sound.notes))


def _wavs(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".wav" and path.is_file())
