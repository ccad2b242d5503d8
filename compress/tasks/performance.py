"""A held-out clip that networks perform whole: what a task owes where single pictures say too little, because its outputs move.

The spine runs the clip through the original and through every exported file, lets the task judge what they made, and keeps the numbers; it knows
nothing of what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mcompress.targets.schema import Measurement

Run = Callable[..., Tensor]
"""A network or a file: called with its inputs, each batch first, it gives its output, batch first."""


@dataclass(frozen=True)
class Judgement:
    """What a performance is worth: numbers over the whole clip, and curves with one value per frame."""

    measurements: tuple[Measurement, ...]
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Performance(Protocol):
    """One held-out clip. Frames are uint8 (T, 3, H, W), RGB."""

    name: str
    """The clip's."""
    fps: float
    truth: Tensor
    """The real frames."""
    curve_unit: str
    """Of all curves."""
    curve_note: str
    """How far measured curves can be trusted."""

    @property
    def curves(self) -> Mapping[str, tuple[float, ...]]:
        """What is exactly known of the real frames, one value per frame; empty where nothing is."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What cannot be judged on this clip: `what: why`."""

    def perform(self, run: Run, batch: int) -> Tensor:
        """The frames that a network makes of the clip, so many at a time. Raises `ParityError` for NaN, infinity or another shape."""

    def judge(self, frames: Tensor, on: str) -> Judgement:
        """What frames are worth that `on` computed."""

    def contexts(self) -> Mapping[str, Judgement]:
        """What the judges say of frames whose worth is known, so that a reader sees what the numbers mean."""

    def write_video(self, path: Path, shown: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Write a video with these frames side by side, title -> frames; returns `name: what` for what was changed.

        Raises `MissingBackendError` where a package that writes videos is missing.
        """
