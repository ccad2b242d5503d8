"""Operator tables: graphs of a few nodes against figures computed by hand, bad files, memory plans, and what is one row in a network."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from applied import Apply
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from mcompress import cli
from mcompress.compress.cost import operator_table
from mcompress.compress.counting.memory import ALIGNMENT_BYTES, Lifetime, place
from mcompress.compress.counting.steps import assumed_macs, is_interleaved
from mcompress.errors import UsageError
from mcompress.estimating import count_lines, count_model, estimate_model
from mcompress.export.tables import FileTable, table_of_file
from mcompress.export.tables.naming import short_names

Node = tuple[str, str, str, dict[str, object]]


def written(
    folder: Path,
    nodes: Sequence[Node],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: dict[str, Sequence[int] | np.ndarray] | None = None,
    domain: str = "",
) -> Path:
    values = {name: w if isinstance(w, np.ndarray) else np.zeros(w, np.float32) for name, w in (weights or {}).items()}
    graph = helper.make_graph(
        [helper.make_node(kind, took.split(), gave.split(), name=gave.split()[0], domain=domain, **kw) for kind, took, gave, kw in nodes],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid(name, 18) for name in {"", domain}]), str(path))
    return path


def rows(read: FileTable) -> list[tuple[str, tuple[str, ...], int]]:
    return [(row.kind, row.fused, row.macs) for row in read.table.operators]


def test_a_convolution_with_what_runs_inside_it(tmp_path: Path) -> None:
    nodes = [
        ("Conv", "x w", "c", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "c s b m v", "n", {}),
        ("Mul", "n f", "f1", {}),
        ("LeakyRelu", "f1", "y", {}),
    ]
    weights = {"w": (8, 2, 3, 3), **dict.fromkeys("sbmv", (8,)), "f": np.array(0.2, np.float32)}
    (row,) = table_of_file(written(tmp_path, nodes, {"x": (1, 2, 6, 6)}, ["y"], weights)).table.operators
    assert (row.kind, row.fused) == ("convolution", ("native_batch_norm", "mul", "leaky_relu"))
    assert row.macs == 8 * 36 * 18
    # The folded normalization leaves a bias and nothing else.
    assert row.weight_elements == 8 * 18 + 8


def test_an_unknown_operator_is_named_counted_bounded_and_never_zero(tmp_path: Path) -> None:
    path = written(tmp_path, [("Conv", "x w", "c", {})], {"x": (1, 2, 4, 4)}, ["c"], {"w": (8, 2, 1, 1), "v": (8, 8)})
    model = onnx.load(str(path))
    model.graph.node.append(helper.make_node("FancyMix", ["c", "v"], ["y"], name="mix", domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 4, 4)))
    onnx.save(model, str(path))
    table = table_of_file(path).table
    (unknown,) = table.unknown
    assert (unknown.name, unknown.operation, unknown.kind) == ("mix", "com.example.FancyMix", "other")
    assert unknown.macs == 64 * 16 == table.assumed_macs  # each weight once per position
    assert table.macs == 8 * 2 * 16 + 64 * 16
    assert count_model(str(path))["unknown_operators"] == ["com.example.FancyMix (mix)"]
    estimated = estimate_model(str(path), "snapdragon865", "cpu")
    assert [row.latency_ms > 0 for row in estimated.rows] == [True, True]
    assert [line for line in estimated.lines(5) if "FancyMix" in line][-1] == (
        "assumed: 1,024 of 1,280 multiply-adds, those of dense operators over the same memory, for com.example.FancyMix (mix)"
    )
    counted = count_lines(count_model(str(path)))
    assert any(line.split() == ["of", "which", "assumed", "1,024"] for line in counted)
    assert counted[-1] == "not known, multiply-adds assumed: com.example.FancyMix (mix)"


def test_an_unknown_operator_of_a_network() -> None:
    (row,) = operator_table(Apply(lambda _, x: torch.fft.fft(x).real), (1, 4, 8, 8)).unknown
    assert row.operation.startswith("_fft")
    assert row.macs >= row.elements_written > 0


@given(m=st.integers(1, 40), k=st.integers(1, 40), n=st.integers(1, 40))
def test_the_assumption_is_exact_for_matrix_products(m: int, k: int, n: int) -> None:
    assert assumed_macs((m * k, k * n), 0, (m, n)) == max(m * k * n, m * n)
    assert assumed_macs((), 0, ()) >= 1


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # Reshape and Transpose that interleave are one shuffle, however many they are; a head merge is one copy; what strides can say is free.
        ([("Reshape", "x a", "r", {}), ("Transpose", "r", "t", {"perm": [0, 1, 4, 2, 5, 3]}), ("Reshape", "t b", "y", {})], ["shuffle"]),
        ([("Reshape", "x c", "r", {}), ("Transpose", "r", "t", {"perm": [0, 2, 1]}), ("Relu", "t", "y", {})], ["activation"]),
        ([("Reshape", "x c", "r", {}), ("Transpose", "r", "t", {"perm": [0, 2, 1]}), ("Reshape", "t d", "y", {})], ["copy"]),
    ],
)
def test_movements(tmp_path: Path, nodes: list[Node], expected: list[str]) -> None:
    shapes = {"a": np.array([1, 3, 2, 2, 4, 4]), "b": np.array([1, 3, 8, 8]), "c": np.array([1, 12, 16]), "d": np.array([1, 192])}
    table = table_of_file(written(tmp_path, nodes, {"x": (1, 12, 4, 4)}, ["y"], shapes)).table
    assert [row.kind for row in table.operators] == expected
    if expected == ["shuffle"]:
        assert (table.operators[0].input_shape, table.operators[0].output_shape) == ((1, 12, 4, 4), (1, 3, 8, 8))


def test_interleaving() -> None:
    assert is_interleaved((1, 3, 2, 2, 16, 16), (0, 1, 4, 2, 5, 3))  # pixel shuffle
    assert not is_interleaved((1, 2, 10, 4), (0, 2, 1, 3))  # merging heads
    assert not is_interleaved((1, 8, 16, 16), (0, 2, 3, 1))  # channels last


def test_precisions_and_lone_conversions(tmp_path: Path) -> None:
    """x -> Q DQ -> Conv -> Q DQ -> Exp: the first pair is a row (the input is quantized), the second belongs to the convolution."""
    nodes = [
        ("QuantizeLinear", "x s z", "q", {}),
        ("DequantizeLinear", "q s z", "d", {}),
        ("DequantizeLinear", "w8 s z8", "w", {}),
        ("Conv", "d w", "c", {}),
        ("QuantizeLinear", "c s z", "cq", {}),
        ("DequantizeLinear", "cq s z", "cd", {}),
        ("Exp", "cd", "y", {}),
    ]
    scale = np.array(0.1, np.float32)
    weights = {"s": scale, "z": np.array(3, np.uint8), "z8": np.array(0, np.int8), "w8": np.zeros((8, 2, 1, 1), np.int8)}
    read = table_of_file(written(tmp_path, nodes, {"x": (1, 2, 4, 4)}, ["y"], weights))
    assert [(row.operation, read.precisions[row.name]) for row in read.table.operators] == [
        ("quantize", "int8"),
        ("convolution", "int8"),
        ("exp", "fp32"),
    ]
    # Between two float operators the pair changes nothing but is executed.
    pair = [("Exp", "x", "e", {}), ("QuantizeLinear", "e s z", "q", {}), ("DequantizeLinear", "q s z", "d", {}), ("Sin", "d", "y", {})]
    read = table_of_file(written(tmp_path, pair, {"x": (1, 2, 4, 4)}, ["y"], {"s": scale, "z": weights["z"]}))
    assert [row.operation for row in read.table.operators] == ["exp", "quantize", "dequantize", "sin"]


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, [("Conv", "x w", "y", {})], {"x": ("batch", 2, "height", "width")}, ["y"], {"w": (8, 2, 1, 1)})
    with pytest.raises(UsageError, match=r"leaves sizes of its input 'x' \(batch, 2, height, width\) open; give it with --input"):
        table_of_file(path)
    assert table_of_file(path, (1, 2, 5, 5)).table.macs == 16 * 25
    with pytest.raises(UsageError, match=r"--input is 1,3,5,5, but .* takes \?,2,\?,\? only"):
        table_of_file(path, (1, 3, 5, 5))
    with pytest.raises(UsageError, match=r"--input has 2 sizes, but the input of .* has 4"):
        table_of_file(path, (1, 2))


def test_an_open_batch_is_one_and_said(tmp_path: Path) -> None:
    path = written(
        tmp_path, [("Conv", "x w", "c", {}), ("Add", "c z", "y", {})], {"x": ("n", 2, 5, 5), "z": ("n", 8, 5, 5)}, ["y"], {"w": (8, 2, 1, 1)}
    )
    read = table_of_file(path)
    assert (read.table.macs, read.facts.assumed) == (16 * 25, "batch 1 assumed, which the file leaves open")
    assert "batch 1 assumed, which the file leaves open" in count_lines(count_model(str(path)))[0]
    given = table_of_file(path, (3, 2, 5, 5))  # the second input has the same open size
    assert (given.table.macs, given.facts.assumed) == (3 * 16 * 25, "")


def test_sizes_that_only_an_execution_has_are_named(tmp_path: Path) -> None:
    nodes = [("NonZero", "x", "n", {}), ("Transpose", "n", "t", {}), ("Gather", "x t", "y", {})]
    with pytest.raises(UsageError, match=r"sizes of tensor 'n' in .*, which n \(NonZero\) writes, depend on numbers that only an execution has"):
        table_of_file(written(tmp_path, nodes, {"x": (1, 4)}, ["y"]))


def test_sizes_are_computed_where_shape_inference_stops(tmp_path: Path) -> None:
    """Half of the height of x through a division and a cast, as torch's older exporter writes it."""
    nodes = [
        ("Shape", "x", "s", {}),
        ("Gather", "s two", "h", {"axis": 0}),
        ("Cast", "h", "f", {"to": TensorProto.FLOAT}),
        ("Div", "f half", "g", {}),
        ("Floor", "g", "k", {}),
        ("Cast", "k", "i", {"to": TensorProto.INT64}),
        ("Reshape", "i one", "e", {}),
        ("Slice", "x zero e axis", "y0", {}),
        ("Relu", "y0", "y", {}),
    ]
    numbers = {"two": 2, "one": [1], "zero": [0], "axis": [2]}
    constants = {name: np.array(value, np.int64) for name, value in numbers.items()} | {"half": np.array(2, np.float32)}
    (row,) = table_of_file(written(tmp_path, nodes, {"x": (1, 3, 9, 4)}, ["y"], constants)).table.operators
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
    path = written(folder, [("Conv", "x w", "c", {}), ("Relu", "c", "y", {})], {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 3, 3)})
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(UsageError):
        table_of_file(path)


