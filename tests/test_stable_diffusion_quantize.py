"""The planner on networks that number words, copy what they normalise, and compute on whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from int8_plans import quiet
from test_stable_diffusion_exports import Case, cases

from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.decisions import Problem, named_table, node_of_row, problem_of
from mcompress.compress.quantize.kinds import why_float
from mcompress.compress.quantize.planner import least_latency, least_noise
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.ptq import _reduced
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.export.parity import own_agreement_db
from mcompress.record import HIGHEST_DB
from mcompress.targets.device_files import load_device


def problem(case: Case) -> tuple[torch.fx.GraphModule, Problem]:
    module = graph_of(export_program(case.network, *case.examples.values()))
    samples = (tuple(map(torch.from_numpy, values)) for values in case.inputs(2))
    ranges, _ = calibrate(module, samples, "mse", list(case.ranges.values()), 2, quiet)
    table = named_table(module, *(tuple(value.shape) for value in case.examples.values()))
    assert {node_of_row(row.name) for row in table.operators} <= {node.name for node in module.graph.nodes}
    assert len({row.name for row in table.operators}) == len(table.operators)
    return module, problem_of(module, table, ranges, Sensitivity(), load_device("snapdragon8gen2"), ("cpu", "npu"))


@pytest.mark.parametrize("name", ["unet", "decoder", "clip"])
def test_the_planner_has_plans_and_says_what_cannot_be_int8(name: str) -> None:
    module, found = problem(cases()[name])
    for solution in (least_latency(found, np.inf), least_noise(found, np.inf)):
        assert solution is not None
        assert solution.latency_ms == pytest.approx(found.latency_ms(solution.chosen))
    kinds = {str(node.target): why_float(node) for node in module.graph.nodes if node.op == "call_function"}
    for kind in ("group_norm", "silu", "scaled_dot_product_attention", "embedding", "layer_norm"):
        said = kinds.get(f"aten.{kind}.default")
        assert said is None or f"{kind} has no INT8 kernel" in said


def test_networks_of_words_are_measured_as_they_are() -> None:
    case = cases()["clip"]
    module = graph_of(export_program(case.network, *case.examples.values()))
    assert _reduced(case.network, module, ((1, 8),), 48) == (module, (1, 8))


def test_words_are_not_moved_when_a_reference_is_compared_with_itself() -> None:
    words = [(np.array([[3.0, 1.0, 7.0]], np.float32),), (np.array([[0.0, 2.0, 7.0]], np.float32),)]
    table = torch.randn(8, 4)
    assert own_agreement_db(lambda given: table[given.long()], words) == HIGHEST_DB
    between = [(value + np.float32(0.5),) for (value,) in words]
    assert own_agreement_db(lambda given: given, between) < HIGHEST_DB, "what lies between whole numbers is a measure, and moves"
