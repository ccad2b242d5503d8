"""Generators for image translation as ONNX and Core ML files: every operator as planned, read back, executed, and compared operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from operator_rows import row_of
from torch import nn
from translation_networks import graph, images, int8_plan, mixed_plan, resnet_generator, unet_generator

from mcompress.compress.cost import operator_table
from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, reference_program
from mcompress.export import coreml
from mcompress.export import onnx as onnx_backend
from mcompress.export.backend import Written, captured
from mcompress.export.divergence import Examined, examine
from mcompress.export.parity import Halved, float_parity, half_parity, int8_parity
from mcompress.export.tables import table_of_file
from mcompress.export.walked import confirm
from mcompress.targets.exports import CoreMLConfig, OnnxConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet_generator, "unet": unet_generator}
PLANS = {"float": lambda *_: None, "int8": int8_plan, "mixed": mixed_plan}
CASES = [("onnx", "resnet", "float"), ("onnx", "resnet", "int8"), ("onnx", "resnet", "mixed"), ("onnx", "unet", "int8"),
         ("coreml", "resnet", "float"), ("coreml", "resnet", "mixed"), ("coreml", "unet", "mixed")]  # fmt: skip


@dataclass(frozen=True)
class Made:
    network: nn.Module
    plan: PrecisionPlan | None
    written: Written


Make = Callable[[str, str, str], Made]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, kept = tmp_path_factory.mktemp("translation"), dict[tuple[str, str, str], Made]()

    def make(backend: str, name: str, which: str) -> Made:
        if (backend, name, which) not in kept:
            network = NETWORKS[name]()
            plan = PLANS[which](graph(network), images(3))
            stem = folder / f"{backend}-{name}-{which}"
            with captured(folder / "log.txt"):
                if backend == "onnx":
                    written = onnx_backend.write(OnnxConfig(), network, {"input": images(1)[0]}, plan, stem)
                else:
                    written = coreml.write(CoreMLConfig(), network, {"input": images(1)[0]}, plan, stem)
            kept[backend, name, which] = Made(network, plan, written)
        return kept[backend, name, which]

    return make


@pytest.mark.parametrize(("backend", "name", "which"), CASES)
def test_every_operator_is_in_the_file_as_planned(backend: str, name: str, which: str, made: Make) -> None:
    found = made(backend, name, which)
    everywhere = "fp16" if backend == "coreml" else "fp32"
    planned = {node.name: everywhere for node in graph(found.network).graph.nodes if node.op == "call_function"}
    if found.plan is not None:
        assert planned.keys() == {operator.name for operator in found.plan.operators}
        planned = {operator.name: operator.precision for operator in found.plan.operators}
    seen: dict[str, set[str]] = {}
    for operator in found.written.operators:
        for stands_for in operator.stands_for:
            seen.setdefault(stands_for, set()).add(operator.precision)
    assert seen == {key: {value} for key, value in planned.items()}
    reasons = [
        fallback for fallback in found.written.fallbacks if fallback.what != "all" and "in the file, computed in fp32 here" not in fallback.reason
    ]
    assert reasons == []


@pytest.mark.parametrize(("backend", "name", "which"), CASES)
def test_every_operator_of_the_file_computes_what_it_should(backend: str, name: str, which: str, made: Make) -> None:
    found = made(backend, name, which)
    value = images(2)[1].numpy()
    assert examine(backend, found.written.path, found.network, found.plan, found.written.operators, value) == Examined(None, ())


def test_onnx_agrees_with_pytorch(made: Make) -> None:
    inputs = [(value.numpy(),) for value in images(2)]
    floating, mixed = made("onnx", "resnet", "float"), made("onnx", "unet", "int8")
    assert float_parity(onnx_backend.load(floating.written.path, 1), floating.network, inputs, 1e-5).passed
    assert mixed.plan is not None
    reference = reference_program(mixed.network, images(1)[0], mixed.plan)
    assert int8_parity(onnx_backend.load(mixed.written.path, 1), reference, inputs, 35.0).passed


def test_core_ml_agrees_with_pytorch(made: Make) -> None:
    inputs = [(value.numpy(),) for value in images(2)]
    floating, mixed = made("coreml", "resnet", "float"), made("coreml", "unet", "mixed")
    program = export_program(floating.network, images(1)[0])
    halved = Halved(half_simulated(program), half_constants(program), 40.0)
    judged = half_parity(coreml.load(floating.written.path, 1), halved, inputs, 1e-4)
    assert judged.passed, judged
    assert mixed.plan is not None
    reference = reference_program(mixed.network, images(1)[0], mixed.plan)
    assert int8_parity(coreml.load(mixed.written.path, 1), reference, inputs, 35.0).passed


def test_onnx_keeps_instance_norms_whole_and_writes_what_they_cost(made: Make) -> None:
    found = made("onnx", "resnet", "float")
    kinds = [operator.kind for operator in found.written.operators]
    assert (kinds.count("InstanceNormalization"), kinds.count("Pad"), kinds.count("ConvTranspose"), len(kinds)) == (13, 6, 2, 43)
    table = operator_table(found.network, SHAPE)
    read = table_of_file(found.written.path).table
    norms = [row for row in read.operators if row.operation == "instance_norm"]
    # The file has a one and a zero for every channel of a norm; the network has neither.
    assert [row.weight_elements for row in norms] == [2 * row.input_shape[1] for row in norms]
    assert [row_of(row)[:8] for row in read.operators] == [row_of(row)[:8] for row in table.operators]
    assert [row.fused for row in read.operators] == [row.fused for row in table.operators]
    cost, doubts = confirm(found.written.path, table)
    assert cost is not None
    assert (cost.macs, doubts) == (table.macs, ())


def test_onnx_pads_int8_images_as_integers(made: Make, tmp_path: Path) -> None:
    found = made("onnx", "resnet", "int8")
    assert found.plan is not None
    model = onnx.shape_inference.infer_shapes(onnx.load(str(found.written.path)), strict_mode=True)
    types = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    pads = [node for node in model.graph.node if node.op_type == "Pad"]
    assert len(pads) == 6
    assert {types[name] for node in pads for name in (node.input[0], node.output[0])} == {TensorProto.UINT8}
    assert [operator.computed for operator in found.written.operators if operator.kind == "Pad"] == ["int8"] * 6
    assert found.written.coverage.by_unit["cpu int8"] == found.written.precision_counts["int8"] - 2, "ConvTranspose has no integer kernel"
    # Quantized before and dequantized behind it at one scale.
    writers, constants = {name: node for node in model.graph.node for name in node.output}, {i.name: i for i in model.graph.initializer}
    for node in pads:
        (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
        before = writers[node.input[0]]
        assert (before.op_type, reader.op_type) == ("QuantizeLinear", "DequantizeLinear")
        for one, other in zip(before.input[1:], reader.input[1:], strict=True):
            assert np.array_equal(numpy_helper.to_array(constants[one]), numpy_helper.to_array(constants[other]))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "made_of_it.onnx")
    onnxruntime.InferenceSession(str(found.written.path), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert run.count("QLinearConv") == 12
    assert run.count("Relu") == 0
    rows = table_of_file(found.written.path)
    assert [rows.precisions[row.name] for row in rows.table.operators if row.operation == "reflection_pad"] == ["int8"] * 6


def test_what_a_padding_gives_can_be_asked_for(made: Make) -> None:
    found = made("onnx", "resnet", "int8")
    value = images(1)[0]
    seen = onnx_backend.intermediates(found.written.path, [value.numpy()], found.written.operators)
    (pad,) = [operator for operator in found.written.operators if operator.stands_for == ("pad",)]
    assert pad.output is not None
    assert found.plan is not None
    padded = torch.nn.functional.pad(value, (3, 3, 3, 3), "reflect").numpy()
    np.testing.assert_allclose(seen[pad.output], padded, rtol=0, atol=0.51 * found.plan.ranges["pad"].scale)


def test_a_broken_weight_in_front_of_an_instance_norm_is_named(made: Make, tmp_path: Path) -> None:
    """Scale and shift do not show behind the norm, and are found at the operator itself."""
    found = made("onnx", "resnet", "float")
    model = onnx.load(str(found.written.path))
    (node,) = [each for each in model.graph.node if each.name == "node_conv2d_2"]
    (weight,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, str(broken))
    divergence = examine("onnx", broken, found.network, None, found.written.operators, images(1)[0].numpy()).divergence
    assert divergence is not None
    assert (divergence.operator, divergence.module, divergence.kind) == ("conv2d_2", "model.7", "conv2d")
