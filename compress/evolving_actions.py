"""What a diffusion UNet went through while it evolved: actions on blocks, the scores that led to them, and how a killed search finds them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Literal, cast

from pydantic import JsonValue, TypeAdapter

from mcompress.compress.train import CheckpointStore

What = Literal["removed", "doubled", "taken back"]


@dataclass(frozen=True)
class ScoredBlock:
    """A block and what it was worth when it was looked at."""

    block: str
    """As the network that it stood in called it."""
    loss_rise: float
    """Of the error of the prediction without it; negative where the network was better without."""
    milliseconds: float
    """That it takes on the device."""
    needed_ms: float | None = None
    """So much was still to be saved when blocks were to go: what a block takes beyond it is no gain. None where nothing was."""

    @property
    def value(self) -> float:
        """Loss of quality per millisecond saved (SnapFusion, algorithm 1) and needed; infinite for a block that takes no time.

        What is no loss is multiplied instead (ours): of blocks that do equal harm, the one that saves most is worth least.
        """
        saved = self.milliseconds if self.needed_ms is None else min(self.milliseconds, self.needed_ms)
        if saved <= 0:
            return float("inf")
        return self.loss_rise / saved if self.loss_rise > 0 else self.loss_rise * saved

    def as_json(self) -> dict[str, JsonValue]:
        """For the report, with the value; null where it is infinite."""
        return {**asdict(self), "value": self.value if isfinite(self.value) else None}


@dataclass(frozen=True)
class Action:
    """One step of evolution: blocks that went together, or one that was doubled, or whose copy went again."""

    what: What
    blocks: tuple[ScoredBlock, ...]
    error_before: float
    latency_before_ms: float
    latency_after_ms: float

    def as_json(self) -> dict[str, JsonValue]:
        """For the report, with the values."""
        return {**asdict(self), "blocks": [one.as_json() for one in self.blocks]}


@dataclass(frozen=True)
class Training:
    """What robust training before the first action (phase 0), or after so many of them, was like."""

    phase: int
    seconds: float
    curve: list[tuple[int, dict[str, float]]]

    def as_json(self) -> dict[str, JsonValue]:
        """For the report."""
        return {"phase": self.phase, "seconds": self.seconds, "curve": [[step, dict(terms)] for step, terms in self.curve]}


@dataclass
class _Kept:
    actions: list[Action] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    first: list[ScoredBlock] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


_KEPT = TypeAdapter(_Kept)


class Journal:
    """All that was decided and measured, kept at once: a killed search continues behind it."""

    def __init__(self, store: CheckpointStore) -> None:
        saved = store.load()
        self._store, self._kept = store, _Kept() if saved is None else _KEPT.validate_python(saved)

    @property
    def actions(self) -> list[Action]:
        """In their order."""
        return self._kept.actions

    @property
    def trainings(self) -> list[Training]:
        """In their order."""
        return self._kept.trainings

    @property
    def first(self) -> list[ScoredBlock]:
        """The first scores of all blocks, what was to go first at the front; empty where nothing had to."""
        return self._kept.first

    def error(self, what: str, measure: Callable[[], float]) -> float:
        """That which was measured for this action, or is now."""
        errors = self._kept.errors
        if what not in errors:
            errors[what] = measure()
            self._save()
        return errors[what]

    def act(self, action: Action, scored: list[ScoredBlock]) -> None:
        """The action is decided; what is measured from now on is for the next one."""
        if action.what == "removed" and not self._kept.first:
            self._kept.first = scored
        self._kept.actions.append(action)
        self._kept.errors = {}
        self._save()

    def trained(self, training: Training) -> None:
        """A training has ended; nothing new where it is known already."""
        if all(one.phase != training.phase for one in self._kept.trainings):
            self._kept.trainings.append(training)
            self._save()

    def _save(self) -> None:
        self._store.save(cast("dict[str, object]", _KEPT.dump_python(self._kept)))


class Phase:
    """One training among several that follow one another and keep their state in one place: that of the latest."""

    def __init__(self, store: CheckpointStore, number: int) -> None:
        self._store, self.number = store, number
        self._saved = store.load()

    def past(self, decided: int) -> bool:
        """Whether a later training has begun, whose state holds all weights; none can have behind more actions than were `decided`."""
        return self._saved is not None and self.number < int(cast("int", self._saved["phase"])) <= decided

    def load(self) -> dict[str, object] | None:
        """The state of this training; None where it has not begun."""
        if self._saved is None or self._saved["phase"] != self.number:
            return None
        return cast("dict[str, object]", self._saved["training"])

    def save(self, state: dict[str, object]) -> None:
        """Replace what was there."""
        self._saved = None
        self._store.save({"phase": self.number, "training": state})
