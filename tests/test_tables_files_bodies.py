"""ONNX nodes that hold graphs, functions of the file, and operators without inputs: what runs in them is counted, and nothing of it is a constant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx_graphs import info as sized
from onnx_graphs import node, write_graph

from mcompress.estimating import estimate_model
from mcompress.export.tables import FileTable, onnx_bodies, table_of_file

IMAGE = (1, 4, 8, 8)
CONVOLUTION = 4 * 4 * 9 * 64
NUMBERS = {"c": np.array(True), "n": np.array(5, np.int64), "axis": np.array([0], np.int64), "w": np.zeros((4, 4, 3, 3), np.float32)}


def info(name: str, shape: Sequence[int] = IMAGE, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return sized(name, shape, kind)


def conv(source: str, result: str) -> NodeProto:
    return node("Conv", f"{source} w", result, pads=[1, 1, 1, 1])


def graph(nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> GraphProto:
    return helper.make_graph(nodes, "inner", inputs, outputs)


def read(
    folder: Path,
    nodes: list[NodeProto],
    outputs: Sequence[str] = ("z",),
    functions: Sequence[FunctionProto] = (),
    value_info: Sequence[ValueInfoProto] = (),
) -> FileTable:
    """The table of a file in which x enters and the constants of `NUMBERS` are held."""
    path = write_graph(folder / "held.onnx", nodes, {"x": IMAGE}, outputs, NUMBERS, functions=functions, value_info=value_info)
    return table_of_file(path)


def told(table: FileTable) -> list[str]:
    return ["+".join((row.operation, *row.fused)) for row in table.table.operators]


THEN = graph([conv("x", "t")], [], [info("t")])
ELSE = graph([node("Relu", "x", "t")], [], [info("t")])


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_runs_is_counted(condition: bool, tmp_path: Path) -> None:
    """Its input is captured, and the only direct one is a constant."""
    branches = {"then_branch": THEN, "else_branch": ELSE} if condition else {"then_branch": ELSE, "else_branch": THEN}
    found = read(tmp_path, [node("If", "c", "y", **branches), node("Add", "y x", "z")])
    assert told(found) == (["convolution", "add"] if condition else ["relu", "add"])
    assert (found.table.macs, found.facts.assumed) == (CONVOLUTION if condition else 0, "")
    assert found.table.params == (4 * 4 * 9 if condition else 0)
    assert found.table.operators[-1].weight_elements == 0


def test_a_condition_that_sizes_decide(tmp_path: Path) -> None:
    """As torch's older exporter writes `if x.shape[1] == 1`."""
    sizes = [node("Shape", "x", "s"), node("Gather", "s axis", "g"), node("Equal", "g axis", "e"), node("Squeeze", "e", "b")]
    assert told(read(tmp_path, [*sizes, node("If", "b", "z", then_branch=THEN, else_branch=ELSE)])) == ["relu"]


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_branch_that_an_execution_decides_the_dearer_counts(turned: bool, tmp_path: Path) -> None:
    branches = {"then_branch": ELSE, "else_branch": THEN} if turned else {"then_branch": THEN, "else_branch": ELSE}
    decided = [node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "b", to=TensorProto.BOOL)]
    found = read(tmp_path, [*decided, node("If", "b", "y", name="gate", **branches), node("Sin", "y", "z")])
    assert told(found) == ["sum", "_to_copy", "convolution", "sin"]
    assert found.facts.assumed == "If 'gate' takes its dearer branch"


def body(*nodes: NodeProto, states: Sequence[str] = ("v",), results: Sequence[str] = ("o",), condition: str = "k") -> GraphProto:
    counters = [info("i", (), TensorProto.INT64), info("k", (), TensorProto.BOOL)]
    return graph(list(nodes), [*counters, *map(info, states)], [info(condition, (), TensorProto.BOOL), *(info(name) for name in results)])


def test_a_loop_is_as_many_passes_as_it_has(tmp_path: Path) -> None:
    found = read(tmp_path, [node("Loop", "n c x", "y", body=body(conv("v", "o"))), node("Exp", "y", "z")])
    assert told(found) == ["convolution"] * 5 + ["exp"]
    assert (found.table.macs, found.table.params, found.facts.assumed) == (5 * CONVOLUTION, 4 * 4 * 9, "")
    assert len({row.name for row in found.table.operators}) == 6
    # Each pass reads what the one before it wrote.
    assert [row.sources for row in found.table.operators] == [(), *(((index, 256),) for index in range(5))]


def test_what_the_passes_of_a_loop_write_stands_side_by_side(tmp_path: Path) -> None:
    inner = body(conv("x", "o"), states=())
    found = read(tmp_path, [node("Loop", "n c", "y", body=inner), node("ReduceSum", "y axis", "z", keepdims=0)])
    assert told(found) == ["convolution"] * 5 + ["cat", "sum"]
    assert found.table.operators[-1].input_shape == (5, *IMAGE)


