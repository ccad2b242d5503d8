"""ExecuTorch files: every operator in its planned precision, read back from the file; files that are damaged; the result of one operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import simulate
from mcompress.compress.quantize.splits import spell_out_splits
from mcompress.errors import ExportError
from mcompress.export import executorch, executorch_check
from mcompress.export.backend import Written, captured
from mcompress.export.executorch_file import read
from mcompress.export.executorch_half import CAST, compute_in_half, separate_dequantize_nodes
from mcompress.export.executorch_moves import keep_moves_in_delegate
from mcompress.export.executorch_prefix import prefix_output
from mcompress.export.spelled_out import STANDS_FOR
from mcompress.targets.exports import ExecuTorchConfig

SHAPE = (1, 3, 16, 16)
PLANNED: dict[str, Precision] = {
    "conv2d": "int8",
    "leaky_relu": "int8",
    "conv2d_1": "fp16",
    "relu": "fp16",
    "mul": "fp16",
    "add": "fp32",
    "linear": "fp16",
    "conv_transpose2d": "int8",
    "slice_1": "fp16",
    "slice_2": "fp16",
    "cat": "fp16",
    "pixel_shuffle": "fp16",
}


class Small(nn.Module):
    """Convolutions of three kinds, a linear layer over the last dimension, a split, a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.row, self.up = nn.Linear(16, 16), nn.ConvTranspose2d(8, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first(x), 0.2)
        z = y + functional.relu(self.second(y)) * 0.5
        low, high = torch.split(self.up(self.row(z)), [4, 4], 1)
        return functional.pixel_shuffle(torch.cat((high, low), 1), 2)


@dataclass(frozen=True)
class Case:
    model: nn.Module
    example: Tensor
    plan: PrecisionPlan
    written: Written
    float_file: Written


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(3)
    model, inputs = Small().eval(), [torch.rand(SHAPE) for _ in range(3)]
    plan = int8_plan(model, inputs)
    assert {operator.name for operator in plan.operators} >= set(PLANNED)
    plan = replace(plan, operators=tuple(replace(operator, precision=PLANNED.get(operator.name, operator.precision)) for operator in plan.operators))
    folder = tmp_path_factory.mktemp("executorch")
    with captured(folder / "log.txt"):
        mixed = executorch.write(ExecuTorchConfig(), model, {"input": inputs[0]}, plan, folder / "mixed")
        floats = executorch.write(ExecuTorchConfig(), model, {"input": inputs[0]}, None, folder / "float")
    return Case(model, inputs[0], plan, mixed, floats)


@pytest.mark.export
def test_every_operator_has_its_planned_precision_in_one_delegate(case: Case) -> None:
    held = {name: {o.precision for o in case.written.operators if name in o.stands_for} for name in PLANNED}
    planned = {operator.name: operator.precision for operator in case.plan.operators}
    assert held == {name: {planned[name]} for name in PLANNED}
    assert set(case.written.coverage.by_unit) == {"xnnpack"}
    assert case.written.coverage.total == sum(case.written.precision_counts.values()) == len(case.written.operators)
    # All that is not as planned: what XNNPACK wants of the one half convolution.
    assert [fallback.what for fallback in case.written.fallbacks] == ["conv2d_1"]
    assert f"({2 * 8 * 9} bytes more)" in case.written.fallbacks[0].reason


@pytest.mark.export
def test_a_float_file_is_read_back_as_completely(case: Case) -> None:
    stood_for = {name for operator in case.float_file.operators for name in operator.stands_for}
    assert stood_for == {operator.name for operator in case.plan.operators}
    assert {operator.precision for operator in case.float_file.operators} == {"fp32"}
    assert case.float_file.fallbacks == ()


@pytest.mark.export
def test_runners_of_other_numbers_of_threads_do_not_pull_the_pool_from_under_each_other(case: Case) -> None:
    """A loaded method keeps the address of the pool of threads, so none that is loaded may outlive its pool: that read freed memory, and crashed."""
    from executorch.extension.pybindings import _portable_lib

    value = case.example.numpy()
    first = executorch.load(case.float_file.path, 2)
    expected = first.run(value)
    for threads in (1, 3, 2, 1):
        second = executorch.load(case.float_file.path, threads)
        assert np.allclose(second.run(value), expected, atol=1e-5)
        assert (first._method is None) == (threads != 2)
        assert np.allclose(first.run(value), expected, atol=1e-5)
        assert _portable_lib._threadpool_get_thread_count() == 2


@pytest.mark.export
def test_linear_weights_are_stored_as_half(case: Case) -> None:
    file = read(case.written.path)
    (linear,) = [node for node in file.nodes if node.kind == "XNNFullyConnected"]
    assert linear.weight is not None
    stored = file.tensors[linear.weight]
    assert (stored.type, stored.content) == ("fp16", case.model.row.weight.detach().half().numpy().tobytes())


