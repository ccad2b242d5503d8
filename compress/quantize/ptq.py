"""The quantize stage: calibrate, measure, plan, run, choose.

ranges of activations -> a network that bears INT8 better -> what each operator costs in quality, and in time -> the optimal plans -> the one that
keeps the floor
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from pydantic import JsonValue
from torch import Tensor, fx, nn

from mcompress.compress.cost import operator_table
from mcompress.compress.counting.steps import IMAGE_RANK
from mcompress.compress.quantize.calibrating import calibrate, checked
from mcompress.compress.quantize.choosing import Choice, Floor, Run, Tried, best_within, fastest_within, runner
from mcompress.compress.quantize.decisions import Problem, named_table, plan_of, problem_of
from mcompress.compress.quantize.details import details_of_given, plan_details, recovery_details
from mcompress.compress.quantize.doubts import doubt_about_recovery, doubts_about_activations, doubts_about_plan
from mcompress.compress.quantize.given_plan import assigned, check_plan, doubts_about_given, network_for
from mcompress.compress.quantize.greedy import greedy
from mcompress.compress.quantize.keeping import kept_operators
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.reasons import reasons_for
from mcompress.compress.quantize.recovery.distilled import DistillSettings
from mcompress.compress.quantize.recovery.recover import RecoveryOptions, recover
from mcompress.compress.quantize.recovery.selecting import for_plan
from mcompress.compress.quantize.sensitivity import Sensitivity, measure_sensitivity
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.train import CheckpointStore, Progress
from mcompress.errors import StageError, UsageError
from mcompress.record import HIGHEST_DB
from mcompress.targets.activations import Activations
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Measurement
from mcompress.targets.stages import QuantizeConfig


def quantize(config: QuantizeConfig, context: StageContext) -> StageOutput:
    """Make the precision plan of `context.model`, and the parameters with which mixed files are written; the float network itself is unchanged."""
    model, shapes, quality = context.model.eval(), context.spec.input_shapes, context.task.call_quality
    examples = next(_samples(1, context)).inputs
    original = graph_of(export_program(model, *examples))
    kept, given = kept_operators(original, config.keep), context.given_plan
    if given is not None:
        check_plan(given, original)

    def inputs() -> Iterator[Inputs]:
        return (sample.inputs for sample in _samples(config.samples, context))

    input_ranges = [one.value_range for one in context.spec.inputs]
    activations = given.activations if given is not None else config.activations or context.unit.activations
    ranges, seen = calibrate(original, inputs(), config.range, input_ranges, config.samples, context.progress("calibrate"), activations)
    all_int8 = uniform_plan(original, ranges, activations=activations)
    first = recover(_options(config, context), original, all_int8, inputs, context.seed, *_work(context, "recover"))
    module, ranges = first.module, first.ranges

    def measured() -> str:
        small, small_shape = _reduced(model, module, shapes, config.sensitivity_size)
        samples, count = _samples(config.sensitivity_samples, context, small_shape), config.sensitivity_samples
        return measure_sensitivity(small, samples, ranges, quality, count, context.progress("sensitivity")).to_json()

    # A plan that is given is not chosen, so nothing is measured for choosing it.
    depends_on = _sensitivity_key(config, activations)
    sensitivity = Sensitivity() if given is not None else Sensitivity.from_json(context.remember("sensitivity", depends_on, measured))
    table = named_table(module, *shapes)
    problem = problem_of(module, table, ranges, sensitivity, context.device, context.planned_units, keep=kept)

    def plan_for(chosen: Sequence[Precision], reasons: Sequence[str] | None = None) -> PrecisionPlan:
        return plan_of(module, problem, chosen, ranges, reasons or [""] * len(problem.decisions), sensitivity, activations)

    # Plans are judged on samples that nothing was fitted to or measured on.
    def fresh() -> Iterator[Sample]:
        return islice(_samples(config.samples + config.verify_samples, context), config.samples, None)

    def network_of(chosen: Sequence[Precision]) -> Callable[..., Tensor]:
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
    plan = _with_rows(plan, table, operator_table(model, *shapes))
    last = recover(_options(config, context, final=True), mixed, plan, inputs, context.seed, *_work(context, "recover the plan"), reference=original)
    recovered, last_steps = replace(plan, ranges=last.ranges), last.steps
    (final,) = runner(original, lambda _: Simulated(last.module, recovered), fresh, quality)([choice.taken.solution])
    undone = doubt_about_recovery(config, choice.taken, final) if given is None else None
    if undone is None:
        mixed, plan = last.module, recovered
    else:
        final, last_steps = choice.taken, tuple(replace(step, kept=False) for step in last_steps)
    reference_program(model, examples, plan)  # raises if the plan cannot be applied
    details = plan_details(config, problem, table, plan, choice, final, sensitivity)
    details |= {"calibration_samples": seen, "recovery": recovery_details({"all INT8": steps, "the plan": last_steps})}
    if given is None:
        fallbacks = [*doubts_about_plan(config, original, problem, plan, choice), *([] if undone is None else [undone])]
    else:
        details = details_of_given(details)
        fallbacks = list(doubts_about_given(problem, choice, final, Floor(config.within, config.least_sqnr_db)))
    fallbacks += doubts_about_activations(plan, context.unit)
    return StageOutput(
        model,
        context.spec,
        plan,
        (_measurement(final, config.verify_samples),),
        tuple(fallbacks),
        details,
        _changed(original, mixed),
    )


def _options(config: QuantizeConfig, context: StageContext, *, final: bool = False) -> RecoveryOptions:
    """Before there is a plan everything is recovered for INT8 throughout; for the plan itself biases are, and what training can add."""
    return RecoveryOptions(
        input_ranges=tuple(one.value_range for one in context.spec.inputs),
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


def _samples(count: int, context: StageContext, shape: tuple[int, ...] | None = None) -> Iterator[Sample]:
    spec = context.spec if shape is None else replace(context.spec, input_shape=shape)
    return checked(context.task.calibration_samples(count, spec.input_shape, context.seed), spec.inputs)


def _reduced(model: nn.Module, module: fx.GraphModule, shapes: tuple[tuple[int, ...], ...], size: int) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The same network for smaller images, with their shape: what quantizing costs does not depend on their size, what finding out takes does.

    Where it does not take images of `size`, those of the next powers of two are tried, for a U-Net halves its images. A network that takes no other
    size, or becomes another graph with it, is measured as it is, and so is one that takes no images.
    """
    shape, *others = shapes
    if len(shape) < IMAGE_RANK:
        return module, shape
    for side in (size, *(2**power for power in range(size.bit_length(), max(shape[2:]).bit_length()))):
        smaller = (*shape[:2], *(min(own, side) for own in shape[2:]))
        if smaller == shape:
            break
        try:
            found = graph_of(export_program(model, *(torch.zeros(one) for one in (smaller, *others))))
        except (StageError, UsageError):
            continue
        if [(node.name, node.target) for node in found.graph.nodes] == [(node.name, node.target) for node in module.graph.nodes]:
            found.load_state_dict(module.state_dict())
            return found, smaller
    return module, shape


def _sensitivity_key(config: QuantizeConfig, activations: Activations) -> dict[str, JsonValue]:
    """What the sensitivities depend on besides the network, the data and the seed."""
    own = config.model_dump(mode="json", include={"samples", "range", "recover", "sensitivity_samples", "sensitivity_size"})
    return own if activations == "asymmetric" else {**own, "activations": activations}


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
        value=min(max(final.sqnr_db, -HIGHEST_DB), HIGHEST_DB),
        unit="dB",
        how="host",
        on="PyTorch, fake-quantized network against float",
        n=samples,
        source="training samples that served for nothing but choosing the plan",
    )
