"""The walk over ONNX files: graphs of a few nodes against figures computed by hand."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto
from onnx_graphs import node, write_graph
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.errors import ExportError
from mcompress.export import walked
from mcompress.export.walked import WalkedCost, confirm, walk


def walked_graph(
    folder: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: dict[str, Sequence[int] | np.ndarray] | None = None,
) -> WalkedCost:
    """Write a graph and walk it."""
    return walk(write_graph(folder / "graph.onnx", nodes, inputs, outputs, weights))


@pytest.mark.parametrize(
    ("kind", "inputs", "weight", "attributes", "macs"),
    [
        ("Conv", (2, 6, 9, 12), (10, 6, 3, 5), {"strides": [2, 2], "pads": [1, 2, 1, 2]}, 2 * 10 * 5 * 6 * 6 * 15),
        ("Conv", (1, 8, 7, 7), (16, 2, 3, 3), {"group": 4}, 16 * 25 * 2 * 9),
        ("Conv", (1, 8, 7, 7), (8, 1, 3, 3), {"group": 8}, 8 * 25 * 9),
        ("ConvTranspose", (1, 4, 5, 5), (4, 6, 3, 3), {"strides": [2, 2]}, 4 * 25 * 6 * 9),
        ("ConvTranspose", (1, 4, 5, 5), (4, 3, 3, 3), {"strides": [2, 2], "group": 2}, 4 * 25 * 3 * 9),
        ("MatMul", (2, 7, 16), (16, 5), {}, 2 * 7 * 16 * 5),
        ("Gemm", (4, 16), (16, 5), {}, 4 * 16 * 5),
        ("Gemm", (16, 4), (5, 16), {"transA": 1, "transB": 1}, 4 * 16 * 5),
    ],
)
def test_multiply_adds(tmp_path: Path, kind: str, inputs: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object], macs: int) -> None:
    assert walked_graph(tmp_path, [node(kind, "x w", "y", **attributes)], {"x": inputs}, ["y"], {"w": weight}).macs == macs


def test_products_of_activations_have_their_work_counted(tmp_path: Path) -> None:
    cost = walked_graph(tmp_path, [node("MatMul", "a b", "y")], {"a": (3, 5, 7), "b": (3, 7, 6)}, ["y"])
    assert cost == WalkedCost(3 * 5 * 6 * 7, 3 * (5 * 7 + 7 * 6 + 5 * 6), "y (MatMul)")


def test_memory_is_live_from_first_write_to_last_read(tmp_path: Path) -> None:
    """x lives until the addition: with 4, 8 and 4 channels of 25 pixels, three tensors exist at the second convolution."""
    nodes = [node("Conv", "x w1", "one"), node("Conv", "one w2", "two"), node("Add", "x two", "y")]
    cost = walked_graph(tmp_path, nodes, {"x": (1, 4, 5, 5)}, ["y"], {"w1": (8, 4, 1, 1), "w2": (4, 8, 1, 1)})
    assert (cost.peak_activation_elements, cost.peak_at) == (16 * 25, "two (Conv)")


def test_an_output_lives_to_the_end(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w1", "y"), node("Conv", "x w2", "z"), node("Conv", "z w3", "t")]
    cost = walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y", "t"], {"w1": (6, 2, 1, 1), "w2": (5, 2, 1, 1), "w3": (9, 5, 1, 1)})
    assert (cost.peak_activation_elements, cost.peak_at) == ((6 + 5 + 9) * 16, "t (Conv)")


def test_side_results_that_nobody_reads_are_not_written(tmp_path: Path) -> None:
    cost = walked_graph(tmp_path, [node("MaxPool", "x", "y indices", kernel_shape=[2, 2], strides=[2, 2])], {"x": (1, 2, 4, 4)}, ["y"])
    assert cost.peak_activation_elements == 32 + 8


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Sigmoid", "Clip"])
def test_an_activation_runs_inside_its_producer(tmp_path: Path, kind: str) -> None:
    nodes = [node("Conv", "x w", "c"), node(kind, "c", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)}).peak_activation_elements == 10 * 16


def test_an_activation_whose_input_is_read_again_has_memory_of_its_own(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "c r", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)}).peak_activation_elements == 24 * 16
    assert walked_graph(tmp_path, nodes[:2], {"x": (1, 2, 4, 4)}, ["c", "r"], {"w": (8, 2, 1, 1)}).peak_activation_elements == 16 * 16


def test_only_one_activation_runs_inside(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Tanh", "r", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)}).peak_activation_elements == 16 * 16


def test_an_activation_behind_a_concatenation_copies(tmp_path: Path) -> None:
    nodes = [node("Concat", "x x", "c", axis=1), node("Relu", "c", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"]).peak_activation_elements == 8 * 16


def test_swish_is_one_activation(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Sigmoid", "c", "gate"), node("Mul", "c gate", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)}).peak_activation_elements == 10 * 16
    shown = walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y", "gate"], {"w": (8, 2, 1, 1)})
    assert shown.peak_activation_elements == 24 * 16


def test_bias_and_batch_normalization_run_inside_a_convolution(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", "c s b m v", "n"), node("Add", "n bias", "a"), node("Relu", "a", "y")]
    weights = {"w": (8, 2, 1, 1), **dict.fromkeys("sbmv", (8,)), "bias": (8, 1, 1)}
    assert walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], weights).peak_activation_elements == 10 * 16


def test_what_depends_on_constants_is_folded(tmp_path: Path) -> None:
    nodes = [node("Mul", "w w", "squared"), node("Shape", "x", "shape"), node("Conv", "x squared", "c"), node("Reshape", "c shape", "y")]
    cost = walked_graph(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], {"w": (2, 2, 1, 1)})
    assert cost == WalkedCost(2 * 2 * 16, 4 * 16, "c (Conv)")


def test_views_are_free_and_keep_what_they_show_alive(tmp_path: Path) -> None:
    """A part of a split holds the whole tensor, as in PyTorch."""
    nodes = [node("Split", "x sizes", "a b", axis=1), node("Conv", "a w", "c"), node("Conv", "c v", "y")]
    weights = {"sizes": np.array([2, 6]), "w": (8, 2, 1, 1), "v": (20, 8, 1, 1)}
    cost = walked_graph(tmp_path, nodes, {"x": (1, 8, 4, 4)}, ["y"], weights)
    assert cost.peak_activation_elements == 28 * 16
    kept = walked_graph(tmp_path, nodes, {"x": (1, 8, 4, 4)}, ["y", "b"], weights)
    assert kept.peak_activation_elements == 36 * 16


def test_a_transposition_copies_when_it_is_reshaped(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1]), node("Reshape", "t flat", "y")]
    assert walked_graph(tmp_path, nodes, {"x": (1, 4, 5)}, ["y"], {"flat": np.array([20])}) == WalkedCost(0, 40, "y (Reshape)")
    assert walked_graph(tmp_path, nodes, {"x": (1, 1, 5)}, ["y"], {"flat": np.array([5])}) == WalkedCost(0, 0, "")


def test_pixel_shuffle_and_resize_copy(tmp_path: Path) -> None:
    nodes = [node("DepthToSpace", "x", "d", blocksize=2, mode="CRD"), node("Resize", "d _ scales", "y", mode="nearest")]
    cost = walked_graph(tmp_path, nodes, {"x": (1, 4, 3, 3)}, ["y"], {"scales": np.array([1, 1, 2, 2], np.float32)})
    assert (cost.peak_activation_elements, cost.peak_at) == (36 + 4 * 36, "y (Resize)")


def test_quantize_and_dequantize_cost_nothing(tmp_path: Path) -> None:
    pair = [node("QuantizeLinear", "c scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")]
    weights = {"w": (8, 2, 1, 1), "scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)}
    plain = walked_graph(tmp_path, [node("Conv", "x w", "c")], {"x": (1, 2, 4, 4)}, ["c"], {"w": (8, 2, 1, 1)})
    assert walked_graph(tmp_path, [node("Conv", "x w", "c"), *pair], {"x": (1, 2, 4, 4)}, ["y"], weights) == plain


@pytest.mark.parametrize(
    ("nodes", "inputs", "message"),
    [
        ([node("Einsum", "x x", "y", equation="ij,ij->ij")], (2, 2), r"graph\.onnx has y \(Einsum\), whose work is not counted"),
        ([node("Anything", "x", "y", domain="com.example")], (2, 2), r"y \(Anything\), whose work is not counted"),
        ([node("Relu", "x", "y")], ("batch", 2), "tensor '[xy]' has no static shape in the file; export it for one input shape"),
    ],
)
def test_files_that_cannot_be_counted_are_refused(tmp_path: Path, nodes: list[NodeProto], inputs: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        walked_graph(tmp_path, nodes, {"x": inputs}, ["y"])


@pytest.mark.parametrize("content", [None, b"no model"])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "some.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"failed to walk some\.onnx"):
        walk(path)


def test_differences_are_told_beyond_what_an_exporter_may_choose(tmp_path: Path) -> None:
    """The network has a convolution from 2 to 8 channels on 4x4 pixels; its "exported" files have it too, or something else."""
    table = operator_table(nn.Conv2d(2, 8, 1), (1, 2, 4, 4))
    same = [node("Conv", "x w", "y")]
    walked_graph(tmp_path, same, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)})
    assert confirm(tmp_path / "graph.onnx", table) == (WalkedCost(8 * 2 * 16, 10 * 16, "y (Conv)"), ())
    walked_graph(tmp_path, [*same, node("Exp", "y", "z")], {"x": (1, 2, 4, 4)}, ["z"], {"w": (8, 2, 1, 1)})
    cost, (memory,) = confirm(tmp_path / "graph.onnx", table)
    assert cost == WalkedCost(8 * 2 * 16, 16 * 16, "z (Exp)")
    assert (memory.where, memory.what) == ("export onnx", "second count of graph.onnx")
    assert memory.reason.startswith("activations peak at 256 elements in the file, at z (Exp), and at 160 in the operator table: the exporter may")
    walked_graph(tmp_path, same, {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 3, 3)})
    assert [fallback.reason[:60] for fallback in confirm(tmp_path / "graph.onnx", table)[1]] == [
        "the file does 576 multiply-adds, the operator table counts 2",
        "activations peak at 64 elements in the file, at y (Conv), an",
    ]


def test_a_file_that_cannot_be_counted_is_a_fallback(tmp_path: Path) -> None:
    cost, (fallback,) = confirm(tmp_path / "none.onnx", operator_table(nn.Conv2d(2, 8, 1), (1, 2, 4, 4)))
    assert cost is None
    assert "failed to walk none.onnx" in fallback.reason


def test_the_walk_shares_nothing_with_what_it_confirms() -> None:
    tree = ast.parse(Path(walked.__file__).read_text(encoding="utf-8"))
    imported = {item.module for item in ast.walk(tree) if isinstance(item, ast.ImportFrom)}
    imported |= {name.name for item in ast.walk(tree) if isinstance(item, ast.Import) for name in item.names}
    ours = {"mcompress.errors", "mcompress.export.backend", "mcompress.targets.operators", "mcompress.targets.schema"}
    ours |= {"mcompress.export.onnx_large"}  # where the graph of a folder lies
    assert {name for name in imported if name and name.startswith("mcompress")} == ours  # messages, and the form of what is confirmed
