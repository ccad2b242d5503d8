"""The quantize stage: calibrate, measure, plan, run, choose.

ranges of activations -> a network that bears INT8 better -> what each operator costs in quality, and in time -> the optimal plans -> the one that
keeps the floor
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from pydantic import JsonValue
from torch import Tensor, fx, nn

from mcompress.compress.cost import operator_table
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate, checked
from mcompress.compress.quantize.choosing import Choice, Floor, Run, Tried, best_within, fastest_within, runner
from mcompress.compress.quantize.decisions import Problem, named_table, plan_of, problem_of
from mcompress.compress.quantize.given_plan import assigned, check_plan, details_of_given, doubts_about_given, network_for
from mcompress.compress.quantize.greedy import greedy
from mcompress.compress.quantize.keeping import kept_operators
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.reasons import reasons_for
from mcompress.compress.quantize.recovery.distilled import DistillSettings
from mcompress.compress.quantize.recovery.recover import RecoveryOptions, RecoveryStep, recover
from mcompress.compress.quantize.recovery.selecting import for_plan
from mcompress.compress.quantize.sensitivity import Sensitivity, decibels, measure_sensitivity
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.task import Sample
from mcompress.compress.train import CheckpointStore, Progress
from mcompress.errors import StageError
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback, Measurement
from mcompress.targets.stages import QuantizeConfig

HIGHEST_DB = 200.0


def quantize(config: QuantizeConfig, context: StageContext) -> StageOutput:
    """Make the precision plan of `context.model`, and the parameters with which mixed files are written; the float network itself is unchanged."""
    model, shape, quality = context.model.eval(), context.spec.input_shape, context.task.quality
    example = next(_samples(1, context)).input
    original = graph_of(export_program(model, example))
    given = context.given_plan
    if given is not None:
        check_plan(given, original)

    def inputs() -> Iterator[Tensor]:
        return (sample.input for sample in _samples(config.samples, context))

    ranges, seen = calibrate(original, inputs(), config.range, context.spec.input_range, config.samples, context.progress("calibrate"))
    first = recover(_options(config, context), original, uniform_plan(original, ranges), inputs, context.seed, *_work(context, "recover"))
    module, ranges = first.module, first.ranges

    def measured() -> str:
        small, small_shape = _reduced(model, module, shape, config.sensitivity_size)
        samples, count = _samples(config.sensitivity_samples, context, small_shape), config.sensitivity_samples
        return measure_sensitivity(small, samples, ranges, quality, count, context.progress("sensitivity")).to_json()

    # A plan that is given is not chosen, so nothing is measured for choosing it.
    sensitivity = Sensitivity() if given is not None else Sensitivity.from_json(context.remember("sensitivity", _sensitivity_key(config), measured))
    table = named_table(module, shape)
    kept = kept_operators(module, config.keep)
    problem = problem_of(module, table, ranges, sensitivity, context.device, context.planned_units, keep=kept)

    def plan_for(chosen: Sequence[Precision], reasons: Sequence[str] | None = None) -> PrecisionPlan:
        return plan_of(module, problem, chosen, ranges, reasons or [""] * len(problem.decisions), sensitivity)

    # Plans are judged on samples that nothing was fitted to.
    def fresh() -> Iterator[Sample]:
        return islice(_samples(config.samples + config.verify_samples, context), config.samples, None)

    def network_of(chosen: Sequence[Precision]) -> Callable[[Tensor], Tensor]:
        plan = plan_for(chosen)
        return Simulated(for_plan(first.twin, module, plan), plan)

    if given is None:
        choice = _choose(config, problem, sensitivity, runner(original, network_of, fresh, quality))
        chosen = choice.taken.solution.chosen
        plan = plan_for(chosen, reasons_for(module, problem, chosen, sensitivity))
        mixed, steps = for_plan(first.twin, module, plan), first.steps
    else:
        choice, plan = assigned(given, problem), given
        mixed, steps = network_for(given, original, first, inputs)
    plan = _with_rows(plan, table, operator_table(model, shape))
    last = recover(_options(config, context, final=True), mixed, plan, inputs, context.seed, *_work(context, "recover the plan"), reference=original)
    mixed, plan = last.module, replace(plan, ranges=last.ranges)
    (final,) = runner(original, lambda _: Simulated(mixed, plan), fresh, quality)([choice.taken.solution])
    reference_program(model, example, plan)  # raises if the plan cannot be applied
    details = _details(config, problem, table, plan, choice, sensitivity, seen)
    details["recovery"] = [_step(step, part) for part, found in (("all INT8", steps), ("the plan", last.steps)) for step in found]
    details["output_sqnr_db"], details["quality_lost"] = _finite(final.sqnr_db), _finite(final.lost)
    fallbacks = tuple(_fallbacks(original, problem, plan))
    if given is not None:
        details = details_of_given(details)
        fallbacks = tuple(doubts_about_given(problem, choice, final, Floor(config.within, config.least_sqnr_db)))
    return StageOutput(
        model,
        context.spec,
        plan,
        (_measurement(final, config.verify_samples),),
        fallbacks,
        details,
        _changed(original, mixed),
    )


def _options(config: QuantizeConfig, context: StageContext, *, final: bool = False) -> RecoveryOptions:
    """Before there is a plan everything is recovered for INT8 throughout; for the plan itself biases are, and what training can add."""
    return RecoveryOptions(
        input_range=context.spec.input_range,
        range_method=config.range,
        equalize="equalize" in config.recover and not final,
        round_weights="round_weights" in config.recover and not final,
        correct_biases="correct_biases" in config.recover,
        distill=DistillSettings(config.distill_steps) if final and config.distill_steps else None,
    )


def _work(context: StageContext, title: str) -> tuple[CheckpointStore, Progress]:
    return context.checkpoints(title), context.progress(title)


def _changed(original: fx.GraphModule, module: fx.GraphModule) -> dict[str, Tensor] | None:
    """The parameters that recovery changed."""
    before = original.state_dict()
    found = {name: value for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    return found or None


def _step(step: RecoveryStep, part: str) -> dict[str, JsonValue]:
    return {"for": part, "step": step.name, "before_db": _finite(step.before_db), "after_db": _finite(step.after_db), "kept": step.kept}


def _samples(count: int, context: StageContext, shape: tuple[int, ...] | None = None) -> Iterator[Sample]:
    shape = shape or context.spec.input_shape
    return checked(context.task.calibration_samples(count, shape, context.seed), shape, context.spec.input_range)


def _reduced(model: nn.Module, module: fx.GraphModule, shape: tuple[int, ...], size: int) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The same network for smaller images, with the input shape: what quantizing costs does not depend on their size, what finding out takes does.

    A network that does not take other sizes, or becomes another graph with them, is measured as it is.
    """
    smaller = (*shape[:2], *(min(side, size) for side in shape[2:]))
    if smaller == shape:
        return module, shape
    try:
        found = graph_of(export_program(model, torch.zeros(smaller)))
    except StageError:
        return module, shape
    if [(node.name, node.target) for node in found.graph.nodes] != [(node.name, node.target) for node in module.graph.nodes]:
        return module, shape
    found.load_state_dict(module.state_dict())
    return found, smaller


