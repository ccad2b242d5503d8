"""Real files of the four backends: written, read back, executed by their runtimes, compared with PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, reference_program
from mcompress.errors import ExportError
from mcompress.export import backend_named, backend_of, parity
from mcompress.export.backend import Written, captured
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

CONFIGS: tuple[ExportConfig, ...] = (OnnxConfig(), TFLiteConfig(), ExecuTorchConfig(), CoreMLConfig())
EXECUTED = CONFIGS[:3]
SHAPE = (1, 3, 24, 32)


class UserNetwork(nn.Module):
    """Not of our zoo: stride, batch norm, LeakyReLU, transposed convolution, ReLU6, pooling, nearest resize, a gate and a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.side, self.last = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm(self.down(x)), 0.2)
        z = functional.interpolate(functional.max_pool2d(functional.relu(self.side(y)), 2), scale_factor=4.0)
        return torch.sigmoid(self.last(torch.cat((functional.relu6(self.up(y)), z), 1)) * 0.5)


def generator() -> nn.Module:
    network = mfagan(channels=8, blocks=((2, 8),))
    nn.init.normal_(network.tail.weight, std=0.05)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mfagan": generator, "user": UserNetwork, "rrdb": lambda: rrdb(features=8, blocks=1, growth=4)}


def images(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(11)
    coarse = [torch.rand(1, 3, 6, 8, generator=source) for _ in range(count)]
    return [(functional.interpolate(c, size=SHAPE[2:], mode="bicubic").clamp(0, 1) * 255).round() / 255 for c in coarse]


@dataclass(frozen=True)
class Case:
    model: nn.Module
    plan: PrecisionPlan
    reference: nn.Module


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Each network with a plan that makes everything INT8 that can be; RRDBNet is exported in float only."""
    made = {}
    for name, build in NETWORKS.items():
        torch.manual_seed(2)
        model, inputs = build().eval(), images(3)
        if name == "rrdb":
            made[name] = Case(model, PrecisionPlan((), {}), model)
            continue
        plan = int8_plan(model, inputs)
        made[name] = Case(model, plan, reference_program(model, inputs[0], plan))
    return made


@pytest.fixture(scope="module")
def write(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportConfig, str, str], Written]:
    """Write a file once and keep it for the module; a backend's chatter goes to a log."""
    folder, kept = tmp_path_factory.mktemp("export"), dict[tuple[str, str, str], Written]()

    def make(config: ExportConfig, name: str, variant: str) -> Written:
        key = (config.backend, name, variant)
        if key not in kept:
            case = cases[name]
            with captured(folder / "log.txt"):
                kept[key] = backend_of(config).write(
                    config, case.model, {"input": images(1)[0]}, None if variant == "float" else case.plan, folder / f"{name}-{variant}"
                )
        return kept[key]

    return make


def held_out() -> list[tuple[NDArray[np.float32]]]:
    return [(value.numpy(),) for value in images(6)[3:]]


@pytest.mark.export
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("config", EXECUTED, ids=lambda config: config.backend)
def test_float_files_compute_what_pytorch_computes(
    config: ExportConfig, name: str, cases: dict[str, Case], write: Callable[[ExportConfig, str, str], Written], tmp_path: Path
) -> None:
    written = write(config, name, "float")
    with captured(tmp_path / "log.txt"):
        record = parity.float_parity(backend_of(config).load(written.path, 1), cases[name].model, held_out(), config.float_limit)
    assert record.passed
    assert record.value is not None
    assert 0 < record.value < 1e-5  # two implementations of fp32 agree almost, but not to the last bit
    assert written.precision_counts["int8"] == written.precision_counts["fp16"] == 0
    assert written.coverage.total == written.precision_counts["fp32"] == sum(written.coverage.by_unit.values())


@pytest.mark.export
@pytest.mark.parametrize("name", ["mfagan", "user"])
@pytest.mark.parametrize("config", EXECUTED, ids=lambda config: config.backend)
def test_int8_files_compute_what_the_reference_computes(
    config: ExportConfig, name: str, cases: dict[str, Case], write: Callable[[ExportConfig, str, str], Written], tmp_path: Path
) -> None:
    written = write(config, name, "mixed")
    with captured(tmp_path / "log.txt"):
        runner = backend_of(config).load(written.path, 1)
        record = parity.int8_parity(runner, cases[name].reference, held_out(), config.int8_limit_db)
    assert record.passed, record
    assert runner.inputs == written.inputs
    assert runner.outputs == written.outputs
    if name == "mfagan":
        assert written.path.stat().st_size < write(config, name, "float").path.stat().st_size
    assert written.coverage.total == sum(written.precision_counts.values()) == sum(written.coverage.by_unit.values())


@pytest.mark.export
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.backend)
def test_the_generator_is_int8_throughout(config: ExportConfig, cases: dict[str, Case], write: Callable[[ExportConfig, str, str], Written]) -> None:
    written, plan = write(config, "mfagan", "mixed"), cases["mfagan"].plan
    assert plan.counts()["int8"] == len(plan.operators)
    floats = sum(count for precision, count in written.precision_counts.items() if precision != "int8")
    assert floats == 0, written
    if config.backend == "onnx":
        assert written.coverage.by_unit == {"cpu int8": written.coverage.total}
    elif config.backend != "coreml":
        assert written.coverage.by_unit == {"xnnpack": written.coverage.total}


