"""The precision plan for a reader: what was planned and why, what it costs, what else was tried, and whether the files hold it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mcompress.export.honoured import precision_of_steps, standing_for
from mcompress.record import ExportRecord, Run
from mcompress.reports import precision_plots, wording
from mcompress.reports.details import OperatorPrecision, StageDetails, read_details

PRECISIONS = ("int8", "fp16", "fp32")
MOST_BARS = 24  # operators in the plot, the most sensitive; the table behind it lists all
SENSITIVE_DB = 10.0
"""An operator is called sensitive if, alone in INT8, its noise is at least a tenth of what the whole plan leaves."""
LEAST_GAP = 1e-6
PROVEN = 1e-3
"""A solver's gap above this is no proof of anything."""


@dataclass(frozen=True)
class Figure:
    """One large figure of the section: the figure, what it is, and what it is compared with."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class UnitRow:
    """Estimated milliseconds of one unit: the plan, everything in INT8, everything in float; bars in percent of the longest."""

    unit: str
    cells: tuple[tuple[str, float], ...]
    verdict: str


@dataclass(frozen=True)
class OperatorRow:
    """One operator of the plan."""

    operator: OperatorPrecision
    sensitive: bool


@dataclass(frozen=True)
class FileRow:
    """What a mixed file holds against the plan, counted over the plan's operators as int8 / fp16 / fp32."""

    file: str
    planned: str
    held: str
    computed: str
    """On the machine that made it; empty where it was not executed."""
    merged: int
    """Operators of the plan that no operator of the file stands for: they were merged into their neighbours."""
    own: int
    """Operators of the file."""
    departures: int
    shipped: bool


@dataclass(frozen=True)
class PrecisionPart:
    """Everything that the section shows."""

    stage: str
    details: StageDetails
    metric: str
    unit: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]
    units: tuple[UnitRow, ...]
    front: Markup
    sensitivity: Markup
    shown: int
    """Operators in the plot of sensitivities."""
    operators: tuple[OperatorRow, ...]
    files: tuple[FileRow, ...]


def precision_part(run: Run, details: Mapping[str, StageDetails]) -> PrecisionPart | None:
    """The section about the quantize stage; None in a run without one."""
    found = next(((name, one) for name, one in details.items() if one.operators), None)
    if found is None:
        return None
    stage, plan = found
    metric, unit = _metric(run)
    return PrecisionPart(
        stage,
        plan,
        metric,
        unit,
        tuple(_figures(plan, metric, unit)),
        tuple(_remarks(plan, unit)),
        tuple(_unit_rows(plan)),
        Markup(precision_plots.front(plan, metric=metric, unit=unit)) if plan.precision_front else Markup(),
        _sensitivity_plot(plan),
        min(MOST_BARS, sum(operator.sqnr_db is not None for operator in plan.operators)),
        tuple(OperatorRow(operator, _sensitive(operator, plan)) for operator in plan.operators),
        tuple(_file_row(export, plan) for export in run.exports if export.variant == "mixed" and export.beside is None),
    )


def plan_line(run: Run, folder: Path) -> str:
    """The plan in one line for the terminal; empty where the run folder has no quantize stage's details."""
    for stage in run.stages:
        plan = read_details(folder / "stages" / stage.name)
        if plan is not None and plan.operators and plan.counts:
            return _line(plan, *_metric(run))
    return ""


def proof(plan: StageDetails) -> str:
    """The optimality gap in words; empty for a plan that nobody chose."""
    gap = plan.optimality_gap
    if plan.given:
        return ""
    if gap is None:
        return "not proven optimal: the fallbacks say why"
    better, same = ("has less noise", "latency") if plan.goal == "quality" else ("is faster", "noise")
    share = f"{wording.number(100 * max(gap, LEAST_GAP))} %"
    if gap <= PROVEN:
        return f"proven optimal: no plan of this {same} {better} by more than {share}"
    return f"not proven optimal: the solver was stopped where a plan of this {same} could still be better by {share}"


def triple(counts: Mapping[str, int]) -> str:
    """54 / 3 / 0: INT8, FP16 and FP32."""
    return " / ".join(str(counts.get(precision, 0)) for precision in PRECISIONS)


def total_ms(plan: StageDetails, what: str) -> float | None:
    """Estimated milliseconds of `chosen`, `all int8` or `all float`, summed over the planned units; None where one has no estimate."""
    values = list(plan.planned_ms.get(what, {}).values())
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def _metric(run: Run) -> tuple[str, str]:
    name = wording.call_metric(run)
    return wording.metric(name) if name else ("quality", "")


def _line(plan: StageDetails, metric: str, unit: str) -> str:
    named = [(n, precision) for precision in PRECISIONS if (n := plan.counts.get(precision, 0)) or precision == "int8"]
    words = [f"{n}{' operators' if precision == 'int8' else ''} {precision}" for n, precision in named]
    parts = [", ".join(words) + (" (given with the target)" if plan.given else "")]
    chosen = total_ms(plan, "chosen")
    if chosen is not None:
        others = [f"{name} {wording.number(ms)}" for name in ("all float", "all int8") if (ms := total_ms(plan, name)) is not None]
        parts.append(f"estimated {wording.number(chosen)} ms{_over(plan)} ({', '.join(others)})")
    if plan.quality_lost is not None:
        allowed = f" of {plan.within:g} allowed" if plan.within is not None and _floor_counts(plan) and plan.quality_lost >= 0 else ""
        parts.append(f"{_lost(plan.quality_lost, metric, unit)}{allowed}")
    if proof(plan):
        parts.append(proof(plan))
    return "; ".join(parts)


