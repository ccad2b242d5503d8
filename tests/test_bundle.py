"""Bundles: written, verified by mcompress and by their own verify.py, refused when anything about them is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, PrecisionPlan
from mcompress.errors import ExportError, ParityError, UsageError
from mcompress.export import backend_of, replay
from mcompress.export.backend import Port, captured
from mcompress.export.bundle import ExportedFile, TestVector, tolerance_of, verify_bundle, write_bundle
from mcompress.export.interface import TensorFacts, facts_of
from mcompress.export.manifest import Manifest
from mcompress.record import CoverageRecord, EnvironmentRecord, ExportRecord, ModelRecord, ParityRecord, Run, StageRecord, TargetRecord
from mcompress.targets.exports import ExecuTorchConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.schema import DataConfig, Fallback, Measurement, ModelConfig, Target, TeacherConfig
from mcompress.targets.stages import DistillConfig

SIDE = 12
SCALE = 4
Pictures = tuple[np.ndarray, np.ndarray]


def kernel() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.1, (3 * SCALE * SCALE, 3, 3, 3)).astype(np.float32)


def write_onnx(path: Path) -> None:
    """A convolution and a pixel shuffle, x4."""
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["features"], ["output"], blocksize=SCALE, mode="CRD"),
    ]
    graph = helper.make_graph(
        nodes,
        "enlarge",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, SIDE * SCALE, SIDE * SCALE])],
        [numpy_helper.from_array(kernel(), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def enlarge(picture: np.ndarray) -> np.ndarray:
    """The same network in numpy."""
    padded = np.pad(picture[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    features = np.einsum("chwij,ocij->ohw", windows, kernel())
    shuffled = features.reshape(3, SCALE, SCALE, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    return shuffled.reshape(1, 3, SIDE * SCALE, SIDE * SCALE).astype(np.float32)


def facts(name: str, side: int, **more: object) -> TensorFacts:
    return TensorFacts.model_validate({"name": name, "shape": (1, 3, side, side), "dtype": "float32", **more})


def model_record(quality: float) -> ModelRecord:
    return ModelRecord(
        spec=None,
        params=1296,
        macs=186624,
        macs_output_convention=186624,
        weight_bytes=5184,
        peak_activation_bytes=29376,
        activation_traffic_bytes=57024,
        quality={"psnr_db": quality},
    )


def export_record(path: Path, **more: object) -> ExportRecord:
    values: dict[str, object] = {
        "backend": "onnx",
        "variant": "float",
        "file": f"bundle/{path.name}",
        "bytes": replay.size_of(path),
        "sha256": replay.digest_of(path),
        "precision_counts": {"int8": 0, "fp16": 0, "fp32": 2},
        "parity": ParityRecord(reference="PyTorch", metric="share of range", value=1e-7, limit=1e-3, passed=True, runtime="onnxruntime CPU"),
        "coverage": CoverageRecord(total=2, by_unit={"cpu": 2}),
        "latency": (Measurement(what="latency", value=1.5, unit="ms", how="host", on="onnxruntime, 1 thread", p50=1.5, p90=1.7, n=20),),
        "quality": {"psnr_db": 30.0},
        "recommended": True,
    }
    return ExportRecord.model_validate({**values, **more})


def a_run(*exports: ExportRecord) -> Run:
    return Run(
        target=TargetRecord(name="tiny|phone", digest="ab" * 32),
        environment=EnvironmentRecord(python="3.11", platform="Linux", packages={}, commit=None, seed=0),
        stages=(StageRecord(name="distill", method="online", digest="cd" * 32, parent="", cached=False, seconds=1.0),),
        models={"teacher": model_record(31.0), "student": model_record(30.5), "compressed": model_record(30.0)},
        baseline={"mean": {"psnr_db": 28.0}},
        exports=exports,
        budget=(),
        fallbacks=(Fallback(where="export onnx", what="Resize", reason="a reason with | and\nlines"),),
        not_measured=("latency on the phone",),
    )


def a_target(**more: object) -> Target:
    return Target.model_validate({"name": "tiny", "device": "snapdragon865", "stages": [DistillConfig()], "exports": [OnnxConfig()], **more})


def an_export(folder: Path) -> ExportedFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny-float.onnx"
    write_onnx(path)
    picture = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    vector = TestVector("coffee / left", picture, reference=enlarge(picture), expected=enlarge(picture))
    return ExportedFile(export_record(path), path, (facts("input", SIDE),), (facts("output", SIDE * SCALE),), (vector,))


PLAN = PrecisionPlan((PlannedOperator("conv2d", "head", "conv2d", "int8", "above the floor", 44.0),), {"conv2d": ActivationRange(0.01, 3)})


def make_bundle(folder: Path, *files: ExportedFile) -> Path:
    shipped = files or (an_export(folder / "made"),)
    return write_bundle(folder / "bundle", run=a_run(*(file.record for file in shipped)), target=a_target(), files=shipped, plan=PLAN)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def replay_in(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run the bundle's verify.py in an interpreter that cannot import torch or mcompress."""
    blocked = "import sys; sys.modules['torch'] = sys.modules['mcompress'] = None; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-B", "-c", blocked, str(bundle / "verify.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rewrite(bundle: Path, change: Callable[[dict], None], *, sign: bool = True) -> None:  # type: ignore[type-arg]
    """Edit the manifest, and its own digest with it as an attacker would."""
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    if sign:
        data["manifest_sha256"] = replay.manifest_digest(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def test_bundle_passes_in_mcompress_and_on_its_own(pristine: Path) -> None:
    (result,) = verify_bundle(pristine)
    assert (result.verdict, result.file) == ("PASS", "tiny-float.onnx")
    assert result.max_abs is not None
    assert 0 <= result.max_abs < 1e-6
    done = replay_in(pristine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "PASS  1 of 1 files executed"


def test_manifest_states_what_an_app_needs(pristine: Path) -> None:
    manifest = Manifest.model_validate_json((pristine / "manifest.json").read_text())
    (file,) = manifest.files
    assert manifest.scale == SCALE
    assert (file.inputs[0].shape, file.inputs[0].colour_order) == ((1, 3, SIDE, SIDE), "RGB")
    assert [step.operation for step in file.preprocessing] == ["tile", "colour_order", "scale", "layout"]
    assert file.preprocessing[2].arguments == {"multiply": 1 / 255, "add": 0.0}
    assert file.sha256 == hashlib.sha256((pristine / "tiny-float.onnx").read_bytes()).hexdigest()
    assert file.quality.before == {"psnr_db": 31.0}
    assert (file.quality.after, file.quality.after_from) == ({"psnr_db": 30.0}, "this file in its runtime")
    assert manifest.weights_licence == "Apache-2.0"
    assert {"MODEL_CARD.md", "LICENSES", "verify.py", "precision_plan.json"} <= {content.path for content in manifest.contents}
    assert PrecisionPlan.from_json((pristine / "precision_plan.json").read_text()) == PLAN


def test_two_bundles_of_one_run_are_equal(pristine: Path, tmp_path: Path) -> None:
    again = make_bundle(tmp_path)
    assert replay.digest_of(again) == replay.digest_of(pristine)


def test_raw_vectors_are_the_tensors(pristine: Path) -> None:
    file = Manifest.model_validate_json((pristine / "manifest.json").read_text()).files[0]
    raw = np.frombuffer((pristine / file.vectors[0].input_bin).read_bytes(), "<f4").reshape(1, 3, SIDE, SIDE)
    assert np.array_equal(raw, np.load(pristine / file.vectors[0].input_npy))


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
    package = tmp_path / "made" / "tiny.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights.bin").write_bytes(b"weights")
    picture = np.zeros((1, 3, SIDE, SIDE), np.float32)
    parity = ParityRecord(reference="PyTorch", metric="share of range", value=None, limit=1e-3, passed=None, runtime="not executed")
    record = export_record(package, backend="coreml", parity=parity, quality={}, recommended=False)
    export = ExportedFile(
        record, package, (facts("input", SIDE),), (facts("output", SIDE * SCALE),), (TestVector("zero", picture, enlarge(picture)),)
    )
    folder = make_bundle(tmp_path, export)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    assert manifest.files[0].vectors[0].expected_from == "PyTorch"
    assert manifest.files[0].quality.after_from == "PyTorch"
    assert "tiny.mlpackage" in {content.path for content in manifest.contents}
    if sys.platform != "darwin":
        done = replay_in(folder)
        assert done.returncode == 1
        assert "NOT EXECUTED  tiny.mlpackage: Core ML runs on macOS" in done.stdout
    (folder / "tiny.mlpackage" / "Data" / "more.bin").write_bytes(b"x")
    with pytest.raises(ParityError, match=r"tiny\.mlpackage was changed"):
        verify_bundle(folder)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a bundle: it has no manifest\.json"):
        verify_bundle(tmp_path)


def test_corrupted_model_is_refused_before_it_is_read(bundle: Path) -> None:
    data = bytearray((bundle / "tiny-float.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "tiny-float.onnx").write_bytes(data)
    with pytest.raises(ParityError, match=r"tiny-float.onnx was changed: SHA-256 is [0-9a-f]{16}"):
        verify_bundle(bundle)
    done = replay_in(bundle)
    assert done.returncode == 1
    assert done.stdout.endswith("FAIL\n")


def test_tampered_digest_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda data: data["files"][0].update(sha256="0" * 64), sign=False)
    with pytest.raises(ParityError, match="its own SHA-256 does not match"):
        verify_bundle(bundle)


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/hostname", "vectors/../../outside.onnx", "a\\..\\b", ".", "./manifest.json", "C:x", ""])
def test_paths_that_escape_are_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "outside.onnx").write_bytes(b"secret")

    def point(data: dict) -> None:  # type: ignore[type-arg]
        data["files"][0]["path"] = path
        data["contents"].append({"path": path, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()})

    rewrite(bundle, point)
    with pytest.raises(UsageError, match="only relative paths inside the bundle are allowed"):
        verify_bundle(bundle)
    assert replay_in(bundle).returncode == 1


def test_links_are_refused(bundle: Path) -> None:
    model = bundle / "tiny-float.onnx"
    model.rename(bundle.parent / "outside.onnx")
    model.symlink_to(bundle.parent / "outside.onnx")
    with pytest.raises(UsageError, match=r"tiny-float\.onnx is a symbolic link"):
        verify_bundle(bundle)


def test_unknown_and_missing_files_are_refused(bundle: Path) -> None:
    (bundle / "vectors" / "stranger.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"vectors/stranger\.bin is not in the manifest; remove it"):
        verify_bundle(bundle)
    (bundle / "vectors" / "stranger.bin").unlink()
    (bundle / "LICENSES").unlink()
    with pytest.raises(UsageError, match="LICENSES is in the manifest but not in the bundle"):
        verify_bundle(bundle)


def test_newer_schema_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda data: data.update(schema=2))
    with pytest.raises(UsageError, match="has schema 2; this program reads up to schema 1"):
        verify_bundle(bundle)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}'])
def test_manifests_that_are_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises((UsageError, ParityError)):
        verify_bundle(bundle)
    assert replay_in(bundle).returncode == 1


def test_manifest_without_its_parts(bundle: Path) -> None:
    rewrite(bundle, lambda data: data.pop("contents"))
    with pytest.raises(UsageError, match="lacks what a manifest of schema 1 has"):
        verify_bundle(bundle)
    rewrite(bundle, lambda data: data.update(files=[{"path": 3, "vectors": []}], contents=[]))
    with pytest.raises(UsageError):
        verify_bundle(bundle)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    with pytest.raises(ExportError, match="at least one exported file"):
        write_bundle(tmp_path / "bundle", run=a_run(), target=a_target(), files=(), plan=None)
    with pytest.raises(ExportError, match=r"expected output of vector 'coffee / left' has shape .* the file has \(1, 3, 7, 7\)"):
        make_bundle(tmp_path, replace(export, outputs=(facts("output", 7),)))
    with pytest.raises(ExportError, match=r"two exported files have one name: tiny-float\.onnx"):
        make_bundle(tmp_path, export, export)
    export.path.write_bytes(b"other")
    with pytest.raises(ExportError, match="changed between export and bundle"):
        make_bundle(tmp_path, export)
    assert not (tmp_path / "bundle").exists()


def test_owners_weights_are_not_given_our_licence(tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    teacher = ModelConfig(teacher=TeacherConfig(network="rrdb", checkpoint=Path("private/esrgan.pth")))
    for changed in ({"model": teacher}, {"data": DataConfig(training=Path("a"), held_out=Path("b"))}):
        folder = write_bundle(tmp_path / "bundle", run=a_run(export.record), target=a_target(**changed), files=(export,), plan=None)
        assert json.loads((folder / "manifest.json").read_text())["weights_licence"] == "not known, stated by the owner"
        assert "not known, stated by the owner" in (folder / "LICENSES").read_text()
        assert "private/" not in (folder / "MODEL_CARD.md").read_text()


def test_model_card_has_provenance_and_whole_tables(pristine: Path) -> None:
    card = (pristine / "MODEL_CARD.md").read_text()
    assert "1.5 ms (host, onnxruntime, 1 thread, p90 1.7, 20 runs)" in card
    assert "latency on the phone" in card
    assert str(pristine.parent) not in card
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.strip().splitlines()}
        assert len(widths) == 1, block


def quantized(name: str, side: int, scale: float) -> TensorFacts:
    return facts_of(Port(name, (1, side, side, 3), "int8", "NHWC", scale, -128))


@pytest.mark.parametrize("backend", ["tflite", "executorch", "coreml"])
def test_loaders_carry_the_facts(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "made" / f"it$s.{backend}"
    path.parent.mkdir()
    path.write_bytes(b"model")
    took, gave = quantized('in"put', SIDE, 1 / 255), quantized("output", SIDE * SCALE, 1 / 250)
    if backend == "coreml":
        took, gave = facts("input", SIDE), facts("output", SIDE * SCALE)
    picture = np.random.default_rng(1).random((1, 3, SIDE, SIDE), dtype=np.float32)
    record = export_record(path, backend=backend, variant="mixed")
    folder = make_bundle(tmp_path, ExportedFile(record, path, (took,), (gave,), (TestVector("a", picture, enlarge(picture)),)))
    loader = folder / {"tflite": "kotlin/LiteRt.kt", "executorch": "kotlin/ExecuTorch.kt", "coreml": "swift/VerifyBundle.swift"}[backend]
    text = loader.read_text()
    assert "vectors/0-a.input." in text
    assert re.search(r"orSqnrDb[:=\s]+35\.0", text)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    if backend != "coreml":
        assert 'file = "it\\$s.' in text
        assert f'TensorFacts("in\\"put", longArrayOf(1, {SIDE}, {SIDE}, 3), Type.INT8, {1 / 255}f, -128)' in text
        assert record.sha256 in text
        assert (folder / "kotlin" / "Vectors.kt").is_file()


class Enlarger(nn.Module):
    """The network of `enlarge` in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * SCALE * SCALE, 3, padding=1, bias=False)
        self.conv.weight.data.copy_(torch.from_numpy(kernel()))
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.shuffle(self.conv(x)))


@pytest.mark.export
def test_files_of_the_real_exporters_prove_themselves(tmp_path: Path) -> None:
    shipped = []
    picture = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    for config in (TFLiteConfig(), ExecuTorchConfig()):
        backend = backend_of(config)
        with captured(tmp_path / "log.txt"):
            written = backend.write(config, Enlarger().eval(), torch.from_numpy(picture), None, tmp_path / "made-float")
            got = backend.load(written.path, 1).run(picture)
        record = export_record(written.path, backend=config.backend)
        inputs, outputs = (tuple(facts_of(port) for port in ports) for ports in (written.inputs, written.outputs))
        shipped.append(ExportedFile(record, written.path, inputs, outputs, (TestVector("noise", picture, enlarge(picture), got),)))
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


def test_facts_must_be_whole() -> None:
    with pytest.raises(ValueError, match="int8 needs scale and zero_point"):
        facts("x", 4, dtype="int8")
    with pytest.raises(ValueError, match="float32 takes no scale and zero_point"):
        facts("x", 4, scale=0.1, zero_point=0)
    with pytest.raises(ValueError, match="is empty"):
        facts("x", 4, value_range=(1.0, 1.0))
