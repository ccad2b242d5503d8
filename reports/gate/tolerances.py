"""What a comparison allows: the stricter one of the `gate` of both bundles, field by field, so that no change loosens its own gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from mcompress.targets.gate import Gate, GatedField, stricter


@dataclass(frozen=True)
class Tolerances:
    """The gates of both bundles."""

    baseline: Gate
    new: Gate

    @cached_property
    def gate(self) -> Gate:
        """What counts."""
        return stricter(self.baseline, self.new)

    def of(self, field: GatedField) -> float:
        """The number that counts."""
        return float(getattr(self.gate, field))

    def shown(self, field: GatedField, text: Callable[[float], str]) -> str:
        """The number that counts in the words of `text`; where the bundles differ, also whose it is and what the other one says."""
        if field in self.gate.only_shown:
            return "any (only shown)"
        said = [f"any, {text(_of(gate, field))} shown" if field in gate.only_shown else text(_of(gate, field)) for gate in (self.baseline, self.new)]
        allowed = text(self.of(field))
        if said[0] == said[1]:
            return allowed
        return f"{allowed} (baseline {said[0]}, new {said[1]})"

    def differences(self) -> Iterator[str]:
        """`quality 0.05 -> 3`, for every field of the gates that differs."""
        for field in Gate.model_fields:
            old, now = getattr(self.baseline, field), getattr(self.new, field)
            if old != now:
                yield f"{field} {_said(old)} -> {_said(now)}"


def percent(value: float) -> str:
    """A growth that is allowed."""
    return f"+{value:g} %"


def _of(gate: Gate, field: GatedField) -> float:
    return float(getattr(gate, field))


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
