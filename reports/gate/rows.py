"""One row of the comparison: two numbers, a tolerance, a verdict, and what excuses it."""

from __future__ import annotations

from dataclasses import replace

from mcompress.reports.gate.verdicts import Row, Verdict
from mcompress.targets.gate import Gate, GatedField

EPSILON = 1e-9


def relative(subject: str, field: str, old: float, new: float, unit: str, tolerance: GatedField, gate: Gate) -> Row:
    """A number that must not grow by more than a percentage; `tolerance` names it in `gate`."""
    change = (new / old - 1) * 100 if old else (0.0 if new == old else float("inf"))
    verdict = judged(change, float(getattr(gate, tolerance)))
    shown = "0 %" if new == old else "from 0" if not old else f"{change:+.3g} %"
    row = Row(subject, field, figure(old, unit), figure(new, unit), shown, allowed_percent(tolerance, gate), verdict, "", (old, new))
    return shown_only(row, tolerance, gate)


def counted(subject: str, field: str, old: int, new: int, tolerance: GatedField, gate: Gate) -> Row:
    """A count that must not grow by more than so many."""
    allowed = int(getattr(gate, tolerance))
    verdict = judged(new - old, allowed)
    row = Row(subject, field, str(old), str(new), f"{new - old:+d}" if new != old else "0", f"{allowed} more", verdict, "", (old, new))
    return shown_only(row, tolerance, gate)


def judged(worse_by: float, tolerance: float) -> Verdict:
    """What is exactly as much worse as allowed passes; better is what is better by more than that."""
    if worse_by > tolerance + EPSILON:
        return "regression"
    return "better" if worse_by < -tolerance - EPSILON else "ok"


def shown_only(row: Row, field: GatedField, gate: Gate) -> Row:
    """The row, failing nothing if the target only shows its field."""
    if field not in gate.only_shown:
        return row
    note = "; ".join(filter(None, (row.note, f"{field} is only shown" + (", worse than it would allow" if row.verdict == "regression" else ""))))
    verdict: Verdict = "ok" if row.verdict == "regression" else row.verdict
    return replace(row, verdict=verdict, note=note, tolerance="any (only shown)")


def excused(row: Row, reason: str, *, always: bool = False) -> Row:
    """Worse for a reason outside the network is no regression; with `always` the two numbers do not belong together at all."""
    if not reason or (row.verdict != "regression" and not always):
        return row
    return replace(row, verdict="re-baseline", note="; ".join(filter(None, (reason, row.note))))


def noted(row: Row, note: str) -> Row:
    """The row with something more to know."""
    return replace(row, note="; ".join(filter(None, (row.note, note))))


def allowed_percent(field: GatedField, gate: Gate) -> str:
    """A tolerance of `gate` as it is shown."""
    return f"+{float(getattr(gate, field)):g} %"


def plain(value: float | None) -> str:
    """Three figures."""
    return "none" if value is None else f"{value:.3g}"


def signed(ratio: float) -> str:
    """A ratio as a change in per cent."""
    return f"{(ratio - 1) * 100:+.2f} %"


def figure(value: float, unit: str) -> str:
    """Three to four figures, with a decimal prefix for counts and bytes."""
    if unit == "ms":
        return f"{value:.4g} ms"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()
