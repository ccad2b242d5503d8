"""What the reader of ONNX files makes of single operators, against onnxruntime where it runs them, and of what files leave open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_graphs import info, node, write_graph
from onnxruntime import quantization
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.errors import UsageError
from mcompress.estimating import count_model
from mcompress.export.tables import FileTable, onnx_folding, table_of_file
from mcompress.export.tables.graph import Graph
from mcompress.export.tables.onnx_operators import (
    FROM_SHAPES,
    NOISE,
    PARTS,
    PLAIN,
    QUANTIZED_AS,
    RECURRENT,
    REDUCTIONS,
    RESHAPES,
    SAME,
)
from mcompress.targets.columns import class_of

IMAGE = (1, 3, 32, 32)
INT64 = TensorProto.INT64


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def told(found: FileTable) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return [(row.operation, row.input_shape, row.output_shape) for row in found.table.operators]


def executed(path: Path, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, dict(feed))


def retyped(path: Path, *names: str) -> Path:
    """The file with whole numbers as these inputs and outputs."""
    model = onnx.load(str(path))
    for item in (item for item in (*model.graph.input, *model.graph.output) if item.name in names):
        item.type.tensor_type.elem_type = INT64
    onnx.save(model, str(path))
    return path


def test_an_open_batch_leaves_the_sizes_that_are_fixed(tmp_path: Path) -> None:
    """A number and a matrix enter beside the image, as the time step of a diffusion network does."""
    nodes = [node("Conv", "x w", "c"), node("Mul", "c t", "y"), node("MatMul", "m v", "u")]
    inputs = {"x": ("n", *IMAGE[1:]), "t": (), "m": (64, 16)}
    path = write_graph(tmp_path / "graph.onnx", nodes, inputs, ["y", "u"], {"w": (8, 3, 1, 1), "v": (16, 32)})
    found = table_of_file(path)
    assert dict(found.facts.inputs) == {"x": IMAGE, "t": (), "m": (64, 16)}
    assert found.facts.assumed == "batch 1 assumed, which the file leaves open"
    assert [row.macs for row in found.table.operators] == [8 * 3 * 1024, 0, 64 * 16 * 32]
    results = executed(path, {"x": zeros(*IMAGE), "t": zeros(), "m": zeros(64, 16)})
    assert [found.table.operators[index].output_shape for index in (1, 2)] == [result.shape for result in results]


def test_attention_is_over_the_keys_of_calls_before(tmp_path: Path) -> None:
    inputs = {**dict.fromkeys("qkv", (1, 8, 1, 64)), **dict.fromkeys(("pk", "pv"), (1, 8, 1023, 64))}
    path = write_graph(tmp_path / "graph.onnx", [node("Attention", "q k v _ pk pv", "y nk nv")], inputs, ["y", "nk", "nv"], opset=23)
    (row,) = table_of_file(path).table.operators
    assert (row.kind, row.macs) == ("attention", 2 * 8 * 64 * 1024)
    assert row.elements_read == 8 * 64 * (3 + 2 * 1023)
    result, keys, values = executed(path, {name: zeros(*shape) for name, shape in inputs.items()})
    assert row.elements_written == result.size + keys.size + values.size


MULTIPLIES = {
    *("Attention", "CausalConvWithState", "Conv", "ConvTranspose", "DFT", "DeformConv", "Det", "Einsum", "Gemm", "LinearAttention", "MatMul", "STFT"),
}
HOLDS_GRAPHS = {"If", "Loop", "Scan", "SequenceMap"}
NO_TENSORS = {
    *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
    *("SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence"),
    *("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
}
"""Sequences, optional values, text and files."""
OF_SIZES = {"BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"}
"""Constants unless an execution decides how long they are."""
NOT_IN_INFERENCE = {"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
SEARCHES = {"NonMaxSuppression"}
READ_BY_NAME = {"BatchNormalization", "Constant", "Expand", "Pad", "Resize", "Transpose", "Upsample"}


def test_every_operator_of_the_standard_is_known_or_listed() -> None:
    known = {*PLAIN, *REDUCTIONS, *RECURRENT, *RESHAPES, *PARTS, *SAME, *FROM_SHAPES, *NOISE, *QUANTIZED_AS, *READ_BY_NAME}
    listed = MULTIPLIES | HOLDS_GRAPHS | NO_TENSORS | OF_SIZES | NOT_IN_INFERENCE | SEARCHES
    assert {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain} - known == listed


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        *((name, name.lower()) for name in ("Acosh", "Asinh", "Atanh")),
        *(("And", "logical_and"), ("Or", "logical_or"), ("Xor", "logical_xor"), ("Equal", "eq"), ("Greater", "gt"), ("Less", "lt")),
        *((f"Bitwise{name}", f"bitwise_{name.lower()}") for name in ("And", "Or", "Xor")),
        *(("Sum", "add"), ("Mean", "mean_of"), ("Mod", "remainder"), ("CumSum", "cumsum"), ("CumProd", "cumprod")),
    ],
)
def test_names_are_those_of_aten(kind: str, operation: str, tmp_path: Path) -> None:
    schema = onnx.defs.get_schema(kind)
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}[schema.inputs[0].type_str]
    element = next(one for one in ("tensor(float)", "tensor(bool)", "tensor(int64)") if one in allowed)
    number = {"tensor(float)": TensorProto.FLOAT, "tensor(bool)": TensorProto.BOOL, "tensor(int64)": INT64}[element]
    second = "" if schema.max_input == 1 else " axis" if kind.startswith("Cum") else " z"
    path = write_graph(
        tmp_path / "graph.onnx", [node(kind, f"x{second}", "y")], dict.fromkeys("xz", (2, 5)), ["y"], {"axis": np.array(1, np.int64)}, opset=26
    )
    model = onnx.load(str(path))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = number
    if kind in ("Equal", "Greater", "Less"):
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    onnx.save(model, str(path))
    (row,) = table_of_file(path).table.operators
    assert (row.operation, row.macs, row.kind != "other") == (operation, 0, True)


def test_a_dynamically_quantized_file_does_the_work_of_the_float_file(tmp_path: Path) -> None:
    """As onnxruntime's `quantize_dynamic` writes it: everything is quantized while the network runs."""
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("MatMul", "f v", "y")]
    weights = {"w": np.ones((8, 3, 3, 3), np.float32), "v": np.ones((8 * 1024, 10), np.float32)}
    path = write_graph(tmp_path / "float.onnx", nodes, {"x": IMAGE}, ["y"], weights)
    quantization.quantize_dynamic(path, tmp_path / "dynamic.onnx", weight_type=quantization.QuantType.QUInt8)
    kinds = {one.op_type for one in onnx.load(str(tmp_path / "dynamic.onnx")).graph.node}
    assert {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"} <= kinds
    found = table_of_file(tmp_path / "dynamic.onnx")
    assert not found.table.unknown
    before = [(row.kind, row.macs) for row in table_of_file(path).table.operators]
    assert [(row.kind, row.macs) for row in found.table.operators if row.macs] == before
    quantized = [row for row in found.table.operators if row.operation == "quantize"]
    assert [(row.kind, row.macs, row.input_shape) for row in quantized] == [("copy", 0, IMAGE), ("copy", 0, (1, 8 * 1024))]
    assert {found.precisions[row.name] for row in found.table.operators if row.macs or row in quantized} == {"int8"}


def test_a_part_of_a_constant_that_an_input_chooses_is_a_lookup(tmp_path: Path) -> None:
    """A table of positions behind a cache of keys: the sizes are declared, for no inference tells them."""
    table, axis = np.arange(1024 * 64, dtype=np.float32).reshape(1024, 64), np.array([0], np.int64)
    nodes = [node("Slice", "c begin end axis", "part"), node("Add", "x part", "y")]
    inputs = {"x": (1, 64), "begin": (1,), "end": (1,)}
    path = write_graph(tmp_path / "a.onnx", nodes, inputs, {"y": (1, 64)}, {"c": table, "axis": axis}, value_info=[info("part", (1, 64))])
    retyped(path, "begin", "end")
    (result,) = executed(path, {"x": zeros(1, 64), "begin": np.array([5]), "end": np.array([6])})
    assert np.array_equal(result, table[5:6])
    found = table_of_file(path)
    assert [(row.kind, row.operation, row.elements_read, row.elements_written) for row in found.table.operators] == [
        ("copy", "slice", 2, 64),
        ("elementwise", "add", 128, 64),
    ]
    assert (found.table.params, found.table.operators[0].weight_elements, found.table.operators[0].weights_read) == (1024 * 64, 1024 * 64, 64)


@pytest.mark.parametrize("kind", ["Reshape", "Expand"])
def test_a_constant_in_a_shape_that_enters_stays_a_constant(kind: str, tmp_path: Path) -> None:
    nodes = [node(kind, "c shape", "part"), node("Add", "x part", "y")]
    inputs = {"x": (1, 64), "shape": (2,)}
    path = write_graph(tmp_path / "a.onnx", nodes, inputs, {"y": (1, 64)}, {"c": np.ones(64, np.float32)}, value_info=[info("part", (1, 64))])
    retyped(path, "shape")
    assert executed(path, {"x": zeros(1, 64), "shape": np.array([1, 64])})[0].sum() == 64
    (row,) = table_of_file(path).table.operators
    assert (row.operation, row.elements_read, row.weight_elements) == ("add", 64, 64)


@pytest.mark.parametrize("what", ["transpose", "reshape", "part", "expand"])
@pytest.mark.parametrize("name", ["held", "nothing"])
def test_what_is_no_view_is_said(what: str, name: str) -> None:
    graph = Graph()
    graph.constant("held", (2, 3))
    with pytest.raises(UsageError, match=f"tensor '{name}' is (a constant|read before anything writes it), and an operator"):
        getattr(graph, what)(name, "result", (1, 0))


def axes_enter(path: Path, result: Sequence[int], keeps: int) -> Path:
    """A mean over axes that enter."""
    path = write_graph(path, [node("ReduceMean", "x axes", "y", keepdims=keeps)], {"x": (1, 8, 4, 4), "axes": (1,)}, {"y": result})
    return retyped(path, "axes")


@pytest.mark.parametrize(("result", "axes"), [((1, 1, 4, 4), (1,)), ((1, 8, 1, 1), (2, 3)), ((1, 1, 1, 1), (1, 2, 3))])
def test_axes_that_enter_follow_from_the_sizes(result: Sequence[int], axes: Sequence[int], tmp_path: Path) -> None:
    path = axes_enter(tmp_path / "a.onnx", result, 1)
    assert told(table_of_file(path)) == [("mean", (1, 8, 4, 4), result)]
    feed = {"x": zeros(1, 8, 4, 4), "axes": np.array(axes, np.int64)}
    model = onnx.load(str(path))
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = len(axes)
    onnx.save(model, str(path))
    assert executed(path, feed)[0].shape == result


def test_axes_that_nothing_tells_are_not_all_of_them(tmp_path: Path) -> None:
    message = r"decides the axes of ReduceMean 'y' while it runs, and the sizes \(1, 8, 4, 4\) before it and \(1, 8, 4\) behind it do not tell them"
    with pytest.raises(UsageError, match=message):
        table_of_file(axes_enter(tmp_path / "a.onnx", (1, 8, 4), 0))
    assert told(table_of_file(axes_enter(tmp_path / "a.onnx", (), 0))) == [("mean", (1, 8, 4, 4), (1, 1, 1, 1))]


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        *((f"Reduce{name}", ["sin"]) for name in ("Sum", "Mean", "Max", "Min", "Prod", "LogSumExp")),
        *(("ReduceL1", ["abs", "sin"]), ("ReduceL2", ["abs", "sin"]), ("ReduceSumSquare", ["square", "sin"]), ("ReduceLogSum", ["log", "sin"])),
    ],
)
def test_a_reduction_over_no_axes_reduces_nothing(kind: str, operations: list[str], tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", [node(kind, "x", "r", noop_with_empty_axes=1), node("Sin", "r", "y")], {"x": (2, 3)}, ["y"], opset=18)
    found = table_of_file(path)
    assert [row.operation for row in found.table.operators] == operations
    given = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)
    wanted = {"abs": np.abs, "square": np.square, "log": np.log}.get(operations[0], np.array)
    with np.errstate(invalid="ignore"):
        expected = np.sin(wanted(given))
    assert np.allclose(executed(path, {"x": given})[0], expected, atol=1e-5, equal_nan=True)
    # Without the flag it is over all of them.
    all_of_them = write_graph(tmp_path / "b.onnx", [node(kind, "x", "y")], {"x": (2, 3)}, ["y"])
    assert table_of_file(all_of_them).table.operators[0].output_shape == executed(all_of_them, {"x": given})[0].shape == (1, 1)


