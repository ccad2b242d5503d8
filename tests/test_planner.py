"""The planner against every assignment there is: networks small enough to try them all, on the real devices' constants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_plans import quiet
from made_up_device import DEVICE, THREE
from operator_rows import network as rows_of
from operator_rows import row
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.decisions import Decision, Problem, named_table, plan_of, problem_of
from mcompress.compress.quantize.plan import ActivationRange, Precision, PrecisionPlan
from mcompress.compress.quantize.planner import least_latency, least_noise
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.reasons import reasons_for
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.compress.quantize.simulate import simulate
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate
from mcompress.targets.operators import Kind, OperatorTable
from mcompress.targets.precision_latency import precision_latency
from mcompress.targets.speeds import PrecisionName

SHAPE = (1, 3, 24, 24)
UNITS = [
    ("snapdragon865", ("cpu",)),
    ("snapdragon865", ("npu",)),
    ("snapdragon865", ("cpu", "gpu")),
    ("host", ("cpu",)),
    ("apple-a16", ("npu", "cpu")),
]


class Branched(nn.Module):
    """A skip, a concatenation, a fused ReLU, an operator that cannot be INT8, and a resize: every rule of the planner has something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.last = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(x))
        z = torch.sigmoid(self.left(y)) + y
        return functional.interpolate(self.last(torch.cat((z, self.right(y)), 1)), scale_factor=2.0)


@pytest.fixture(scope="module")
def network() -> Branched:
    torch.manual_seed(1)
    return Branched().eval()


@pytest.fixture(scope="module")
def graph(network: Branched) -> fx.GraphModule:
    return graph_of(export_program(network, torch.rand(SHAPE)))


@pytest.fixture(scope="module")
def ranges(graph: fx.GraphModule) -> dict[str, ActivationRange]:
    return calibrate(graph, iter([(torch.rand(SHAPE),)]), "minmax", [(0.0, 1.0)], 1, quiet)[0]


@pytest.fixture(scope="module")
def table(graph: fx.GraphModule) -> OperatorTable:
    return named_table(graph, SHAPE)


def made_up(graph: fx.GraphModule, seed: int) -> Sensitivity:
    """Noise of random sizes: the planner must be right for any."""
    rng = np.random.default_rng(seed)
    names = [node.name for node in graph.graph.nodes if node.op in ("call_function", "placeholder")]
    noise = {name: float(10 ** rng.uniform(-6, -3)) for name in names}
    alone: dict[str, dict[Precision, float]] = {name: {"fp16": noise[name] / 1000, "int8": noise[name]} for name in names}
    weights = {name: value / 3 for name, value in noise.items() if "conv" in name}
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    reads = {node.name: {source.name: float(10 ** rng.uniform(-6, -3)) for source in node.all_input_nodes if source.name in noise} for node in calls}
    return Sensitivity(1, 1.0, 0.0, alone, {}, noise, reads, weights)


def every_assignment(problem: Problem) -> list[tuple[Precision, ...]]:
    """Those that a file can express: between INT8 operators on all sides everything without weights is INT8."""
    found = []
    for chosen in itertools.product(*(decision.allowed for decision in problem.decisions)):
        sandwiched = any(
            decision.between and "int8" in decision.allowed and chosen[i] != "int8" and all(chosen[j] == "int8" for j in decision.between)
            for i, decision in enumerate(problem.decisions)
        )
        leaders = ((decision, chosen[decision.follows], chosen[i]) for i, decision in enumerate(problem.decisions) if decision.follows is not None)
        torn = any(leader in decision.allowed and own != leader for decision, leader, own in leaders)
        if not sandwiched and not torn:
            found.append(chosen)
    return found


