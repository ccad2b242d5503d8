"""ONNX Runtime's own operators: rows against figures computed by hand, sizes against what ONNX Runtime computes; and operators of other domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_graphs import info, node, write_graph

from mcompress.errors import UsageError
from mcompress.export.tables import FileTable, table_of_file

MICROSOFT = "com.microsoft"
TOKENS = (2, 6, 16)


def write(
    path: Path,
    kind: str,
    inputs: dict[str, Sequence[int]],
    constants: dict[str, np.ndarray],
    order: str,
    results: int = 1,
    domain: str = MICROSOFT,
    **more: object,
) -> Path:
    """One node and a sine behind it: what stands behind needs the sizes of the first result. `_` is an input that is left out."""
    outputs = [f"r{index}" for index in range(results)]
    nodes = [node(kind, order, " ".join(outputs), name="node", domain=domain, **more), node("Sin", "r0", "z")]
    return write_graph(path, nodes, inputs, ["z", *outputs[1:]], constants)


def rows(table: FileTable) -> list[tuple[str, int, int]]:
    return [("+".join((row.operation, *row.fused)), row.macs, row.weight_elements) for row in table.table.operators[:-1]]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


BATCH, ROWS, WIDTH = TOKENS
PAST = (2, 4, 3, 4)
PRODUCT = 2 * BATCH * ROWS * ROWS * WIDTH
CASES: dict[str, tuple[dict[str, object], list[tuple[str, int, int]]]] = {
    "packed projection": (
        {"kind": "Attention", "inputs": {"x": TOKENS}, "constants": {"w": zeros(16, 48), "b": zeros(48)}, "order": "x w b", "num_heads": 4},
        [("linear", BATCH * ROWS * 16 * 48, 16 * 48 + 48), ("attention", PRODUCT, 0)],
    ),
    "three inputs": (
        {"kind": "MultiHeadAttention", "inputs": dict.fromkeys("qkv", TOKENS), "constants": {}, "order": "q k v", "num_heads": 4},
        [("attention", PRODUCT, 0)],
    ),
    "one packed input": (
        {"kind": "MultiHeadAttention", "inputs": {"q": (2, 6, 4, 3, 4)}, "constants": {}, "order": "q", "num_heads": 4},
        [("attention", PRODUCT, 0)],
    ),
    "keys of calls before": (
        {
            "kind": "MultiHeadAttention",
            "inputs": {**dict.fromkeys("qkv", TOKENS), "p": PAST, "s": PAST},
            "constants": {},
            "results": 3,
            "order": "q k v _ _ _ p s",
            "num_heads": 4,
        },
        [("attention", PRODUCT * 9 // 6, 0)],
    ),
    "factors turned": (
        {"kind": "FusedMatMul", "inputs": {"x": (2, 16, 6), "y": (2, 8, 16)}, "constants": {}, "order": "x y", "transA": 1, "transB": 1},
        [("bmm", 2 * 6 * 16 * 8, 0)],
    ),
    "convolution with an activation": (
        {
            "kind": "FusedConv",
            "inputs": {"x": (1, 4, 9, 9)},
            "constants": {"w": zeros(8, 4, 3, 3), "b": np.ones(8, np.float32)},
            "order": "x w b",
            "activation": "Relu",
            "strides": [2, 2],
            "pads": [1, 1, 1, 1],
        },
        [("convolution+relu", 8 * 25 * 4 * 9, 8 * 4 * 9 + 8)],
    ),
    "four bits": (
        {
            "kind": "MatMulNBits",
            "inputs": {"x": (2, 6, 32)},
            "constants": {"w": np.zeros((24, 1, 16), np.uint8), "s": zeros(24)},
            "order": "x w s",
            "K": 32,
            "N": 24,
            "bits": 4,
            "block_size": 32,
        },
        [("linear", 12 * 32 * 24, 32 * 24)],
    ),
    "gelu with a bias": ({"kind": "BiasGelu", "inputs": {"x": TOKENS}, "constants": {"b": zeros(16)}, "order": "x b"}, [("gelu", 0, 16)]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_and_sizes(name: str, tmp_path: Path) -> None:
    case, expected = CASES[name]
    path = write(tmp_path / "one.onnx", **case)
    found = table_of_file(path)
    assert rows(found) == expected
    assert not found.table.unknown
    if name == "one packed input":
        return  # ONNX Runtime has it on GPUs only
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result, *_) = session.run(None, {key: zeros(*shape) for key, shape in case["inputs"].items()})
    assert found.table.operators[-1].output_shape == result.shape


def shape_of_execution(path: Path, shape: Sequence[int]) -> tuple[int, ...]:
    """Of the first result, in onnxruntime."""
    (result, *_) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": zeros(*shape)})
    return tuple(result.shape)


@pytest.mark.parametrize("side", [31, 32])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("around", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_windows_that_a_word_places(around: str, stride: int, side: int, tmp_path: Path) -> None:
    shape, more = (1, 3, side, side), {"pads": [1, 1, 1, 1]} if around == "NOTSET" else {}
    given = {"x": shape}
    attributes = {"auto_pad": around, "activation": "Relu", "kernel_shape": [3, 3], "strides": [stride, stride], **more}
    path = write(tmp_path / "one.onnx", "FusedConv", given, {"w": zeros(8, 3, 3, 3)}, "x w", **attributes)
    found = table_of_file(path)
    assert found.table.operators[-1].output_shape == shape_of_execution(path, shape)
    assert rows(found) == [("convolution+relu", np.prod(found.table.operators[-1].output_shape) * 27, 8 * 27)]


def test_a_word_that_is_not_known_leaves_the_sizes_open(tmp_path: Path) -> None:
    path = write(tmp_path / "one.onnx", "FusedConv", {"x": (1, 3, 8, 8)}, {"w": zeros(8, 3, 3, 3)}, "x w", auto_pad="SAME_SOMEHOW")
    with pytest.raises(UsageError, match=r"operator FusedConv of the domain 'com\.microsoft' \(node\), whose results ONNX cannot size"):
        table_of_file(path)


@pytest.mark.parametrize("up", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "pads"), [(2, 2, (0, 0)), (3, 2, (1, 1)), (2, 3, (0, 1)), (3, 3, (0, 2)), (1, 2, (0, 0))])
@pytest.mark.parametrize("side", [6, 7, 9])
def test_windows_that_stand_over(side: int, kernel: int, stride: int, pads: tuple[int, int], up: int, tmp_path: Path) -> None:
    """Rounded up, the last window may reach over the end; it is left out where it would begin there."""
    shape = (1, 4, side, side)
    more = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pads[0]] * 2 + [pads[1]] * 2, "ceil_mode": up}
    nodes = [
        node("QuantizeLinear", "x s u", "q"),
        node("QLinearAveragePool", "q s u s u", "p", domain=MICROSOFT, **more),
        node("DequantizeLinear", "p s u", "z"),
    ]
    held = {"s": np.array(0.1, np.float32), "u": np.array(0, np.uint8)}
    path = write_graph(tmp_path / "pool.onnx", nodes, {"x": shape}, ["z"], held)
    pool = next(row for row in table_of_file(path).table.operators if row.operation == "avg_pool")
    assert pool.output_shape == shape_of_execution(path, shape)


def test_groups_of_queries(tmp_path: Path) -> None:
    """8 heads of queries and 2 of keys, packed side by side, with 3 keys from before."""
    sizes = {"q": (1, 1, 12 * 4), "k": (1, 2, 3, 4), "v": (1, 2, 3, 4)}
    path = write(tmp_path / "one.onnx", "GroupQueryAttention", sizes, {}, "q _ _ k v", 3, num_heads=8, kv_num_heads=2)
    (attention,) = table_of_file(path).table.operators[:-1]
    assert (attention.macs, attention.input_shape) == (2 * 8 * 4 * (3 + 1), (8, 1, 4))


def test_operators_in_integers(tmp_path: Path) -> None:
    """As ONNX Runtime's older quantization writes a classifier."""
    number = np.array(0, np.uint8)
    given = {"s": np.array(0.1, np.float32), "u": number, "w": np.zeros((32, 10), np.uint8)}
    nodes = [
        node("QuantizeLinear", "x s u", "q"),
        node("QLinearConcat", "s u q s u q s u", "c", axis=1, domain=MICROSOFT),
        node("QLinearGlobalAveragePool", "c s u s u", "p", domain=MICROSOFT),
        node("Flatten", "p", "f"),
        node("QGemm", "f s u w s u _ s u", "g", domain=MICROSOFT),
        node("DequantizeLinear", "g s u", "z"),
    ]
    found = table_of_file(write_graph(tmp_path / "integers.onnx", nodes, {"x": (1, 16, 5, 5)}, ["z"], given))
    assert [(row.operation, row.macs) for row in found.table.operators if "quant" not in row.operation] == [("cat", 0), ("mean", 0), ("linear", 320)]
    assert not found.table.unknown


@pytest.mark.parametrize("domain", ["my", MICROSOFT])
def test_a_foreign_operator_without_sizes_says_what_helps(domain: str, tmp_path: Path) -> None:
    path = write(tmp_path / "own.onnx", "Mystery", {"x": TOKENS}, {}, "x", domain=domain)
    message = (
        rf"has the operator Mystery of the domain '{domain}' \(node\), whose results ONNX cannot size; add the sizes of tensor 'r0' to its value_info"
    )
    with pytest.raises(UsageError, match=message):
        table_of_file(path)
    model = onnx.load(str(path))
    model.graph.value_info.append(info("r0", TOKENS))
    onnx.save(model, str(path))
    (unknown,) = table_of_file(path).table.unknown
    assert unknown.name == "node"
    assert unknown.operation.endswith("Mystery")
    assert unknown.macs > 0