def test_weights_outside_the_file_are_not_needed(tmp_path: Path) -> None:
    path = written(tmp_path, [("Conv", "x w", "y", {})], {"x": (1, 64, 8, 8)}, ["y"], {"w": (64, 64, 3, 3)})
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = table_of_file(path).table
    (tmp_path / "weights.bin").unlink()
    assert table_of_file(path).table == before
    assert before.operators[0].weight_elements == before.params == 64 * 64 * 9


def test_a_thousand_nodes_are_read_in_half_a_second(tmp_path: Path) -> None:
    nodes = [("Conv", f"t{i} w{i}", f"t{i + 1}", {}) if i % 2 == 0 else ("Relu", f"t{i}", f"t{i + 1}", {}) for i in range(1000)]
    weights = {f"w{i}": (8, 8, 1, 1) for i in range(0, 1000, 2)}
    path = written(tmp_path, nodes, {"t0": (1, 8, 16, 16)}, ["t1000"], weights)
    best_s = math.inf
    for _ in range(3):
        start = time.process_time()
        assert len(table_of_file(path).table.operators) == 500
        best_s = min(best_s, time.process_time() - start)
    assert best_s < 0.5


lifetimes = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)).map(lambda t: Lifetime(t[0], t[1], t[1] + t[2])), min_size=1, max_size=40
)


