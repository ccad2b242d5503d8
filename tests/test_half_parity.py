"""Files that are FP16 throughout: the networks that they are compared with, and that a file with a wrong weight does not pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.program import export_program
from mcompress.compress.quantize.simulate import half
from mcompress.errors import MissingBackendError
from mcompress.export import coreml
from mcompress.export.backend import Port, Runner, captured
from mcompress.export.mil.blob import Blob
from mcompress.export.mil.program import Constant, read_program
from mcompress.export.parity import HALF_REFERENCE, INT8_METRIC, ROUNDED_REFERENCE, Halved, half_parity
from mcompress.record import ParityRecord
from mcompress.targets.exports import CoreMLConfig

CONFIG = CoreMLConfig()
OPERATORS = (("conv2d", "first", 1.0), ("conv2d_1", "second", 0.3), ("conv2d_2", "twice", 0.7), ("conv2d_3", "twice", 1.0), ("conv2d_4", "last", 0.2))
"""Name of the operator, of its module, and the scalar behind it that the converter multiplies into its weights."""


class Network(nn.Module):
    """Scalars behind a convolution and elsewhere, a slope, a weight that is read twice, an output of narrow range."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first(x), 0.2)
        y = y + self.second(y) * 0.3
        y = self.twice(y) * 0.7 + self.twice(y + 0.1)
        return torch.sigmoid(self.last(y) * 0.2)


def pictures() -> list[NDArray[np.float32]]:
    return [torch.rand(1, 3, 16, 12, generator=torch.Generator().manual_seed(seed)).numpy() for seed in (5, 6)]


def inputs() -> list[tuple[NDArray[np.float32]]]:
    return [(picture,) for picture in pictures()]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(4)
    return Network().eval()


@pytest.fixture(scope="module")
def halved(network: nn.Module) -> Halved:
    program = export_program(network, torch.from_numpy(pictures()[0]))
    return Halved(half_simulated(program), half_constants(program), CONFIG.half_limit_db)


@pytest.fixture(scope="module")
def package(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    with captured(folder / "log.txt"):
        return coreml.write(CONFIG, network, {"input": torch.from_numpy(pictures()[0])}, None, folder / "net").path


def judged(path: Path, halved: Halved) -> ParityRecord:
    return half_parity(coreml.load(path, 1), halved, inputs(), CONFIG.float_limit)


def blob_of(path: Path, name: str) -> Blob:
    """Where the weights of the operator `name` lie."""
    main = read_program(path).main
    (operation,) = [each for each in main.operations if each.name == name]
    (weight,) = operation.inputs["weight"]
    constant = weight if isinstance(weight, Constant) else main.producers()[weight].attributes["val"]
    assert isinstance(constant.held, Blob)
    return constant.held


def with_weights(path: Path, to: Path, name: str, factors: NDArray[np.float32] | float, *, largest_only: bool = False) -> Path:
    """A copy of the package with the weights of the operator `name` multiplied, all or the largest."""
    shutil.copytree(path, to)
    blob = blob_of(to, name)
    values = blob.read().copy()
    where = np.abs(values) == np.abs(values).max() if largest_only else np.ones(values.shape, dtype=bool)
    values[where] = (values[where].astype(np.float32) * factors).astype(values.dtype)
    content = bytearray(blob.file.read_bytes())
    content[blob.start : blob.start + blob.size_bytes] = values.tobytes()
    blob.file.write_bytes(bytes(content))
    return to


def test_constants_are_rounded_as_the_converter_rounds_them(network: nn.Module) -> None:
    program = export_program(network, torch.from_numpy(pictures()[0]))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    rounded = half_constants(program)
    read = {
        node.name: [rounded.get_buffer(arg.target) if "." not in arg.target else rounded.get_parameter(arg.target) for arg in node.args[1:3]]
        for node in rounded.graph.nodes
        if "conv2d" in node.name
    }
    for operator, name, factor in OPERATORS:
        for part, found in zip(("weight", "bias"), read[operator], strict=True):
            torch.testing.assert_close(found, half(before[f"{name}.{part}"] * factor) / factor, rtol=0, atol=0)
    scalars = [argument for node in rounded.graph.nodes for argument in node.args[1:] if isinstance(argument, float)]
    assert sorted(scalars) == sorted([0.2, 0.3, 0.7, float(np.float16(0.1)), 0.2])
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict.items())


@pytest.mark.export
def test_the_package_computes_in_fp32_what_the_rounded_network_computes(package: Path, halved: Halved) -> None:
    runner = coreml.load(package, 1)
    assert isinstance(runner, coreml._CoreMLRunner) or "simulated FP16" in runner.runtime
    value = pictures()[0]
    expected = halved.rounded(torch.from_numpy(value)).detach().numpy()
    found = coreml._evaluator(package, "fp32").run(value)
    assert float(np.abs(found - expected).max()) < 2e-7


@pytest.mark.export
def test_a_right_file_passes_both_ways(package: Path, halved: Halved) -> None:
    record = judged(package, halved)
    assert record.passed
    assert record.value is not None
    assert record.value > 60
    assert (record.reference, record.metric, record.limit) == (HALF_REFERENCE, INT8_METRIC, 40.0)
    assert f"of the range of {ROUNDED_REFERENCE}" in record.runtime


@pytest.mark.export
@pytest.mark.parametrize(
    ("name", "largest_only"), [("conv2d", False), ("mul", False), ("conv2d_3", False), ("mul_2", False), ("conv2d", True), ("mul_2", True)]
)
def test_a_file_whose_weights_are_one_percent_off_fails(name: str, largest_only: bool, package: Path, halved: Halved, tmp_path: Path) -> None:
    record = judged(with_weights(package, tmp_path / "wrong.mlpackage", name, 1.01, largest_only=largest_only), halved)
    assert record.passed is False
    assert record.reference == ROUNDED_REFERENCE
    assert record.value is not None
    assert record.value > record.limit


class OnlyAsWritten:
    """A runtime without FP32 arithmetic."""

    def __init__(self, path: Path) -> None:
        self._runner = coreml.load(path, 1)
        self.runtime, self.inputs, self.outputs = "a device", self._runner.inputs, self._runner.outputs

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        return self._runner.execute(*encoded)

    def run(self, *values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._runner.run(*values)


@pytest.mark.export
def test_without_fp32_arithmetic_the_file_is_judged_as_written(package: Path, halved: Halved, tmp_path: Path) -> None:
    right = half_parity(OnlyAsWritten(package), halved, inputs(), CONFIG.float_limit)
    assert (right.passed, right.runtime) == (True, "a device")
    wrong = half_parity(OnlyAsWritten(with_weights(package, tmp_path / "wrong.mlpackage", "mul_2", 3.0)), halved, inputs(), CONFIG.float_limit)
    assert (wrong.passed, wrong.reference) == (False, HALF_REFERENCE)


class WithStrangeOperators(OnlyAsWritten):
    """A runtime of a file that nothing else can compute."""

    def in_fp32(self) -> Runner:
        raise MissingBackendError("it has operations that only Core ML knows: 'strange'")


@pytest.mark.export
def test_a_comparison_in_fp32_that_could_not_be_made_is_told(package: Path, halved: Halved) -> None:
    record = half_parity(WithStrangeOperators(package), halved, inputs(), CONFIG.float_limit)
    assert (record.passed, record.reference) == (True, HALF_REFERENCE)
    assert record.runtime.startswith(f"a device; not compared with {ROUNDED_REFERENCE}, ")
    assert record.runtime.endswith("only Core ML knows: 'strange'")
