"""Which operators of a QDQ file are computed in integers: the rule of the tables against the runtime that is installed, operator by operator.

A failure after onnxruntime was updated says that it has other integer kernels: change the sets in `mcompress.export.tables.onnx_integer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_plans import int8_plan
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphs import node, write_graph
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from mcompress.export import onnx as onnx_backend
from mcompress.export.tables import table_of_file
from mcompress.export.tables.onnx_integer import integer_nodes
from mcompress.targets.exports import OnnxConfig

SHAPE = (1, 4, 8, 8)
KERNELS = {"QGemm", "MatMulIntegerToFloat", *(f"QLinear{name}" for name in ("Conv", "MatMul", "Add", "Mul", "Concat", "Where", "AveragePool"))}
KERNELS |= {f"QLinear{name}" for name in ("GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")}
ONES = np.ones((4, 4, 3, 3), np.float32)
SQUARE = np.ones((8, 8), np.int8)
HELD = {
    "s": np.float32(0.1), "s2": np.float32(0.2), "zero": np.uint8(0), "mid": np.uint8(7), "ws": np.float32(0.01), "wz": np.int8(0),
    "bs": np.float32(np.float32(0.1) * np.float32(0.01)), "bs2": np.float32(1.0), "bz": np.int32(0), "w": ONES.astype(np.int8), "wf": ONES,
    "b": np.ones(4, np.int32), "bf": np.ones(4, np.float32), "m": SQUARE, "mf": SQUARE.astype(np.float32), "mb": np.ones(8, np.float32),
    "u": np.full((1, 4, 1, 1), 3, np.uint8), "uf": np.ones((1, 4, 1, 1), np.float32), "v": np.ones(8, np.float32),
    "sizes": np.array([1, 4, 64]), "larger": np.array([2, 4, 8, 8]), "first": np.array([0]),
    "starts": np.array([0, 0, 1]), "ends": np.array([1, 4, 3]),
    "two": np.array([0, 1]), "all": np.zeros(SHAPE, np.int64), "twice": np.array([1, 1, 2, 2], np.float32),
    "ring": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "low": np.float32(0), "six": np.float32(6), "sixty": np.float32(60),
}  # fmt: skip
"""Constants that the graphs below take what they need from."""


def quantized(name: str, result: str, scale: str = "s", zero: str = "zero") -> list[NodeProto]:
    """A conversion there and back."""
    return [node("QuantizeLinear", f"{name} {scale} {zero}", f"{result}_q"), node("DequantizeLinear", f"{result}_q {scale} {zero}", result)]


WEIGHTS = [node("DequantizeLinear", "w ws wz", "wd"), node("DequantizeLinear", "b bs bz", "bd"), node("DequantizeLinear", "b bs2 bz", "bd2")]
WEIGHTS += [node("DequantizeLinear", "m ws wz", "md"), node("DequantizeLinear", "u s zero", "ud")]


def model_of(nodes: Sequence[NodeProto], outputs: Sequence[str], opset: int = 17, shape: Sequence[int] = SHAPE) -> ModelProto:
    """Only what is read is held, and only those weights are dequantized."""
    read = {name for one in nodes for name in one.input}
    kept = [*(one for one in WEIGHTS if one.output[0] in read), *nodes]
    copies = []
    for one in kept:
        copy = NodeProto()
        copy.CopyFrom(one)
        copy.name = copy.name or copy.output[0]
        copies.append(copy)
    read = {name for one in copies for name in one.input}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in HELD.items() if name in read]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(copies, "graph", given, [helper.make_empty_tensor_value_info(name) for name in outputs], constants)
    for item in graph.output:
        item.type.tensor_type.elem_type = TensorProto.INT64 if item.name == "places" else TensorProto.FLOAT
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def in_runtime(model: ModelProto, folder: Path, *, as_arm: bool = False) -> dict[str, bool]:
    """Name -> whether it runs on integers, of the nodes that the runtime keeps after its optimization."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    if as_arm:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    bytes_of = {TensorProto.UINT8, TensorProto.INT8}
    integers = {item.name for item in graph.initializer if item.data_type in bytes_of}
    found = {}
    for one in graph.node:
        if one.op_type == "DequantizeLinear":
            continue
        runs = one.op_type in KERNELS or (bool(one.input) and one.input[0] in integers)
        writes_floats = one.op_type == "MatMulIntegerToFloat" or (one.op_type == "QGemm" and len(one.input) < 9)
        if one.op_type == "QuantizeLinear" or (runs and not writes_floats):
            integers |= set(one.output)
        # What it fuses, it names after the first.
        found[one.name.removeprefix("fused ").removesuffix("/MatMulAddFusion")] = runs
    return found


