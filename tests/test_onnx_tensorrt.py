"""ONNX files of symmetric plans are what TensorRT takes, as far as a file can show it; and every rule of the check is broken once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from symmetric_networks import Branches, images, symmetric_plan
from torch import Tensor, nn

from mcompress.compress.quantize.fake_quant import fake_quantize_weight, sqnr_db, weight_scales
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import simulate
from mcompress.export import onnx as backend
from mcompress.export import onnx_tensorrt as rules
from mcompress.export.backend import Written
from mcompress.export.onnx_halving import element_kinds
from mcompress.export.onnx_tensorrt import NOT_BUILT, doubts
from mcompress.export.tables.onnx_attributes import number
from mcompress.targets.exports import OnnxConfig

pytestmark = pytest.mark.export
FOR_TENSOR_RT = OnnxConfig(opset=17)
LATER = OnnxConfig(opset=18)
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
Make = Callable[[str], Written]


def in_float(plan: PrecisionPlan, precisions: dict[str, Precision]) -> PrecisionPlan:
    return replace(plan, operators=tuple(replace(one, precision=precisions.get(one.name, one.precision)) for one in plan.operators))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return Branches().eval()


@pytest.fixture(scope="module")
def plans(network: nn.Module) -> dict[str, PrecisionPlan]:
    symmetric = symmetric_plan(network)
    return {
        "symmetric": symmetric,
        "mixed": in_float(symmetric, {"conv2d_1": "fp16", "leaky_relu": "fp16", "cat": "fp16", "mul": "fp32"}),
        "asymmetric": symmetric_plan(network, "asymmetric"),
    }


@pytest.fixture(scope="module")
def make(network: nn.Module, plans: dict[str, PrecisionPlan], tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, kept = tmp_path_factory.mktemp("tensorrt"), dict[str, Written]()

    def made(name: str) -> Written:
        if name not in kept:
            config = LATER if name == "mixed" else FOR_TENSOR_RT
            kept[name] = backend.write(config, network, {"input": images(1)[0]}, plans[name], folder / name)
        return kept[name]

    return made


@pytest.mark.parametrize("name", ["symmetric", "mixed"])
def test_the_file_of_a_symmetric_plan_breaks_no_rule(name: str, make: Make) -> None:
    written = make(name)
    model = onnx.load(str(written.path))
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    conversions = [node for node in model.graph.node if node.op_type in CONVERSIONS]
    assert len(conversions) == {"symmetric": 25, "mixed": 19}[name]
    for node in conversions:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert (scale.dtype, zero.dtype, zero.shape) == (np.float32, np.int8, scale.shape)
        assert not zero.any()
        assert (scale > 0).all()
    kinds = element_kinds(model)
    assert not {TensorProto.UINT8, TensorProto.INT32} & set(kinds.values())
    assert {kinds[node.input[0]] for node in conversions if node.op_type == "QuantizeLinear"} == {TensorProto.FLOAT}
    assert {value.dtype for value in constants.values() if value.size > 1 and value.any()} <= {np.dtype(np.float32), np.dtype(np.float16)}
    said = [fallback for fallback in written.fallbacks if fallback.what.startswith("TensorRT")]
    later = [rules.OPSET.format(18, 17, 17)] if name == "mixed" else []
    assert [one.reason for one in said] == [*later, NOT_BUILT]
    assert {one.where for one in said} == {f"export {written.path.name}"}
    assert [one.reason for one in doubts(written.path)] == later


def test_only_activations_and_weights_are_quantized(make: Make, network: nn.Module) -> None:
    """Biases and factors are float constants; the integers of weights are the plan's, per output channel but for transposed convolutions."""
    graph = onnx.load(str(make("symmetric").path)).graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    seen = []
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        dequantize = writers[node.input[1]]
        quantize = writers[dequantize.input[0]]
        assert [quantize.op_type, dequantize.op_type] == list(CONVERSIONS)
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        weight, scale = constants[quantize.input[0]], constants[quantize.input[1]]
        assert weight.dtype == np.float32
        if node.op_type == "Conv":
            assert constants[node.input[2]].dtype == np.float32
            assert [number(one, "axis", 1) for one in (quantize, dequantize)] == [0, 0]
            assert scale.shape == weight.shape[:1]
        else:
            assert len(node.input) == 2
            assert scale.shape == ()
        seen.append(np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1) if scale.ndim else ())).astype(int))
    for own, found in zip(("first", "second", "up", "last"), seen, strict=True):
        weight, axis = network.get_submodule(own).get_parameter("weight").detach(), int(own == "up")
        steps = weight_scales(weight, axis)
        expected = np.round((fake_quantize_weight(weight, axis) / steps.reshape([-1 if place == axis else 1 for place in range(4)])).numpy())
        assert np.array_equal(found, expected.astype(int))
    for node in graph.node:
        if node.op_type in ("Mul", "Add"):
            assert sum(name in constants for name in node.input) == 1


