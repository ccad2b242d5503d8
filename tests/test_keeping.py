"""What a target keeps in a float precision is kept: found by name, module and pattern, honoured by the exact planner, and writable."""

from __future__ import annotations

import pytest
import torch
from int8_plans import quiet
from pydantic import ValidationError
from torch import fx, nn

from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.decisions import Problem, named_table, plan_of, problem_of
from mcompress.compress.quantize.keeping import kept_operators
from mcompress.compress.quantize.plan import ActivationRange, Precision
from mcompress.compress.quantize.planner import least_latency
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.reasons import reasons_for
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.errors import StageError
from mcompress.targets.device_files import load_device
from mcompress.targets.stages import QuantizeConfig

SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return mfagan(blocks=((2, 8),), channels=8).eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> fx.GraphModule:
    return graph_of(export_program(network, torch.rand(SHAPE)))


@pytest.fixture(scope="module")
def ranges(graph: fx.GraphModule) -> dict[str, ActivationRange]:
    return calibrate(graph, iter([(torch.rand(SHAPE),)]), "minmax", [(0.0, 1.0)], 1, quiet)[0]


def problem_with(graph: fx.GraphModule, ranges: dict[str, ActivationRange], keep: dict[str, Precision], sensitivity: Sensitivity) -> Problem:
    table = named_table(graph, SHAPE)
    return problem_of(graph, table, ranges, sensitivity, load_device("snapdragon865"), ("cpu",), keep=kept_operators(graph, keep))


def test_operators_are_found_by_name_by_module_and_by_pattern(graph: fx.GraphModule) -> None:
    modules = {node.name: kinds.module_of(node) for node in kinds.operators(graph.graph)}
    assert modules["conv2d_3"] == "blocks.0.scales.1"
    assert kept_operators(graph, {}) == {}
    assert kept_operators(graph, {"add_3": "fp32"}) == {"add_3": "fp32"}
    assert set(kept_operators(graph, {"blocks.*.projections": "fp16"})) == {"conv2d_2", "conv2d_4"}
    assert set(kept_operators(graph, {"blocks.0": "fp16"})) == {name for name, module in modules.items() if module.startswith("blocks.0")}
    # The last of two patterns counts, and an operator's own name before both.
    several: dict[str, Precision] = {"conv2d_2": "fp32", "blocks.*": "fp32", "blocks.0.projections.*": "fp16"}
    found = kept_operators(graph, several)
    assert (found["conv2d_2"], found["conv2d_4"], found["add"]) == ("fp32", "fp16", "fp32")


def test_a_fused_relu_is_kept_with_its_operator_whichever_is_named(graph: fx.GraphModule) -> None:
    assert kept_operators(graph, {"conv2d": "fp16"}) == kept_operators(graph, {"relu": "fp16"}) == {"conv2d": "fp16", "relu": "fp16"}
    # Either's own name counts before a pattern that has both.
    patterns: dict[str, Precision] = {kinds.module_of(node) or "head": "fp16" for node in kinds.operators(graph.graph) if node.name == "conv2d"}
    assert kept_operators(graph, {**patterns, "relu": "fp32"}) == {"conv2d": "fp32", "relu": "fp32"}
    with pytest.raises(
        StageError, match=r"keeps 'conv2d' in fp16 and 'relu', which is fused into it, in fp32; the two have one precision\. Name one"
    ):
        kept_operators(graph, {"conv2d": "fp16", "relu": "fp32"})


@pytest.mark.parametrize(("key", "near"), [("conv2d_33", "conv2d_3"), ("block.0", "blocks.0"), ("tial", "tail")])
def test_an_unknown_name_is_an_error_that_names_the_nearest(graph: fx.GraphModule, key: str, near: str) -> None:
    with pytest.raises(StageError, match=rf"keeps '{key}' in fp16, and the network has no such operator or module; did you mean '{near}'\?"):
        kept_operators(graph, {key: "fp16"})
    with pytest.raises(StageError, match=r"operators are conv2d, relu, .*precision_plan\.json"):
        kept_operators(graph, {"zzzzzzzz": "fp16"})


@pytest.mark.parametrize(
    "keep",
    [{"conv2d_3": "fp16"}, {"conv2d_3": "fp32"}, {"add": "fp32"}, {"pixel_shuffle": "fp16"}, {"blocks.0": "fp16", "tail": "fp32"}],
)
def test_the_planner_honours_it_and_the_plan_can_be_written(
    network: nn.Module, graph: fx.GraphModule, ranges: dict[str, ActivationRange], keep: dict[str, Precision]
) -> None:
    sensitivity, kept = Sensitivity(), kept_operators(graph, keep)
    problem = problem_with(graph, ranges, keep, sensitivity)
    found = least_latency(problem, float("inf"))
    assert found is not None
    plan = plan_of(graph, problem, found.chosen, ranges, reasons_for(graph, problem, found.chosen, sensitivity), sensitivity)
    assert {name: plan.precision_of(name) for name in kept} == kept
    assert all("the target keeps it in" in one.reason or "fused into" in one.reason for one in plan.operators if one.name in kept)
    free = least_latency(problem_with(graph, ranges, {}, sensitivity), float("inf"))
    assert free is not None
    assert found.latency_ms >= free.latency_ms * (1 - 1e-9)
    assert found.latency_ms <= problem.latency_ms(problem.uniform("fp16")) * (1 + 1e-9)
    if "fp16" not in keep.values():
        assert plan.counts()["int8"] >= len(plan.operators) // 3  # what is free is INT8, as without it; beside fp16, fp16 is faster at this size
    reference_program(network, torch.rand(SHAPE), plan)  # raises for a plan that no file can express


def test_what_the_unit_cannot_run_is_refused(graph: fx.GraphModule, ranges: dict[str, ActivationRange]) -> None:
    sensitivity = Sensitivity()
    table = named_table(graph, SHAPE)
    with pytest.raises(StageError, match=r"keeps 'conv2d_3' \(conv2d\) in fp32, which cpu cannot run; there it can be int8"):
        problem_of(graph, table, ranges, sensitivity, load_device("snapdragon865"), ("cpu",), ("int8", "fp16"), keep={"conv2d_3": "fp32"})
    overflowing = Sensitivity(alone={"conv2d_3": {"fp16": float("inf")}})
    with pytest.raises(StageError, match="beyond what FP16 holds"):
        problem_of(graph, table, ranges, overflowing, load_device("snapdragon865"), ("cpu",), keep={"conv2d_3": "fp16"})


def test_the_target_file_takes_float_precisions_only() -> None:
    assert QuantizeConfig(keep={"blocks.*": "fp16"}).keep == {"blocks.*": "fp16"}
    for wrong in ({"conv2d": "int8"}, {"": "fp16"}):
        with pytest.raises(ValidationError):
            QuantizeConfig.model_validate({"keep": wrong})
    with pytest.raises(ValidationError, match="plan is applied as it is"):
        QuantizeConfig.model_validate({"keep": {"conv2d": "fp16"}, "plan": "plan.json"})