def by_rule(model: ModelProto) -> dict[str, bool]:
    """Name -> whether the rule has it run on integers, of every node but conversions."""
    opset = next(item.version for item in model.opset_import if not item.domain)
    found = integer_nodes(model.graph, opset)
    rest = [one for one in model.graph.node if one.op_type not in onnx_backend.CONVERSIONS]
    return {one.name: one.output[0] in found for one in rest}


def assert_same(model: ModelProto, folder: Path, *, as_arm: bool = False) -> dict[str, bool]:
    """Compare what both know, and return what the runtime does."""
    runtime, rule = in_runtime(model, folder, as_arm=as_arm), by_rule(model)
    shared = runtime.keys() & rule.keys()
    assert shared
    kinds = {one.name: one.op_type for one in model.graph.node}
    assert {(name, kinds[name], rule[name]) for name in shared} == {(name, kinds[name], runtime[name]) for name in shared}
    return runtime


INTEGER = [
    node("Conv", "d wd", "y", pads=[1] * 4), node("Conv", "d wd bd", "y", pads=[1] * 4), node("Conv", "d wd bf", "y", pads=[1] * 4),
    node("Conv", "d wf", "y", pads=[1] * 4), node("Conv", "d wf bf", "y", pads=[1] * 4), node("MatMul", "d md", "y"), node("MatMul", "d d", "y"),
    node("Add", "d d", "y"), node("Add", "d ud", "y"), node("Mul", "d d", "y"), node("Mul", "d ud", "y"), node("Concat", "d d", "y", axis=1),
    node("AveragePool", "d", "y", kernel_shape=[2, 2]), node("GlobalAveragePool", "d", "y"), node("LeakyRelu", "d", "y"), node("Sigmoid", "d", "y"),
    node("Softmax", "d", "y"), node("MaxPool", "d", "y", kernel_shape=[2, 2]), node("Resize", "d _ twice", "y"), node("Reshape", "d sizes", "y"),
    node("Flatten", "d", "y"), node("Transpose", "d", "y"), node("Squeeze", "d first", "y"), node("Unsqueeze", "d first", "y"),
    node("Expand", "d larger", "y"), node("Tile", "d larger", "y"), node("Slice", "d starts ends", "y"), node("Gather", "d two", "y", axis=1),
    node("GatherElements", "d all", "y"), node("ReduceMax", "d", "y"), node("ReduceMin", "d", "y"), node("DepthToSpace", "d", "y", blocksize=2),
]  # fmt: skip
FLOAT = [
    *(node("ConvTranspose", given, "y") for given in ("d wd", "d wd bd", "d wd bf", "d wf", "d wf bf")),
    node("Conv", "d wd bd2", "y"), node("Conv", "d wf bd", "y"), node("MatMul", "d mf", "y"), node("Add", "d uf", "y"), node("Mul", "d uf", "y"),
    *(node(kind, "d d", "y") for kind in ("Sub", "Div", "Max", "Min", "Pow")),
    *(node(kind, "d", "y") for kind in ("Tanh", "Erf", "Sqrt", "Exp", "Elu", "Gelu", "HardSigmoid", "Softplus", "GlobalMaxPool", "ReduceMean")),
    node("ReduceSum", "d", "y"), node("PRelu", "d uf", "y"), node("InstanceNormalization", "d bf bf", "y"), node("LayerNormalization", "d v", "y"),
    node("BatchNormalization", "d bf bf bf bf", "y"), node("SpaceToDepth", "d", "y", blocksize=2), node("Pad", "d ring", "y"),
    node("Resize", "d _ twice", "y", mode="linear"), node("Resize", "d _ twice", "y", mode="cubic"),
]  # fmt: skip


