"""What the quantize stage leaves for the report: the plan with all that was tried beside it, and what every operator and every step of recovery gave.

It is JSON, which has no infinity: a number that is not finite is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from mcompress.compress.quantize.choosing import Choice, Tried
from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.recovery.recover import RecoveryStep
from mcompress.compress.quantize.sensitivity import Sensitivity, decibels
from mcompress.record import finite
from mcompress.targets.operators import OperatorTable
from mcompress.targets.stages import QuantizeConfig


def plan_details(
    config: QuantizeConfig, problem: Problem, table: OperatorTable, plan: PrecisionPlan, choice: Choice, final: Tried, sensitivity: Sensitivity
) -> dict[str, JsonValue]:
    """Of the plan that was chosen: `final` is what the network that is exported loses under it. `table` is that of `problem`."""
    chosen = choice.taken.solution.chosen
    everything: dict[str, tuple[Precision, ...]] = {"chosen": chosen, "all int8": problem.uniform("int8"), "all float": problem.uniform("fp16")}
    return {
        "sensitivity": [_row(operator, sensitivity) for operator in plan.operators],
        "output_sqnr_db": _rounded(final.sqnr_db),
        "quality_lost": _rounded(final.lost),
        "sensitivity_samples": sensitivity.samples,
        "range": config.range,
        "activations": plan.activations,
        "goal": config.goal,
        "within": config.within,
        "least_sqnr_db": config.least_sqnr_db,
        "latency_limit_ms": config.latency_ms,
        "planned_units": [unit.unit for unit in problem.units],
        "planned_ms": {name: {unit.unit: finite(problem.latency_on(unit, one)) for unit in problem.units} for name, one in everything.items()},
        "precision_front": [_point(problem, table, one, taken=one is choice.taken) for one in choice.tried],
        "faster_plans_that_broke_the_floor": choice.broken,
        "optimality_gap": finite(choice.taken.solution.gap),
        "counts": dict(plan.counts()),
    }


def recovery_details(parts: Mapping[str, Iterable[RecoveryStep]]) -> list[JsonValue]:
    """What every step gave; keys of `parts` say under which plan."""
    return [
        {"for": part, "step": step.name, "before_db": _rounded(step.before_db), "after_db": _rounded(step.after_db), "kept": step.kept}
        for part, steps in parts.items()
        for step in steps
    ]


def details_of_given(details: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The same of a plan that was given: nothing was chosen, so there is no front and no proof."""
    return {**details, "given": True, "precision_front": [], "optimality_gap": None}


def _point(problem: Problem, table: OperatorTable, one: Tried, *, taken: bool) -> dict[str, JsonValue]:
    solution = one.solution
    return {
        "latency_ms": solution.latency_ms,
        "predicted_sqnr_db": _rounded(decibels(solution.noise)),
        "sqnr_db": _rounded(one.sqnr_db),
        "quality_lost": _rounded(one.lost),
        "int8_macs": problem.macs_share(table, solution.chosen),
        "counts": _counts(solution.chosen),
        "gap": finite(solution.gap),
        "seconds": round(solution.seconds, 3),
        "taken": taken,
    }


def _counts(chosen: Sequence[Precision]) -> dict[str, JsonValue]:
    return {precision: chosen.count(precision) for precision in ("int8", "fp16", "fp32")}


def _row(operator: PlannedOperator, sensitivity: Sensitivity) -> dict[str, JsonValue]:
    lost = sensitivity.quality_lost.get(operator.name, {})
    return {
        "operator": operator.name,
        "module": operator.module,
        "kind": operator.kind,
        "precision": operator.precision,
        "sqnr_db": _rounded(operator.sqnr_db),
        "fp16_sqnr_db": _rounded(sensitivity.sqnr_db(operator.name, "fp16")),
        "quality_lost": _rounded(lost.get("int8")),
        "reason": operator.reason,
    }


def _rounded(value: float | None) -> float | None:
    found = finite(value)
    return None if found is None else round(found, 4)
