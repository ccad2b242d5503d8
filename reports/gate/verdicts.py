"""What a comparison consists of: rows with a verdict each, the operators responsible, and what must be known to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "better", "regression", "re-baseline", "not decided", "not comparable"]
"""`not decided`: measuring it was tried and says neither that it is as fast nor that it is slower. `not comparable`: there is nothing to compare."""
FAILING: tuple[Verdict, ...] = ("regression", "re-baseline")
"""Verdicts that end with exit code 3, the graver one first; `not decided` does so only where the target requires a decision."""
NETWORK = "network"
"""Subject of the rows that are about all files alike."""


@dataclass(frozen=True)
class Row:
    """One compared field of one file. The numbers stand there as they are shown; `values` are the numbers themselves, None where there are none."""

    subject: str
    """`network`, or backend and variant of a file: `tflite mixed`."""
    field: str
    baseline: str
    new: str
    change: str
    tolerance: str
    verdict: Verdict
    note: str = ""
    values: tuple[float | None, float | None] = (None, None)

    @property
    def said(self) -> str:
        """The row as one sentence."""
        why = f" ({self.note})" if self.note else ""
        change = f" {self.change}," if self.change else ""
        return f"{self.subject}: {self.field} {self.baseline} -> {self.new},{change} allowed {self.tolerance}: {self.verdict}{why}"


@dataclass(frozen=True)
class OperatorChange:
    """One operator of a file in both bundles, or in one of them. Times are those of the estimate, in ms; 0 where there is no such operator."""

    name: str
    """In the new bundle; in the baseline for one that was removed."""
    kind: str
    what: Literal["added", "removed", "changed"]
    detail: str
    """What is different, for example `int8 -> fp16, output 1x32x64x64 -> 1x36x64x64`."""
    baseline_ms: float
    new_ms: float

    @property
    def gained_ms(self) -> float:
        """Positive where the new bundle is slower."""
        return self.new_ms - self.baseline_ms


@dataclass(frozen=True)
class Check:
    """The whole comparison."""

    target: str
    device: str
    rows: tuple[Row, ...]
    operators: Mapping[str, Sequence[OperatorChange]]
    """Subject -> changes, the largest gain in time first; only files whose operators differ."""
    notes: tuple[str, ...]
    must_decide: bool = False
    """Whether what is not decided fails the gate: `measured_required` of the target."""

    @property
    def verdict(self) -> Verdict:
        """The gravest of all rows; `better` only where something is better, nothing is worse and everything was decided."""
        seen = {row.verdict for row in self.rows}
        return next((verdict for verdict in (*FAILING, "not decided", "better", "ok") if verdict in seen), "not comparable")

    @property
    def failing(self) -> tuple[Row, ...]:
        """The rows that fail the gate, the graver ones first."""
        verdicts: tuple[Verdict, ...] = (*FAILING, "not decided") if self.must_decide else FAILING
        return tuple(row for verdict in verdicts for row in self.rows if row.verdict == verdict)

    @property
    def summary(self) -> str:
        """For example `2 regression, 31 ok`; verdicts that no row has are not named."""
        order: tuple[Verdict, ...] = (*FAILING, "not decided", "not comparable", "better", "ok")
        counts = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in order}
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