@pytest.mark.parametrize("one", [*INTEGER, *FLOAT], ids=lambda one: f"{one.op_type} {' '.join(one.input)}")
def test_each_operator_between_conversions(one: NodeProto, tmp_path: Path) -> None:
    """With the same scale on both sides, another one behind it, and no conversion behind it."""
    opset = 20 if one.op_type == "Gelu" else 17
    for scale in ("s", "s2"):
        runtime = assert_same(model_of([*quantized("x", "d"), one, *quantized("y", "e", scale)], ["e"], opset), tmp_path)
        if scale == "s":
            assert runtime["y"] == (one in INTEGER)
    assert_same(model_of([*quantized("x", "d"), one, node("Tanh", "y", "e")], ["e"], opset), tmp_path)


GRAPHS: dict[str, list[NodeProto]] = {
    "relu at the end of the range": [node("Conv", "d wd", "c"), node("Relu", "c", "r"), *quantized("r", "y")],
    "relu within the range": [node("Conv", "d wd", "c"), node("Relu", "c", "r"), *quantized("r", "y", "s", "mid")],
    "clip beyond the range": [node("Conv", "d wd", "c"), node("Clip", "c low sixty", "r"), *quantized("r", "y")],
    "clip within the range": [node("Conv", "d wd", "c"), node("Clip", "c low six", "r"), *quantized("r", "y")],
    "leaky relu takes the convolution with it": [node("Conv", "d wd", "c"), node("LeakyRelu", "c", "r"), *quantized("r", "y")],
    "no conversion behind": [node("Conv", "d wd bd", "c"), node("Tanh", "c", "y")],
    "two readers": [node("Conv", "d wd", "c"), *quantized("c", "q"), node("Tanh", "c", "t"), node("Add", "q t", "y")],
    "two conversions alike": [node("Conv", "d wd", "c"), *quantized("c", "q"), *quantized("c", "p"), node("Tanh", "p", "t"), node("Sub", "q t", "y")],
    "two conversions": [node("Conv", "d wd", "c"), *quantized("c", "q"), *quantized("c", "p", "s2"), node("Tanh", "p", "t"), node("Sub", "q t", "y")],
    "carried backward": [node("Conv", "d wd", "c"), node("Relu", "c", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2]), *quantized("p", "y")],
    "carried forward": [node("Transpose", "d", "t", perm=[0, 1, 3, 2]), node("Conv", "t wd", "c"), *quantized("c", "y")],
    "carried on, then clamped": [node("Transpose", "d", "t", perm=[0, 1, 3, 2]), node("Relu", "t", "r"), *quantized("r", "y", "s2")],
    "not carried": [node("Resize", "d _ twice", "t"), node("Conv", "t wd", "c"), *quantized("c", "y")],
    "zeros around": [node("Pad", "d ring", "p"), node("Conv", "p wd", "c"), *quantized("c", "y")],
    "batch norm behind float weights": [node("Conv", "d wf", "c"), node("BatchNormalization", "c bf bf bf bf", "n"), *quantized("n", "y")],
    "batch norm behind quantized weights": [node("Conv", "d wd", "c"), node("BatchNormalization", "c bf bf bf bf", "n"), *quantized("n", "y")],
    "product and row": [node("MatMul", "d md", "c"), node("Add", "c mb", "a"), *quantized("a", "y")],
    "product and row, no conversion behind": [node("MatMul", "d md", "c"), node("Add", "c mb", "a"), node("Tanh", "a", "y")],
    "product, clamp, no conversion behind": [node("MatMul", "d md", "c"), node("Relu", "c", "r"), node("Tanh", "r", "y")],
    "other zero point behind a product": [
        node("MatMul", "d md", "c"),
        *quantized("c", "e"),
        node("Softmax", "e", "f"),
        *quantized("f", "y", "s2", "mid"),
    ],
    "parts": [node("Split", "d", "o p", axis=1), *quantized("o", "e"), *quantized("p", "f"), node("Mul", "e f", "g"), *quantized("g", "y")],
    "one part": [node("Split", "d", "o p", axis=1), *quantized("o", "e"), node("Tanh", "p", "f"), node("Mul", "e f", "g"), *quantized("g", "y")],
    "choice": [node("Less", "x s", "k"), node("Where", "k d d", "c"), *quantized("c", "y")],
    "identities": [node("Identity", "d", "i"), node("Conv", "i wd", "c"), node("Dropout", "c", "o"), *quantized("o", "y")],
    "a float one between": [
        *[node("Conv", "d wd", "c", pads=[1] * 4), *quantized("c", "e"), node("ConvTranspose", "e wd", "t"), *quantized("t", "f")],
        *[node("Conv", "f wd", "g"), node("Erf", "g", "h"), *quantized("h", "i"), node("Mul", "i i", "j"), *quantized("j", "y")],
    ],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, tmp_path: Path) -> None:
    assert_same(model_of([*quantized("x", "d"), *GRAPHS[name]], ["y"]), tmp_path)