@pytest.mark.export
@pytest.mark.parametrize("config", [OnnxConfig(), TFLiteConfig()], ids=lambda config: config.backend)
def test_what_stays_float_is_said(config: ExportConfig, write: Callable[[ExportConfig, str, str], Written]) -> None:
    written = write(config, "user", "mixed")
    said = {fallback.what: fallback.reason for fallback in written.fallbacks}
    assert "fp16" in said["sigmoid"]
    assert all(fallback.where == f"export {written.path.name}" for fallback in written.fallbacks)
    expected = {"onnx": "ConvTranspose", "tflite": "Armv8.2"}[config.backend]
    assert any(expected in reason for reason in said.values()), said


@pytest.mark.export
def test_nearest_resize_stays_in_the_executorch_delegate(write: Callable[[ExportConfig, str, str], Written]) -> None:
    assert set(write(ExecuTorchConfig(), "rrdb", "float").coverage.by_unit) == {"xnnpack"}


@pytest.mark.export
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.backend)
def test_interfaces_are_read_from_the_file(config: ExportConfig, cases: dict[str, Case], write: Callable[[ExportConfig, str, str], Written]) -> None:
    height, width = SHAPE[2:]
    for variant in ("float", "mixed"):
        written = write(config, "mfagan", variant)
        (given,), (result,) = written.inputs, written.outputs
        if config.backend == "tflite":
            assert (given.shape, result.shape) == ((1, height, width, 3), (1, 4 * height, 4 * width, 3))
            assert given.layout == result.layout == "NHWC"
            assert given.dtype == result.dtype == ("float32" if variant == "float" else "int8")
        else:
            assert (given.shape, result.shape) == (SHAPE, (1, 3, 4 * height, 4 * width))
            assert (given.layout, given.dtype, result.dtype) == ("NCHW", "float32", "float32")
            assert (given.name, result.name) == ("input", "output")
    if config.backend == "tflite":
        found = cases["mfagan"].plan.ranges["pixel_shuffle"]
        assert (given.scale, given.zero_point) == (pytest.approx(1 / 255), -128)
        assert (result.scale, result.zero_point) == (pytest.approx(found.scale), found.zero_point)


@pytest.mark.export
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.backend)
def test_files_name_no_folder_of_the_machine(config: ExportConfig, write: Callable[[ExportConfig, str, str], Written]) -> None:
    for variant in ("float", "mixed"):
        path = write(config, "mfagan", variant).path
        for file in [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]:
            content = file.read_bytes()
            assert b"site-packages" not in content
            assert str(Path.cwd()).encode() not in content
            assert str(path.parent).encode() not in content


@pytest.mark.export
@pytest.mark.parametrize("name", ["mfagan", "user"])
def test_coreml_weights_are_those_of_the_network(name: str, cases: dict[str, Case], write: Callable[[ExportConfig, str, str], Written]) -> None:
    from mcompress.export import coreml

    written = write(CoreMLConfig(), name, "float")
    assert set(written.precision_counts) == {"int8", "fp16", "fp32"}
    assert written.precision_counts["fp16"] == written.coverage.total
    other = NETWORKS[name]().eval()
    with pytest.raises(ExportError, match="are not in the saved package"):
        coreml._read_back(written.path, export_program(other, images(1)[0]), None)
    if not coreml.executes_here():
        assert "evaluator" in coreml.load(written.path, 1).runtime


@pytest.mark.export
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.backend)
def test_the_least_runtime_is_what_the_file_states(config: ExportConfig, write: Callable[[ExportConfig, str, str], Written]) -> None:
    for variant in ("float", "mixed"):
        least = write(config, "mfagan", variant).least_runtime
        if config.backend == "coreml":
            assert least == "iOS 17, macOS 14"
        elif config.backend == "tflite":
            assert re.fullmatch(r"TensorFlow Lite [12]\.\d+\.\d+", least or "")
        else:
            assert least is None


@pytest.mark.export
@pytest.mark.parametrize(("target", "least"), [("iOS16", "iOS 16, macOS 13"), ("iOS18", "iOS 18, macOS 15")])
def test_coreml_states_the_system_that_was_asked_for(target: str, least: str, cases: dict[str, Case], tmp_path: Path) -> None:
    config = CoreMLConfig.model_validate({"minimum_deployment_target": target})
    with captured(tmp_path / "log.txt"):
        written = backend_named("coreml").write(config, cases["user"].model, {"input": images(1)[0]}, None, tmp_path / "m")
    assert written.least_runtime == least


@pytest.mark.export
def test_coreml_int8_needs_ios_17(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["mfagan"]
    with captured(tmp_path / "log.txt"), pytest.raises(ExportError, match="iOS17"):
        backend_named("coreml").write(CoreMLConfig(minimum_deployment_target="iOS16"), case.model, {"input": images(1)[0]}, case.plan, tmp_path / "m")


@pytest.mark.export
def test_damaged_files_are_export_errors(tmp_path: Path) -> None:
    for config in EXECUTED:
        path = tmp_path / f"broken.{config.backend}"
        path.write_bytes(b"not a model" * 100)
        with captured(tmp_path / "log.txt"), pytest.raises(ExportError, match=r"(?i)export it again"):
            backend_of(config).load(path, 1)


def test_a_plan_survives_json(cases: dict[str, Case]) -> None:
    plan = cases["user"].plan
    assert PrecisionPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["ranges"]
    assert replace(plan, operators=()).counts() == {"int8": 0, "fp16": 0, "fp32": 0}
