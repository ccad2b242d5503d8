"""The quantize stage as a whole: what it leaves is JSON, the plan that it hands on keeps the floor, and bad input is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor

from mcompress.cache import Cache
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize import ptq
from mcompress.compress.quantize.choosing import Choice, Floor, Run, Tried
from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.doubts import doubt_about_recovery
from mcompress.compress.quantize.greedy import assigned
from mcompress.compress.quantize.planner import Solution
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.quantize.recovery.recover import Recovered, RecoveryStep
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.task import Sample
from mcompress.errors import StageError
from mcompress.staging import _remember
from mcompress.targets.stages import QuantizeConfig

SHAPE = (1, 3, 24, 24)
SPEC = ModelSpec("imdn", {"features": 16, "blocks": 1}, (), SHAPE)
QUICK = QuantizeConfig(samples=5, sensitivity_samples=1, verify_samples=2, sensitivity_size=16, within=50.0)
MakeContext = Callable[..., StageContext]


def strict(details: dict[str, JsonValue]) -> None:
    json.dumps(details, allow_nan=False)  # raises for an infinity, which is no JSON


def reasons(output: StageOutput) -> dict[str, str]:
    return {one.what: one.reason for one in output.fallbacks if one.where == "quantize"}


@pytest.mark.parametrize(("size", "side"), [(48, 64), (64, 64), (16, 32), (200, 128)])
def test_a_network_that_halves_its_images_is_measured_on_those_that_it_takes(size: int, side: int) -> None:
    model = build(ModelSpec("unet_generator", {"features": 2, "downs": 5 if size < 48 else 6}, (), (1, 3, 128, 128)))
    module = graph_of(export_program(model, torch.zeros(1, 3, 128, 128)))
    found, shape = ptq._reduced(model, module, ((1, 3, 128, 128),), size)
    assert shape == (1, 3, side, side)
    assert found(torch.zeros(shape)).shape == shape


def test_a_recovery_that_breaks_the_floor_is_undone(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, damaged = ptq.recover, list[Recovered]()

    def harmful(*args: object, **kwargs: object) -> Recovered:
        """What is recovered for the plan itself looks better on the inputs that it was measured on, and is broken."""
        found = genuine(*args, **kwargs)  # type: ignore[arg-type]
        if "reference" not in kwargs:
            return found
        for value in found.module.state_dict().values():
            value.mul_(-1.0)
        damaged.append(replace(found, steps=(RecoveryStep("distill", 30.0, 40.0, kept=True),)))
        return damaged[0]

    config = QUICK.model_copy(update={"least_sqnr_db": 10.0, "recover": ()})
    plain = quantize(config, make_context(SPEC))
    monkeypatch.setattr(ptq, "recover", harmful)
    output = quantize(config, make_context(SPEC))
    assert damaged
    assert output.plan == plain.plan
    assert output.recovered is None
    assert plain.recovered is None
    assert (output.details["quality_lost"], output.details["output_sqnr_db"]) == (plain.details["quality_lost"], plain.details["output_sqnr_db"])
    assert output.measurements == plain.measurements
    assert output.details["recovery"] == [{"for": "the plan", "step": "distill", "before_db": 30.0, "after_db": 40.0, "kept": False}]
    assert "recovery of the plan" not in reasons(plain)
    said = reasons(output)["recovery of the plan"]
    assert said.startswith("it breaks the floor (at most 50 lost and at least 10 dB) and was undone: with it ")
    assert said.endswith(f"the output has {plain.measurements[0].value:.1f} dB")


def test_recovery_is_judged_by_what_the_target_asks_for() -> None:
    solution = Solution(("int8",), 1.0, 1e-3, 0.0, 0.0)
    before, better, worse = (Tried(solution, db, lost) for db, lost in ((40.0, 0.05), (42.0, 0.04), (39.0, 0.2)))
    by_latency = QuantizeConfig(within=0.1, least_sqnr_db=30.0)
    assert doubt_about_recovery(by_latency, before, better) is None
    assert doubt_about_recovery(by_latency, before, Tried(solution, 39.0, 0.1)) is None, "it keeps the floor, which is all that was asked for"
    doubt = doubt_about_recovery(by_latency, before, worse)
    assert doubt is not None
    assert doubt.reason == (
        "it breaks the floor (at most 0.1 lost and at least 30 dB) and was undone: with it 0.2 of the task's metric is lost and the output has "
        "39.0 dB; without it 0.05 of the task's metric is lost and the output has 40.0 dB"
    )
    by_quality = QuantizeConfig(goal="quality", latency_ms=3.0)
    assert doubt_about_recovery(by_quality, before, better) is None
    assert doubt_about_recovery(by_quality, before, worse) is not None
    for nothing in (float("nan"), float("-inf")):
        assert doubt_about_recovery(by_quality, before, Tried(solution, nothing, 0.0)) is not None


def test_a_greedy_choice_that_is_taken_is_called_unproven_and_leaves_json(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def winner(problem: Problem, _sensitivity: Sensitivity, limit_ms: float) -> Solution:
        """Float throughout, which is surely better, passed off as fast enough."""
        return replace(assigned(problem, problem.uniform("fp16")), latency_ms=limit_ms)

    context = make_context(SPEC)
    fastest = planned_ms(quantize(QUICK, context), "chosen")
    monkeypatch.setattr(ptq, "greedy", winner)
    output = quantize(QUICK.model_copy(update={"goal": "quality", "latency_ms": 1.001 * fastest}), make_context(SPEC))
    strict(output.details)
    assert output.details["optimality_gap"] is None
    assert output.details["faster_plans_that_broke_the_floor"] == 0
    (taken,) = [one for one in output.details["precision_front"] if one["taken"]]  # type: ignore[union-attr,index,call-overload]
    assert taken["gap"] is None  # type: ignore[index,call-overload]
    said = reasons(output)["proof of the precision plan"]
    assert "the greedy choice has" in said
    assert "nothing is proven of it" in said


def planned_ms(output: StageOutput, what: str) -> float:
    found = output.details["planned_ms"]
    assert isinstance(found, dict)
    of_units = found[what]
    assert isinstance(of_units, dict)
    return sum(value for value in of_units.values() if isinstance(value, float))


def test_a_floor_that_nothing_meets_stops_the_stage_and_names_the_best(make_context: MakeContext) -> None:
    said = (
        r"no precision plan keeps within 0 of the float network's quality and 119 dB SQNR; the best reachable loses -?[\d.e-]+ of it "
        r"and has \d+\.\d dB \(.* ms on the planned units\)\. Lower the floor \(within, least_sqnr_db\), take operators out of keep, or add a unit"
    )
    gpu = make_context(SPEC, planned_units=("gpu",))  # computes in FP16 at best
    with pytest.raises(StageError, match=said):
        quantize(QUICK.model_copy(update={"within": 0.0, "least_sqnr_db": 119.0}), gpu)


class Spoiled(SuperResolution):
    """A task whose calibration samples are made by `spoil` from the real ones."""

    def __init__(self, genuine: SuperResolution, spoil: Callable[[list[Sample]], Sequence[Sample]]) -> None:
        super().__init__(genuine.training_photos, genuine.held_out_photos)
        self._spoil = spoil

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        yield from self._spoil(list(super().calibration_samples(count, input_shape, seed)))


def third(change: Callable[[Tensor], Tensor]) -> Callable[[list[Sample]], list[Sample]]:
    """The third sample changed, the others as they are."""
    return lambda samples: [replace(one, inputs=(change(one.picture),)) if index == 2 else one for index, one in enumerate(samples)]


def with_nan(value: Tensor) -> Tensor:
    found = value.clone()
    found[0, 0, 0, 0] = float("nan")
    return found


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _samples: [], r"the task gave no calibration samples; quantization needs at least one"),
        (lambda samples: samples[:5], r"the task gave no samples to run precision plans on, besides those for calibration; at least one is needed"),
        (third(with_nan), r"calibration sample '.* #2' holds NaN or infinity; calibration needs finite values\. Remove or repair it"),
        (
            third(lambda value: value[..., :16]),
            r"calibration sample '.* #2' has shape \(1, 3, 24, 16\); the network is compressed for \(1, 3, 24, 24\)\. Give samples of that shape",
        ),
        (
            third(lambda value: value * 0 + 200),
            r"calibration sample '.* #2' has values between 200 and 200; the network's input range is 0 to 1\. Scale the sample as the network's "
            r"training data were \(model\.input_range\)",
        ),
    ],
    ids=["empty", "too few", "NaN", "shape", "range"],
)
def test_bad_calibration_samples_stop_the_stage(
    make_context: MakeContext, task: SuperResolution, spoil: Callable[[list[Sample]], Sequence[Sample]], said: str
) -> None:
    context = replace(make_context(SPEC), task=Spoiled(task, spoil))
    with pytest.raises(StageError, match=said):
        quantize(QUICK.model_copy(update={"recover": ()}), context)


def test_a_network_of_constants_and_dead_channels_gets_a_plan(make_context: MakeContext) -> None:
    context = make_context(SPEC)
    with torch.no_grad():
        for index, (name, value) in enumerate(context.model.named_parameters()):
            if name.endswith("weight") and value.ndim == 4:
                value[: value.shape[0] // 2] = 0.0
            elif index % 4 == 1:
                value.fill_(0.25)
    output = quantize(QUICK.model_copy(update={"within": 0.5}), context)
    strict(output.details)
    assert output.plan is not None
    assert output.plan.counts()["int8"] > 0
    assert float(str(output.details["quality_lost"])) <= 0.5


def test_a_plan_without_a_proof_says_so(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = ptq.fastest_within

    def stopped(problem: Problem, floor: Floor, run: Run) -> Choice:
        found = genuine(problem, floor, run)
        taken = replace(found.taken, solution=replace(found.taken.solution, gap=math.inf))
        return replace(found, taken=taken, tried=tuple(taken if one is found.taken else one for one in found.tried))

    monkeypatch.setattr(ptq, "fastest_within", stopped)
    output = quantize(QUICK.model_copy(update={"recover": ()}), make_context(SPEC))
    strict(output.details)
    assert output.details["optimality_gap"] is None
    assert reasons(output)["proof of the precision plan"] == "the solver was stopped before it had any bound to prove it with"


def test_what_configurations_share_is_computed_once_unless_the_stage_is_forced(tmp_path: Path) -> None:
    cache, computed = Cache(tmp_path), list[str]()

    def ask(config: str, *, forced: bool = False, depends_on: str = "samples") -> str:
        def compute() -> str:
            computed.append(config)
            return f"made for {config}"

        parts: dict[str, JsonValue] = {"name": "quantize", "parent": "abc", "config": config}
        return _remember(cache, parts, "sensitivity", {"on": depends_on}, compute, forced=forced)

    assert ask("a") == ask("b") == "made for a"
    assert ask("c", depends_on="others") == "made for c"
    assert ask("d", forced=True) == ask("e") == "made for d"
    assert computed == ["a", "c", "d"]


def test_a_goal_refuses_the_limits_of_the_other() -> None:
    assert QuantizeConfig.model_validate(QuantizeConfig(goal="quality", latency_ms=3.0).model_dump()).latency_ms == 3.0
    for wrong in ({"within": 0.2}, {"least_sqnr_db": 30.0}):
        with pytest.raises(ValidationError, match="takes the least noise within latency_ms, whatever is lost; remove within and least_sqnr_db"):
            QuantizeConfig.model_validate({"goal": "quality", "latency_ms": 3.0, **wrong})
    with pytest.raises(ValidationError, match="latency_ms belongs to goal: quality; give both, or neither"):
        QuantizeConfig(goal="quality")
