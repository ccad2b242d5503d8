"""The trap of x86 processors without VNNI: recognised by an experiment, avoided by an exact mode, never blamed without both."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, load_model_from_string, numpy_helper
from torch import nn

from mcompress.export import onnx as backend
from mcompress.export import parity
from mcompress.export.backend import FloatArray, Port, Runner
from mcompress.export.onnx_host import Mode, exact_here, experiment, modes_to_use, saturating_convolution
from mcompress.export.onnx_session import OnnxRunner

QEMU = next(filter(None, map(shutil.which, ("qemu-x86_64-static", "qemu-x86_64"))), None)
HERE = Path(__file__).parent


def sums(model: bytes, given: NDArray[np.float32], *, saturating: bool) -> NDArray[np.float32]:
    """The experiment's convolution in integers; `saturating` as `vpmaddubsw` adds: pairs of products in 16 bits."""
    constants = {item.name: numpy_helper.to_array(item) for item in load_model_from_string(model).graph.initializer}
    weights = constants["weight"].astype(np.int64)[:, :, 0, 0]
    values = given.reshape(given.shape[1], -1).astype(np.int64)
    products = weights[:, :, None] * values[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    total = (np.clip(pairs, -32768, 32767) if saturating else pairs).sum(1)
    step = float(constants["step"])
    return (np.clip(np.round(total / step), 0, 255) * step).astype(np.float32).reshape(given.shape)


def test_every_pair_of_the_experiment_saturates_and_no_exact_sum_overflows() -> None:
    model, given, expected = saturating_convolution()
    weights = next(numpy_helper.to_array(item) for item in load_model_from_string(model).graph.initializer if item.name == "weight")
    least = int(weights.min()) * int(given.min()) * 2
    assert least > 32767
    np.testing.assert_array_equal(sums(model, given, saturating=False), expected)
    assert np.all(sums(model, given, saturating=True) < expected)
    assert expected.max() < 255 * 4096  # nothing is clipped, so every sum counts


@pytest.mark.parametrize(
    ("trapped", "used"),
    [
        ((), ("default", "exact", "unfused")),
        (("default",), ("exact", "unfused")),
        (("default", "exact"), ("unfused",)),
        (("default", "exact", "unfused"), ("default",)),
    ],
)
def test_a_made_up_runtime_is_judged_mode_by_mode(trapped: tuple[Mode, ...], used: tuple[Mode, ...]) -> None:
    def made_up_runtime(model: bytes, given: NDArray[np.float32], mode: Mode) -> NDArray[np.float32]:
        return sums(model, given, saturating=mode in trapped)

    found = experiment(made_up_runtime)
    assert found == {mode: mode not in trapped for mode in ("default", "exact", "unfused")}
    assert modes_to_use(found) == used


def test_one_wrong_value_is_enough() -> None:
    def made_up_runtime(model: bytes, given: NDArray[np.float32], mode: Mode) -> NDArray[np.float32]:
        result = sums(model, given, saturating=False)
        result[0, 3, 1, 2] += 4096 if mode == "default" else 0
        return result

    assert experiment(made_up_runtime) == {"default": False, "exact": True, "unfused": True}


def test_the_exact_mode_of_the_installed_runtime_is_exact() -> None:
    found = exact_here()
    assert found["exact"]
    assert found["unfused"]
    described = Path("/proc/cpuinfo")
    if platform.machine() in ("aarch64", "arm64") or (described.exists() and "vnni" in described.read_text()):
        assert found["default"]


@pytest.fixture
def convolution(tmp_path: Path) -> Path:
    path = tmp_path / "convolution.onnx"
    path.write_bytes(saturating_convolution()[0])
    return path


def test_load_takes_the_fastest_exact_mode_and_says_so(convolution: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, given, expected = saturating_convolution()
    for exact, said in (((True, True, True), "CPU"), ((False, True, True), "exact mode"), ((False, False, True), "without graph optimizations")):
        made_up = dict(zip(("default", "exact", "unfused"), exact, strict=True))
        monkeypatch.setattr("mcompress.export.onnx_session.exact_here", lambda made_up=made_up: made_up)
        runner = backend.load(convolution, 1)
        assert said in runner.runtime
        assert ("saturates" in runner.runtime) == (not exact[0])
        np.testing.assert_array_equal(runner.run(given), expected)
        assert isinstance(runner, parity.HostTrapped)
        assert len(list(runner.exact_alternatives())) == (0 if all(exact) else sum(exact) - 1)


class MadeUpRunner:
    """Adds an error to its input; a host whose exact modes have other errors."""

    inputs: tuple[Port, ...] = (Port("input", (1, 1, 2, 2), "float32", "NCHW"),)
    outputs: tuple[Port, ...] = inputs

    def __init__(self, runtime: str, error: float, *others: Runner) -> None:
        self.runtime, self._error, self._others = runtime, np.float32(error), others

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.asarray(encoded[0] + self._error)

    def run(self, *values: FloatArray) -> FloatArray:
        return np.asarray(self.execute(*values), dtype=np.float32)

    def exact_alternatives(self) -> Iterator[Runner]:
        yield from self._others


def test_a_host_artefact_needs_an_exact_mode_that_agrees() -> None:
    inputs = [(np.array([[[[0.0, 1.0], [2.0, 4.0]]]], dtype=np.float32),)]

    def record(runner: Runner) -> parity.ParityRecord:
        return parity.int8_parity(runner, nn.Identity(), inputs, 35.0)

    right, wrong = MadeUpRunner("exact mode", 0.001), MadeUpRunner("another mode", 0.4)
    mended = record(MadeUpRunner("default mode", 0.5, wrong, right))
    assert mended.passed
    assert mended.value == pytest.approx(10 * np.log10(21 / (4 * 1e-6)), rel=1e-3)
    assert mended.runtime == "exact mode (host artefact: 13.2 dB in default mode)"
    for runner in (MadeUpRunner("default mode", 0.5), MadeUpRunner("default mode", 0.5, wrong)):
        failed = record(runner)
        assert failed.passed is False
        assert failed.runtime == "default mode"
        assert failed.value == pytest.approx(13.2, abs=0.1)
    assert record(MadeUpRunner("default mode", 0.001, right)).runtime == "default mode"


@pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64" or sys.platform != "linux", reason="needs qemu-user (qemu-user-static) on x86-64 Linux"
)
def test_a_processor_without_vnni_is_recognised_and_its_exact_mode_mends_the_file(convolution: Path, tmp_path: Path) -> None:
    """Really executed: onnxruntime on an emulated Haswell, which saturates."""
    _, given, expected = saturating_convolution()
    np.save(tmp_path / "input.npy", given)
    command = [QEMU or "", "-cpu", "Haswell", sys.executable, str(HERE / "onnx_on_old_x86.py")]
    run = subprocess.run([*command, str(convolution), str(tmp_path / "input.npy"), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["exact"] == {"default": False, "exact": True, "unfused": True}
    assert "session.x64quantprecision" in found["runtime"]
    np.testing.assert_array_equal(np.load(tmp_path / "loaded.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "default.npy"), sums(saturating_convolution()[0], given, saturating=True))


def test_modes_agree_here(convolution: Path) -> None:
    _, given, expected = saturating_convolution()
    for mode in modes_to_use(exact_here()):
        np.testing.assert_array_equal(OnnxRunner(convolution, 1, mode).run(given), expected)
    assert load_model_from_string(convolution.read_bytes()).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
