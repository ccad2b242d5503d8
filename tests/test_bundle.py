"""Bundles as they are written: the manifest, the vectors, the model card, the loaders, and what is not packed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import PLAN, SCALE, SIDE, a_run, a_target, an_export, enlarge, export_record, facts, make_bundle, quantized, replay_in

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.errors import ExportError
from mcompress.export import replay
from mcompress.export.bundle import ExportedFile, TestVector, read_manifest, verify_bundle, write_bundle
from mcompress.export.manifest import Manifest
from mcompress.record import CoverageRecord, OperatorFallback, ParityRecord
from mcompress.targets.schema import DataConfig, Fallback, ModelConfig, TeacherConfig


def test_manifest_states_what_an_app_needs(pristine_bundle: Path) -> None:
    manifest = Manifest.model_validate_json((pristine_bundle / "manifest.json").read_text())
    (file,) = manifest.files
    assert manifest.scale == SCALE
    assert (file.inputs[0].shape, file.inputs[0].colour_order) == ((1, 3, SIDE, SIDE), "RGB")
    assert [step.operation for step in file.preprocessing["input"]] == ["tile", "colour_order", "scale", "layout"]
    assert file.preprocessing["input"][2].arguments == {"multiply": 1 / 255, "add": 0.0}
    assert file.sha256 == hashlib.sha256((pristine_bundle / "tiny-float.onnx").read_bytes()).hexdigest()
    assert file.quality.before == {"psnr_db": 31.0}
    assert (file.quality.after, file.quality.after_from) == ({"psnr_db": 30.0}, "this file in its runtime")
    assert manifest.weights_licence == "Apache-2.0"
    assert {"MODEL_CARD.md", "LICENSES", "verify.py", "precision_plan.json"} <= {content.path for content in manifest.contents}
    assert PrecisionPlan.from_json((pristine_bundle / "precision_plan.json").read_text()) == PLAN


def on_a_jetson(folder: Path, variant: str, int8: int, **more: object) -> ExportedFile:
    """An ONNX file that is offered for a unit which TensorRT builds engines for."""
    export = an_export(folder / variant)
    path = export.path.rename(export.path.with_name(f"tiny-{variant}.onnx"))
    counts = {"int8": int8, "fp16": 0, "fp32": 2 - int8}
    return replace(export, path=path, record=export_record(path, variant=variant, unit="gpu", precision_counts=counts, **more))


def test_engines_are_built_on_the_device(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, on_a_jetson(tmp_path, "float", 0), on_a_jetson(tmp_path, "mixed", 2))
    files = read_manifest(bundle).files
    for file, flags in zip(files, ("--fp16", "--int8 --fp16"), strict=True):
        assert file.runtime.model_dump() == {
            "name": "TensorRT",
            "least_version": "not known",
            "basis": "built on the device; not built with TensorRT here; checked here with onnxruntime CPU",
        }
        assert file.run_with.model_dump() == {
            "unit": "gpu",
            "delegate": f"an engine that trtexec --onnx=FILE {flags} builds from the file on the device",
            "threads": 1,
            "basis": "not measured on the device",
        }
        assert file.quality.after_from == file.vectors[0].expected_from == "this file in ONNX Runtime"
    card = (bundle / "MODEL_CARD.md").read_text()
    for flags, variant in (("--fp16", "float"), ("--int8 --fp16", "mixed")):
        engine = f"an engine that trtexec --onnx=FILE {flags} builds from the file on the device"
        assert f"- `tiny-{variant}.onnx` with TensorRT (gpu, {engine}, 1 thread;" in card
    assert "phone" not in card.split("## Start here")[1].split("##")[0]
    assert [result.status for result in verify_bundle(bundle)] == ["passed", "passed"], "by onnxruntime, whatever the device runs"
    assert replay_in(bundle).returncode == 0


@pytest.mark.parametrize("unit", ["cpu", None])
def test_where_onnxruntime_runs_it_is_the_runtime(unit: str | None, tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    (file,) = read_manifest(make_bundle(tmp_path, replace(export, record=export_record(export.path, unit=unit)))).files
    assert (file.runtime.name, file.run_with.unit, file.run_with.delegate) == ("ONNX Runtime", "cpu", "CPUExecutionProvider")


def test_a_file_that_was_not_checked_says_so(tmp_path: Path) -> None:
    parity = ParityRecord(reference="PyTorch", metric="share of range", value=None, limit=1e-3, passed=None, runtime="not executed")
    (file,) = read_manifest(make_bundle(tmp_path, on_a_jetson(tmp_path, "float", 0, parity=parity, quality={}))).files
    assert file.runtime.basis == "built on the device; not built with TensorRT here; not executed here"


def test_two_bundles_of_one_run_are_equal(pristine_bundle: Path, tmp_path: Path) -> None:
    again = make_bundle(tmp_path)
    assert replay.digest_of(again) == replay.digest_of(pristine_bundle)


def test_raw_vectors_are_the_tensors(pristine_bundle: Path) -> None:
    file = Manifest.model_validate_json((pristine_bundle / "manifest.json").read_text()).files[0]
    raw = np.frombuffer((pristine_bundle / file.vectors[0].inputs[0].bin).read_bytes(), "<f4").reshape(1, 3, SIDE, SIDE)
    assert np.array_equal(raw, np.load(pristine_bundle / file.vectors[0].inputs[0].npy))


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


def test_model_card_has_provenance_and_whole_tables(pristine_bundle: Path) -> None:
    card = (pristine_bundle / "MODEL_CARD.md").read_text()
    assert "- export onnx: Resize: a reason with | and lines\n" in card
    assert "in `manifest.json` names those" not in card, "all are named"
    assert "1.5 ms (host, onnxruntime, 1 thread, p90 1.7, 20 runs)" in card
    assert "latency on the phone" in card
    assert str(pristine_bundle.parent) not in card
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.strip().splitlines()}
        assert len(widths) == 1, block


def test_the_card_has_a_line_for_each_reason_of_many_fallbacks(tmp_path: Path) -> None:
    export, halves = an_export(tmp_path / "made"), tuple(f"matmul_{number}" for number in range(1000))
    coverage = [OperatorFallback(operator=name, reason="no half kernel") for name in halves] + [OperatorFallback(operator="gelu", reason="merged")]
    record = export.record.model_copy(update={"coverage": CoverageRecord(total=2, by_unit={"cpu": 2}, fallbacks=tuple(coverage))})
    in_file, elsewhere = f"export {export.path.name}", ("softmax", "softmax_1", "softmax_2", "softmax_3")
    happened = [
        *(Fallback(where=in_file, what=each.operator, reason=each.reason) for each in coverage),  # as the run has them too
        *(Fallback(where="export tiny-mixed.onnx", what=name, reason="no half kernel") for name in halves),
        *(Fallback(where="quantize", what=name, reason="no INT8 kernel") for name in elsewhere),
        Fallback(where="quantize", what="matmul_0", reason="no\nINT8 kernel there"),
    ]
    run = a_run(record).model_copy(update={"fallbacks": tuple(happened)})
    folder = write_bundle(tmp_path / "bundle", run=run, target=a_target(), files=(replace(export, record=record),), plan=None)
    limits = (folder / "MODEL_CARD.md").read_text().split("## Limits\n\n")[1].split("\n\n")[0].splitlines()
    assert limits == [
        "- Not measured: latency on the phone",
        f"- {in_file}, export tiny-mixed.onnx: matmul_0, matmul_1, matmul_2 and 997 more (1,000 in all): no half kernel",
        f"- {in_file}: gelu: merged",
        "- quantize: softmax, softmax_1, softmax_2, softmax_3: no INT8 kernel",
        "- quantize: matmul_0: no INT8 kernel there",
        "- Where not all operators are named, `coverage` in `manifest.json` names those of each file.",
        "- The Kotlin and Swift loaders are generated; they were not run on a device here.",
    ]


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
    folder = make_bundle(tmp_path, ExportedFile(record, path, (took,), (gave,), (TestVector("a", (picture,), enlarge(picture)),)))
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


def test_facts_must_be_whole() -> None:
    with pytest.raises(ValueError, match="int8 needs scale and zero_point"):
        facts("x", 4, dtype="int8")
    with pytest.raises(ValueError, match="float32 takes no scale and zero_point"):
        facts("x", 4, scale=0.1, zero_point=0)
    with pytest.raises(ValueError, match="is empty"):
        facts("x", 4, value_range=(1.0, 1.0))