@given(lifetimes)
@settings(max_examples=200, deadline=None)
def test_plans_overlap_nowhere_and_stay_near_the_least(buffers: list[Lifetime]) -> None:
    plan = place(buffers)
    sizes = [-(-one.size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for one in buffers]
    for i, (one, start) in enumerate(zip(buffers, plan.offsets, strict=True)):
        assert start % ALIGNMENT_BYTES == 0
        for j in range(i):
            if one.first <= buffers[j].last and buffers[j].first <= one.last:
                assert start + sizes[i] <= plan.offsets[j] or plan.offsets[j] + sizes[j] <= start
    live = max(sum(size for one, size in zip(buffers, sizes, strict=True) if one.first <= t <= one.last) for t in range(20))
    assert live <= plan.arena_bytes <= sum(sizes)
    # Greedy by size stays within a factor of what lives at once; the paper finds 1 to 16 % on real networks.
    assert plan.arena_bytes <= 2 * live


def test_the_plan_of_a_skip_connection() -> None:
    """x (4), one (8) and two (4 channels of 64): the sum is written over what the second convolution wrote; the input exists to the end."""
    model = Apply(lambda m, x: x + m.two(m.one(x)), one=nn.Conv2d(4, 8, 1), two=nn.Conv2d(8, 4, 1))
    table = operator_table(model, (1, 4, 8, 8))
    assert table.planned_peak_elements == 16 * 64
    assert table.peak_activation_elements == 16 * 64


def attend(module: Apply, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(1, 10, 2, 4).transpose(1, 2) for layer in (module.q, module.k, module.v))
    weights = ((q @ k.transpose(-1, -2)) * 0.5 + module.bias(x).view(1, 1, 1, 10)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(1, 10, 8)


def test_attention_that_is_written_out_is_one_row() -> None:
    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    table = operator_table(Apply(attend, **layers, bias=nn.Linear(8, 1)), (1, 10, 8))
    assert [row.kind for row in table.operators] == ["matmul"] * 4 + ["attention", "copy"]
    row = table.operators[4]
    assert row.macs == 2 * 2 * 10 * 10 * 4
    assert row.elements_read == 3 * 80 + 10
    (whole,) = [
        row
        for row in operator_table(
            Apply(lambda m, x: functional.scaled_dot_product_attention(*(f(x).view(1, 10, 2, 4).transpose(1, 2) for f in (m.q, m.k, m.v))), **layers),
            (1, 10, 8),
        ).operators
        if row.kind == "attention"
    ]
    assert (whole.macs, whole.input_shape, whole.output_shape) == (row.macs, row.input_shape, row.output_shape)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: (lambda y: y * torch.sigmoid(y))(m.conv(x)), [("convolution", ("silu",))]),
        (lambda m, x: (lambda y: 0.5 * y * (1 + torch.erf(y / 2**0.5)))(m.conv(x)), [("convolution", ("gelu",))]),
        (lambda m, x: m.conv(functional.pad(x, (1, 0, 1, 0))), [("convolution", ("constant_pad_nd",))]),
        (lambda m, x: m.conv(functional.pad(x, (1, 0, 1, 0), value=1.0)), [("copy", ()), ("convolution", ())]),
        (lambda m, x: m.conv(x) * 0.2 + x, [("convolution", ("mul",)), ("elementwise", ())]),
        (lambda m, x: (lambda y: y * y)(m.conv(x)), [("convolution", ()), ("elementwise", ())]),
        (lambda m, x: functional.relu(functional.max_pool2d(x, 2)), [("pooling", ("relu",))]),
        (lambda m, x: functional.gelu(functional.max_pool2d(x, 2)), [("pooling", ()), ("activation", ())]),
    ],
)
def test_what_is_one_row(function, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    table = operator_table(Apply(function, conv=nn.Conv2d(4, 4, 3, padding=1)), (1, 4, 8, 8))
    assert [(row.kind, row.fused) for row in table.operators] == expected


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers(kind: type[nn.Module], gates: int, both: bool) -> None:
    table = operator_table(Apply(lambda m, x: m.layer(x)[0], layer=kind(8, 6, num_layers=2, batch_first=True, bidirectional=both)), (3, 5, 8))
    ways = 1 + both
    assert [row.kind for row in table.operators] == ["matmul", "matmul"]
    assert [row.macs for row in table.operators] == [15 * ways * gates * 6 * (8 + 6), 15 * ways * gates * 6 * (ways * 6 + 6)]
    assert sum(row.weight_elements for row in table.operators) == table.params


def test_parts_of_one_product_are_all_read() -> None:
    def packed(module: Apply, x: Tensor) -> Tensor:
        q, k, v = module.qkv(x).view(1, 10, 3, 8).unbind(2)
        return functional.scaled_dot_product_attention(q, k, v)

    row = operator_table(Apply(packed, qkv=nn.Linear(8, 24)), (1, 10, 8)).operators[-1]
    assert (row.kind, row.elements_read) == ("attention", 3 * 80)


def test_networks_of_transformers_hold_no_unknown_work() -> None:
    transformers = pytest.importorskip("transformers")
    cases = {
        "ResNet": 4.1e9,  # published multiply-adds of the default configurations, without their classifiers
        "MobileNetV2": 0.3e9,
        "ViT": 17.6e9,
        "ConvNext": 4.5e9,
        "Swin": 4.5e9,
        "Segformer": 1.3e9,
    }
    for name, published in cases.items():
        with torch.device("meta"):
            model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
        table = operator_table(model, (1, 3, 224, 224))
        assert not table.unknown, name
        assert table.macs == pytest.approx(published, rel=0.06) or name == "Segformer", name
        assert table.planned_peak_elements > 0


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [("Conv", "x w", "c", {}), ("Relu", "c", "y", {})], {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)})

    def command(*args: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["mcompress", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    code, out, _ = command("count", str(path), "--json")
    assert (code, json.loads(out)["macs"]) == (0, 8 * 2 * 16)
    code, out, _ = command("estimate", str(path), "--device", "snapdragon865", "--unit", "cpu", "--json", "--top", "3")
    told = json.loads(out)
    assert (code, told["latency"]["how"], told["precisions"]) == (0, "estimated", {"fp32": 1})
    assert told["top"][0]["latency_ms"] > 0
    code, out, _ = command("estimate", "mfagan", "--device", "snapdragon865", "--precision", "fp16", "--top", "2")
    assert (code, "more operators" in out, "compute" in out) == (0, True, True)
    for args, message in (
        (("estimate", "mfagan", "--device", "snapdragon865"), "has no precision of its own"),
        (("estimate", "mfagan", "--device", "snapdragon865", "--precision", "int3"), "it can be int8, w8a16, fp16, fp32"),
        (("count", str(tmp_path / "none.tflite")), "there is no file"),
        (("count", "model.h5"), "is neither a network"),
        (("count", str(path), "--input", "nonsense"), "must be positive whole numbers"),
        (("count", str(path), "--args", '{"a": 1}'), "takes no arguments"),
    ):
        code, out, told_wrong = command(*args)
        assert (code, out) == (2, ""), args
        assert message in told_wrong


@pytest.mark.parametrize(
    ("network", "shape", "kinds"),
    [
        ("resized", "1,3,16,16", ["resize", "pooling"]),
        ("sound", "1,8,32", ["convolution"]),
        ("features", "4,16", ["matmul"]),
        ("video", "1,3,4,8,8", ["convolution"]),
        ("words", "1,7", ["copy", "matmul"]),
    ],
)
def test_any_rank_of_input_and_networks_without_weights(
    network: str, shape: str, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any_rank.py").write_text(
        "from torch import nn\n"
        "def resized(): return nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2))\n"
        "def sound(): return nn.Sequential(nn.Conv1d(8, 12, 3, padding=1), nn.ReLU())\n"
        "def features(): return nn.Sequential(nn.Linear(16, 8), nn.GELU())\n"
        "def video(): return nn.Sequential(nn.Conv3d(3, 6, 3), nn.ReLU())\n"
        "def words(): return nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 8))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "any_rank", raising=False)
    estimated = estimate_model(f"any_rank:{network}", "snapdragon865", "cpu", "fp32", inputs=[shape])
    assert [operator.kind for operator in estimated.model.table.operators] == kinds
    assert all(row.latency_ms > 0 for row in estimated.rows)
    assert (estimated.model.facts == "input of whole numbers") == (network == "words")


def test_an_input_that_a_network_does_not_take_is_named() -> None:
    with pytest.raises(UsageError, match=r"--input is '1,4,8', which mfagan does not take: module 'head.*' of .* failed on an input of shape"):
        count_model("mfagan", ["1,4,8"])
    with pytest.raises(UsageError, match=r"--input is '1,0'; it must be positive whole numbers .*, the batch first"):
        count_model("mfagan", ["1,0"])


def test_short_names_are_module_paths_and_unique() -> None:
    (row,) = operator_table(nn.Conv2d(3, 4, 1), (1, 3, 8, 8)).operators
    wrapped = "litert_torch._convert.to_channel_last_io.ChannelLastIOWrapper"
    names = {
        f"{wrapped};38": "convolution",
        f"{wrapped};;{wrapped};5": "convolution_1",
        "torch.nn.modules.container.Sequential_body/torch.nn.modules.conv.Conv2d_conv_first;14": "body.conv_first",
        "own.Network/torch.nn.modules.container.Sequential_body/torch.nn.modules.conv.Conv2d_conv_first;15": "body.conv_first_1",
        "blocks.0.scales.1": "blocks.0.scales.1",
        "convolution_2": "convolution_2",
        "a" * 40 + "/block_1/expand/Conv2D;" + "a" * 40 + "/block_1/expand/BiasAdd": "block_1/expand/Conv2D",
    }
    assert short_names([replace(row, name=name) for name in names]) == names


def test_reading_files_imports_no_torch() -> None:
    names = "mcompress.export.tables.onnx, mcompress.export.tables.tflite, mcompress.export.tables, mcompress.estimating"
    code = f"import {names}, sys\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
