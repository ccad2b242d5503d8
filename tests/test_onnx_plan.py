"""ONNX files hold the plan: every operator in its precision, with its weights, under its name, and nothing cast twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_plans import int8_plan
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, reference_program
from mcompress.export import onnx as backend
from mcompress.export import parity
from mcompress.export.backend import Written
from mcompress.export.onnx_host import session_options
from mcompress.export.onnx_naming import operators_named
from mcompress.export.onnx_reading import operators_of
from mcompress.targets.exports import OnnxConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 8, 8)
INT8: Precision = "int8"
FP16: Precision = "fp16"
FP32: Precision = "fp32"


class Several(nn.Module):
    """Operators that become one node, several nodes, or a part of one; and names that the exporter gives anew (mean, std, sqrt)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.linear, self.up, self.last = nn.Linear(8, 8), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(functional.pixel_unshuffle(x, 2)))
        y = functional.gelu(self.second(y))
        y = self.third(y) * functional.adaptive_avg_pool2d(y, 1)
        left, right = y.chunk(2, 1)
        y = torch.cat((right, left), 1)
        t = self.linear(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)
        t = t / (t.std(1, keepdim=True) + 1.0) + torch.sqrt(y.mean(1, keepdim=True).abs() + 1.0)
        return functional.pixel_shuffle(self.last(functional.max_pool2d(self.up(t), 2)), 2)


@dataclass(frozen=True)
class Made:
    plan: PrecisionPlan
    written: Written
    model: onnx.ModelProto
    network: nn.Module