@pytest.mark.parametrize("name", ["symmetric", "mixed"])
def test_the_file_computes_what_the_plan_says(name: str, make: Make, network: nn.Module, plans: dict[str, PrecisionPlan]) -> None:
    value = images(4)[3]
    expected = simulate(graph_of(export_program(network, value)), plans[name], value)
    runner = backend.load(make(name).path, 1)
    assert sqnr_db(expected, torch.from_numpy(runner.run(value.numpy()))) > 45


@pytest.mark.parametrize("name", ["symmetric", "mixed"])
def test_every_operator_is_read_back_as_planned(name: str, make: Make, plans: dict[str, PrecisionPlan]) -> None:
    held: dict[str, set[str]] = {}
    for operator in make(name).operators:
        for stands_for in operator.stands_for:
            held.setdefault(stands_for, set()).add(operator.precision)
    assert held == {operator.name: {operator.precision} for operator in plans[name].operators}
    transposed = [operator.kind for operator in make(name).operators if operator.stands_for == ("conv_transpose2d",)]
    assert transposed == ["ConvTranspose", "Mul", "Add"]


@pytest.mark.parametrize(("groups", "bias"), [(1, False), (2, True)])
def test_one_scale_for_a_transposed_convolution_loses_nothing(groups: int, bias: bool, tmp_path: Path) -> None:
    """Channels differ by a factor of a thousand; with one scale alone the smallest would be zero."""
    torch.manual_seed(1)
    network = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias).eval()
    with torch.no_grad():
        network.weight.mul_(torch.logspace(-3, 0, 6 // groups).reshape(1, -1, 1, 1))
    shape = (1, 4, 5, 5)
    values = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    plan = symmetric_plan(network, values=values)
    written = backend.write(FOR_TENSOR_RT, network, {"input": values[0]}, plan, tmp_path / "transposed")
    assert doubts(written.path) == ()
    expected = simulate(graph_of(export_program(network, values[0])), plan, values[2]).numpy()
    found = backend.load(written.path, 1).run(values[2].numpy())
    np.testing.assert_allclose(found, expected, atol=1.01 * plan.ranges["conv_transpose2d"].scale)
    assert np.mean(np.abs(found - expected) > 1e-6) < 0.01, "but for values half way between two steps"


def test_the_file_of_an_asymmetric_plan_is_what_onnxruntime_likes(make: Make) -> None:
    written = make("asymmetric")
    assert not [fallback for fallback in written.fallbacks if "TensorRT" in fallback.what]
    assert {one.reason for one in doubts(written.path)} == {rules.UNSIGNED, rules.MOVED, rules.WIDE, rules.STORED, rules.TURNED}
    many = next(one for one in doubts(written.path) if one.reason == rules.UNSIGNED)
    assert many.what.startswith("TensorRT, QuantizeLinear ")
    assert " more" in many.what


Constants = dict[str, NDArray[np.generic]]
ONE, ZERO = np.float32(1), np.int8(0)


def saved(folder: Path, nodes: Sequence[onnx.NodeProto], constants: Constants, opset: int = 17, shape: Sequence[int] = (1, 2, 4, 4)) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [made], held), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(folder / "made.onnx"))
    return folder / "made.onnx"


def pair(scale: str = "s", zero: str = "z", between: Sequence[onnx.NodeProto] = (), **axis: int) -> list[onnx.NodeProto]:
    """The input through a pair of conversions, with nodes between them."""
    taken = [name for name in (scale, zero) if name]
    q = helper.make_node("QuantizeLinear", ["x", *taken], ["q"], name="quantize", **axis)
    last = between[-1].output[0] if between else "q"
    return [q, *between, helper.make_node("DequantizeLinear", [last, *taken], ["y"], name="dequantize", **axis)]


