"""Verdicts: each field against its tolerance, what was lost, and files that are gone or no longer run."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_bundles import PACKAGES, a_comparison, gate_bundle, recorded, second_file, table, with_pictures
from gate_checks import check, row
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import PLAN, a_run, a_target, an_export

from mcompress.export.bundle import write_bundle
from mcompress.export.comparison import Comparison
from mcompress.record import CoverageRecord, OperatorFallback, ParityRecord
from mcompress.reports.gate.rows import judged


def test_a_bundle_is_as_good_as_itself(baseline: Path) -> None:
    found = check(baseline, baseline)
    assert found.verdict == "ok"
    assert {row.verdict for row in found.rows} == {"ok"}
    assert [row.field for row in found.rows] == [
        "multiply-adds", "parameters", "planned peak memory, fp32", "estimated latency", "size", "fallbacks", "operators wider than fp32",
        "parity, share of the range", "quality, psnr_db", "worst picture, psnr_db",
        "PSNR, teacher, dB", "SSIM, teacher", "colour shift, teacher", "PSNR, float student, dB", "SSIM, float student",
        "colour shift, float student",
    ]  # fmt: skip
    assert not found.operators
    assert not found.failing


def test_a_wider_layer_is_slower_and_named(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=96))))
    assert found.verdict == "regression"
    latency = row(found, "estimated latency")
    assert latency.verdict == "regression"
    old, new = latency.values
    assert old is not None
    assert new is not None
    assert [change.name for change in found.operators["onnx float"]][:1] == ["middle"]
    assert found.operators["onnx float"][0].detail == "output 1x64x192x192 -> 1x96x192x192"
    assert sum(change.gained_ms for change in found.operators["onnx float"]) == pytest.approx(new - old)
    assert row(found, "multiply-adds").verdict == "regression"
    assert row(found, "size").verdict == "ok"


def test_a_narrower_layer_is_better(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=32))))
    assert found.verdict == "better"
    assert row(found, "multiply-adds").verdict == "better"


@given(tolerance=st.floats(0, 50), worse=st.floats(-50, 50))
def test_what_is_exactly_as_much_worse_as_allowed_passes(tolerance: float, worse: float) -> None:
    assert judged(tolerance, tolerance) == "ok"
    assert (judged(worse, tolerance) == "regression") == (worse > tolerance + 1e-9)


def parity(value: float) -> ParityRecord:
    """Of a float file, with a limit of 1e-3."""
    return ParityRecord(reference="PyTorch", metric="share of range", value=value, limit=1e-3, passed=value <= 1e-3, runtime="onnxruntime")


def parity_db(value: float) -> ParityRecord:
    """Of an INT8 file, with a limit of 35 dB."""
    return ParityRecord(reference="PyTorch", metric="sqnr_db", value=value, limit=35, passed=value >= 35, runtime="onnxruntime")


NO_PARITY = ParityRecord(reference="PyTorch", metric="share of range", value=None, limit=1e-3, passed=None, runtime="not executed: why")
FOUND: dict[str, tuple[dict[str, object], dict[str, object], str, str]] = {
    # what the baseline has, what the new file has, field, verdict
    "quality within": ({}, {"quality": {"psnr_db": 29.96}}, "quality, psnr_db", "ok"),
    "quality lost": ({}, {"quality": {"psnr_db": 29.9}}, "quality, psnr_db", "regression"),
    "quality won": ({}, {"quality": {"psnr_db": 30.2}}, "quality, psnr_db", "better"),
    "quality that was lost": ({"quality": {"ssim": 0.9}}, {}, "quality, ssim", "regression"),
    "quality that is new": ({}, {"quality": {"psnr_db": 30.0, "ssim": 0.9}}, "quality, ssim", "not comparable"),
    "a fallback more": (
        {},
        {"coverage": CoverageRecord(total=2, by_unit={"cpu": 2}, fallbacks=(OperatorFallback(operator="Resize", reason="no kernel"),))},
        "fallbacks",
        "regression",
    ),
    "one operator more in float": ({}, {"precision_counts": {"int8": 0, "fp16": 0, "fp32": 3}}, "operators wider than fp32", "ok"),
    "an operator left int8": (
        {"precision_counts": {"int8": 2, "fp16": 0, "fp32": 0}},
        {"precision_counts": {"int8": 1, "fp16": 0, "fp32": 1}},
        "operators wider than int8",
        "regression",
    ),
    "an operator more in int8": (
        {"precision_counts": {"int8": 2, "fp16": 0, "fp32": 1}},
        {"precision_counts": {"int8": 3, "fp16": 0, "fp32": 1}},
        "operators wider than int8",
        "ok",
    ),
    "parity within": (
        {},
        {"parity": parity(9e-5)},
        "parity, share of the range",
        "ok",
    ),
    "parity worse": (
        {},
        {"parity": parity(5e-4)},
        "parity, share of the range",
        "regression",
    ),
    "parity outside its limit": (
        {"parity": parity(9.99e-4)},
        {"parity": parity(1.01e-3)},
        "parity, share of the range",
        "regression",
    ),
    "parity in dB": (
        {"parity": parity_db(47.0)},
        {"parity": parity_db(45.5)},
        "parity, dB",
        "regression",
    ),
    "parity that was lost": ({}, {"parity": NO_PARITY}, "parity, share of the range", "regression"),
    "parity that is new": ({"parity": NO_PARITY}, {}, "parity, share of the range", "not comparable"),
    "parity that is new and outside its limit": (
        {"parity": NO_PARITY},
        {"parity": parity(2e-3)},
        "parity, share of the range",
        "regression",
    ),
    "parity that nobody computed": ({"parity": NO_PARITY}, {"parity": NO_PARITY}, "parity, share of the range", "not comparable"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_about_a_file(name: str, tmp_path: Path) -> None:
    old, new, field, verdict = FOUND[name]
    folders = [gate_bundle(tmp_path / who, export=lambda made, more=more: recorded(made, **more)) for who, more in (("old", old), ("new", new))]
    assert row(check(*folders), field).verdict == verdict


LOST = {"parity": NO_PARITY, "quality": {}}


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (a_comparison(), "regression"),
        (a_comparison(packages={**PACKAGES, "onnxruntime": "1.32.0"}), "re-baseline"),
        (a_comparison(packages={name: version for name, version in PACKAGES.items() if name != "onnxruntime"}), "re-baseline"),
        (a_comparison(packages={**PACKAGES, "mcompress": "0.2.0"}), "re-baseline"),
        (a_comparison(packages={**PACKAGES, "ai-edge-litert": "9.9"}), "regression"),  # another backend's
        (a_comparison(cpu="another processor"), "re-baseline"),
    ],
)
def test_what_was_lost_fails_with_the_reason(comparison: Comparison, verdict: str, baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, comparison, export=lambda made: recorded(made, **LOST)))
    for field, note in (("parity, share of the range", "not executed: why"), ("quality, psnr_db", "only the baseline has it")):
        lost = row(found, field)
        assert (lost.verdict, lost.new, lost.tolerance) == (verdict, "none", "a value")
        assert note in lost.note
        assert lost in found.failing


def test_what_was_lost_fails_nothing_where_it_is_only_shown(tmp_path: Path) -> None:
    shown = a_comparison(gate={"only_shown": ["parity_limit_percent", "quality"]})
    found = check(gate_bundle(tmp_path / "old", shown), gate_bundle(tmp_path / "new", shown, export=lambda made: recorded(made, **LOST)))
    assert not found.failing
    assert row(found, "parity, share of the range").note.endswith("only shown, worse than would be allowed")


def test_a_new_fallback_is_named_with_its_reason(baseline: Path, tmp_path: Path) -> None:
    coverage = CoverageRecord(total=2, by_unit={"cpu": 2}, fallbacks=(OperatorFallback(operator="Resize", reason="no integer kernel"),))
    found = check(baseline, gate_bundle(tmp_path, export=lambda made: recorded(made, coverage=coverage)))
    assert row(found, "fallbacks").note == "Resize: no integer kernel"


def two_files(folder: Path) -> Path:
    files = (an_export(folder / "made"), second_file(folder))
    comparison = with_pictures(a_comparison(files=("tiny-float.onnx", "tiny-mixed.onnx")), *files)
    run = a_run(*(file.record for file in files))
    return write_bundle(folder / "bundle", run=run, target=a_target(), files=files, plan=PLAN, comparison=comparison)


def test_a_file_that_is_gone_is_a_regression_and_an_added_one_is_not(baseline: Path, tmp_path: Path) -> None:
    both = two_files(tmp_path)
    lost, added = check(both, baseline), check(baseline, both)
    assert [(row.subject, row.change) for row in lost.failing] == [("onnx mixed", "removed")]
    assert added.verdict == "ok"
    assert row(added, "file").change == "added"


def test_a_file_that_no_longer_runs_on_the_device(baseline: Path, tmp_path: Path) -> None:
    nowhere = gate_bundle(tmp_path, a_comparison(files=()))
    assert row(check(baseline, nowhere), "estimated latency").verdict == "regression"
    assert row(check(nowhere, baseline), "estimated latency").verdict == "better"
    assert row(check(nowhere, nowhere), "estimated latency").verdict == "not comparable"
