"""A precision plan that the target gives: read with every problem named, held against the network, and applied as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from int8_plans import int8_plan
from tiny_bundle import PLAN
from tiny_targets import ONE_STAGE
from torch import fx, nn

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.given_plan import check_plan, read_plan
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.errors import PlanError, StageError, TargetError, UsageError
from mcompress.planning import plan as plan_target
from mcompress.receipt import inputs_of
from mcompress.targets.load import load_target
from mcompress.targets.stages import QuantizeConfig

SHAPE = (1, 3, 24, 24)
SPEC = ModelSpec("imdn", {"features": 16, "blocks": 1}, (), SHAPE)
QUICK = QuantizeConfig(samples=5, sensitivity_samples=1, verify_samples=2, sensitivity_size=16, within=50.0)
MakeContext = Callable[..., StageContext]


class Network(nn.Module):
    """A convolution with a fused ReLU, a shuffle, and an operator that no runtime computes in INT8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(nn.functional.pixel_shuffle(self.last(torch.relu(self.first(x))), 2))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(2)
    return Network().eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> fx.GraphModule:
    return graph_of(export_program(network, torch.rand(SHAPE)))


@pytest.fixture(scope="module")
def fitting(network: nn.Module) -> PrecisionPlan:
    return int8_plan(network, [torch.rand(SHAPE)])


def edited(plan: PrecisionPlan, name: str, **changes: str) -> PrecisionPlan:
    return replace(plan, operators=tuple(replace(o, **changes) if o.name == name else o for o in plan.operators))  # type: ignore[arg-type]


def as_data() -> dict:  # type: ignore[type-arg]
    return dict(json.loads(PLAN.to_json()))


def test_a_bundles_plan_is_read_as_it_was_written(pristine_bundle: Path) -> None:
    assert read_plan(pristine_bundle / "precision_plan.json") == PLAN


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("operators", 0, "precision"), "int4", r"operators\[0\]\.precision is 'int4': input should be 'int8', 'fp16' or 'fp32'"),
        (("operators", 0, "precison"), "int8", r"operators\[0\]\.precison is not known"),
        (("operators", 0, "name"), "", r"operators\[0\]\.name is '': string should have at least 1 character"),
        (("operators", 0, "sqnr_db"), float("nan"), r"operators\[0\]\.sqnr_db is nan: input should be a finite number"),
        (("operators",), {}, "operators is a mapping: input should be"),
        (("operators",), [7], r"operators\[0\] is 7: "),
        (("ranges", "conv2d", "scale"), float("nan"), r"ranges\.conv2d\.scale is nan: input should be"),
        (("ranges", "conv2d", "scale"), float("inf"), r"ranges\.conv2d\.scale is inf: input should be"),
        (("ranges", "conv2d", "scale"), 0.0, r"ranges\.conv2d\.scale is 0\.0: input should be greater than 0"),
        (("ranges", "conv2d", "scale"), "0.1", r"ranges\.conv2d\.scale is '0\.1': input should be a valid number"),
        (("ranges", "conv2d", "zero_point"), 128, r"ranges\.conv2d\.zero_point is 128: input should be less than or equal to 127"),
        (("ranges", "conv2d", "zero_point"), 0.5, r"ranges\.conv2d\.zero_point is 0\.5: input should be a valid integer"),
    ],
)
def test_every_wrong_value_is_named(tmp_path: Path, path: tuple[str | int, ...], value: object, expected: str) -> None:
    data = holder = as_data()
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (tmp_path / "mine.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"the precision plan .*mine\.json cannot be used: it is not a precision plan: " + expected):
        read_plan(tmp_path / "mine.json")


def test_missing_and_double_entries_are_named(tmp_path: Path) -> None:
    data = as_data()
    del data["operators"][0]["precision"]
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"operators\[0\]\.precision is missing"):
        read_plan(tmp_path / "a.json")
    data = as_data()
    data["operators"] *= 2
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="the operator 'conv2d' is in it more than once"):
        read_plan(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"[]", "it is not a precision plan: the whole is a list"),
        (b'{"a": 1}', "operators is missing; ranges is missing; a is not known"),
        (b"\x89PNG\r\n\xff", "is not a text file: byte 0"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=expected):
        read_plan(tmp_path / "a.json")


