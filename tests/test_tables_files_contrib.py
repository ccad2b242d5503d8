"""ONNX Runtime's own operators: rows against figures computed by hand, sizes against what ONNX Runtime computes; and operators of other domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

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
    given = ["" if name == "_" else name for name in order.split()]
    outputs = [f"r{index}" for index in range(results)]
    graph = helper.make_graph(
        [helper.make_node(kind, given, outputs, name="node", domain=domain, **more), helper.make_node("Sin", ["r0"], ["z"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("z", *outputs[1:])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)], ir_version=10)
    onnx.save(model, str(path))
    return path


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
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["q"]),
        helper.make_node("QLinearConcat", ["s", "u", "q", "s", "u", "q", "s", "u"], ["c"], axis=1, domain=MICROSOFT),
        helper.make_node("QLinearGlobalAveragePool", ["c", "s", "u", "s", "u"], ["p"], domain=MICROSOFT),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("QGemm", ["f", "s", "u", "w", "s", "u", "", "s", "u"], ["g"], domain=MICROSOFT),
        helper.make_node("DequantizeLinear", ["g", "s", "u"], ["z"]),
    ]
    entering = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 16, 5, 5))
    leaving = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [entering], [leaving], [numpy_helper.from_array(value, name) for name, value in given.items()])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]), str(tmp_path / "integers.onnx")
    )
    found = table_of_file(tmp_path / "integers.onnx")
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
    model.graph.value_info.append(helper.make_tensor_value_info("r0", TensorProto.FLOAT, TOKENS))
    onnx.save(model, str(path))
    (unknown,) = table_of_file(path).table.unknown
    assert unknown.name == "node"
    assert unknown.operation.endswith("Mystery")
    assert unknown.macs > 0
