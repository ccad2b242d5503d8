"""Any operator may stay float between INT8 ones: the reference is what the plan says, and a file says what it holds instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from symmetric_networks import Branches, images, symmetric_plan
from test_several_inputs import cases
from torch import nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.simulate import simulate
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return Branches().eval()


def in_float(plan: PrecisionPlan, names: set[str], precision: Precision) -> PrecisionPlan:
    return replace(plan, operators=tuple(replace(one, precision=precision) if one.name in names else one for one in plan.operators))


def test_any_operator_may_stay_float_between_int8_ones(network: nn.Module) -> None:
    """One that only moves or adds values looks like an INT8 one in the reference; what files make of it is read back from them."""
    value, program = images(4)[3], graph_of(export_program(network, images(1)[0]))
    plan = symmetric_plan(network, "asymmetric")
    for node in kinds.operators(program.graph):
        group = {node.name} | {user.name for user in node.users if kinds.is_fused(user)}
        if kinds.is_fused(node):
            continue
        chosen = in_float(plan, group, "fp32")
        expected = simulate(program, chosen, value)
        np.testing.assert_allclose(reference_program(network, value, chosen)(value).detach(), expected.detach(), atol=1e-6)


@pytest.mark.export
@pytest.mark.parametrize(("backend", "precision"), [("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp16"), ("executorch", "fp16")])
def test_a_concatenation_that_stays_float_between_int8_operators_is_written(
    backend: str, precision: Precision, network: nn.Module, tmp_path: Path
) -> None:
    plan, value = in_float(symmetric_plan(network, "asymmetric"), {"cat"}, precision), images(4)[3]
    expected = simulate(graph_of(export_program(network, value)), plan, value)
    with captured(tmp_path / "log.txt"):
        written = backend_named(backend).write(CONFIGS[backend], network, {"input": value}, plan, tmp_path / "made")
        found = backend_named(backend).load(written.path, 1).run(value.numpy())
    assert sqnr_db(expected, torch.from_numpy(found)) > 40
    held = {operator.precision for operator in written.operators if "cat" in operator.stands_for}
    said = [fallback.reason for fallback in written.fallbacks if fallback.what == "cat"]
    assert held == {precision} or any(f"planned {precision}, the file holds {other}" in reason for other in held for reason in said)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_choice_of_a_talking_faces_operators_can_be_applied(seed: int) -> None:
    """With the skip connections of Wav2Lip: what selective quantization is compared with."""
    case = cases()["wav2lip"]
    program, plan = graph_of(export_program(case.network, *case.examples.values())), case.plan()
    source = np.random.default_rng(seed)
    heads = [node for node in kinds.operators(program.graph) if not kinds.is_fused(node)]
    kept = {node.name for node in heads if source.random() < 0.4}
    kept |= {node.name for node in kinds.operators(program.graph) if kinds.is_fused(node) and node.all_input_nodes[0].name in kept}
    assert any(name.startswith("cat") for name in kept)
    chosen = in_float(plan, kept | {one.name for one in plan.operators if one.precision != "int8"}, "fp32")
    (values,) = case.inputs(1)
    given = tuple(torch.from_numpy(value) for value in values)
    with torch.no_grad():
        found, expected = reference_program(case.network, given, chosen)(*given), simulate(program, chosen, *given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
