"""Follows the one face of a clip: a box for each frame, found on some of them and smooth in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcompress.compress.tasks.talking_face.finding import Box, find_faces, no_face, several
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND
from mcompress.errors import PlanError

EVERY = 5
"""Frames from one on which the face is looked for to the next: 0.2 s."""
LEAST_FOUND = 0.5
"""The share of probed frames that must show a face."""
PLACE_SMOOTHNESS, SIDE_SMOOTHNESS = 3.0, 12.0
"""Standard deviations, in frames, of the Gaussians that smooth a box's middle and its side: heads move, but hardly change in size."""
JUMP = 1.0
"""Sides by which a face may move from one probed frame to the next before that is noted; more is likely a cut to another shot."""


@dataclass(frozen=True)
class Track:
    """A box for each frame, and what was interpolated (`name: what`)."""

    boxes: tuple[Box, ...]
    notes: tuple[str, ...]


def follow_face(frames: Tensor, name: str, every: int = EVERY) -> Track:
    """Follow the face through frames, uint8 (T, 3, H, W), at 25 a second; messages call the clip `name`.

    The face is looked for on each `every`th frame and on the last. Raises `PlanError` if under half of them show a face, or if most show several.
    """
    probes = sorted({*range(0, len(frames), every), len(frames) - 1})
    found = _probe(frames, probes)
    seen = [number for number, boxes in zip(probes, found, strict=True) if boxes]
    if len(seen) < LEAST_FOUND * len(probes):
        searched = f"on {len(probes) - len(seen)} of {len(probes)} frames that were searched, and at least half must show one"
        raise PlanError([f"{name}: {no_face()} ({searched})"])
    crowded = Counter(len(boxes) for boxes in found if len(boxes) > 1)
    if crowded.total() * 2 > len(seen):
        raise PlanError([f"{name}: {several(crowded.most_common(1)[0][0])}"])
    boxes = _steady(_one_each([one for one in found if one]))
    return Track(_between(seen, boxes, len(frames)), _notes(name, probes, seen, crowded.total(), boxes))


def _probe(frames: Tensor, probes: Sequence[int]) -> list[tuple[Box, ...]]:
    found: list[tuple[Box, ...]] = []
    for before, number in zip((None, *probes), probes, strict=False):
        still = before is not None and torch.equal(frames[before], frames[number])
        found.append(found[-1] if still else find_faces(frames[number]))
    return found


def _one_each(found: Sequence[tuple[Box, ...]]) -> NDArray[np.float64]:
    """Middle (x, y) and side, (N, 3): where there are several boxes, the one that is nearest to where the face mostly is."""
    usual = np.median([_middle(boxes[0]) for boxes in found if len(boxes) == 1], axis=0)
    return np.array([min((_middle(box) for box in boxes), key=lambda middle: float(np.abs(middle - usual).sum())) for boxes in found])


def _middle(box: Box) -> NDArray[np.float64]:
    return np.array([box.x + box.side / 2, box.y + box.side / 2, box.side])


def _steady(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without single boxes that differ from both neighbours, which are false."""
    from scipy import ndimage

    steady: NDArray[np.float64] = ndimage.median_filter(boxes, size=(3, 1), mode="nearest")
    return steady


def _between(seen: Sequence[int], boxes: NDArray[np.float64], count: int) -> tuple[Box, ...]:
    """A box for each of `count` frames from those of the frames `seen`."""
    from scipy import ndimage

    every = np.stack([np.interp(np.arange(count), seen, column) for column in boxes.T], axis=1)
    smoothness = (PLACE_SMOOTHNESS, PLACE_SMOOTHNESS, SIDE_SMOOTHNESS)
    smooth = [ndimage.gaussian_filter1d(column, sigma, mode="nearest") for column, sigma in zip(every.T, smoothness, strict=True)]
    return tuple(Box(float(x - side / 2), float(y - side / 2), float(side)) for x, y, side in zip(*smooth, strict=True))


def _notes(name: str, probes: Sequence[int], seen: Sequence[int], crowded: int, boxes: NDArray[np.float64]) -> tuple[str, ...]:
    notes = []
    missed = sorted(set(probes) - set(seen))
    if missed:
        at = ", ".join(f"{number / FRAMES_PER_SECOND:.2f} s" for number in missed[:5]) + (", ..." if len(missed) > 5 else "")
        notes.append(f"{name}: no face found on {len(missed)} of {len(probes)} searched frames (at {at}); its place there is interpolated")
    if crowded:
        notes.append(f"{name}: several faces on {crowded} of {len(probes)} searched frames; the one that is nearest to the others' place is taken")
    moves = np.abs(np.diff(boxes[:, :2], axis=0)).max(axis=1, initial=0.0)
    for index in np.flatnonzero(moves > JUMP * boxes[1:, 2]).tolist():
        start, end = seen[index] / FRAMES_PER_SECOND, seen[index + 1] / FRAMES_PER_SECOND
        notes.append(
            f"{name}: the face jumps by {moves[index]:.0f} pixels between {start:.2f} s and {end:.2f} s; if that is a cut, cut the clip there"
        )
    return tuple(notes)