@pytest.mark.parametrize("bias", ["", "mb"])
@pytest.mark.parametrize("weight", ["md", "mf", "d"])
def test_gemm(weight: str, bias: str, tmp_path: Path) -> None:
    ends = {
        "converted": quantized("c", "y"),
        "clamped": [node("Relu", "c", "r"), *quantized("r", "y", "s", "mid")],
        "float": [node("Tanh", "c", "y")],
    }
    for end in ends.values():
        assert_same(model_of([*quantized("x", "d"), node("Gemm", f"d {weight} {bias}".strip(), "c"), *end], ["y"], shape=(8, 8)), tmp_path)


@pytest.mark.parametrize("opset", [11, 12, 13, 19, 21, 22, 24])
def test_opsets(opset: int, tmp_path: Path) -> None:
    """MaxPool takes integers from opset 12 on; nothing else depends on the opset."""
    pool = node("MaxPool", "d", "y", kernel_shape=[2, 2])
    assert assert_same(model_of([*quantized("x", "d"), pool, *quantized("y", "e")], ["e"], opset), tmp_path)["y"] == (opset >= 12)
    nodes = [node("Conv", "d wd", "c"), *quantized("c", "e"), node("Sigmoid", "e", "f"), *quantized("f", "g"), node("Transpose", "g", "y")]
    assert_same(model_of([*quantized("x", "d"), *nodes], ["y"], opset), tmp_path)


def test_files_without_conversions_and_sixteen_bits() -> None:
    assert not integer_nodes(model_of([node("Conv", "x wf", "y")], ["y"]).graph, 17)
    wide = [node("QuantizeLinear", "x s wide", "q"), node("DequantizeLinear", "q s wide", "d"), node("Conv", "d wd", "c")]
    wide += [node("QuantizeLinear", "c s wide", "cq"), node("DequantizeLinear", "cq s wide", "y")]
    model = model_of(wide, ["y"], 21)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint16), "wide"))
    assert not integer_nodes(model.graph, 21)


