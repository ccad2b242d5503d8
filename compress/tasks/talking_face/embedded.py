"""The embedded clips as recordings. A clip takes a third of a second to draw, so it is drawn when it is first looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from typing import overload

from mcompress.compress.tasks.talking_face.clips import CLIP_S, CLIPS, Part, synthetic_clip
from mcompress.compress.tasks.talking_face.recordings import Recording, RecordingSet
from mcompress.compress.tasks.talking_face.windows import windows_of

DRAWN_BY = ("clips", "face", "heads", "mel", "mouths", "phonemes", "portraits", "speech", "vocal_tract", "windows")
"""Modules that decide what a clip looks and sounds like."""
DRAWN_WITH = ("numpy", "scipy", "scikit-image", "matplotlib", "pillow")
"""Packages that compute it, or that the photographs are in."""


def embedded(part: Part) -> RecordingSet:
    """The clips of a part."""
    return RecordingSet(_Clips(CLIPS[part]), _digest(part))


@cache
def recording(seed: int) -> Recording:
    """The embedded clip with this seed."""
    clip = synthetic_clip(seed)
    return Recording(clip.name, clip.frames, windows_of(clip.samples, len(clip.frames)))


def _digest(part: Part) -> str:
    """SHA-256 of what makes the clips: code, package versions, seeds. That of the pictures would take as long as drawing them all."""
    found = sha256(f"{part}:{CLIPS[part]}:{CLIP_S}".encode())
    folder = files(__package__)
    for name in DRAWN_BY:
        found.update(folder.joinpath(f"{name}.py").read_bytes())
    found.update(":".join(version(name) for name in DRAWN_WITH).encode())
    return found.hexdigest()


class _Clips(Sequence[Recording]):
    def __init__(self, seeds: tuple[int, ...]) -> None:
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._seeds)

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | Sequence[Recording]:
        return _Clips(self._seeds[index]) if isinstance(index, slice) else recording(self._seeds[index])