@pytest.mark.parametrize(("device", "units"), UNITS)
def test_the_solution_is_the_best_of_all_assignments(
    graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange], device: str, units: Sequence[str]
) -> None:
    problem = problem_of(graph, table, ranges, made_up(graph, 3), load_device(device), units)
    costs = [(problem.latency_ms(chosen), problem.noise_of(chosen)) for chosen in every_assignment(problem)]
    assert len(costs) > 30
    fastest = min(latency for latency, _ in costs)
    most = max(noise for _, noise in costs)
    for share in (1.0, 0.3, 0.1, 0.01, 0.0):
        best = min((latency for latency, noise in costs if noise <= share * most), default=None)
        found = least_latency(problem, share * most)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert found.latency_ms == pytest.approx(best, rel=1e-4)
            assert found.noise <= share * most * (1 + 1e-6)
            assert found.gap <= 1e-4
    for factor in (1.0, 1.05, 1.3):
        quietest = min(noise for latency, noise in costs if latency <= factor * fastest * (1 + 1e-9))
        found = least_noise(problem, factor * fastest * (1 + 1e-9))
        assert found is not None
        assert found.noise == pytest.approx(quietest, rel=1e-3, abs=1e-9)
    assert least_noise(problem, 0.9 * fastest) is None


KINDS: tuple[Kind, ...] = ("convolution", "elementwise", "shuffle", "concatenate", "depthwise_convolution")


def random_problem(rng: np.random.Generator, device: Device) -> tuple[OperatorTable, Problem]:
    """Six operators, many of which read the same tensors, in parts and as a whole, and some of which only a fallback unit takes."""
    rows = []
    for index in range(6):
        kind, channels = KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(2, 20)) * 8
        made = row(kind, channels, channels, int(rng.integers(20, 90)), groups=channels if kind == "depthwise_convolution" else 1)
        makers = dict.fromkeys(int(maker) for maker in rng.integers(index, size=2)) if index else ()
        shares = rng.choice([1.0, 1.0, 0.5, 0.25], size=len(makers))
        read = tuple((maker, int(rows[maker].elements_written * share)) for maker, share in zip(makers, shares, strict=True))
        rows.append(replace(made, sources=read))
    table = rows_of(*rows)
    priced = precision_latency(table, device, "npu", ("int8", "fp16"))
    decisions = []
    for index, made in enumerate(table.operators):
        able: list[Precision] = [p for p in ("int8", "fp16") if np.isfinite(priced.own_ms[index, priced.precisions.index(p)])]
        makers_noise = tuple((maker, float(10 ** rng.uniform(-6, -3))) for maker, _ in made.sources or ())
        noise: dict[Precision, float] = {p: float(10 ** rng.uniform(-6, -3)) * (1.0 if p == "int8" else 1e-3) for p in able}
        decisions.append(Decision((made.name,), tuple(able), noise, makers_noise if "int8" in able else ()))
    return table, Problem(tuple(decisions), (priced,), tuple(range(6)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), device=st.sampled_from([DEVICE, THREE]))
def test_hops_and_readers_of_parts_cost_the_planner_what_they_cost_the_estimator(seed: int, device: Device) -> None:
    rng = np.random.default_rng(seed)
    table, problem = random_problem(rng, device)
    every = every_assignment(problem)
    costs = [(problem.latency_ms(chosen), problem.noise_of(chosen)) for chosen in every]
    some = every[int(rng.integers(len(every)))]
    precisions: dict[str, PrecisionName] = {made.name: precision for made, precision in zip(table.operators, some, strict=True)}
    assert problem.latency_ms(some) == pytest.approx(estimate(table, device, "npu", precisions).value, rel=1e-9)
    for limit in (math.inf, problem.noise_of(some)):
        found = least_latency(problem, limit)
        assert found is not None
        best = min(latency for latency, noise in costs if noise <= limit * (1 + 1e-9))
        assert best * (1 - 1e-6) <= found.latency_ms <= best * (1 + found.gap + 1e-9)
    allowed = problem.latency_ms(some) * (1 + 1e-9)
    quietest = least_noise(problem, allowed)
    assert quietest is not None
    least = min(noise for latency, noise in costs if latency <= allowed)
    assert quietest.noise <= least * (1 + quietest.gap + 1e-9)
    assert quietest.latency_ms <= allowed * (1 + 1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_latency_is_the_estimators(graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange], seed: int) -> None:
    rng = np.random.default_rng(seed)
    name, units = UNITS[seed % len(UNITS)]
    device = load_device(name)
    problem = problem_of(graph, table, ranges, made_up(graph, seed), device, units)
    chosen = tuple(decision.allowed[int(rng.integers(len(decision.allowed)))] for decision in problem.decisions)
    precisions: dict[str, PrecisionName] = {row.name: chosen[owner] for row, owner in zip(table.operators, problem.row_owner, strict=True)}
    expected = sum(estimate(table, device, unit, precisions).value for unit in units)
    assert problem.latency_ms(chosen) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000), share=st.floats(0.001, 1.0))
