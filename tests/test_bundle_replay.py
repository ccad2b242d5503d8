"""Bundles that are executed, by mcompress and by their own verify.py, and how results are compared."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mil_packages import package_of_one
from tiny_bundle import SCALE, SIDE, a_real_export, an_export, enlarge, export_record, facts, make_bundle, quantized, replay_in
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import MissingBackendError, ParityError
from mcompress.export import coreml, replay
from mcompress.export.bundle import ExportedFile, TestVector, verify_bundle
from mcompress.export.manifest import Manifest
from mcompress.export.stated import tolerance_of
from mcompress.record import ParityRecord
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, TFLiteConfig


def an_apple_package(folder: Path) -> ExportedFile:
    """A Core ML package that only Core ML can run."""
    package = folder / "made" / "tiny.mlpackage"
    package_of_one(package, "only_apple_knows", SIDE, SCALE)
    picture = np.zeros((1, 3, SIDE, SIDE), np.float32)
    parity = ParityRecord(reference="PyTorch", metric="share of range", value=None, limit=1e-3, passed=None, runtime="not executed")
    record = export_record(package, backend="coreml", parity=parity, quality={}, fidelity={}, pictures={}, quality_worst={}, recommended=False)
    vector = TestVector("zero", (picture,), enlarge(picture))
    return ExportedFile(record, package, (facts("input", SIDE),), (facts("output", SIDE * SCALE),), (vector,))


def test_bundle_passes_in_mcompress_and_on_its_own(pristine_bundle: Path) -> None:
    (result,) = verify_bundle(pristine_bundle)
    assert (result.verdict, result.file) == ("PASS", "tiny-float.onnx")
    assert result.max_abs is not None
    assert 0 <= result.max_abs < 1e-6
    done = replay_in(pristine_bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASS  1 of 1 files executed"


def test_a_file_that_cannot_run_here_does_not_fail_the_others(tmp_path: Path) -> None:
    apple = an_apple_package(tmp_path)
    folder = make_bundle(tmp_path, an_export(tmp_path / "also"), apple)
    if sys.platform != "darwin":
        assert [result.verdict for result in verify_bundle(folder)] == ["PASS", "NOT EXECUTED"]
        verified = CliRunner().invoke(app, ["verify", str(folder)])
        assert verified.exit_code == 0, verified.output
        assert replay_in(folder).returncode == 0


def test_a_file_that_computes_something_else_fails(tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    vector = export.vectors[0]
    wrong = replace(export, vectors=(replace(vector, expected=vector.reference + np.float32(2e-3)),))
    folder = make_bundle(tmp_path, wrong)
    (result,) = verify_bundle(folder)
    assert result.verdict == "FAIL"
    assert result.max_abs == pytest.approx(2e-3, rel=1e-3)
    done = replay_in(folder)
    assert done.returncode == 1
    assert "FAIL  tiny-float.onnx: largest difference 0.002" in done.stdout


def test_a_file_without_its_runtime_is_not_a_pass(tmp_path: Path) -> None:
    export = an_apple_package(tmp_path)
    folder = make_bundle(tmp_path, export)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    assert manifest.files[0].vectors[0].expected_from == "PyTorch"
    assert manifest.files[0].quality.after_from == "PyTorch"
    assert "tiny.mlpackage" in {content.path for content in manifest.contents}
    if sys.platform != "darwin":
        done = replay_in(folder)
        assert done.returncode == 1
        assert "NOT EXECUTED  tiny.mlpackage: Core ML runs on macOS" in done.stdout
        (result,) = verify_bundle(folder)
        assert result.verdict == "NOT EXECUTED"
        assert "1 only_apple_knows" in result.detail
        verified = CliRunner().invoke(app, ["verify", str(folder)])
        assert isinstance(verified.exception, MissingBackendError)
        assert str(verified.exception).startswith("none of the 1 files could be executed here")
    (folder / "tiny.mlpackage" / "Data" / "more.bin").write_bytes(b"x")
    with pytest.raises(ParityError, match=r"tiny\.mlpackage was changed"):
        verify_bundle(folder)


@pytest.mark.export
def test_files_of_the_real_exporters_prove_themselves(tmp_path: Path) -> None:
    shipped = [a_real_export(config, tmp_path) for config in (TFLiteConfig(), ExecuTorchConfig())]
    folder = make_bundle(tmp_path, *shipped)
    assert [result.verdict for result in verify_bundle(folder)] == ["PASS", "PASS"]
    done = subprocess.run([sys.executable, "-B", str(folder / "verify.py")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASS  2 of 2 files executed"
    without_torch = replay_in(folder)
    assert "PASS  made-float.tflite" in without_torch.stdout
    assert "NOT EXECUTED  made-float.pte: executorch is not installed" in without_torch.stdout


def test_tolerances() -> None:
    assert tolerance_of("float", facts("output", 4, value_range=(-1.0, 1.0))).max_abs == pytest.approx(2e-3)
    mixed = tolerance_of("mixed", quantized("output", 4, 0.01))
    assert (mixed.max_abs, mixed.or_sqnr_db) == (0.02, 35.0)
    assert tolerance_of("mixed", facts("output", 4)).max_abs == pytest.approx(2 / 255)


@given(st.integers(-128, 127), st.floats(1e-4, 10), st.integers(0, 10_000))
def test_native_form_keeps_what_it_can_hold(zero_point: int, scale: float, seed: int) -> None:
    plain: replay.Facts = {"name": "x", "shape": [1, 4, 5, 3], "dtype": "int8", "layout": "NHWC", "scale": scale, "zero_point": zero_point}
    native = np.random.default_rng(seed).integers(-128, 128, (1, 4, 5, 3)).astype(np.int8)
    assert np.array_equal(replay.encode(replay.decode(native, plain), plain), native)


def test_differences() -> None:
    ones = np.ones((1, 3, 4, 4), np.float32)
    tight: replay.Tolerance = {"max_abs": 1e-3, "or_sqnr_db": None}
    assert replay.difference(ones, ones) == (0.0, float("inf"))
    assert replay.difference(ones * np.float32(0.9), ones).sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert not replay.within(replay.difference(ones * np.float32(np.nan), ones), tight)
    assert not replay.within(replay.difference(ones[:, :1], ones), tight)
    assert replay.within(replay.difference(ones * np.float32(0.99), ones), {"max_abs": 1e-3, "or_sqnr_db": 35.0})


@pytest.mark.export
def test_a_core_ml_file_passes_in_the_evaluator(tmp_path: Path) -> None:
    export = a_real_export(CoreMLConfig(), tmp_path)
    runtime = coreml.load(export.path, 1).runtime
    changes = {"parity": export.record.parity.model_copy(update={"runtime": runtime}), "precision_counts": {"int8": 0, "fp16": 2, "fp32": 0}}
    folder = make_bundle(tmp_path, replace(export, record=export.record.model_copy(update=changes)))
    (result,) = verify_bundle(folder)
    assert result.verdict == "PASS"
    (file,) = Manifest.model_validate_json((folder / "manifest.json").read_text()).files
    assert file.tolerance.or_sqnr_db == 40.0
    if sys.platform != "darwin":
        assert "computed by the mcompress evaluator" in result.detail
        assert file.vectors[0].expected_from == file.quality.after_from == "this file in mcompress's evaluator"
        assert file.run_with.basis == "computed by mcompress's evaluator; not measured on a phone"