PADDINGS = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "edge": nn.ReplicationPad2d}


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_a_border_has_the_name_and_the_class_that_it_has_in_the_network(mode: str, tmp_path: Path) -> None:
    around = np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64)
    nodes = [node("Pad", "x around", "p", mode=mode), node("Conv", "p w", "y")]
    path = write_graph(tmp_path / "a.onnx", nodes, {"x": IMAGE}, ["y"], {"around": around, "w": (8, 3, 1, 1)}, opset=19)
    (*border, convolution) = table_of_file(path).table.operators
    assert executed(path, {"x": zeros(*IMAGE)})[0].shape == convolution.output_shape
    if mode == "constant":
        assert (border, convolution.fused) == ([], ("constant_pad_nd",))  # only zeros are what a convolution pads with
        return
    (row,) = border
    if mode == "wrap":
        assert (row.operation, row.kind, class_of(row)) == ("circular_pad", "copy", "pad")
        return
    (ours,) = operator_table(PADDINGS[mode](3), IMAGE).operators
    assert (row.operation, class_of(row), row.input_shape, row.output_shape) == (ours.operation, "pad", ours.input_shape, ours.output_shape)
    assert class_of(ours) == "pad"


@pytest.mark.parametrize("how", ["held", "entering", "attribute"])
def test_a_border_of_other_numbers_is_not_folded(how: str, tmp_path: Path) -> None:
    """Padding with 1, with a number that enters, and as opsets before 11 say it."""
    around, weights = [0, 0, 1, 1, 0, 0, 1, 1], {"w": (8, 3, 1, 1)}
    inputs = {"x": IMAGE, "v": ()} if how == "entering" else {"x": IMAGE}
    if how == "attribute":
        border = node("Pad", "x", "p", pads=around, value=1.0)
    else:
        border = node("Pad", "x around v", "p")
        weights |= {"around": np.array(around, np.int64)} | ({"v": np.array(1, np.float32)} if how == "held" else {})
    path = write_graph(tmp_path / "a.onnx", [border, node("Conv", "p w", "y")], inputs, ["y"], weights, opset=9 if how == "attribute" else 18)
    assert [row.operation for row in table_of_file(path).table.operators] == ["constant_pad_nd", "convolution"]


