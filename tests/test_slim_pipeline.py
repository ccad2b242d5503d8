"""A whole run with a slim stage: every width quantized, exported, verified and offered on its own, and the bundle's list to choose from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from gate_checks import check
from pydantic import ValidationError

import mcompress
from mcompress.artifact import load_artifact
from mcompress.compress.tasks.translation import embedded
from mcompress.export.bundle import read_manifest, verify_bundle
from mcompress.export.choices import choices_of, left_out
from mcompress.export.comparison import Comparison, read_comparison
from mcompress.previewing import preview
from mcompress.record import CoverageRecord, ExportRecord, ParityRecord, Run
from mcompress.reports import wording
from mcompress.targets.load import load_target
from mcompress.targets.schema import Measurement

TARGET = """\
name: slimmed
device: snapdragon865
threads: 1
model:
  task: translation
  student:
    network: resnet_generator
    args: {widths: [8, 8, 8, 8, 8, 8, 8, 8], depths: [1, 0, 0], convolutions: separable, normalization: batch}
  input_shape: [1, 3, 32, 32]
stages:
  - {stage: slim, steps: 20, batch_size: 4, crop_size: 32, learning_rate: 2.0e-3, checkpoint_every_s: 0.001, adversarial: 0.01, feature: 0.1,
     discriminator_features: 4}
  - {stage: quantize, samples: 2, sensitivity_samples: 1, verify_samples: 1}
exports:
  - {backend: onnx, profile_s: 0.02, keep_slower: true}
  - {backend: tflite, profile_s: 0.02, keep_slower: true}
