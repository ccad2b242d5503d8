"""Operator tables: graphs of a few nodes against figures computed by hand, what is one row in a network, and networks as they are published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from applied import Apply
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper
from onnx_graphs import info, node, write_graph
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.compress.counting.steps import assumed_macs, is_interleaved
from mcompress.estimating import count_model, estimate_model
from mcompress.export.tables import FileTable, table_of_file
from mcompress.export.tables.naming import short_names
from mcompress.targets.operators import OperatorTable


def rows(read: FileTable) -> list[tuple[str, tuple[str, ...], int]]:
    return [(row.kind, row.fused, row.macs) for row in read.table.operators]


def test_a_convolution_with_what_runs_inside_it(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c s b m v", "n"),
        node("Mul", "n f", "f1"),
        node("LeakyRelu", "f1", "y"),
    ]
    weights = {"w": (8, 2, 3, 3), **dict.fromkeys("sbmv", (8,)), "f": np.array(0.2, np.float32)}
    (row,) = table_of_file(write_graph(tmp_path / "graph.onnx", nodes, {"x": (1, 2, 6, 6)}, ["y"], weights)).table.operators
    assert (row.kind, row.fused) == ("convolution", ("native_batch_norm", "mul", "leaky_relu"))
    assert row.macs == 8 * 36 * 18
    # The folded normalization leaves a bias and nothing else.
    assert row.weight_elements == 8 * 18 + 8


def test_an_unknown_operator_is_named_counted_bounded_and_never_zero(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "graph.onnx", [node("Conv", "x w", "c")], {"x": (1, 2, 4, 4)}, ["c"], {"w": (8, 2, 1, 1), "v": (8, 8)})
    model = onnx.load(str(path))
    model.graph.node.append(node("FancyMix", "c v", "y", name="mix", domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.output[0].CopyFrom(info("y", (1, 8, 4, 4)))
    onnx.save(model, str(path))
    table = table_of_file(path).table
    (unknown,) = table.unknown
    assert (unknown.name, unknown.operation, unknown.kind) == ("mix", "com.example.FancyMix", "other")
    assert unknown.macs == 64 * 16 == table.assumed_macs  # each weight once per position
    assert table.macs == 8 * 2 * 16 + 64 * 16
    assert count_model(str(path)).as_json()["unknown_operators"] == ["com.example.FancyMix (mix)"]
    estimated = estimate_model(str(path), "snapdragon865", "cpu")
    assert [row.latency_ms > 0 for row in estimated.whole.operators] == [True, True]
    assert [line for line in estimated.lines(5) if "FancyMix" in line][-1] == (
        "assumed: 1,024 of 1,280 multiply-adds, those of dense operators over the same memory, for com.example.FancyMix (mix)"
    )
    counted = count_model(str(path)).lines()
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
        ([node("Reshape", "x a", "r"), node("Transpose", "r", "t", perm=[0, 1, 4, 2, 5, 3]), node("Reshape", "t b", "y")], ["shuffle"]),
        ([node("Reshape", "x c", "r"), node("Transpose", "r", "t", perm=[0, 2, 1]), node("Relu", "t", "y")], ["activation"]),
        ([node("Reshape", "x c", "r"), node("Transpose", "r", "t", perm=[0, 2, 1]), node("Reshape", "t d", "y")], ["copy"]),
    ],
)
def test_movements(tmp_path: Path, nodes: list[NodeProto], expected: list[str]) -> None:
    shapes = {"a": np.array([1, 3, 2, 2, 4, 4]), "b": np.array([1, 3, 8, 8]), "c": np.array([1, 12, 16]), "d": np.array([1, 192])}
    table = table_of_file(write_graph(tmp_path / "graph.onnx", nodes, {"x": (1, 12, 4, 4)}, ["y"], shapes)).table
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
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w8 s z8", "w"),
        node("Conv", "d w", "c"),
        node("QuantizeLinear", "c s z", "cq"),
        node("DequantizeLinear", "cq s z", "cd"),
        node("Exp", "cd", "y"),
    ]
    scale = np.array(0.1, np.float32)
    weights = {"s": scale, "z": np.array(3, np.uint8), "z8": np.array(0, np.int8), "w8": np.zeros((8, 2, 1, 1), np.int8)}
    read = table_of_file(write_graph(tmp_path / "graph.onnx", nodes, {"x": (1, 2, 4, 4)}, ["y"], weights))
    assert [(row.operation, read.precisions[row.name]) for row in read.table.operators] == [
        ("quantize", "int8"),
        ("convolution", "int8"),
        ("exp", "fp32"),
    ]
    # Between two float operators the pair changes nothing but is executed.
    pair = [node("Exp", "x", "e"), node("QuantizeLinear", "e s z", "q"), node("DequantizeLinear", "q s z", "d"), node("Sin", "d", "y")]
    read = table_of_file(write_graph(tmp_path / "graph.onnx", pair, {"x": (1, 2, 4, 4)}, ["y"], {"s": scale, "z": weights["z"]}))
    assert [row.operation for row in read.table.operators] == ["exp", "quantize", "dequantize", "sin"]


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


def of_transformers(name: str) -> OperatorTable:
    """A network of the library transformers in its default configuration, without a head, on a picture of 224x224."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
    return operator_table(model, (1, 3, 224, 224))


def test_networks_of_transformers_hold_no_unknown_work() -> None:
    cases = {
        "ResNet": 4.1e9,  # published multiply-adds of the default configurations, without their classifiers
        "MobileNetV2": 0.3e9,
        "ViT": 17.6e9,
        "ConvNext": 4.5e9,
        "Swin": 4.5e9,
    }
    for name, published in cases.items():
        table = of_transformers(name)
        assert not table.unknown, name
        assert table.macs == pytest.approx(published, rel=0.06), name
        largest = max(row.elements_written for row in table.operators)
        assert largest <= table.planned_peak_elements <= 2 * table.peak_activation_elements, name


def test_a_pyramid_of_attention_by_hand() -> None:
    """Segformer: four stages of shrinking images, in each attention whose keys are of a smaller image still, and a 3x3 mix inside the layers."""
    table = of_transformers("Segformer")
    assert not table.unknown
    macs, channels, side = 0, 3, 224
    for kernel, stride, width, reduction in ((7, 4, 32, 8), (3, 2, 64, 4), (3, 2, 160, 2), (3, 2, 256, 1)):
        side //= stride
        tokens, keys = side**2, (side // reduction) ** 2
        macs += tokens * width * channels * kernel**2
        reduced = keys * (reduction * width) * (reduction * width) if reduction > 1 else 0
        attention = 2 * tokens * width**2 + 2 * keys * width**2 + 2 * tokens * keys * width
        mixed = 2 * tokens * width * 4 * width + 9 * tokens * 4 * width
        macs += 2 * (reduced + attention + mixed)  # two layers a stage
        channels = width
    assert table.macs == macs == 452_211_200


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