def images(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(4)
    return [(torch.rand(SHAPE, generator=source) * 255).round() / 255 for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return Several().eval()


@pytest.fixture(scope="module")
def all_int8(network: nn.Module) -> PrecisionPlan:
    return int8_plan(network, images(3))


Choice = Callable[[int, PlannedOperator], Precision]


def kept_int8(then: Choice) -> Choice:
    """What cannot be INT8 in the plan stays fp16."""
    return lambda at, operator: then(at, operator) if operator.precision == INT8 else FP16


CHOICES: dict[str, Choice] = {
    "int8": lambda _, operator: operator.precision,
    "fp16": lambda *_: FP16,
    "fp32": lambda *_: FP32,
    "blocks": kept_int8(lambda at, _: (INT8, FP16, FP32)[at // 3 % 3]),
    "alternating": lambda at, operator: (FP16, FP32)[at % 2],
}


@pytest.fixture(scope="module")
def made(network: nn.Module, all_int8: PrecisionPlan, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    folder, kept = tmp_path_factory.mktemp("onnx"), dict[str, Made]()

    def make(name: str) -> Made:
        if name not in kept:
            chosen = tuple(replace(operator, precision=CHOICES[name](at, operator)) for at, operator in enumerate(all_int8.operators))
            plan = replace(all_int8, operators=with_fused_relu(chosen))
            written = backend.write(OnnxConfig(), network, {"input": images(1)[0]}, plan, folder / name)
            kept[name] = Made(plan, written, onnx.load(str(written.path)), network)
        return kept[name]

    return make


def with_fused_relu(operators: tuple[PlannedOperator, ...]) -> tuple[PlannedOperator, ...]:
    """A ReLU as the convolution in front of it."""
    found = list(operators)
    for at, operator in enumerate(found):
        if operator.kind == "relu":
            found[at] = replace(operator, precision=found[at - 1].precision)
    return tuple(found)


@pytest.mark.parametrize("name", CHOICES)
def test_every_operator_is_in_the_file_as_planned(name: str, made: Callable[[str], Made]) -> None:
    found = made(name)
    planned = {operator.name: operator.precision for operator in found.plan.operators}
    seen: dict[str, set[str]] = {}
    for operator in found.written.operators:
        for stands_for in operator.stands_for:
            seen.setdefault(stands_for, set()).add(operator.precision)
    assert {key: {value} for key, value in planned.items()} == seen
    assert sum(found.written.precision_counts.values()) == len(found.written.operators) == found.written.coverage.total
    assert not [fallback for fallback in found.written.fallbacks if "in the file, computed in fp32 here" not in fallback.reason]


def test_names_are_those_of_the_network_and_not_the_exporters(made: Callable[[str], Made]) -> None:
    operators = made("fp32").written.operators
    kinds_of = {name: [operator.kind for operator in operators if operator.stands_for == (name,)] for name in ("sqrt", "mean", "adaptive_avg_pool2d")}
    assert kinds_of == {"sqrt": ["Sqrt"], "mean": ["ReduceMean"], "adaptive_avg_pool2d": ["ReduceMean"]}
    assert {operator.kind for operator in operators if operator.stands_for == ("std",)} > {"ReduceMean", "Sqrt", "Div"}
    assert [operator.kind for operator in operators if operator.stands_for == ("gelu",)] == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert [operator.stands_for for operator in operators if operator.kind == "Slice"] == [("slice_1",), ("slice_2",)]
    assert len({operator.name for operator in operators}) == len(operators)
    assert operators_named("node_a+b/Mul_2") == ("a", "b")
    assert operators_named("cast") == ()


@pytest.mark.parametrize("name", CHOICES)
def test_weights_have_the_type_of_their_operator(name: str, made: Callable[[str], Made]) -> None:
    found = made(name)
    held = {item.name: item for item in found.model.graph.initializer}
    writers = {output: node for node in found.model.graph.node for output in node.output}
    exact = {parameter.detach().numpy().astype(np.float16).tobytes() for parameter in found.network.parameters() if parameter.ndim == 4}
    weighted = [node for node in found.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(weighted) == 5
    for node in weighted:
        precision = found.plan.precision_of(operators_named(node.name)[0])
        source = writers[node.input[1]].input[0] if node.input[1] in writers else node.input[1]
        bias = writers[node.input[2]].input[0] if node.input[2] in writers else node.input[2]
        expected = {"int8": ("int8", "int32"), "fp16": ("float16", "float16"), "fp32": ("float32", "float32")}[precision]
        assert tuple(numpy_helper.to_array(held[name]).dtype.name for name in (source, bias)) == expected
        if precision == "fp16":
            assert numpy_helper.to_array(held[source]).tobytes() in exact


def test_file_size_follows_from_the_plan(made: Callable[[str], Made]) -> None:
    def bytes_of_weights(name: str) -> int:
        return sum(numpy_helper.to_array(item).nbytes for item in made(name).model.graph.initializer if np.prod(item.dims) >= 64)

    weights = sum(parameter.numel() for parameter in made("fp32").network.parameters() if parameter.ndim > 1)
    assert bytes_of_weights("fp32") == 4 * weights
    assert bytes_of_weights("fp16") == 2 * weights
    assert bytes_of_weights("int8") == weights
    shares = Counter({"int8": 0, "fp16": 0, "fp32": 0})
    found = made("blocks")
    program = export_program(found.network, images(1)[0])
    by_name = {node.name: node for node in program.graph.nodes}
    for operator in found.plan.operators:
        if operator.kind in ("conv2d", "conv_transpose2d", "linear"):
            weight = by_name[operator.name].args[1]
            shares[operator.precision] += weight.meta["val"].numel()
    assert all(shares.values())
    assert bytes_of_weights("blocks") == shares["int8"] + 2 * shares["fp16"] + 4 * shares["fp32"]


@pytest.mark.parametrize("name", CHOICES)
def test_a_tensor_is_cast_once_and_only_between_precisions(name: str, made: Callable[[str], Made]) -> None:
    graph = made(name).model.graph
    writers = {output: node for node in graph.node for output in node.output}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    for node in casts:
        before = writers.get(node.input[0])
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        assert before is None or before.op_type != "Cast"
        assert readers or node.output[0] == "output"
        assert not any(reader.op_type == "Cast" for reader in readers)
    if name == "fp16":
        assert sorted(node.input[0] for node in casts) == ["input", "output_fp16"]  # one chain, cast at its ends alone
    assert bool(casts) == (name != "fp32")


@pytest.mark.parametrize("name", CHOICES)
def test_the_file_computes_what_the_reference_computes(name: str, made: Callable[[str], Made]) -> None:
    found = made(name)
    record = parity.int8_parity(
        backend.load(found.written.path, 1), reference_program(found.network, images(1)[0], found.plan), [(images(4)[3].numpy(),)], 45
    )
    assert record.passed, record


def test_fp16_numbers_are_those_of_fp16_weights(made: Callable[[str], Made]) -> None:
    found, value = made("fp16"), images(4)[3]
    halved = Several().eval()
    halved.load_state_dict({key: tensor.half().float() for key, tensor in found.network.state_dict().items()})
    with torch.no_grad():
        expected = halved(value).numpy()
        wide = found.network(value).numpy()
    got = backend.load(found.written.path, 1).run(value.numpy())
    assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()
    assert 0 < np.abs(got - wide).max() < 5e-3 * np.abs(wide).max()


def test_linear_layers_are_computed_in_integers(made: Callable[[str], Made], tmp_path: Path) -> None:
    found = made("int8")
    assert {(operator.kind, operator.computed) for operator in found.written.operators if operator.stands_for == ("linear",)} == {
        ("MatMul", "int8"),
        ("Add", "int8"),
    }
    options = session_options("default", 1)
    options.optimized_model_filepath = str(tmp_path / "made_of_it.onnx")
    onnxruntime.InferenceSession(str(found.written.path), options, providers=["CPUExecutionProvider"])
    assert Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)["QGemm"] == 1


def test_what_is_computed_wider_than_written_is_said(made: Callable[[str], Made]) -> None:
    written = made("fp16").written
    wide = {operator.name for operator in written.operators if operator.computed != "fp16"}
    assert all(operator.precision == "fp16" for operator in written.operators)
    said = {fallback.what: fallback.reason for fallback in written.fallbacks}
    assert {name for operator in written.operators if operator.name in wide for name in operator.stands_for} == set(said)
    assert all("onnxruntime has no fp16 kernel" in reason for reason in said.values())
    assert written.coverage.by_unit == Counter(f"cpu {operator.computed}" for operator in written.operators)
    moving = [operator for operator in written.operators if operator.kind == "Concat"]
    assert [operator.computed for operator in moving]


def test_float_files_name_their_operators_too(network: nn.Module, tmp_path: Path) -> None:
    written = backend.write(OnnxConfig(), network, {"input": images(1)[0]}, None, tmp_path / "float")
    named = {name for operator in written.operators for name in operator.stands_for}
    assert named == {node.name for node in kinds.operators(export_program(network, images(1)[0]).graph)}
    assert written.operators == operators_of(written.path)
    assert all(operator.precision == operator.computed == "fp32" and not operator.reason for operator in written.operators)
    assert not written.fallbacks
    value = images(4)[3].numpy()
    found = backend.intermediates(written.path, [value], written.operators)
    assert set(found) == {operator.output for operator in written.operators}
    np.testing.assert_allclose(found["output"], backend.load(written.path, 1).run(value), atol=1e-6)


@pytest.mark.parametrize("name", ["int8", "blocks", "fp16"])
def test_intermediates_are_the_values_of_the_operators(name: str, made: Callable[[str], Made]) -> None:
    found, value = made(name), images(4)[3]
    values = backend.intermediates(found.written.path, [value.numpy()], found.written.operators)
    assert set(values) == {operator.output for operator in found.written.operators if operator.output is not None}
    last = found.written.operators[-1].output
    assert last is not None
    whole = backend.load(found.written.path, 1).run(value.numpy())
    step = found.plan.ranges["pixel_shuffle"].scale if found.plan.precision_of("pixel_shuffle") == "int8" else 0.0
    assert np.abs(values[last] - whole).max() <= step + 2e-3
    if name == "int8":
        np.testing.assert_array_equal(values[last], whole)  # integer kernels stay integer kernels

    # Against the reference, operator by operator: every value that the fake-quantized graph computes.
    reference = reference_program(found.network, value, found.plan)
    expected: dict[str, np.ndarray] = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                expected[n.name] = result.detach().numpy()
            return result

    with torch.no_grad():
        Keeping(reference).run(value)
    compared = 0
    for operator in found.written.operators:
        steps = [other for other in found.written.operators if other.stands_for == operator.stands_for]
        if operator.output is None or len(operator.stands_for) != 1 or operator is not steps[-1]:
            continue
        (stands_for,) = operator.stands_for
        range_of = found.plan.ranges.get(stands_for)
        allowed = 0.02 * np.abs(expected[stands_for]).max() + (2 * range_of.scale if operator.precision == "int8" and range_of else 0.0)
        assert np.abs(values[operator.output] - expected[stands_for]).max() <= allowed, stands_for
        compared += 1
    assert compared > len(found.plan.operators) // 2