class Photos(CalibrationDataReader):
    """Two inputs of noise."""

    def __init__(self, shape: Sequence[int]) -> None:
        random = np.random.default_rng(1)
        self.left: Iterator[dict[str, np.ndarray]] = iter([{"x": random.random(shape, np.float32)} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def mixed_graph(path: Path) -> Path:
    """Convolutions with a hardswish, a transposed one, a gate, a Gelu, a residual and a shuffle between them, in float."""
    random = np.random.default_rng(2)
    weights = {f"w{i}": random.normal(size=(8, 8, 3, 3)).astype(np.float32) for i in range(4)} | {"t": random.normal(size=(8, 8, 4, 4)).astype("f")}
    weights |= {"g": np.full((1, 8, 1, 1), 0.5, np.float32), "bias": random.normal(size=8).astype(np.float32)}
    nodes = [
        node("Conv", "x w0 bias", "a", pads=[1] * 4), node("Relu", "a", "b"), node("Conv", "b w1", "c", pads=[1] * 4), node("Gelu", "c", "e"),
        node("ConvTranspose", "e t", "f", strides=[2, 2], pads=[1] * 4), node("Relu", "f", "h"), node("Mul", "h g", "i"),
        node("Conv", "i w2", "j", pads=[1] * 4), node("Add", "i j", "k"), node("Conv", "k w3", "l", pads=[1] * 4), node("Sigmoid", "l", "m"),
        node("Mul", "l m", "n"), node("DepthToSpace", "n", "y", blocksize=2),
    ]  # fmt: skip
    return write_graph(path, nodes, {"x": (1, 8, 8, 8)}, {"y": (1, 2, 32, 32)}, weights, opset=20)


@pytest.mark.export
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8], ids=["unsigned", "signed"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_a_file_that_onnxruntime_quantized(activations: QuantType, per_channel: bool, tmp_path: Path) -> None:
    source, path = mixed_graph(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    quantize_static(
        str(source), str(path), Photos((1, 8, 8, 8)), quant_format=QuantFormat.QDQ, activation_type=activations, weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )  # fmt: skip
    runtime = assert_same(onnx.shape_inference.infer_shapes(onnx.load(str(path))), tmp_path, as_arm=activations == QuantType.QInt8)
    read = table_of_file(path)
    multiplying = [row for row in read.table.operators if row.macs]
    assert [(row.name, read.precisions[row.name]) for row in multiplying] == [
        (n, "int8" if runtime[n] else "fp32") for n in ("a", "c", "f", "j", "l")
    ]
    assert {read.precisions[row.name] for row in multiplying} == {"int8", "fp32"}


@pytest.mark.export
def test_float_operators_of_an_int8_file_are_counted_in_float(tmp_path: Path) -> None:
    """Conv, ConvTranspose, Conv, all between conversions: the middle one has no integer kernel."""
    nodes = [node("Conv", "d wd", "c"), *quantized("c", "e"), node("ConvTranspose", "e wd", "t"), *quantized("t", "f"), node("Conv", "f wd", "g")]
    path = tmp_path / "file.onnx"
    onnx.save(model_of([*quantized("x", "d"), *nodes, *quantized("g", "y")], ["y"]), str(path))
    read = table_of_file(path)
    assert [(row.kind, read.precisions[row.name]) for row in read.table.operators if row.macs] == [
        ("convolution", "int8"),
        ("transposed_convolution", "fp32"),
        ("convolution", "int8"),
    ]


@pytest.mark.export
def test_own_files(tmp_path: Path) -> None:
    """What the exporter says of its file is what the runtime does, and what the table counts."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.up, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Conv2d(8, 12, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.head(x))
            return nn.functional.pixel_shuffle(self.tail(torch.relu(self.up(y)) + nn.functional.interpolate(y, scale_factor=2.0)), 2)

    torch.manual_seed(0)
    network, inputs = Network().eval(), [torch.rand(1, 3, 8, 8) for _ in range(2)]
    written = onnx_backend.write(OnnxConfig(), network, {"input": inputs[0]}, int8_plan(network, inputs), tmp_path / "own")
    model = onnx.load(str(written.path))
    assert_same(model, tmp_path)
    rule = by_rule(model)
    assert written.coverage.by_unit == {"cpu int8": sum(rule.values()), "cpu fp32": len(rule) - sum(rule.values())}
    assert any("ConvTranspose" in fallback.reason for fallback in written.fallbacks)
    read = table_of_file(written.path)
    assert [read.precisions[row.name] for row in read.table.operators if row.macs] == ["int8", "fp32", "int8"]