def _sensitivity_key(config: QuantizeConfig) -> dict[str, JsonValue]:
    """What the sensitivities depend on besides the network, the data and the seed."""
    return config.model_dump(mode="json", include={"samples", "range", "recover", "sensitivity_samples", "sensitivity_size"})


def _choose(config: QuantizeConfig, problem: Problem, sensitivity: Sensitivity, run: Run) -> Choice:
    if config.goal == "quality" and config.latency_ms is not None:
        rival = greedy(problem, sensitivity, config.latency_ms)
        return best_within(problem, config.latency_ms, run, () if rival is None else (rival,))
    return fastest_within(problem, Floor(config.within, config.least_sqnr_db), run)


def _with_rows(plan: PrecisionPlan, table: OperatorTable, network: OperatorTable) -> PrecisionPlan:
    """The plan with the names that the network's own operator table has for what the graph's table calls by nodes: both have the same rows."""
    names = {row.name: other.name for row, other in zip(table.operators, network.operators, strict=False)}
    if [(row.kind, row.macs) for row in table.operators] != [(row.kind, row.macs) for row in network.operators]:
        names = {}
    return replace(plan, operators=tuple(replace(operator, row=names.get(operator.name, "")) for operator in plan.operators))


def _measurement(final: Tried, samples: int) -> Measurement:
    return Measurement(
        what="output SQNR of the quantized network",
        value=min(final.sqnr_db, HIGHEST_DB),
        unit="dB",
        how="host",
        on="PyTorch, fake-quantized network against float",
        n=samples,
        source="calibration samples that nothing was fitted to",
    )


