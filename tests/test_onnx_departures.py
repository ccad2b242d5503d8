"""ONNX files of small networks, each with something that the file cannot say as planned, or that is easily written wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_plans import int8_plan
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, reference_program
from mcompress.errors import ExportError
from mcompress.export import onnx as backend
from mcompress.export import parity
from mcompress.export.divergence import examine
from mcompress.export.onnx_host import session_options
from mcompress.targets.exports import OnnxConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 8, 8)
INT8: Precision = "int8"
FP16: Precision = "fp16"
FP32: Precision = "fp32"


def images(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(4)
    return [(torch.rand(SHAPE, generator=source) * 255).round() / 255 for _ in range(count)]


class Gated(nn.Module):
    """Operators that only some integer runtimes have, or none, between INT8 ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.sigmoid(self.first(x)))))


def test_float_operators_between_int8_ones_are_float_unless_the_runtime_makes_them_integer(tmp_path: Path) -> None:
    model = Gated().eval()
    plan = int8_plan(model, images(3))
    plan = replace(plan, operators=tuple(replace(o, precision=INT8 if o.precision == INT8 else FP32) for o in plan.operators))
    assert [operator.name for operator in plan.operators if operator.precision == FP32] == ["sigmoid", "tanh"]
    written = backend.write(OnnxConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "gated")
    assert {o.kind: (o.precision, o.computed) for o in written.operators if o.kind != "Conv"} == {"Sigmoid": (INT8, INT8), "Tanh": (FP32, FP32)}
    assert written.precision_counts == {INT8: 4, FP16: 0, FP32: 1}
    (said,) = written.fallbacks
    assert said.what == "sigmoid"
    assert "Sigmoid stands between quantized tensors, where onnxruntime computes it in integers" in said.reason
    options = session_options("default", 1)
    options.optimized_model_filepath = str(tmp_path / "made_of_it.onnx")
    onnxruntime.InferenceSession(str(written.path), options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert (made["QLinearSigmoid"], made["Sigmoid"], made["Tanh"]) == (1, 0, 1)
    values = backend.intermediates(written.path, [images(1)[0].numpy()], written.operators)
    assert set(values) == {operator.output for operator in written.operators}
    found = examine("onnx", written.path, model, plan, written.operators, images(4)[3].numpy()).divergence
    assert found is None, "a float operator is looked at before its reader rounds its result"


class Together(nn.Module):
    """Operators with several results: one node of the file computes them all."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, :2].unbind(1)
        variance, mean = torch.var_mean(x, 1, keepdim=True)
        return torch.stack((second, first), 1) + variance * mean


def test_one_node_for_operators_of_different_precision_is_said(tmp_path: Path) -> None:
    model = Together().eval()
    operators = kinds.operators(export_program(model, images(1)[0]).graph)
    parts = [node.name for node in operators if node.name.startswith("getitem")]
    assert len(parts) == 4
    halves = {parts[0], parts[2], parts[3]}
    plan = PrecisionPlan(tuple(PlannedOperator(n.name, "", kinds.kind_of(n), FP16 if n.name in halves else FP32, "") for n in operators), {})
    written = backend.write(OnnxConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "together")
    taken = [(o.kind, o.precision) for o in written.operators if o.stands_for == tuple(parts[:2])]
    assert taken == [("Slice", FP32), ("Squeeze", FP32)] * 2
    assert {o.precision for o in written.operators if o.stands_for == tuple(parts[2:])} == {FP16}
    said = {fallback.what: fallback.reason for fallback in written.fallbacks if "the file holds fp32" in fallback.reason}
    assert set(said) == {parts[0]}
    assert f"one Slice computes {parts[0]}, {parts[1]}, which are planned in different precisions" in said[parts[0]]


class Awkward(nn.Module):
    """Constants that fp16 does not hold, and parts of one tensor in different precisions."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.clamp(x * 1e6, 0.0, 1.0).split([1, 2], 1)
        return functional.normalize(right, dim=1) + torch.cat((left, left), 1) + torch.clamp(x[:, :2] + 0.5, 0.0, 1e-9)


def test_what_fp16_cannot_hold_stays_fp32_with_its_reason(tmp_path: Path) -> None:
    model = Awkward().eval()
    program = export_program(model, images(1)[0])
    chosen = {"slice_1": FP32}
    plan = PrecisionPlan(
        tuple(PlannedOperator(n.name, "", kinds.kind_of(n), chosen.get(n.name, FP16), "") for n in kinds.operators(program.graph)), {}
    )
    written = backend.write(OnnxConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "awkward")
    said = {fallback.what: fallback.reason for fallback in written.fallbacks if "the file holds fp32" in fallback.reason}
    assert "1e+06 is beyond fp16's range" in said["mul"]
    assert "1e-09 is zero in fp16" in said["clamp_1"]
    assert "slice_2" not in said, "every part of a split has a precision of its own"
    value = images(4)[3]
    expected = model(value).numpy()
    np.testing.assert_allclose(backend.load(written.path, 1).run(value.numpy()), expected, atol=2e-2)


class Again(nn.Module):
    """Convolutions that are run several times, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.second(self.first(x))
        return x


def test_weights_that_operators_share_are_read_by_all_of_them(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Again().eval()
    plan = int8_plan(model, images(3))
    written = backend.write(OnnxConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "again")
    assert [operator.computed for operator in written.operators] == [INT8] * 6
    record = parity.int8_parity(backend.load(written.path, 1), reference_program(model, images(1)[0], plan), [(images(4)[3].numpy(),)], 45)
    assert record.passed, record


class Typed(nn.Module):
    """Operators that say themselves which type they give."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x > 0.5).to(torch.float32) * torch.trunc(x * 4.0).to(torch.int64).to(torch.float32)
        return bright + 0.0 * torch.randn_like(x, dtype=torch.float32) + 0.0 * torch.randn(SHAPE)


def test_what_names_its_own_type_gives_fp16_if_it_can(tmp_path: Path) -> None:
    model = Typed().eval()
    operators = kinds.operators(export_program(model, images(1)[0]).graph)
    plan = PrecisionPlan(tuple(PlannedOperator(n.name, "", kinds.kind_of(n), FP16, "") for n in operators), {})
    written = backend.write(OnnxConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "typed")
    assert {o.stands_for: o.precision for o in written.operators if o.kind == "Cast" and o.stands_for} == {("to",): FP16, ("to_2",): FP16}
    said = {fallback.what: fallback.reason for fallback in written.fallbacks if "the file holds fp32" in fallback.reason}
    assert set(said) == {"randn", "randn_like"}
    assert all("gives fp32 whatever it reads" in reason for reason in said.values())
    value = images(4)[3]
    np.testing.assert_allclose(backend.load(written.path, 1).run(value.numpy()), model(value).numpy(), atol=1e-3)


def test_a_plan_of_another_network_is_seen(tmp_path: Path) -> None:
    strange = PrecisionPlan((PlannedOperator("conv2d_77", "", "conv2d", FP16, ""),), {})
    written = backend.write(OnnxConfig(), nn.Conv2d(3, 4, 1).eval(), {"input": images(1)[0]}, strange, tmp_path / "other")
    reasons = {fallback.what: fallback.reason for fallback in written.fallbacks}
    assert "not in the file" in reasons["conv2d_77"]
    assert "which the plan does not know" in reasons["node_conv2d"]


def test_an_opset_below_torchs_keeps_the_names_or_is_refused(tmp_path: Path) -> None:
    simple = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()).eval()
    written = backend.write(OnnxConfig(opset=17), simple, {"input": images(1)[0]}, None, tmp_path / "seventeen")
    assert onnx.load(str(written.path)).opset_import[0].version == 17
    assert {name for operator in written.operators for name in operator.stands_for} == {"conv2d", "gelu"}
    with pytest.raises(ExportError, match=r"(?s)cannot be written in opset 17.*set opset to 18"):
        backend.write(OnnxConfig(opset=17), nn.AdaptiveAvgPool2d(1), {"input": images(1)[0]}, None, tmp_path / "refused")