@pytest.mark.export
def test_a_prefix_gives_an_operators_own_result(case: Case, tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        first = prefix_output(case.model, case.plan, "conv2d", [case.example.numpy()])
        half = prefix_output(case.model, case.plan, "mul", [case.example.numpy()])
        with pytest.raises(ExportError, match="no operator 'nothing'"):
            prefix_output(case.model, case.plan, "nothing", [case.example.numpy()])
    found = case.plan.ranges["conv2d"]
    steps = first / found.scale
    assert np.abs(steps - steps.round()).max() < 1e-3  # integers times the plan's scale
    y = case.model.first(case.example).detach()
    assert np.abs(first - y.numpy()).max() < 0.03 * float(y.abs().max())
    assert half.dtype == np.float32
    assert np.array_equal(half.astype(np.float16).astype(np.float32), half)
    assert half.shape == (1, 8, 16, 16)


@pytest.mark.export
def test_damaged_files_are_errors(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch_check, "_whole", set())
    whole = case.written.path.read_bytes()
    for name, content, said in (("empty", b"", "is empty"), ("cut", whole[: len(whole) // 2], "cannot load cut.pte")):
        path = tmp_path / f"{name}.pte"
        path.write_bytes(content)
        with pytest.raises(ExportError, match=said):
            executorch.load(path, 1)
    with pytest.raises(ExportError, match="there is no file"):
        executorch.load(tmp_path / "gone.pte", 1)
    executorch_check.check_loadable(case.written.path)


def traced(function: nn.Module, *given: Tensor) -> fx.GraphModule:
    module = torch.export.export(function, given).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    spell_out_splits(module.graph)
    module.recompile()
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.meta[STANDS_FOR] = (node.name,)
    return module


class Moves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(functional.pixel_shuffle(x, 2), [1, 1], 1)
        c = functional.interpolate(torch.cat((b, a), 1), scale_factor=(3.0, 2.0))
        return functional.pixel_unshuffle(c.transpose(2, 3), 2).flatten(1).unsqueeze(-1)


def test_moves_are_rewritten_bit_for_bit() -> None:
    value = torch.rand(2, 8, 4, 6)
    module = traced(Moves().eval(), value)
    keep_moves_in_delegate(module)
    assert torch.equal(module(value), Moves()(value))
    kinds = {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
    aten = {f"aten.{name}" for name in ("reshape.default", "permute_copy.default", "slice.Tensor", "cat.default", "mul.Tensor")}
    assert kinds == aten | {"mcompress.pixels.default", "mcompress.image.default"}


class Resized(nn.Module):
    """Moves of what a convolution wrote and of the network's own input, in front of a convolution and of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(20, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.interpolate(functional.relu(self.first(x)), scale_factor=(1.0, 2.0))
        own = functional.interpolate(functional.pixel_unshuffle(x, 2), scale_factor=(2.0, 4.0))
        return functional.pixel_shuffle(self.last(torch.cat((features, own), 1)), 2)


@pytest.mark.export
@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_moves_of_images_of_either_layout_are_exact_in_the_runtime(precision: Precision, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model, inputs = Resized().eval(), [torch.rand(2, 3, 6, 10) for _ in range(2)]
    plan = int8_plan(model, inputs)
    plan = replace(plan, operators=tuple(replace(operator, precision=precision) for operator in plan.operators))
    with captured(tmp_path / "log.txt"):
        written = executorch.write(ExecuTorchConfig(), model, {"input": inputs[0]}, None if precision == "fp32" else plan, tmp_path / "moved")
        found = executorch.load(written.path, 1).run(inputs[0].numpy())
    assert set(written.coverage.by_unit) == {"xnnpack"}
    assert {operator.precision for operator in written.operators} == {precision}
    moves = {name for operator in written.operators for name in operator.stands_for}
    assert {"upsample_nearest2d", "upsample_nearest2d_1", "pixel_unshuffle", "pixel_shuffle"} <= moves
    graph = graph_of(export_program(model, inputs[0]))
    with torch.no_grad():
        exact = (graph(inputs[0]) if precision == "fp32" else simulate(graph, plan, inputs[0])).numpy()
    step = plan.ranges["conv2d_1"].scale if precision == "int8" else float(np.abs(exact).max()) * {"fp16": 2e-3, "fp32": 1e-6}[precision]
    assert np.abs(found - exact).max() <= 1.01 * step


class Column(nn.Module):
    """A resize and a shuffle of images of one column."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, (1, 10)), nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.last(functional.interpolate(self.first(x), scale_factor=(2.0, 3.0))), 2)


@pytest.mark.export
def test_images_of_one_column_stay_int8(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model, inputs = Column().eval(), [torch.rand(1, 3, 6, 10) for _ in range(2)]
    with captured(tmp_path / "log.txt"):
        written = executorch.write(ExecuTorchConfig(), model, {"input": inputs[0]}, int8_plan(model, inputs), tmp_path / "column")
    assert {operator.precision for operator in written.operators} == {"int8"}
    assert written.fallbacks == ()


class Normed(nn.Module):
    """ExecuTorch decomposes the normalization, and begins with a reshape of the tensor that is resized too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        normed = functional.instance_norm(y.flatten(2)).reshape(y.shape)  # of rows: that of images is written in steps
        return functional.interpolate(normed, scale_factor=2.0) + self.last(functional.interpolate(y, scale_factor=2.0))


@pytest.mark.export
def test_a_reshape_that_is_none_of_an_image_is_not_taken_for_one(tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        written = executorch.write(ExecuTorchConfig(), Normed().eval(), {"input": torch.rand(1, 3, 6, 10)}, None, tmp_path / "normed")
    (normalization,) = [operator for operator in written.operators if operator.unit == "portable"]
    assert "instance_norm" in normalization.stands_for
    resized = [operator.kind for operator in written.operators if operator.stands_for == ("upsample_nearest2d_1",)]
    assert resized == ["XNNStaticReshape"] * 2 + ["XNNMultiply"] + ["XNNStaticReshape"] * 2


class Silu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x) * 2.0 + x


def test_half_operators_compute_half_tensors_between_two_casts() -> None:
    value = torch.randn(64)
    module = traced(Silu().eval(), value)
    compute_in_half(module, lambda name: "fp32" if name == "add" else "fp16")
    separate_dequantize_nodes(module.graph)
    assert sum(node.target == CAST for node in module.graph.nodes) == 2
    h = value.half()
    assert torch.equal(module(value), (h * torch.sigmoid(h) * torch.tensor(2.0).half()).float() + value)