def _over(plan: StageDetails) -> str:
    """Where the plan's milliseconds are spent. Files of several backends reach several units, and no two of them run together."""
    units = plan.planned_units
    return f", the sum over {' and '.join(units)}, each of which runs the whole network" if len(units) > 1 else f" on {units[0]}" if units else ""


def _floor_counts(plan: StageDetails) -> bool:
    """Whether the plan was chosen to keep a quality floor, rather than a latency."""
    return plan.goal == "latency"


def _lost(lost: float, metric: str, unit: str) -> str:
    """`0.042 dB of PSNR lost`; a gain is called one."""
    what = f"{wording.number(abs(lost))}{' ' + unit if unit else ''} of {metric}"
    return f"{what} {'gained' if lost < 0 else 'lost'}"


def _figures(plan: StageDetails, metric: str, unit: str) -> Iterator[Figure]:
    if plan.counts:
        made = "given with the target" if plan.given else "planned"
        where = f" for {' and '.join(plan.planned_units)}" if plan.planned_units else ""
        yield Figure(triple(plan.counts), "operators in INT8 / FP16 / FP32", made + where)
    chosen, in_float, in_int8 = (total_ms(plan, what) for what in ("chosen", "all float", "all int8"))
    if chosen is not None:
        others = [f"{wording.number(ms)} ms {name}" for name, ms in (("all float", in_float), ("all INT8", in_int8)) if ms is not None]
        yield Figure(f"{wording.number(chosen)} ms", f"estimated{_over(plan)}", ", ".join(others))
    if plan.quality_lost is not None:
        sign = "+" if plan.quality_lost < 0 else "\N{MINUS SIGN}" if plan.quality_lost > 0 else ""
        floor = f"at most {plan.within:g}{' ' + unit if unit else ''} may be lost; " if plan.within is not None and _floor_counts(plan) else ""
        sqnr = f"output SQNR {plan.output_sqnr_db:.1f} dB" if plan.output_sqnr_db is not None else "the output is equal"
        value = f"{sign}{wording.number(abs(plan.quality_lost))} {unit}".strip()
        yield Figure(value, f"{metric} against the float network", f"{floor}{sqnr}")


def _remarks(plan: StageDetails, unit: str) -> Iterator[str]:
    if plan.given:
        yield "The plan was given with the target and applied as it is; sensitivities and other plans were not computed."
    if proof(plan):
        yield f"{proof(plan).capitalize()}."
    if plan.goal == "quality" and plan.latency_limit_ms is not None:
        yield f"It is the plan with the least noise within {wording.number(plan.latency_limit_ms)} ms."
    broke = plan.faster_plans_that_broke_the_floor
    if broke and plan.goal == "latency":
        allowed = f"more than {plan.within:g}{' ' + unit if unit else ''}" if plan.within is not None else "too much"
        yield f"{broke} faster plan{'s were' if broke > 1 else ' was'} run and rejected: {'they lose' if broke > 1 else 'it loses'} {allowed}."
    for row in _unit_rows(plan):
        if row.verdict:
            yield f"{row.verdict}."


def _unit_rows(plan: StageDetails) -> Iterator[UnitRow]:
    names = ("chosen", "all int8", "all float")
    for unit in plan.planned_units:
        values = [plan.planned_ms.get(name, {}).get(unit) for name in names]
        longest = max((value for value in values if value is not None), default=0.0) or 1.0
        cells = tuple(("no estimate", 0.0) if ms is None else (f"{wording.number(ms)} ms", 100 * ms / longest) for ms in values)
        yield UnitRow(unit, cells, _verdict(unit, *values))


def _verdict(unit: str, chosen: float | None, in_int8: float | None, in_float: float | None) -> str:
    """What to say of a unit on which INT8 throughout is not faster than float."""
    if in_int8 is None or in_float is None or in_int8 < in_float * (1 - PROVEN):
        return ""
    both = f"{wording.number(in_int8)} ms all INT8, {wording.number(in_float)} ms all float"
    if chosen is not None and chosen < in_float * (1 - PROVEN):
        return f"INT8 throughout does not pay on {unit}, the plan's mixture does: {wording.number(chosen)} ms, {both}"
    return f"INT8 does not pay on {unit}: {both}"


def _sensitive(operator: OperatorPrecision, plan: StageDetails) -> bool:
    if operator.sqnr_db is None:
        return False
    return operator.sqnr_db <= (plan.output_sqnr_db if plan.output_sqnr_db is not None else math.inf) + SENSITIVE_DB


def _sensitivity_plot(plan: StageDetails) -> Markup:
    known = [operator for operator in plan.operators if operator.sqnr_db is not None]
    if not known:
        return Markup()
    worst = sorted(known, key=lambda operator: operator.sqnr_db or 0.0)[:MOST_BARS]
    names = {operator.name for operator in worst}
    return Markup(precision_plots.sensitivity([operator for operator in known if operator.name in names], output_db=plan.output_sqnr_db))


def _file_row(export: ExportRecord, plan: StageDetails) -> FileRow:
    standing = standing_for(export.operators)
    held, computed = Counter[str](), Counter[str]()
    merged = 0
    for planned in plan.operators:
        found = standing.get(planned.name, [])
        if not found:
            merged += 1
            continue
        held[precision_of_steps((one.precision for one in found), planned.precision)] += 1
        computed[precision_of_steps((one.computed for one in found), planned.precision)] += 1
    planned_counts = Counter(operator.precision for operator in plan.operators)
    return FileRow(
        wording.file_name(export),
        triple(planned_counts),
        triple(held),
        triple(computed) if export.parity.passed is not None else "",
        merged,
        len(export.operators),
        len(export.coverage.fallbacks),
        export.shipped,
    )
