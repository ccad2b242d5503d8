"""Tables of ONNX and TFLite files: open sizes, sizes that only computing gives, weights elsewhere, and files that are bad or cut off."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_graphs import node, write_graph

from mcompress.errors import UsageError
from mcompress.estimating import count_model
from mcompress.export.tables import table_of_file


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", [node("Conv", "x w", "y")], {"x": ("batch", 2, "height", "width")}, ["y"], {"w": (8, 2, 1, 1)})
    with pytest.raises(UsageError, match=r"graph\.onnx: the file leaves sizes open \(x: batch,2,height,width\); give --input SHAPE"):
        table_of_file(path)
    assert table_of_file(path, (1, 2, 5, 5)).table.macs == 16 * 25
    with pytest.raises(UsageError, match=r"graph\.onnx: --input is 1,3,5,5, but the file takes batch,2,height,width only"):
        table_of_file(path, (1, 3, 5, 5))
    with pytest.raises(UsageError, match=r"graph\.onnx: --input is 1,2, but the file takes batch,2,height,width only"):
        table_of_file(path, (1, 2))


def test_an_open_batch_is_one_and_said(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "graph.onnx",
        [node("Conv", "x w", "c"), node("Add", "c z", "y")],
        {"x": ("n", 2, 5, 5), "z": ("n", 8, 5, 5)},
        ["y"],
        {"w": (8, 2, 1, 1)},
    )
    read = table_of_file(path)
    assert (read.table.macs, read.facts.assumed) == (16 * 25, "batch 1 assumed, which the file leaves open")
    assert "batch 1 assumed, which the file leaves open" in count_model(str(path)).lines()[0]
    given = table_of_file(path, (3, 2, 5, 5))  # the second input has the same open size
    assert (given.table.macs, given.facts.assumed) == (3 * 16 * 25, "")


def test_sizes_that_only_an_execution_has_are_named(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "n"), node("Transpose", "n", "t"), node("Gather", "x t", "y")]
    with pytest.raises(UsageError, match=r"sizes of tensor 'n' in .*, which n \(NonZero\) writes, depend on numbers that only an execution has"):
        table_of_file(write_graph(tmp_path / "graph.onnx", nodes, {"x": (1, 4)}, ["y"]))


def test_sizes_are_computed_where_shape_inference_stops(tmp_path: Path) -> None:
    """Half of the height of x through a division and a cast, as torch's older exporter writes it."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h", axis=0),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Div", "f half", "g"),
        node("Floor", "g", "k"),
        node("Cast", "k", "i", to=TensorProto.INT64),
        node("Reshape", "i one", "e"),
        node("Slice", "x zero e axis", "y0"),
        node("Relu", "y0", "y"),
    ]
    numbers = {"two": 2, "one": [1], "zero": [0], "axis": [2]}
    constants = {name: np.array(value, np.int64) for name, value in numbers.items()} | {"half": np.array(2, np.float32)}
    (row,) = table_of_file(write_graph(tmp_path / "graph.onnx", nodes, {"x": (1, 3, 9, 4)}, ["y"], constants)).table.operators
    assert (row.operation, row.output_shape, row.elements_read) == ("relu", (1, 3, 4, 4), 48)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"", "is empty"), (bytes(64), "is no|holds no"), (b"PK\x03\x04 something else entirely", "is no|holds no")],
    ids=["missing", "empty", "zeros", "archive"],
)
def test_bad_files(tmp_path: Path, suffix: str, content: bytes | None, message: str) -> None:
    path = tmp_path / f"some{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        table_of_file(path)


def test_a_suffix_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "some.pte").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"its suffix is '\.pte', and can be \.onnx or \.tflite"):
        table_of_file(tmp_path / "some.pte")


@given(cut=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_a_cut_off_file_is_refused_or_read_never_anything_else(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = write_graph(folder / "graph.onnx", [node("Conv", "x w", "c"), node("Relu", "c", "y")], {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 3, 3)})
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(UsageError):
        table_of_file(path)


def test_weights_outside_the_file_are_not_needed(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", [node("Conv", "x w", "y")], {"x": (1, 64, 8, 8)}, ["y"], {"w": (64, 64, 3, 3)})
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = table_of_file(path).table
    (tmp_path / "weights.bin").unlink()
    assert table_of_file(path).table == before
    assert before.operators[0].weight_elements == before.params == 64 * 64 * 9


def test_a_thousand_nodes_are_read_in_half_a_second(tmp_path: Path) -> None:
    nodes = [node("Conv", f"t{i} w{i}", f"t{i + 1}") if i % 2 == 0 else node("Relu", f"t{i}", f"t{i + 1}") for i in range(1000)]
    weights = {f"w{i}": (8, 8, 1, 1) for i in range(0, 1000, 2)}
    path = write_graph(tmp_path / "graph.onnx", nodes, {"t0": (1, 8, 16, 16)}, ["t1000"], weights)
    best_s = math.inf
    for _ in range(3):
        start = time.process_time()
        assert len(table_of_file(path).table.operators) == 500
        best_s = min(best_s, time.process_time() - start)
    assert best_s < 0.5