def test_every_plan_can_be_applied(
    network: Branched, graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange], seed: int, share: float
) -> None:
    sensitivity = made_up(graph, seed)
    problem = problem_of(graph, table, ranges, sensitivity, load_device("host"), ("cpu",))
    found = least_latency(problem, share * problem.noise_of(problem.uniform("int8")))
    assert found is not None
    plan = plan_of(graph, problem, found.chosen, ranges, reasons_for(graph, problem, found.chosen, sensitivity), sensitivity)
    assert all(operator.reason for operator in plan.operators)
    assert PrecisionPlan.from_json(plan.to_json()) == plan
    x = torch.rand(SHAPE)
    reference = reference_program(network, x, plan)  # raises where the graph is not what was planned
    with torch.no_grad():
        torch.testing.assert_close(simulate(graph, plan, x), reference(x), rtol=0, atol=2e-5)


def test_noise_counts_every_rounding_once(graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange]) -> None:
    found = made_up(graph, 5)
    problem = problem_of(graph, table, ranges, found, load_device("host"), ("cpu",), ("int8", "fp32"))
    chosen = problem.uniform("int8")
    plan = plan_of(graph, problem, chosen, ranges, [""] * len(chosen), found)
    assert plan.int8_names() == uniform_plan(graph, ranges).int8_names()
    convolutions = [name for name in plan.int8_names() if "conv" in name]
    # The convolution's result is rounded behind its ReLU; concatenation and resize move what was rounded where it was made.
    made = sum(found.tensors[name] for name in ("relu", "conv2d_1", "add", "conv2d_2", "conv2d_3"))
    read = found.reads["conv2d"]["x"] + found.reads["add"]["sigmoid"]  # all other tensors come from INT8 operators
    assert problem.noise_of(chosen) == pytest.approx(made + read + sum(found.weights[name] for name in convolutions))

    only = tuple("int8" if decision.nodes[0] == "conv2d_1" else "fp32" for decision in problem.decisions)
    alone = found.reads["conv2d_1"]["relu"] + found.tensors["conv2d_1"] + found.weights["conv2d_1"]
    assert problem.noise_of(only) == pytest.approx(alone), "the skip connection beside it stays exact"  # type: ignore[arg-type]


def test_half_precision_that_overflows_is_never_planned(graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange]) -> None:
    sensitivity = made_up(graph, 7)
    sensitivity.alone["conv2d_1"]["fp16"] = math.inf
    problem = problem_of(graph, table, ranges, sensitivity, load_device("snapdragon865"), ("cpu",))
    found = least_noise(problem, math.inf)
    assert found is not None
    position = next(i for i, decision in enumerate(problem.decisions) if decision.nodes[0] == "conv2d_1")
    assert found.chosen[position] != "fp16"
    assert math.isfinite(found.noise)
    assert problem.uniform("fp16")[position] == "fp32"


def test_where_int8_is_computed_as_fp16_it_gains_nothing(graph: fx.GraphModule, table: OperatorTable, ranges: dict[str, ActivationRange]) -> None:
    sensitivity = made_up(graph, 9)
    problem = problem_of(graph, table, ranges, sensitivity, load_device("snapdragon865"), ("gpu",))
    found = least_latency(problem, math.inf)
    assert found is not None
    assert "int8" not in found.chosen
    assert "fp32" not in found.chosen  # the unit computes in FP16 whatever the file holds
    assert "not be faster on gpu" in reasons_for(graph, problem, found.chosen, sensitivity)[0]