def _fallbacks(module: fx.GraphModule, problem: Problem, plan: PrecisionPlan) -> Iterator[Fallback]:
    """What cannot be INT8, whatever it would cost; and INT8 that does not pay at all."""
    nodes = {node.name: node for node in module.graph.nodes}
    for operator in plan.operators:
        if operator.precision != "int8" and kinds.why_float(nodes[operator.name]) is not None:
            yield Fallback(where="quantize", what=operator.name, reason=operator.reason)
    if not plan.counts()["int8"]:
        yield Fallback(where="quantize", what="no operator is INT8", reason=_why_none(problem))


def _why_none(problem: Problem) -> str:
    int8, plain = problem.uniform("int8"), problem.uniform("fp16")
    both = ((unit.unit, problem.latency_on(unit, int8), problem.latency_on(unit, plain)) for unit in problem.units)
    found = [f"{quantized:.3g} ms on {unit} against {in_float:.3g} ms in float" for unit, quantized, in_float in both]
    pays = problem.latency_ms(int8) < problem.latency_ms(plain)
    why = "what INT8 would save costs more quality than the floor allows" if pays else "INT8 does not pay there"
    return f"{' and '.join(found)}: {why}"


def _details(
    config: QuantizeConfig, problem: Problem, table: OperatorTable, plan: PrecisionPlan, choice: Choice, sensitivity: Sensitivity, seen: int
) -> dict[str, JsonValue]:
    chosen = choice.taken.solution.chosen
    everything: dict[str, tuple[Precision, ...]] = {"chosen": chosen, "all int8": problem.uniform("int8"), "all float": problem.uniform("fp16")}
    return {
        "sensitivity": [_row(operator, sensitivity) for operator in plan.operators],
        "output_sqnr_db": _finite(choice.taken.sqnr_db),
        "quality_lost": _finite(choice.taken.lost),
        "calibration_samples": seen,
        "sensitivity_samples": sensitivity.samples,
        "range": config.range,
        "goal": config.goal,
        "within": config.within,
        "least_sqnr_db": config.least_sqnr_db,
        "latency_limit_ms": config.latency_ms,
        "planned_units": [unit.unit for unit in problem.units],
        "planned_ms": {name: {unit.unit: problem.latency_on(unit, one) for unit in problem.units} for name, one in everything.items()},
        "precision_front": [_point(problem, table, one, taken=one is choice.taken) for one in choice.tried],
        "faster_plans_that_broke_the_floor": choice.broken,
        "optimality_gap": choice.taken.solution.gap,
        "counts": dict(plan.counts()),
    }


def _point(problem: Problem, table: OperatorTable, one: Tried, *, taken: bool) -> dict[str, JsonValue]:
    solution = one.solution
    return {
        "latency_ms": solution.latency_ms,
        "predicted_sqnr_db": _finite(decibels(solution.noise)),
        "sqnr_db": _finite(one.sqnr_db),
        "quality_lost": _finite(one.lost),
        "int8_macs": problem.macs_share(table, solution.chosen),
        "counts": {precision: solution.chosen.count(precision) for precision in ("int8", "fp16", "fp32")},
        "gap": solution.gap,
        "seconds": round(solution.seconds, 3),
        "taken": taken,
    }


def _row(operator: PlannedOperator, sensitivity: Sensitivity) -> dict[str, JsonValue]:
    lost = sensitivity.quality_lost.get(operator.name, {})
    return {
        "operator": operator.name,
        "module": operator.module,
        "kind": operator.kind,
        "precision": operator.precision,
        "sqnr_db": _finite(operator.sqnr_db),
        "fp16_sqnr_db": _finite(sensitivity.sqnr_db(operator.name, "fp16")),
        "quality_lost": _finite(lost.get("int8")),
        "reason": operator.reason,
    }


def _finite(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None