def test_a_folder_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)


def test_a_fitting_plan_fits(fitting: PrecisionPlan, graph: fx.GraphModule) -> None:
    check_plan(fitting, graph)
    check_plan(replace(fitting, operators=tuple(replace(o, precision="fp32") for o in fitting.operators), ranges={}), graph)


def test_a_plan_of_another_network_names_the_first_operators_that_differ(fitting: PrecisionPlan, graph: fx.GraphModule) -> None:
    ghosts = tuple(PlannedOperator(f"conv2d_{i}", "", "conv2d", "fp16", "") for i in range(7, 11))
    with pytest.raises(StageError, match=r"does not fit the network: 'conv2d_7' \(conv2d\) of the plan is not in the network .*; and 1 more"):
        check_plan(replace(fitting, operators=(*fitting.operators, *ghosts)), graph)
    with pytest.raises(StageError, match=r"'sigmoid' \(sigmoid\) of the network is not in the plan \(the plan has 4 operators, the network 5\)"):
        check_plan(replace(fitting, operators=fitting.operators[:-1]), graph)
    with pytest.raises(StageError, match="'conv2d_1' is linear in the plan and conv2d in the network"):
        check_plan(edited(fitting, "conv2d_1", kind="linear"), graph)


def test_what_cannot_be_done_is_named(fitting: PrecisionPlan, graph: fx.GraphModule) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 1, 1)).eval()
    enclosed, enclosing = graph_of(export_program(body, torch.rand(SHAPE))), int8_plan(body, [torch.rand(SHAPE)])
    with pytest.raises(StageError, match="'sigmoid' is INT8 in the plan and cannot be: sigmoid has no INT8 kernel"):
        check_plan(edited(fitting, "sigmoid", precision="int8"), graph)
    with pytest.raises(StageError, match="'relu' is fp32, and 'conv2d', into which it is fused, is int8"):
        check_plan(edited(fitting, "relu", precision="fp32"), graph)
    check_plan(edited(enclosing, "pixel_shuffle", precision="fp16"), enclosed)  # float between INT8 operators is for the backends to write
    rest = {name: found for name, found in fitting.ranges.items() if name != "conv2d_1"}
    with pytest.raises(StageError, match="'conv2d_1' is INT8 and the plan has no range for 'conv2d_1'"):
        check_plan(replace(fitting, ranges=rest), graph)
    with pytest.raises(StageError, match=r"'pixel_shuffle' .* keeps the scale of what it reads"):
        check_plan(replace(fitting, ranges=fitting.ranges | {"conv2d_1": ActivationRange(0.5, 0)}), graph)


def test_the_stage_applies_its_own_plan_again_to_the_same_network(make_context: MakeContext) -> None:
    made = quantize(QUICK, make_context(SPEC))
    assert made.plan is not None
    assert made.plan.counts()["int8"] > 0
    again = applied(make_context(SPEC), PrecisionPlan.from_json(made.plan.to_json()))
    assert again.plan == made.plan
    assert again.details["output_sqnr_db"] == made.details["output_sqnr_db"]
    assert again.details["quality_lost"] == made.details["quality_lost"]
    assert (made.recovered is None) == (again.recovered is None)
    assert all(torch.equal(value, (again.recovered or {})[name]) for name, value in (made.recovered or {}).items())
    assert again.details["planned_ms"] == made.details["planned_ms"]
    assert (again.details["given"], again.details["precision_front"], again.details["optimality_gap"]) == (True, [], None)
    assert again.details["sensitivity_samples"] == 0
    assert "given" not in made.details


def applied(context: StageContext, plan: PrecisionPlan, config: QuantizeConfig = QUICK) -> StageOutput:
    def nothing(_what: str, _depends_on: object, _compute: object) -> str:
        raise AssertionError("sensitivity was asked for")

    return quantize(config, replace(context, given_plan=plan, remember=nothing))


