"""TFLite files without this project's exporter: layouts that nothing proves, open sizes, lookups, damage, and every operator of the schema."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from applied import Apply
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_rows import row_of
from tflite_graphs import Made, executed, packed, unpacked, write_tflite
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.errors import UsageError
from mcompress.export.backend import captured
from mcompress.export.tables import table_of_file, tflite
from mcompress.export.tables.tflite_operators import LEAST_INPUTS, SAME_AS
from mcompress.targets.columns import class_of
from mcompress.targets.operators import Operator

pytestmark = pytest.mark.export
IMAGE = (1, 16, 24, 20)


def converted(network: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """Channels first at the border, as litert-torch converts where it is not told otherwise."""
    import litert_torch

    path = folder / "network.tflite"
    with captured(folder / "log.txt"), warnings.catch_warnings(action="ignore"):
        litert_torch.convert(network.eval(), (torch.rand(shape),)).export(str(path))
    return path


def shapes(rows: tuple[Operator, ...]) -> list[tuple[object, ...]]:
    return [(row.kind, row.macs, row.input_shape, row.output_shape) for row in rows]


def _excited(module: Apply, x: Tensor) -> Tensor:
    return x * torch.sigmoid(module.up(functional.relu(module.down(x.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize("function", [_excited, lambda _, x: torch.softmax(x, 1) + x, lambda _, x: (x * x).sum(1)])
def test_a_tensor_that_merely_leaves_keeps_its_axes(function: Callable[[Apply, Tensor], Tensor], tmp_path: Path) -> None:
    network = Apply(function, down=nn.Conv2d(16, 4, 1), up=nn.Conv2d(4, 16, 1))
    assert shapes(table_of_file(converted(network, IMAGE, tmp_path)).table.operators) == shapes(operator_table(network, IMAGE).operators)


@pytest.mark.parametrize("groups", [4, 16])
def test_a_fresh_group_normalization_is_one_row(groups: int, tmp_path: Path) -> None:
    """Its factor and shift are ones and zeros, which the converter folds away."""
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(groups, 16), nn.SiLU(), nn.Conv2d(16, 4, 1))
    assert shapes(table_of_file(converted(network, IMAGE, tmp_path)).table.operators) == shapes(operator_table(network, IMAGE).operators)


def test_an_operator_that_is_newer_than_the_schema_is_named(tmp_path: Path) -> None:
    path = converted(nn.Sequential(nn.Conv2d(16, 4, 1), nn.Tanh()), IMAGE, tmp_path)
    model = unpacked(path)
    (code,) = (code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.TANH)
    code.builtinCode = 9999
    path.write_bytes(packed(model))
    (unknown,) = table_of_file(path).table.unknown
    assert (unknown.operation, unknown.kind) == ("BUILTIN_9999", "other")
    assert unknown.macs > 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_litert_has_no_kernel_for_is_counted_and_named(groups: int, tmp_path: Path) -> None:
    """As litert-torch writes a transposed convolution in three dimensions."""
    network, shape = nn.Sequential(nn.Tanh(), nn.ConvTranspose3d(4, 6, 3, 2, groups=groups)), (1, 4, 3, 5, 5)
    path = converted(network, shape, tmp_path)
    with pytest.raises(ValueError, match="STABLEHLO_CONVOLUTION"):
        executed(path, {})
    read, own = table_of_file(path), operator_table(network, shape)
    assert [row_of(row) for row in read.table.operators] == [row_of(row) for row in own.operators]
    assert read.table.macs == 4 * 75 * (6 // groups) * 27
    assert read.facts.assumed == "LiteRT has no kernel for STABLEHLO_CONVOLUTION"
    model = unpacked(path)
    (options,) = (one.builtinOptions2 for one in model.subgraphs[0].operators if one.builtinOptions2 is not None)
    options.inputFeatureDimension = 4
    path.write_bytes(packed(model))
    strange = table_of_file(path)
    assert [row.operation for row in strange.table.unknown] == ["STABLEHLO_CONVOLUTION"]
    assert strange.facts.assumed == read.facts.assumed


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def told(path: Path) -> list[tuple[str, str, int, int]]:
    return [(row.kind, row.operation, row.elements_read, row.elements_written) for row in table_of_file(path).table.operators]


def test_a_part_of_a_constant_that_an_input_chooses_is_a_lookup(tmp_path: Path) -> None:
    """Not a part of the input that says where it begins."""
    operators = [Made("SLICE", "table begin size", "part"), Made("ADD", "x part", "y")]
    shapes = {"begin": (2,), "x": (1, 64), "part": (1, 64), "y": (1, 64)}
    constants = {"table": np.arange(1024 * 64, dtype=np.float32).reshape(1024, 64), "size": whole(1, 64)}
    path = write_tflite(tmp_path / "a.tflite", operators, shapes, "begin x", "y", constants, types={"begin": "int32"})
    (result,) = executed(path, {"begin": whole(5, 0), "x": ones(1, 64)})
    assert np.array_equal(result, constants["table"][5:6] + 1)
    assert told(path) == [("copy", "slice", 2, 64), ("elementwise", "add", 128, 64)]
    (row, _) = table_of_file(path).table.operators
    assert (row.weight_elements, row.weights_read) == (1024 * 64, 64)


def test_a_table_is_a_lookup_of_its_rows(tmp_path: Path) -> None:
    for name, kind, takes in (("gather", "GATHER", "table numbers"), ("embedding", "EMBEDDING_LOOKUP", "numbers table")):
        shapes = {"numbers": (7,), "y": (7, 16)}
        path = write_tflite(
            tmp_path / f"{name}.tflite", [Made(kind, takes, "y")], shapes, "numbers", "y", {"table": ones(512, 16)}, types={"numbers": "int32"}
        )
        assert executed(path, {"numbers": whole(*range(7))})[0].shape == (7, 16)
        (row,) = table_of_file(path).table.operators
        assert (row.kind, row.weight_elements, row.weights_read, row.elements_written) == ("copy", 512 * 16, 7 * 16, 7 * 16)


def test_a_constant_in_a_shape_that_enters_stays_a_constant(tmp_path: Path) -> None:
    operators = [Made("RESHAPE", "held shape", "part"), Made("ADD", "x part", "y")]
    shapes = {"shape": (2,), "x": (1, 64), "part": (1, 64), "y": (1, 64)}
    path = write_tflite(tmp_path / "a.tflite", operators, shapes, "shape x", "y", {"held": ones(64)}, types={"shape": "int32"})
    assert executed(path, {"shape": whole(1, 64), "x": ones(1, 64)})[0].sum() == 128
    (row,) = table_of_file(path).table.operators
    assert (row.operation, row.elements_read, row.weight_elements) == ("add", 64, 64)


@pytest.mark.parametrize(("kind", "takes"), [("SPLIT", "axis x"), ("SPLIT_V", "x sizes axis")])
def test_the_data_of_a_split_is_found_by_its_place(kind: str, takes: str, tmp_path: Path) -> None:
    operators = [Made(kind, takes, "one other", {"numSplits": 2} if kind == "SPLIT" else {}), Made("TANH", "other", "y")]
    shapes = {"x": (1, 4, 4, 6), "one": (1, 4, 4, 3), "other": (1, 4, 4, 3), "y": (1, 4, 4, 3)}
    path = write_tflite(tmp_path / "a.tflite", operators, shapes, "x", "y", {"axis": np.array(3, np.int32), "sizes": whole(3, 3)})
    assert told(path) == [("activation", "tanh", 48, 48)]


def small(path: Path) -> Path:
    """A convolution, a split, a slice, a mean and a linear layer: every way in which the reader looks at constants and options."""
    operators = [
        Made("CONV_2D", "x w b", "c", {"strideW": 1, "strideH": 1, "fusedActivationFunction": 1}),
        Made("SPLIT", "axis c", "one other", {"numSplits": 2}),
        Made("MIRROR_PAD", "one border", "m"),
        Made("SLICE", "m begin size", "inner"),
        Made("ADD", "inner other", "sum"),
        Made("MEAN", "sum axes", "mean", {"keepDims": True}),
        Made("RESHAPE", "mean shape", "flat"),
        Made("FULLY_CONNECTED", "flat matrix _", "y"),
        Made("TRANSPOSE", "sum order", "first"),
        Made("BATCH_MATMUL", "first right", "product"),
    ]
    image = (1, 8, 8, 4)
    shapes = {
        **dict.fromkeys(("x", "one", "other", "inner", "sum"), image),
        **dict.fromkeys(("first", "right", "product"), (1, 4, 8, 8)),
        "c": (1, 8, 8, 8),
        "m": (1, 10, 10, 4),
        "mean": (1, 1, 1, 4),
        "flat": (1, 4),
        "y": (1, 6),
    }
    constants = {
        "w": ones(8, 1, 1, 4),
        "b": ones(8),
        "axis": np.array(3, np.int32),
        "border": np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32),
        "begin": whole(0, 1, 1, 0),
        "size": whole(*image),
        "axes": whole(1, 2),
        "shape": whole(1, 4),
        "matrix": ones(6, 4),
        "order": whole(0, 3, 1, 2),
    }
    return write_tflite(path, operators, shapes, "x right", "y product", constants)


def test_rows_of_a_small_file_by_hand(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tflite")
    assert [result.shape for result in executed(path, {"x": ones(1, 8, 8, 4), "right": ones(1, 4, 8, 8)})] == [(1, 6), (1, 4, 8, 8)]
    found = table_of_file(path).table.operators
    assert [(row.operation, row.macs, row.elements_read, row.elements_written) for row in found] == [
        ("convolution", 64 * 8 * 4, 256, 512),
        ("reflection_pad", 0, 256, 400),
        ("add", 0, 512, 256),
        ("mean", 0, 256, 4),
        ("linear", 24, 4, 6),
        ("bmm", 4 * 8 * 8 * 8, 512, 256),
    ]


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_file_is_refused_or_read_never_anything_else(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = small(tmp_path_factory.mktemp("damaged") / "a.tflite")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(8, len(content) - 1))]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1)) if len(content) > 8 else 0] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(UsageError):
        table_of_file(path)


def _without_outputs(graph: schema.SubGraphT) -> None:
    graph.operators[-1].outputs = []
    graph.outputs = graph.outputs[:1]


def _of_a_tensor_that_is_not_there(graph: schema.SubGraphT) -> None:
    graph.operators[4].inputs = [99, 1]


def _without_a_weight(graph: schema.SubGraphT) -> None:
    graph.operators[0].inputs = graph.operators[0].inputs[:1]


def _of_a_vector(graph: schema.SubGraphT) -> None:
    graph.tensors[graph.operators[0].inputs[1]].shape = [32]


def _backwards(graph: schema.SubGraphT) -> None:
    graph.operators = graph.operators[::-1]


def _written_twice(graph: schema.SubGraphT) -> None:
    graph.operators[4].outputs = graph.operators[3].outputs


def _without_end(graph: schema.SubGraphT) -> None:
    graph.tensors[0].shape = [2**30] * 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_outputs, r"operator 9, BATCH_MATMUL, has no output"),
        (_of_a_tensor_that_is_not_there, r"operator 4, ADD, names tensor 99, and there are \d+"),
        (_without_a_weight, r"operator 0, CONV_2D, has not the 2 inputs that it needs"),
        (_of_a_vector, r"operator 0, CONV_2D, has an input of the shape \(32,\), and needs 4 sizes"),
        (_backwards, r"reads tensor \d+, which operator \d makes"),
        (_written_twice, r"is made twice, the first time by operator 3, SLICE"),
        (_without_end, r"tensor 'x' has the sizes"),
    ],
)
def test_what_contradicts_itself_in_a_file_is_named(damage: Callable[[schema.SubGraphT], None], message: str, tmp_path: Path) -> None:
    path = small(tmp_path / "a.tflite")
    model = unpacked(path)
    damage(model.subgraphs[0])
    path.write_bytes(packed(model))
    with pytest.raises(UsageError, match=rf"a\.tflite is damaged or cut off \(.*{message}.*; export or copy it again"):
        table_of_file(path)


def test_a_tensor_without_elements_cannot_become_one_with_some(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tflite")
    model = unpacked(path)
    (mean,) = [tensor for tensor in model.subgraphs[0].tensors if tensor.name in ("mean", b"mean")]
    mean.shape = [0]
    path.write_bytes(packed(model))
    with pytest.raises(UsageError, match=r"tensor 'flat' of shape \(1, 4\) is no reshaped \(0,\); the file is damaged"):
        table_of_file(path)


def test_a_mistake_of_the_reader_is_no_damage_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path / "a.tflite")
    monkeypatch.delitem(tflite.REDUCTIONS, "MEAN")
    monkeypatch.setitem(tflite.PLAIN, "MEAN", ("mean",))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kind"):
        table_of_file(path)


@pytest.mark.parametrize(
    ("stated", "signature", "given", "assumed"),
    [
        ((1, 8, 8, 4), (-1, 8, 8, 4), None, "batch 1 assumed, which the file leaves open"),
        ((1, 8, 8, 4), (-1, 8, 8, 4), (1, 8, 8, 4), ""),
        ((1, 8, 8, 4), (-1, 8, 8, 4), (3, 8, 8, 4), ""),
        ((5, 8, 8, 4), (-1, 8, 8, 4), None, "batch 1 assumed, which the file leaves open"),
        ((1, 8, 8, 4), (-1, -1, -1, 4), (1, 8, 8, 4), ""),
        ((1, 1, 1, 4), (-1, -1, -1, 4), (1, 16, 8, 4), ""),
        ((1, 8, 8, 4), (), None, ""),
    ],
)
def test_what_is_open_is_assumed_aloud(
    stated: tuple[int, ...], signature: tuple[int, ...], given: tuple[int, ...] | None, assumed: str, tmp_path: Path
) -> None:
    signatures = {"x": signature, "y": signature} if signature else {}
    path = write_tflite(tmp_path / "a.tflite", [Made("RELU", "x", "y")], {"x": stated, "y": stated}, "x", "y", signatures=signatures)
    found = table_of_file(path, given)
    assert found.facts.assumed == assumed
    assert found.table.operators[0].output_shape == found.facts.inputs["x"] == (given or (1, *stated[1:]))


@pytest.mark.parametrize("stated", [(1, 1, 1, 4), (-1, -1, -1, 4), (0, 8, 8, 4), (1, 8, 8, 4)])
def test_open_sizes_are_asked_for_whatever_stands_beside_them(stated: tuple[int, ...], tmp_path: Path) -> None:
    """As `profile` does: nothing but the batch is made up."""
    open_ = dict.fromkeys("xy", (-1, -1, -1, 4))
    path = write_tflite(tmp_path / "a.tflite", [Made("RELU", "x", "y")], dict.fromkeys("xy", stated), "x", "y", signatures=open_)
    with pytest.raises(UsageError, match=r"a\.tflite: the file leaves sizes open \(x: \?,\?,\?,4\); give --input SHAPE"):
        table_of_file(path)


@pytest.mark.parametrize(("given", "batch"), [(None, 1), ((1, 4), 1), ((2, 4), 2), ((7, 4), 7)])
def test_inner_sizes_are_those_of_the_batch_that_is_counted(given: tuple[int, ...] | None, batch: int, tmp_path: Path) -> None:
    """A converter writes 1 for the batch that it leaves open, and behind it the sizes that it traced the network with."""
    operators = [Made("FULLY_CONNECTED", "x w _", "h"), Made("TANH", "h", "y")]
    path = write_tflite(
        tmp_path / "a.tflite", operators, {"x": (1, 4), "h": (2, 6), "y": (2, 6)}, "x", "y", {"w": ones(6, 4)}, signatures={"x": (-1, 4)}
    )
    (row,) = table_of_file(path, given).table.operators
    assert (row.macs, row.elements_read, row.elements_written) == (24 * batch, 4 * batch, 6 * batch)


def test_an_open_batch_of_what_litert_does_not_know_is_counted_and_said(tmp_path: Path) -> None:
    operators = [Made("STABLEHLO_CBRT", "x", "h"), Made("TANH", "h", "y")]
    path = write_tflite(tmp_path / "a.tflite", operators, dict.fromkeys("xhy", (1, 8)), "x", "y", signatures={"x": (-1, 8)})
    found = table_of_file(path)
    assert found.table.operators[0].elements_written == 8
    assert found.facts.assumed.startswith(
        "batch 1 assumed, which the file leaves open; inner sizes as the file states them, which LiteRT does not confirm"
    )
    with pytest.raises(UsageError, match=r"a\.tflite does not take inputs of the shape x=2,8: .*STABLEHLO_CBRT"):
        table_of_file(path, (2, 8))


def test_a_shape_that_litert_refuses(tmp_path: Path) -> None:
    open_ = {"x": (-1, -1), "y": (-1, 6)}
    path = write_tflite(tmp_path / "a.tflite", [Made("ADD", "x w", "y")], dict.fromkeys("xy", (1, 6)), "x", "y", {"w": ones(6)}, signatures=open_)
    assert table_of_file(path, (3, 6)).table.operators[0].output_shape == (3, 6)
    with pytest.raises(UsageError, match=r"a\.tflite does not take inputs of the shape x=3,5: \S"):
        table_of_file(path, (3, 5))


def reduced(path: Path, result: tuple[int, ...], keeps: bool) -> Path:
    """A sum over axes that enter."""
    operators = [Made("SUM", "x axes", "y", {"keepDims": keeps})]
    return write_tflite(path, operators, {"x": (1, 8, 8, 4), "axes": (2,), "y": result}, "x axes", "y", types={"axes": "int32"})


@pytest.mark.parametrize(
    ("result", "keeps", "wanted"), [((1, 8, 1, 4), True, (1, 8, 1, 4)), ((1, 1, 1, 4), True, (1, 1, 1, 4)), ((), False, (1, 1, 1, 1))]
)
def test_axes_that_enter_follow_from_the_shapes(result: tuple[int, ...], keeps: bool, wanted: tuple[int, ...], tmp_path: Path) -> None:
    (row,) = table_of_file(reduced(tmp_path / "a.tflite", result, keeps)).table.operators
    assert (row.operation, row.input_shape, row.output_shape) == ("sum", (1, 8, 8, 4), wanted)


def test_axes_that_nothing_says_are_not_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"SUM of .*a\.tflite, which writes 'y', reduces \(1, 8, 8, 4\) to \(8, 4\) over axes that only an execution"
    ):
        table_of_file(reduced(tmp_path / "a.tflite", (8, 4), False))


def test_an_order_of_axes_that_enters_is_a_copy(tmp_path: Path) -> None:
    operators = [Made("TRANSPOSE", "x order", "t"), Made("TANH", "t", "y")]
    shapes = {"x": (2, 3, 5), "order": (3,), "t": (5, 3, 2), "y": (5, 3, 2)}
    path = write_tflite(tmp_path / "a.tflite", operators, shapes, "x order", "y", types={"order": "int32"})
    assert executed(path, {"x": ones(2, 3, 5), "order": whole(2, 1, 0)})[0].shape == (5, 3, 2)
    assert told(path) == [("copy", "permute", 30, 30), ("activation", "tanh", 30, 30)]


@pytest.mark.parametrize("mode", [schema.MirrorPadMode.REFLECT, schema.MirrorPadMode.SYMMETRIC])
def test_a_mirrored_border_is_a_padding(mode: int, tmp_path: Path) -> None:
    operators = [Made("MIRROR_PAD", "x border", "y", {"mode": mode})]
    border = np.array([[0, 0], [3, 3], [3, 3], [0, 0]], np.int32)
    path = write_tflite(tmp_path / "a.tflite", operators, {"x": (1, 32, 32, 3), "y": (1, 38, 38, 3)}, "x", "y", {"border": border})
    assert executed(path, {"x": ones(1, 32, 32, 3)})[0].shape == (1, 38, 38, 3)
    (row,) = table_of_file(path).table.operators
    assert (row.operation, class_of(row), row.elements_read, row.elements_written) == ("reflection_pad", "pad", 3072, 38 * 38 * 3)


def test_a_mirrored_border_is_the_same_from_the_network(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReflectionPad2d(3), nn.Conv2d(4, 8, 3))
    own, read = operator_table(network, IMAGE).operators, table_of_file(converted(network, IMAGE, tmp_path)).table.operators
    assert [row_of(row) for row in own] == [row_of(row) for row in read]
    assert [class_of(row) for row in own] == [class_of(row) for row in read] == ["pointwise_convolution", "pad", "convolution"]


def test_noise_is_made_at_every_call_and_sizes_are_not(tmp_path: Path) -> None:
    operators = [Made("RANDOM_UNIFORM", "size", "noise"), Made("ZEROS_LIKE", "x", "zeros"), Made("ADD", "x noise", "s"), Made("ADD", "s zeros", "y")]
    shapes = dict.fromkeys(("x", "noise", "zeros", "s", "y"), (1, 8))
    path = write_tflite(tmp_path / "a.tflite", operators, shapes, "x", "y", {"size": whole(1, 8)})
    assert executed(path, {"x": ones(1, 8)})[0].shape == (1, 8)
    assert told(path) == [("elementwise", "rand", 0, 8), ("elementwise", "add", 16, 8), ("elementwise", "add", 8, 8)]


def test_what_calls_before_left_behind_is_no_constant(tmp_path: Path) -> None:
    operators = [
        Made("VAR_HANDLE", "", "handle", {"sharedName": b"state"}),
        Made("READ_VARIABLE", "handle", "before"),
        Made("ADD", "x before", "y"),
        Made("ASSIGN_VARIABLE", "handle y", ""),
    ]
    path = write_tflite(tmp_path / "a.tflite", operators, {"handle": (), **dict.fromkeys(("x", "before", "y"), (1, 8))}, "x", "y")
    assert told(path) == [("copy", "clone", 8, 8), ("elementwise", "add", 16, 8), ("copy", "copy", 8, 8)]


NAMES = {"EQUAL": "eq", "GREATER": "gt", "LESS_EQUAL": "le", "LOGICAL_AND": "logical_and", "FLOOR_MOD": "remainder", "CAST": "_to_copy"}


@pytest.mark.parametrize("kind", NAMES)
def test_operators_have_atens_names(kind: str, tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "a.tflite", [Made(kind, "x z", "y")], dict.fromkeys("xyz", (1, 8)), "x z", "y")
    (row,) = table_of_file(path).table.operators
    assert row.operation == NAMES[kind]
    assert hasattr(torch.ops.aten, row.operation)


MULTIPLY = {
    *("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE", "FULLY_CONNECTED", "BATCH_MATMUL", "RFFT2D", "SVDF"),
    *("LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN"),
    *("STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "LSH_PROJECTION", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"),
}
"""Operators that multiply, or compare everything with everything."""
HOLD_GRAPHS = {
    *("CALL", "CALL_ONCE", "IF", "WHILE", "CUSTOM", "DELEGATE", "STABLEHLO_CASE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE", "STABLEHLO_REDUCE"),
    *("STABLEHLO_CUSTOM_CALL", "PLACEHOLDER_FOR_GREATER_OP_CODES"),
}
"""Operators that do what something else says."""
EVERY = sorted(name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int))
TAKES = {
    "TRANSPOSE": "x order", "RESHAPE": "x sizes", "BROADCAST_TO": "x sizes", "SPLIT": "axis x", "PADV2": "x border number",
    "STABLEHLO_CLAMP": "number x number", **dict.fromkeys(("STABLEHLO_PAD", "STABLEHLO_REDUCE_WINDOW"), "x number"), "ASSIGN_VARIABLE": "number x",
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"), "x axis"),
    "EMBEDDING_LOOKUP_SPARSE": "x number number number x",
    **dict.fromkeys(("HASHTABLE", "VAR_HANDLE", "STABLEHLO_IOTA"), ""), "HASHTABLE_IMPORT": "number number number",
}  # fmt: skip


def test_all_that_the_schema_has_is_listed() -> None:
    assert set(EVERY) >= MULTIPLY | HOLD_GRAPHS | set(SAME_AS)
    assert set(LEAST_INPUTS) | set(SAME_AS.values()) <= set(EVERY)


@pytest.mark.parametrize("kind", [name for name in EVERY if name not in MULTIPLY | HOLD_GRAPHS])
def test_what_does_not_multiply_is_known(kind: str, tmp_path: Path) -> None:
    """A convolution over the same memory would be assumed otherwise."""
    numbers = {"order": whole(0, 1, 2, 3), "sizes": whole(1, 8, 8, 4), "axis": np.array(3, np.int32), "number": np.array(1, np.float32)}
    constants = {**numbers, "border": np.zeros((4, 2), np.int32)}
    result = "" if kind in ("ASSIGN_VARIABLE", "HASHTABLE_IMPORT") else "y"
    operators = [Made(kind, TAKES.get(kind, "x"), result), Made("TANH", "x", "z")]
    path = write_tflite(tmp_path / "a.tflite", operators, dict.fromkeys("xyz", (1, 8, 8, 4)), "x", f"{result} z", constants)
    table = table_of_file(path).table
    assert not table.unknown
    assert table.macs == 0