def test_a_loop_that_may_stop_early_runs_to_its_end_and_says_so(tmp_path: Path) -> None:
    inner = body(conv("v", "o"), node("ReduceSum", "o", "s", keepdims=0), node("Cast", "s", "m", to=TensorProto.BOOL), condition="m")
    found = read(tmp_path, [node("Loop", "n c x", "z", name="again", body=inner)])
    assert (found.table.macs, found.facts.assumed) == (5 * CONVOLUTION, "Loop 'again' runs all of its 5 passes")


def test_a_scan_is_one_pass_for_each_part(tmp_path: Path) -> None:
    """Over the 8 rows of x, backwards: a running sum, and every state."""
    row = (1, 4, 8)
    inner = graph([node("Add", "a r", "b"), node("Mul", "b r", "o")], [info("a", row), info("r", row)], [info("b", row), info("o", row)])
    first = [node("Gather", "x axis", "g", axis=2), node("Squeeze", "g two", "start")]
    scan = node("Scan", "start x", "last y", body=inner, num_scan_inputs=1, scan_input_axes=[2], scan_input_directions=[1], scan_output_axes=[2])
    constants = node("Constant", "", "two", value=numpy_helper.from_array(np.array([2], np.int64)))
    found = read(tmp_path, [constants, *first, scan, node("Exp", "y", "z")], ("z", "last"))
    assert told(found) == ["add", "mul"] * 8 + ["cat", "exp"]
    assert found.table.operators[-1].input_shape == IMAGE


@pytest.mark.parametrize("why", ["unknown", "endless", "large"])
def test_a_loop_that_cannot_be_put_in_place_is_named_and_bounded(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_bodies, "MOST_NODES", 4)
    count = [node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "m", to=TensorProto.INT64)]
    count += [node("Constant", "", "never", value=numpy_helper.from_array(np.array(2**62, np.int64)))]
    passes = {"unknown": "m", "endless": "never", "large": "n"}[why]
    found = read(tmp_path, [*count, node("Loop", f"{passes} c x", "z", name="again", body=body(conv("v", "o")))], ("z", "s"))
    (unknown,) = found.table.unknown
    assert (unknown.name, unknown.operation, unknown.output_shape) == ("again", "Loop", IMAGE)
    assert found.table.macs == unknown.macs >= (5 if why == "large" else 1) * CONVOLUTION
    assert ("how often Loop 'again' runs is not known, and once is counted" in found.facts.assumed) == (why != "large")
    assert unknown.weight_elements >= 4 * 4 * 9  # captured


def test_graphs_within_graphs(tmp_path: Path) -> None:
    """A loop in a branch that an execution decides, and in the loop a branch whose condition is the number of the pass."""
    choice = node("If", "p", "o", then_branch=graph([conv("v", "t")], [], [info("t")]), else_branch=graph([node("Sin", "v", "t")], [], [info("t")]))
    inner = body(node("Equal", "i zero", "p"), choice)
    inner.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
    dear = graph([node("Loop", "n c x", "t", body=inner)], [], [info("t")])
    decided = [node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "b", to=TensorProto.BOOL)]
    found = read(tmp_path, [*decided, node("If", "b", "z", then_branch=ELSE, else_branch=dear)])
    assert told(found) == ["sum", "_to_copy", "convolution", *["sin"] * 4]


def test_functions_of_the_file_are_read(tmp_path: Path) -> None:
    nodes = [node("Conv", "a b", "q", pads=[1, 1, 1, 1]), node("Conv", "q b", "r", pads=[1, 1, 1, 1])]
    block = helper.make_function("my", "Block", ["a", "b"], ["r"], nodes, [helper.make_opsetid("", 18)])
    found = read(tmp_path, [node("Block", "x w", "y", domain="my"), node("Relu", "y", "z")], functions=[block])
    assert told(found) == ["convolution", "convolution+relu"]
    assert found.table.params == 4 * 4 * 9


@pytest.mark.parametrize("source", ["", "w"])
def test_a_foreign_operator_is_no_constant_whatever_it_reads(source: str, tmp_path: Path) -> None:
    found = read(tmp_path, [node("Gen", source, "q", domain="my", name="gen"), node("Add", "q x", "z")], value_info=[info("q")])
    generated, added = found.table.operators
    assert (generated.name, generated.operation, generated.kind) == ("gen", "my.Gen", "other")
    assert generated.macs > 0
    assert (added.elements_read, added.weight_elements) == (512, 0)
    rows = estimate_model(str(tmp_path / "held.onnx"), "snapdragon865", "cpu").whole.operators
    assert [row.latency_ms > 0 for row in rows] == [True, True]


def test_noise_is_no_constant(tmp_path: Path) -> None:
    found = read(tmp_path, [node("RandomNormal", "", "q", shape=IMAGE), node("Add", "q x", "z")])
    assert told(found) == ["randn", "add"]
    assert (found.table.params, found.table.operators[1].elements_read) == (0, 512)