@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (12, 1), (13, -1), (18, -1)])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
def test_the_axis_of_a_softmax_that_says_none(kind: str, opset: int, axis: int, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", [node(kind, "x", "y")], {"x": (1, 64, 16, 16)}, ["y"], opset=opset)
    (row,) = table_of_file(path).table.operators
    assert (row.channel_axis, row.input_shape[row.channel_axis]) == (axis, 64 if axis == 1 else 16)
    if kind == "Softmax":
        flattened = np.exp(0) / (64 * 16 * 16 if axis == 1 else 16)
        assert np.allclose(executed(path, {"x": zeros(1, 64, 16, 16)})[0], flattened)


def test_packed_weights_are_said_to_be_counted_as_whole_numbers_of_the_precision(tmp_path: Path) -> None:
    """Of 4 bits in one product and of 8 in another; what is assumed stands once and is shown."""
    held = {"w4": np.zeros((24, 1, 16), np.uint8), "w8": np.zeros((24, 1, 32), np.uint8), "s": zeros(24)}
    more = {"domain": "com.microsoft", "K": 32, "N": 24, "block_size": 32}
    nodes = [
        node("MatMulNBits", "x w4 s", "a", bits=4, **more),
        node("MatMulNBits", "x w4 s", "b", bits=4, **more),
        node("MatMulNBits", "x w8 s", "c", bits=8, **more),
        node("Sum", "a b c", "y"),
    ]
    path = write_graph(tmp_path / "a.onnx", nodes, {"x": (2, 32)}, ["y"], held)
    found = table_of_file(path)
    assert found.facts.assumed == "weights of 4 bits counted as fp32; weights of 8 bits counted as fp32"
    assert found.facts.assumed in count_model(str(path)).lines()[0]
    assert found.table.operators[-1].output_shape == executed(path, {"x": zeros(2, 32)})[0].shape


@pytest.mark.parametrize(
    ("why", "nodes"),
    [
        ("RuntimeError", [node("Add", "two half", "n")]),
        ("TypeError", [node("Div", "two three", "n")]),
        ("IndexError", [node("Shape", "x", "s"), node("Gather", "s far", "n")]),
        ("ValueError", [node("ScatterND", "three one two", "n")]),
    ],
)
def test_sizes_that_cannot_be_computed_are_asked_for(why: str, nodes: list[NodeProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice ends where the nodes say, which contradict themselves: other types, sizes that do not fit, an index behind the end."""
    raised: list[Exception] = []
    run = ReferenceEvaluator.run

    def seen(self: ReferenceEvaluator, *args: object) -> object:
        try:
            return run(self, *args)
        except Exception as error:
            raised.append(error)
            raise

    monkeypatch.setattr(ReferenceEvaluator, "run", seen)
    held = {name: np.arange(count, dtype=np.int64) for name, count in (("zero", 1), ("one", 1), ("two", 2), ("three", 3))}
    held |= {"half": np.array([0.5], np.float32), "far": np.array([7], np.int64)}
    path = write_graph(tmp_path / "a.onnx", [*nodes, node("Slice", "x zero n zero", "part"), node("Relu", "part", "y")], {"x": (9, 4)}, ["y"], held)
    with pytest.raises(UsageError, match=r"sizes of tensor '.*' in .* depend on numbers that only an execution has"):
        table_of_file(path)
    assert {why} <= {kind.__name__ for error in raised for kind in type(error).__mro__}


@pytest.mark.parametrize("kind", ["Range", "ConstantOfShape", "Tile", "Expand"])
def test_what_would_be_long_is_not_computed(kind: str, tmp_path: Path) -> None:
    """2^40 numbers, where their count is known to the one who computes it and not to shape inference."""
    scaled = [node("Cast", "root", "f", to=TensorProto.FLOAT), node("Mul", "f f", "g"), node("Cast", "g", "many", to=INT64)]
    held = {"root": np.array(2**20, np.int64) if kind == "Range" else np.array([2**20], np.int64), "start": np.array(0, np.int64)}
    takes = {"Range": "start many one", "ConstantOfShape": "many", "Tile": "single many", "Expand": "single many"}[kind]
    held |= {"one": np.array(1, np.int64), "single": np.array([1], np.int64)}
    nodes = [*scaled, node(kind, takes, "r"), node("ReduceMax", "r", "m", keepdims=0), node("Add", "x m", "y")]
    path = write_graph(tmp_path / "a.onnx", nodes, {"x": (1,)}, ["y"], held)
    found = table_of_file(path if kind == "ConstantOfShape" else retyped(path, "x", "y"))
    assert told(found) == [("add", (1,), (1,))]


def test_only_what_computes_sizes_is_computed() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert names >= onnx_folding.COMPUTED
    assert not onnx_folding.COMPUTED & (NOISE.keys() | MULTIPLIES | HOLDS_GRAPHS | {"Bernoulli", "LSTM", "Shape", "Size"})


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A convolution, sizes that are computed, a slice and a product: every way in which the reader looks at names, constants and attributes."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Shape", "c", "s"),
        node("Gather", "s two", "h", axis=0),
        node("Div", "h two", "half"),
        node("Slice", "c zero half two", "p"),
        node("ReduceMean", "p two", "m", keepdims=0),
        node("MatMul", "m v", "y"),
    ]
    weights = {"w": np.ones((4, 3, 3, 3), np.float32), "v": np.ones((8, 5), np.float32)}
    numbers = {"two": np.array([2], np.int64), "zero": np.array([0], np.int64)}
    return write_graph(tmp_path / "network.onnx", nodes, {"x": (1, 3, 8, 8)}, ["y"], {**weights, **numbers})


def test_a_damaged_file_is_refused_or_read_never_anything_else(network: Path) -> None:
    data, chance = network.read_bytes(), np.random.default_rng(0)
    assert table_of_file(network).table.macs == 4 * 27 * 64 + 4 * 8 * 5
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in chance.integers(len(data), size=chance.integers(1, 4)):
            damaged[place] = chance.integers(256)
        network.write_bytes(bytes(damaged))
        try:
            table_of_file(network)
        except UsageError:
            refused += 1
    assert 0 < refused < 400


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("name", r"is damaged: the name b'Re\\xff\\xff' is no text"),
        ("type", r"shapes in .* do not fit together: Invalid tensor data type 75"),
        ("results", r"is damaged: node 'y' \(MatMul\) writes nothing"),
        ("constant", r"constant 'two' \(1\) is damaged: "),
    ],
)
def test_damage_that_is_read_without_a_complaint_is_named(what: str, message: str, network: Path) -> None:
    model = onnx.load(str(network))
    if what == "results":
        model.graph.node[-1].output[0] = ""
    elif what == "constant":
        next(item for item in model.graph.initializer if item.name == "two").raw_data = b"12345"
    elif what == "type":
        next(item for item in model.graph.initializer if item.name == "two").data_type = 75
    else:
        model.graph.node[0].op_type = "Relu"
    network.write_bytes(model.SerializeToString().replace(b"Relu", b"Re\xff\xff"))
    with pytest.raises(UsageError, match=message):
        table_of_file(network)


def test_a_damaged_file_is_no_onnx_file(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", [node("Relu", "x", "y")], {"x": IMAGE}, ["y"])
    path.write_bytes(path.read_bytes()[:-3] + b"\xff\xff\xff")
    with pytest.raises(UsageError, match=re.escape(f"{path} is no ONNX file, or is damaged: ")):
        table_of_file(path)


def test_an_input_without_a_rank_and_one_that_is_no_tensor_are_named(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", [node("Relu", "x", "y")], {"x": (1, 4)}, ["y"])
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(path))
    with pytest.raises(UsageError, match=r"graph\.onnx does not say how many sizes its input 'x' has; export it with a shape"):
        table_of_file(path)
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, [1, 4]))
    onnx.save(model, str(path))
    with pytest.raises(UsageError, match=r"the input 'x' of .*graph\.onnx is a sequence_type, no tensor"):
        table_of_file(path)