def test_a_plan_edited_by_hand_is_obeyed_and_its_loss_measured(make_context: MakeContext) -> None:
    model = make_context(SPEC).model
    plan = int8_plan(model, [torch.rand(SHAPE)])
    chosen = plan.operators[next(i for i, o in enumerate(plan.operators) if o.name == "leaky_relu") - 1].name
    mine = edited(edited(plan, chosen, precision="fp32"), "leaky_relu", precision="fp16")
    config = QUICK.model_copy(update={"within": 0.0, "least_sqnr_db": 119.0})
    output = applied(make_context(SPEC), mine, config)
    assert output.plan is not None
    assert [(o.name, o.precision) for o in output.plan.operators] == [(o.name, o.precision) for o in mine.operators]
    assert output.plan.ranges == mine.ranges
    assert any("the target allows at most 0 lost and at least 119 dB" in fallback.reason for fallback in output.fallbacks)


def test_the_stage_refuses_a_plan_of_another_network(make_context: MakeContext, fitting: PrecisionPlan) -> None:
    with pytest.raises(StageError, match="does not fit the network: 'leaky_relu' "):
        applied(make_context(SPEC), fitting)


def a_target(folder: Path, plan: str, more: str = "") -> Path:
    text = ONE_STAGE.replace("name: one", "name: two").replace("exports:", "exports:  ")
    stages = f"stages: [{{stage: quantize, samples: 2, plan: {plan}{more}}}]"
    lines = [stages if line.startswith("stages:") else line for line in text.splitlines()]
    (folder / "target.yaml").write_text("\n".join(lines) + "\n")
    return folder / "target.yaml"


def test_a_target_names_its_plan_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    (stage,) = load_target(a_target(tmp_path, "mine.json")).stages
    assert isinstance(stage, QuantizeConfig)
    assert stage.plan == tmp_path / "mine.json"
    with pytest.raises(TargetError, match=r"target\.yaml:5: stages\[0\]\.plan is 'other\.json'; there is no such file"):
        load_target(a_target(tmp_path, "other.json"))
    with pytest.raises(TargetError, match=r"stages\[0\]\.plan is applied as it is, so there is nothing to choose; remove goal: quality"):
        load_target(a_target(tmp_path, "mine.json", ", goal: quality, latency_ms: 3"))


def test_planning_refuses_what_is_no_plan_or_another_networks(tmp_path: Path, fitting: PrecisionPlan) -> None:
    (tmp_path / "mine.json").write_text('{"operators": []}')
    with pytest.raises(
        PlanError, match=r"target 'two': the precision plan .*mine\.json cannot be used: it is not a precision plan: ranges is missing"
    ):
        plan_target(load_target(a_target(tmp_path, "mine.json")))
    (tmp_path / "mine.json").write_text(fitting.to_json())
    with pytest.raises(PlanError, match="target 'two': the given precision plan does not fit the network: "):
        plan_target(load_target(a_target(tmp_path, "mine.json")))


def test_the_stages_key_follows_the_plans_content_and_not_its_name(tmp_path: Path) -> None:
    def key(name: str, plan: PrecisionPlan) -> object:
        (tmp_path / name).write_text(plan.to_json())
        made = plan_target(load_target(a_target(tmp_path, name)))
        return made.key_parts("quantize", made.target.stages[0], "parent")

    target = load_target(a_target(tmp_path, "target.yaml"))
    network = plan_target(target.model_copy(update={"stages": ()})).start
    fits = int8_plan(network, [torch.rand(1, 3, 32, 32)])
    edited_by_hand = replace(fits, ranges=fits.ranges | {"x": ActivationRange(0.5, 0)})
    of_plan = key("a.json", fits)
    assert key("b.json", fits) == of_plan
    assert key("a.json", edited_by_hand) != of_plan


def test_a_finished_runs_receipt_notices_a_change_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(PLAN.to_json())
    target = load_target(a_target(tmp_path, "mine.json"))
    before = inputs_of(target)
    (tmp_path / "mine.json").write_text(PLAN.to_json().replace('"int8"', '"fp16"'))
    after = inputs_of(target)
    assert before is not None
    assert after is not None
    assert {key for key in before if before[key] != after[key]} == {"files"}