"""
FILES = [f"slimmed{width}-{variant}.{backend}" for width in ("", "-w050") for backend in ("onnx", "tflite") for variant in ("float", "mixed")]


@pytest.fixture(scope="module")
def small_scenes() -> Iterator[None]:
    """The embedded objects, fewer and smaller."""
    small = embedded.EmbeddedPairs(embedded.scene_pairs(7, 16, 32), embedded.scene_pairs(8, 2, 32), mirrors=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(embedded.EMBEDDED, "objects", lambda: small)
        yield


@pytest.fixture(scope="module")
def ran(small_scenes: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, mcompress.Outcome]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("slimmed")
    path = folder / "slimmed.yaml"
    path.write_text(TARGET)
    return path, mcompress.run(path, out=folder / "runs")


@pytest.mark.pipeline
def test_every_width_has_its_own_verified_files(ran: tuple[Path, mcompress.Outcome]) -> None:
    outcome = ran[1]
    run, bundle = outcome.record, outcome.folder / "bundle"
    assert [stage.name for stage in run.stages] == ["slim", "quantize", "quantize-w050"]
    assert [record.file.removeprefix("bundle/") for record in run.exports] == FILES
    assert [record.width for record in run.exports] == [1.0] * 4 + [0.5] * 4
    assert all(record.parity.passed for record in run.exports)
    assert all(record.quality and record.coverage.total for record in run.exports)
    assert [result.status for result in verify_bundle(bundle)] == ["passed"] * 8
    plans = [(bundle / name).read_text() for name in ("precision_plan.json", "precision_plan-w050.json")]
    assert plans[0] != plans[1]
    slimmed = load_artifact(outcome.folder / "stages" / "slim")
    details = {row["name"]: row for row in json.loads((slimmed.folder / "details.json").read_text())["widths"]}
    assert run.models["w050"].macs == details["w050"]["macs"] < details["w100"]["macs"] == run.models["compressed"].macs
    assert run.stages[2].parent == slimmed.narrower()["w050"].digest
    page = (outcome.folder / "report.html").read_text()
    assert '<section id="widths">' in page
    assert wording.count(run.models["w050"].macs) in page


@pytest.mark.pipeline
def test_the_manifest_tells_which_file_to_choose_for_which_latency(ran: tuple[Path, mcompress.Outcome]) -> None:
    manifest = read_manifest(ran[1].folder / "bundle")
    assert {file.path: file.width for file in manifest.files} == {name: 0.5 if "w050" in name else 1.0 for name in FILES}
    recommended = {file.path: file for file in manifest.files if file.recommended}
    assert sorted((file.backend, file.width or 0.0) for file in recommended.values()) == [
        (backend, width) for backend in ("onnx", "tflite") for width in (0.5, 1.0)
    ]
    times = {path: next(m for m in file.latency if m.how == "estimated").value for path, file in recommended.items()}
    worth = {path: file.quality.after["psnr_db"] for path, file in recommended.items()}
    beaten = {
        one
        for one in times
        for other in times
        if recommended[one].backend == recommended[other].backend
        and times[other] <= times[one]
        and worth[other] >= worth[one]
        and (times[other], worth[other]) != (times[one], worth[one])
    }
    expected = sorted(times.keys() - beaten, key=lambda path: -times[path])
    assert [choice.file for choice in manifest.choose] == expected
    for choice in manifest.choose:
        file = recommended[choice.file]
        assert choice.within_ms == times[choice.file]
        assert (choice.backend, choice.width, choice.unit, choice.how) == (file.backend, file.width, file.run_with.unit, "estimated")
        assert choice.quality == file.quality.after
    narrow = {path: ms for path, ms in times.items() if "w050" in path}
    assert all(ms < times[path.replace("-w050", "")] for path, ms in narrow.items())
    card = (ran[1].folder / "bundle" / "MODEL_CARD.md").read_text()
    assert all(f"ms | `{choice.file}` |" in card for choice in manifest.choose)
    assert len([f for f in ran[1].record.fallbacks if "list of widths" in f.what]) == len(beaten)


@pytest.mark.pipeline
def test_the_gate_compares_every_width_with_itself(ran: tuple[Path, mcompress.Outcome]) -> None:
    bundle = ran[1].folder / "bundle"
    comparison = read_comparison(bundle)
    assert {name: file.network for name, file in comparison.files.items()} == {name: "w050" if "w050" in name else None for name in FILES}
    found = check(bundle, bundle)
    assert {row.subject for row in found.rows} >= {"network", "network w050", "onnx float", "tflite mixed", "tflite mixed w050"}
    assert not [row.said for row in found.rows if row.verdict != "ok"]
    with pytest.raises(ValidationError, match="is of the network 'w050'; narrower has none"):
        Comparison.model_validate({**comparison.model_dump(mode="json", by_alias=True), "narrower": {}})
    again = comparison.estimates_with(comparison.constants)
    assert {name: again[name].latency_ms for name in FILES} == pytest.approx({name: comparison.files[name].latency_ms for name in FILES})
    assert again["slimmed-w050-float.onnx"].latency_ms < again["slimmed-float.onnx"].latency_ms


@pytest.mark.pipeline
def test_a_second_run_finds_everything_in_the_cache(ran: tuple[Path, mcompress.Outcome]) -> None:
    path, first = ran
    out = path.parent / "runs"
    (first.folder / "receipt.json").unlink(missing_ok=True)  # else nothing would be looked at
    assert {row["state"] for row in preview(load_target(path), out).rows} == {"cached"}
    entries = sorted((out / "cache").glob("*/entry.json"))
    second = mcompress.run(path, out=out)
    assert all(stage.cached for stage in second.record.stages)
    assert [stage.digest for stage in second.record.stages] == [stage.digest for stage in first.record.stages]
    assert sorted((out / "cache").glob("*/entry.json")) == entries
    assert [record.sha256 for record in second.record.exports] == [record.sha256 for record in first.record.exports]


def record(backend: str, width: float | None, latency_ms: float, psnr_db: float | None, *, recommended: bool = True) -> ExportRecord:
    estimated = Measurement(what="latency", value=latency_ms, unit="ms", how="estimated", on="phone cpu")
    host = Measurement(what="latency", value=0.5, unit="ms", how="host", on="this host")
    return ExportRecord(
        backend=backend,
        variant="mixed",
        file=f"bundle/{backend}-{width}-{latency_ms:g}",
        bytes=1,
        sha256="0" * 64,
        precision_counts={"int8": 1},
        parity=ParityRecord(reference="PyTorch", metric="m", value=0.0, limit=1.0, passed=True, runtime="r"),
        coverage=CoverageRecord(total=1, by_unit={"cpu": 1}),
        latency=(host, estimated),
        quality={} if psnr_db is None else {"psnr_db": psnr_db},
        recommended=recommended,
        unit="cpu",
        width=width,
    )


def chosen(*records: ExportRecord) -> tuple[list[str], list[str]]:
    run = cast("Run", SimpleNamespace(models={}, baseline={}, exports=records))
    return [choice.file for choice in choices_of(records, run)], [fallback.where for fallback in left_out(records, run)]


def test_each_runtimes_list_goes_from_slow_and_good_to_fast() -> None:
    files = record("onnx", 0.5, 3.0, 20.0), record("tflite", 1.0, 5.0, 22.0), record("onnx", 1.0, 9.0, 22.0), record("tflite", 0.5, 4.0, 21.0)
    assert chosen(*files) == (["onnx-1.0-9", "tflite-1.0-5", "tflite-0.5-4", "onnx-0.5-3"], [])
    alternative = record("tflite", 1.0, 7.0, 23.0, recommended=False)
    assert chosen(*files, alternative) == chosen(*files)


def test_a_width_that_another_one_beats_is_not_to_choose_from() -> None:
    best = record("onnx", 1.0, 9.0, 22.0)
    assert chosen(best, record("onnx", 0.5, 9.5, 21.0)) == (["onnx-1.0-9"], ["export onnx mixed w050"])  # slower and worse
    assert chosen(best, record("onnx", 0.5, 9.0, 21.0)) == (["onnx-1.0-9"], ["export onnx mixed w050"])  # no faster, and worse
    assert chosen(best, record("onnx", 0.5, 8.0, 22.5)) == (["onnx-0.5-8"], ["export onnx mixed"])  # faster and better
    assert chosen(best, record("tflite", 0.5, 8.0, 22.5)) == (["onnx-1.0-9", "tflite-0.5-8"], [])  # for another runtime


def test_a_network_of_one_width_has_no_list() -> None:
    assert chosen(record("onnx", None, 9.0, 22.0), record("tflite", None, 8.0, 22.0)) == ([], [])


def test_a_quality_is_not_compared_with_a_width() -> None:
    """Of the wide file nothing was measured: a narrow one is not better for having a number."""
    assert chosen(record("coreml", 1.0, 9.0, None), record("coreml", 0.5, 5.0, 21.0)) == (["coreml-1.0-9", "coreml-0.5-5"], [])
    records = record("coreml", 1.0, 5.0, 21.0), record("coreml", 0.5, 9.0, None)
    (said,) = left_out(records, cast("Run", SimpleNamespace(models={}, baseline={}, exports=records)))
    assert "5 against 9 ms (estimated), width 1 against 0.5" in said.reason


def test_where_nothing_was_executed_the_wider_one_counts_as_better() -> None:
    assert chosen(record("coreml", 1.0, 9.0, None), record("coreml", 0.5, 5.0, None))[0] == ["coreml-1.0-9", "coreml-0.5-5"]