def weighted(kind: str, axis: int, channels: int) -> tuple[list[onnx.NodeProto], Constants]:
    """A convolution whose weights have scales along `axis`."""
    taken = ["w_scale", "w_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("QuantizeLinear", ["w", *taken], ["wq"], axis=axis),
        helper.make_node("DequantizeLinear", ["wq", *taken], ["wd"], axis=axis),
        helper.make_node(kind, ["d", "wd"], ["y"], name="conv"),
    ]
    shape = (2, 2, 1, 1)
    return nodes, {"w": np.ones(shape, np.float32), "w_scale": np.ones(channels, np.float32), "w_zero": np.zeros(channels, np.int8)}


PAIR: Constants = {"s": ONE, "z": ZERO}
ROW: Constants = {"s": np.ones(2, np.float32), "z": np.zeros(2, np.int8)}


@pytest.mark.parametrize(
    ("nodes", "constants", "rule"),
    [
        (pair(), PAIR, None),
        (pair(), PAIR | {"z": np.int8(3)}, rules.MOVED),
        (pair(), PAIR | {"z": np.uint8(0)}, rules.UNSIGNED),
        (pair(), PAIR | {"s": np.float32(-1)}, rules.SCALES),
        (pair(axis=1), ROW, rules.CHANNELS),
        (
            pair(between=[helper.make_node("Pad", ["q", "around"], ["p"], mode="reflect")]),
            PAIR | {"around": np.array([0, 0, 1, 1] * 2)},
            rules.INTEGERS,
        ),
        ([helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0), *pair()], {"z": ZERO}, rules.COMPUTED),
        (
            [helper.make_node("DequantizeLinear", ["k", "s", "z"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])],
            PAIR | {"k": ZERO},
            rules.STORED,
        ),
        ([helper.make_node("Det", ["x"], ["y"])], {}, rules.OPERATOR),
    ],
)
def test_every_rule_is_noticed(nodes: list[onnx.NodeProto], constants: Constants, rule: str | None, tmp_path: Path) -> None:
    found = doubts(saved(tmp_path, nodes, constants))
    assert [one.reason for one in found] == ([] if rule is None else [rule])
    assert all(one.where == "export made.onnx" and one.what.startswith("TensorRT, ") for one in found)


def test_a_conversion_without_a_zero_point_is_uint8_too(tmp_path: Path) -> None:
    found = doubts(saved(tmp_path, pair(zero=""), {"s": ONE}))
    assert [one.reason for one in found] == [rules.UNSIGNED, rules.INPUTS]
    assert found[1].what == "TensorRT, QuantizeLinear quantize, DequantizeLinear dequantize"


def test_half_precision_scales_are_noticed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        *pair(),
        helper.make_node("Cast", ["y_half"], ["y"], to=TensorProto.FLOAT),
    ]
    nodes[1].input[0], nodes[2].output[0] = "h", "y_half"
    found = doubts(saved(tmp_path, nodes, {"s": np.float16(1), "z": ZERO}, opset=19))
    assert [one.reason for one in found] == [rules.OPSET.format(19, 17, 17), rules.SCALES]


@pytest.mark.parametrize(
    ("kind", "axis", "channels", "rule"),
    [
        ("Conv", 0, 2, None),
        ("Conv", 1, 2, rules.AXIS),
        ("Conv", 0, 1, None),
        ("ConvTranspose", 1, 2, rules.TURNED),
        ("ConvTranspose", -3, 2, rules.TURNED),
        ("ConvTranspose", 0, 2, None),
        ("ConvTranspose", 1, 1, None),
    ],
)
def test_weights_have_scales_along_the_axis_of_a_kernel(kind: str, axis: int, channels: int, rule: str | None, tmp_path: Path) -> None:
    nodes, constants = weighted(kind, axis, channels)
    found = doubts(saved(tmp_path, nodes, constants | PAIR))
    assert [(one.what, one.reason) for one in found] == ([] if rule is None else [(f"TensorRT, {kind} conv", rule)])


def test_a_linear_layer_and_padding_are_taken_too(tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.linear(torch.relu(self.conv(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")))[..., :6])
            return made

    torch.manual_seed(0)
    network = Other().eval()
    plan = symmetric_plan(network)
    assert {operator.precision for operator in plan.operators if operator.kind in ("pad", "linear")} == {"int8"}
    written = backend.write(LATER, network, {"input": images(1)[0]}, plan, tmp_path / "other")
    assert [one.reason for one in doubts(written.path)] == [rules.OPSET.format(18, 17, 17)]
    value = images(4)[3]
    expected = simulate(graph_of(export_program(network, value)), plan, value)
    assert sqnr_db(expected, torch.from_numpy(backend.load(written.path, 1).run(value.numpy()))) > 45
