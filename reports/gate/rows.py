"""One row of the comparison: two numbers, a tolerance, a verdict, and what excuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mcompress.reports.gate.tolerances import Tolerances, percent
from mcompress.reports.gate.verdicts import Row, Verdict
from mcompress.targets.gate import GatedField

EPSILON = 1e-9


@dataclass(frozen=True)
class Gated:
    """A compared field that has a tolerance in the gate."""

    subject: str
    field: str
    name: GatedField
    tolerances: Tolerances
    text: Callable[[float], str] = percent
    """The tolerance in words, `+2 %`."""

    def row(self, cells: tuple[str, str, str], verdict: Verdict, values: tuple[float | None, float | None], note: str = "") -> Row:
        """`cells` are baseline, new and change as they are shown; a field that is only shown fails nothing."""
        if verdict == "regression" and self.name in self.tolerances.gate.only_shown:
            verdict, note = "ok", "; ".join(filter(None, (note, "only shown, worse than would be allowed")))
        return Row(self.subject, self.field, *cells, self.tolerances.shown(self.name, self.text), verdict, note, values)

    def judged(self, cells: tuple[str, str, str], worse_by: float, values: tuple[float, float], note: str = "", *, scale: float = 1.0) -> Row:
        """`worse_by` against the tolerance times `scale`."""
        return self.row(cells, judged(worse_by, scale * self.tolerances.of(self.name)), values, note)


def one_sided(subject: str, field: str, name: GatedField, tolerances: Tolerances, values: tuple[float | None, float | None], note: str) -> Row:
    """A number that only one bundle has, or none: one that was lost fails, else nobody could notice that a file got worse."""
    verdict: Verdict = "regression" if values[0] is not None else "not comparable"
    return Gated(subject, field, name, tolerances, _stated).row((plain(values[0]), plain(values[1]), ""), verdict, values, note)


def _stated(_allowed: float) -> str:
    return "a value"


def relative(subject: str, field: str, old: float, new: float, unit: str, name: GatedField, tolerances: Tolerances) -> Row:
    """A number that must not grow by more than a percentage; `name` is that of its tolerance."""
    change = (new / old - 1) * 100 if old else (0.0 if new == old else float("inf"))
    shown = "0 %" if new == old else "from 0" if not old else f"{change:+.3g} %"
    return Gated(subject, field, name, tolerances).judged((figure(old, unit), figure(new, unit), shown), change, (old, new))


def counted(subject: str, field: str, old: int, new: int, name: GatedField, tolerances: Tolerances) -> Row:
    """A count that must not grow by more than so many."""
    cells = str(old), str(new), f"{new - old:+d}" if new != old else "0"
    return Gated(subject, field, name, tolerances, lambda allowed: f"{allowed:g} more").judged(cells, new - old, (old, new))


def judged(worse_by: float, tolerance: float) -> Verdict:
    """What is exactly as much worse as allowed passes; better is what is better by more than that."""
    if worse_by > tolerance + EPSILON:
        return "regression"
    return "better" if worse_by < -tolerance - EPSILON else "ok"


def excused(row: Row, reason: str, *, always: bool = False) -> Row:
    """Worse for a reason outside the network is no regression; with `always` the two numbers do not belong together at all."""
    if not reason or (row.verdict != "regression" and not always):
        return row
    return replace(row, verdict="re-baseline", note="; ".join(filter(None, (reason, row.note))))


def noted(row: Row, note: str) -> Row:
    """The row with something more to know."""
    return replace(row, note="; ".join(filter(None, (row.note, note))))


def plain(value: float | None) -> str:
    """Three figures."""
    return "none" if value is None else f"{value:.3g}"


def figure(value: float, unit: str) -> str:
    """Three to four figures, with a decimal prefix for counts and bytes."""
    if unit == "ms":
        return f"{value:.4g} ms"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()
