"""A talking face performs a whole held-out clip, frame by frame with one fixed picture as the reference, as an app would, and is judged.

Where the clip was drawn, the truth about its mouth is exact. The lip-sync score is by the expert of the task, our own for the embedded clips; beside
it stands what that expert says of the real frames, of the reference held still, and of the real frames with speech that belongs to others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mcompress.compress.models.lip_experts import FRAMES
from mcompress.compress.tasks.performance import Judgement, Run
from mcompress.compress.tasks.talking_face.expert import LipSyncExpert
from mcompress.compress.tasks.talking_face.footage import Footage
from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND
from mcompress.compress.tasks.talking_face.judging import CURVES, MOUTH_UNIT, lip_numbers, lower_half_db, sync_score
from mcompress.compress.tasks.talking_face.lips import CURVE_NOTE, Mouths, measure_mouths
from mcompress.compress.tasks.talking_face.recordings import Recording
from mcompress.compress.tasks.talking_face.showing import side_by_side
from mcompress.compress.tasks.talking_face.video_writing import write_video
from mcompress.compress.tasks.talking_face.windows import SETTINGS
from mcompress.compress.tasks.task import Inputs
from mcompress.errors import ParityError
from mcompress.targets.schema import Measurement

REFERENCE = 0
"""The frame that is the reference of all: an app has the first picture before the others."""
SHIFT = 10
"""Frames by which speech is late where it is to fit no more: 0.4 s, about two syllables."""
DIGITS = 5
"""Of a curve, behind the point; the measurement itself is known to three."""
REAL, SHIFTED = "real frames", f"real frames, speech {SHIFT / FRAMES_PER_SECOND:g} s late"
STILL = "the reference frame, held still"
NOBODY = "no network"

Example = Callable[[Recording, int, int], tuple[Inputs, Tensor]]
"""A recording, a frame and its reference -> what a network gets, and the frame."""


class ClipPerformance:
    """The performances of one clip."""

    fps = float(FRAMES_PER_SECOND)
    curve_unit, curve_note = MOUTH_UNIT, CURVE_NOTE

    def __init__(self, footage: Footage, example: Example, expert: LipSyncExpert | None) -> None:
        self.footage, self._example, self._expert = footage, example, expert
        self.name, self.truth = footage.recording.name, footage.recording.faces

    @property
    def curves(self) -> Mapping[str, tuple[float, ...]]:
        """Opening and width of the mouth, exactly; empty where nobody knows them."""
        known = self.footage.mouth
        return {} if known is None else _curves(torch.from_numpy(known.mouths))

    @property
    def missing(self) -> tuple[str, ...]:
        """Curves of clips that were filmed, and the score where no expert is given, or the clip is shorter than what one judges."""
        found = []
        if self.footage.mouth is None:
            found.append(f"mouth curves of {self.name}: how its mouth really moved is not known; it is of the embedded clips, which were drawn")
        if self._expert is None:
            found.append(f"lip-sync score of {self.name}: no expert was given for clips of your own; give model.expert: {{network: syncnet, ...}}")
        elif len(self.truth) < FRAMES:
            found.append(f"lip-sync score of {self.name}: it has {len(self.truth)} frames, and the expert judges {FRAMES} together")
        return tuple(found)

    def perform(self, run: Run, batch: int) -> Tensor:
        """Faces as `run(face, audio)` makes them, `batch` at a time; the last batch is filled up with its last frame.

        face (batch, 6, 96, 96) in [0, 1], audio (batch, 1, 80, 16) in [-4, 4] -> (batch, 3, 96, 96), clipped to [0, 1]. Returns uint8 (T, 3, 96, 96).
        """
        made = []
        with torch.no_grad():
            for first in range(0, len(self.truth), batch):
                numbers = [min(first + step, len(self.truth) - 1) for step in range(batch)]
                output = run(*self._inputs(numbers))[: len(self.truth) - first]
                if output.shape[1:] != self.truth.shape[1:]:
                    raise ParityError(f"clip '{self.name}': an output has shape {tuple(output.shape)}; a face is {tuple(self.truth.shape[1:])}")
                if not torch.isfinite(output).all():
                    raise ParityError(f"clip '{self.name}': there are NaN or infinite values in frames from {first} on; the network must not be used")
                made.append((output.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8))
        return torch.cat(made)

    def _inputs(self, frames: list[int]) -> Inputs:
        found = [self._example(self.footage.recording, frame, self._reference)[0] for frame in frames]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def judge(self, frames: Tensor, on: str) -> Judgement:
        """Likeness of the lower halves, mouths against the truth where it is known, and the lip-sync score where there is an expert."""
        return self._judged(frames, on, self.footage.recording.windows)

    def contexts(self) -> Mapping[str, Judgement]:
        """The real frames: what the measurements themselves get wrong, and the sync of what fits; the reference in every frame: what doing nothing
        is worth; and the sync of what does not fit.
        """
        windows = self.footage.recording.windows
        late = self._sync(self.truth, windows.roll(SHIFT, 0), NOBODY)
        return {REAL: self._real, STILL: self._still, **({SHIFTED: Judgement(late)} if late else {})}

    @cached_property
    def _real(self) -> Judgement:
        return self._judged(self.truth, NOBODY, self.footage.recording.windows)

    @cached_property
    def _still(self) -> Judgement:
        """Its mouth is measured once, and where the face of the reference stands, for that is what is seen."""
        frames = self.truth[self._reference].expand_as(self.truth)
        return self._judged(frames, NOBODY, self.footage.recording.windows, still=True)

    @property
    def _reference(self) -> int:
        return min(REFERENCE, len(self.truth) - 1)

    def _judged(self, frames: Tensor, on: str, windows: Tensor, *, still: bool = False) -> Judgement:
        """`still`: whether all of `frames` are the reference; else faces stand in them as in the clip."""
        numbers, curves, known = [lower_half_db(frames, self.truth, on)], dict[str, tuple[float, ...]](), self.footage.mouth
        if known is not None:
            shown = slice(self._reference, self._reference + 1) if still else slice(None)
            found = measure_mouths(frames[shown], known.poses[shown], known.face)
            if still:
                found = Mouths(found.mouths.repeat(len(frames), 0), found.explained.repeat(len(frames)))
            numbers += lip_numbers(found, known, on)
            curves = _curves(torch.from_numpy(found.mouths))
        return Judgement((*numbers, *self._sync(frames, windows, on)), curves)

    def _sync(self, frames: Tensor, windows: Tensor, on: str) -> tuple[Measurement, ...]:
        return () if self._expert is None or len(frames) < FRAMES else (sync_score(self._expert, frames, windows, on),)

    def write_video(self, path: Path, shown: Mapping[str, Tensor]) -> tuple[str, ...]:
        """H.264 and AAC in MP4: the frames side by side, enlarged and titled, with the clip's sound as long as they last."""
        heard = self.footage.samples[: len(self.truth) * SETTINGS.sample_rate_hz // FRAMES_PER_SECOND]
        return write_video(path, side_by_side(shown), heard, SETTINGS.sample_rate_hz)


def _curves(mouths: Tensor) -> dict[str, tuple[float, ...]]:
    """(T, 2) -> name -> one value per frame."""
    return {name: tuple(round(value, DIGITS) for value in mouths[:, column].tolist()) for column, name in enumerate(CURVES)}
