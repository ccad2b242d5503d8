"""Verdicts: each field against its tolerance, what excuses it, what cannot be compared, and which operators are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gate_bundles import PACKAGES, a_comparison, convolution, gate_bundle, recorded, second_file, shuffle, table
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tiny_bundle import PLAN, a_run, a_target, an_export

from mcompress.errors import UsageError
from mcompress.export.bundle import read_manifest, write_bundle
from mcompress.export.comparison import Comparison, EstimatedFile, EstimatedOperator, read_comparison, stored_estimate
from mcompress.record import CoverageRecord, OperatorFallback, ParityRecord
from mcompress.reports.gate.compare import compare
from mcompress.reports.gate.file_rows import NotTimed, Side
from mcompress.reports.gate.operators import operator_changes
from mcompress.reports.gate.rows import judged
from mcompress.reports.gate.timing import Ratio, Timing
from mcompress.reports.gate.verdicts import Check, Row
from mcompress.targets.device import Device
from mcompress.targets.gate import Gate, stricter
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.speeds import PrecisionName


def side(folder: Path, constants: Comparison | None = None) -> Side:
    manifest, comparison = read_manifest(folder), read_comparison(folder)
    return Side(manifest, comparison, comparison.estimates_with((constants or comparison).constants))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gate_bundle(tmp_path_factory.mktemp("baseline"))


def check(baseline: Path, new: Path, timing: Timing | NotTimed | None = None) -> Check:
    changed = side(new)
    return compare(side(baseline, changed.comparison), changed, {} if timing is None else {"onnx float": timing})


def row(found: Check, field: str) -> Row:
    (only,) = [row for row in found.rows if row.field == field]
    return only


def test_a_bundle_is_as_good_as_itself(baseline: Path) -> None:
    found = check(baseline, baseline)
    assert found.verdict == "ok"
    assert {row.verdict for row in found.rows} == {"ok"}
    assert [row.field for row in found.rows] == [
        "multiply-adds", "parameters", "planned peak memory, fp32", "estimated latency", "size", "fallbacks", "operators wider than fp32",
        "parity, share of the range", "quality, psnr_db",
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
        {"parity": ParityRecord(reference="PyTorch", metric="share of range", value=9e-5, limit=1e-3, passed=True, runtime="onnxruntime")},
        "parity, share of the range",
        "ok",
    ),
    "parity worse": (
        {},
        {"parity": ParityRecord(reference="PyTorch", metric="share of range", value=5e-4, limit=1e-3, passed=True, runtime="onnxruntime")},
        "parity, share of the range",
        "regression",
    ),
    "parity outside its limit": (
        {"parity": ParityRecord(reference="PyTorch", metric="share of range", value=9.99e-4, limit=1e-3, passed=True, runtime="onnxruntime")},
        {"parity": ParityRecord(reference="PyTorch", metric="share of range", value=1.01e-3, limit=1e-3, passed=False, runtime="onnxruntime")},
        "parity, share of the range",
        "regression",
    ),
    "parity in dB": (
        {"parity": ParityRecord(reference="PyTorch", metric="sqnr_db", value=47.0, limit=35, passed=True, runtime="onnxruntime")},
        {"parity": ParityRecord(reference="PyTorch", metric="sqnr_db", value=45.5, limit=35, passed=True, runtime="onnxruntime")},
        "parity, dB",
        "regression",
    ),
    "parity that was lost": ({}, {"parity": NO_PARITY}, "parity, share of the range", "regression"),
    "parity that is new": ({"parity": NO_PARITY}, {}, "parity, share of the range", "not comparable"),
    "parity that is new and outside its limit": (
        {"parity": NO_PARITY},
        {"parity": ParityRecord(reference="PyTorch", metric="share of range", value=2e-3, limit=1e-3, passed=False, runtime="onnxruntime")},
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


LOOSE = {"latency_percent": 500, "macs_percent": 500, "params_percent": 500, "peak_memory_percent": 500}


def test_a_change_cannot_loosen_its_own_gate(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=96), gate=LOOSE)))
    assert found.verdict == "regression"
    latency = row(found, "estimated latency")
    assert (latency.verdict, latency.tolerance) == ("regression", "+2 % (baseline +2 %, new +500 %)")
    assert row(found, "size").tolerance == "+1 %"
    told = "gate latency_percent 2 -> 500, macs_percent 1 -> 500, params_percent 1 -> 500, peak_memory_percent 1 -> 500"
    assert f"the bundles do not allow the same, and what allows less counts: {told}" in found.notes


def test_a_stricter_change_counts_at_once(baseline: Path, tmp_path: Path) -> None:
    loose = gate_bundle(tmp_path / "old", a_comparison(gate=LOOSE))
    assert check(loose, gate_bundle(tmp_path / "new", a_comparison(table(middle=96)))).verdict == "regression"
    assert check(loose, gate_bundle(tmp_path / "as loose", a_comparison(table(middle=96), gate=LOOSE))).verdict == "ok"


SHOWN = {"only_shown": ("latency_percent", "macs_percent", "params_percent", "peak_memory_percent")}


def test_a_field_that_is_only_shown_fails_nothing(tmp_path: Path) -> None:
    old = gate_bundle(tmp_path / "old", a_comparison(gate=SHOWN))
    found = check(old, gate_bundle(tmp_path / "new", a_comparison(table(middle=96), gate=SHOWN)))
    assert found.verdict == "ok"
    latency = row(found, "estimated latency")
    assert (latency.tolerance, latency.verdict) == ("any (only shown)", "ok")
    assert latency.note.startswith("only shown, worse than would be allowed")


def test_a_change_cannot_choose_to_be_only_shown(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=96), gate=SHOWN)))
    assert found.verdict == "regression"
    assert row(found, "estimated latency").tolerance == "+2 % (baseline +2 %, new any, +2 % shown)"
    assert any("only_shown [] -> [latency_percent, macs_percent" in note for note in found.notes)


@given(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_the_stricter_gate_allows_what_both_allow(one: int, other: int, here: bool, there: bool, required: bool, either: bool) -> None:
    gates = [
        Gate(quality=value, fallbacks=9 - value, only_shown=("quality",) if shown else (), measured_required=wanted)
        for value, shown, wanted in ((one, here, required), (other, there, either))
    ]
    found = stricter(*gates)
    assert (found.quality, found.fallbacks) == (min(one, other), 9 - max(one, other))
    assert found.only_shown == (("quality",) if here and there else ())
    assert found.measured_required == (required or either)
    assert stricter(*reversed(gates)) == found
    assert stricter(found, found) == found


def test_another_runtime_asks_for_a_new_baseline(baseline: Path, tmp_path: Path) -> None:
    newer = a_comparison(packages={**PACKAGES, "onnxruntime": "1.32.0"})
    found = check(baseline, gate_bundle(tmp_path, newer, export=lambda made: recorded(made, quality={"psnr_db": 20.0})))
    assert found.verdict == "re-baseline"
    assert row(found, "runtime").baseline == "onnxruntime 1.31.1"
    assert row(found, "quality, psnr_db").verdict == "re-baseline"
    assert "packages that changed: onnxruntime 1.31.1 -> 1.32.0" in found.notes
    assert "regression" not in repr(found)


def test_another_runtime_excuses_what_it_computed_and_nothing_else(baseline: Path, tmp_path: Path) -> None:
    newer = a_comparison(table(middle=96), packages={**PACKAGES, "onnxruntime": "1.32.0"})
    coverage = CoverageRecord(total=2, by_unit={"cpu": 2}, fallbacks=(OperatorFallback(operator="Resize", reason="no kernel"),))
    new = gate_bundle(tmp_path, newer, export=lambda made: recorded(made, quality={"psnr_db": 20.0}, coverage=coverage))
    found = check(baseline, new, NotTimed("onnxruntime 1.31.1 made the baseline", "re-baseline"))
    verdicts = {row.field: row.verdict for row in found.rows}
    excused = {field for field, verdict in verdicts.items() if verdict == "re-baseline"}
    assert excused == {"runtime", "measured latency", "fallbacks", "quality, psnr_db"}
    assert {field for field, verdict in verdicts.items() if verdict == "regression"} == {
        "multiply-adds", "parameters", "planned peak memory, fp32", "estimated latency"
    }  # fmt: skip


def test_another_backends_runtime_is_nothing_to_a_file(baseline: Path, tmp_path: Path) -> None:
    newer = a_comparison(packages={**PACKAGES, "ai-edge-litert": "9.9"})
    assert check(baseline, gate_bundle(tmp_path, newer)).verdict == "ok"


def test_another_processor_excuses_what_it_computed_and_nothing_else(baseline: Path, tmp_path: Path) -> None:
    other = a_comparison(table(middle=96), cpu="another processor")
    found = check(baseline, gate_bundle(tmp_path, other, export=lambda made: recorded(made, quality={"psnr_db": 20.0})))
    assert row(found, "quality, psnr_db").verdict == "re-baseline"
    assert row(found, "estimated latency").verdict == "regression"
    assert check(baseline, gate_bundle(tmp_path / "same", a_comparison(cpu="another processor"))).verdict == "ok"


def test_other_held_out_data_make_quality_another_number(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(held_out="cd" * 32)))
    assert row(found, "quality, psnr_db").verdict == "re-baseline"


def test_another_counter_is_no_regression(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=96), packages={**PACKAGES, "mcompress": "0.2.0"})))
    assert found.verdict == "re-baseline"
    assert {row.verdict for row in found.failing} == {"re-baseline"}


def slower(constants: JsonValue) -> JsonValue:
    """The same device with half the speed: every number of milliseconds doubles, roughly."""
    assert isinstance(constants, dict)
    units = {
        name: {
            **unit,
            "speeds": {
                precision: {**speeds, "memory": {**speeds["memory"], "gbs": speeds["memory"]["gbs"] / 3}}  # type: ignore[index, dict-item, operator]
                for precision, speeds in unit["speeds"].items()  # type: ignore[index, union-attr]
            },
        }  # type: ignore[dict-item]
        for name, unit in constants["units"].items()  # type: ignore[union-attr]
    }
    return {**constants, "units": units}  # type: ignore[dict-item]


def test_better_constants_never_look_like_a_slower_network(baseline: Path, tmp_path: Path) -> None:
    whole = a_comparison()
    constants = slower(whole.constants)
    files = {"tiny-float.onnx": stored_estimate(table(), Device.model_validate(constants), "gpu", "fp16")}
    assert files["tiny-float.onnx"].latency_ms > 1.1 * whole.files["tiny-float.onnx"].latency_ms
    found = check(baseline, gate_bundle(tmp_path, whole.model_copy(update={"constants": constants, "files": files})))
    assert found.verdict == "ok"
    latency = row(found, "estimated latency")
    assert latency.values[0] == latency.values[1] == pytest.approx(files["tiny-float.onnx"].latency_ms)
    assert any("the estimate of the baseline was" in note and "which is what is compared" in note for note in found.notes)


def test_an_old_table_that_cannot_be_estimated_asks_for_a_new_baseline(baseline: Path) -> None:
    there = side(baseline)
    found = compare(Side(there.manifest, there.comparison, None, "no constants for 'attention'"), there, {})
    assert found.verdict == "re-baseline"
    assert row(found, "estimated latency").note == "no constants for 'attention'"


def two_files(folder: Path) -> Path:
    files = (an_export(folder / "made"), second_file(folder))
    comparison = a_comparison(files=("tiny-float.onnx", "tiny-mixed.onnx"))
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


STRANGERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "model": (
        lambda folder: gate_bundle(folder, a_comparison(model={"network": "rrdb", "args": {"features": 64, "blocks": 1}})),
        "model.args.features: the baseline has 8, the new bundle 64",
    ),
    "network": (
        lambda folder: gate_bundle(folder, a_comparison(model={"network": "my_net:build", "args": {}})),
        "model.network: the baseline has rrdb, the new bundle my_net:build",
    ),
    "device": (
        lambda folder: gate_bundle(folder, target={"device": "host"}),
        "device: the baseline has snapdragon865, the new bundle host",
    ),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_strangers_are_refused_naming_both_values(what: str, baseline: Path, tmp_path: Path) -> None:
    make, message = STRANGERS[what]
    with pytest.raises(UsageError) as caught:
        check(baseline, make(tmp_path))
    assert f"  {message}\n" in str(caught.value)
    assert "--against" in str(caught.value)
    assert "regression" not in str(caught.value)


def ratio(value: float, noise: float = 0.01) -> Ratio:
    return Ratio(value, value - 0.003, value + 0.003, noise, 10.0, 10.0 * value, 100)


def test_measured_rows(baseline: Path) -> None:
    def measured(*passes: Ratio) -> Row:
        return row(check(baseline, baseline, Timing(passes)), "measured latency")

    assert measured(ratio(1.0)).verdict == "ok"
    slow = measured(ratio(1.06), ratio(1.06))
    assert (slow.verdict, slow.change, slow.tolerance, slow.baseline, slow.new) == ("regression", "+6.00 %", "+3 %", "10 ms", "10.6 ms")
    unsure = measured(ratio(1.06), ratio(1.0))
    assert unsure.verdict == "ok"
    assert unsure.note.endswith("the first pass raised an alarm, the second did not confirm it")
    assert measured(ratio(0.9)).verdict == "better"
    identical = row(check(baseline, baseline, NotTimed("the files are identical", "ok")), "measured latency")
    assert (identical.verdict, identical.note) == ("ok", "not measured: the files are identical")
    assert row(check(baseline, baseline, NotTimed("no runtime", "not comparable")), "measured latency").verdict == "not comparable"


def test_noise_above_the_tolerance_is_no_pass(baseline: Path) -> None:
    found = check(baseline, baseline, Timing((ratio(1.06, noise=0.1),)))
    noisy = row(found, "measured latency")
    assert (noisy.verdict, noisy.change, noisy.tolerance) == ("not decided", "+6.00 %", "+3 %")
    assert noisy.note.startswith("noise 10 % is above the tolerance 3 %; interleaved, 100 rounds a pass, 95 % interval ")
    assert (found.verdict, found.failing, found.must_decide) == ("not decided", (), False)
    assert row(check(baseline, baseline, Timing((ratio(1.0, noise=0.031),))), "measured latency").verdict == "not decided"
    assert row(check(baseline, baseline, Timing((ratio(1.0, noise=0.03),))), "measured latency").verdict == "ok"


def test_what_is_larger_than_the_noise_is_decided_whatever_the_noise(baseline: Path) -> None:
    slow = row(check(baseline, baseline, Timing((ratio(1.2, noise=0.1), ratio(1.2, noise=0.1)))), "measured latency")
    assert (slow.verdict, slow.note.partition(";")[0]) == ("regression", "more than the noise, 10 %")
    assert row(check(baseline, baseline, Timing((ratio(0.8, noise=0.1),))), "measured latency").verdict == "better"


def test_a_decision_can_be_required(baseline: Path, tmp_path: Path) -> None:
    required = gate_bundle(tmp_path, a_comparison(gate={"measured_required": True}))
    for timing in (Timing((ratio(1.0, noise=0.1),)), NotTimed("the time ended during a measurement", "not decided")):
        found = check(baseline, required, timing)
        assert [(row.field, row.verdict) for row in found.failing] == [("measured latency", "not decided")]
    assert not check(baseline, required, NotTimed("coreml files are not executed on this machine", "not comparable")).failing


def estimated(operators: tuple[Operator, ...], precisions: dict[str, PrecisionName] | PrecisionName = "fp16") -> EstimatedFile:
    comparison = a_comparison(OperatorTable(operators, 0), precisions)
    return comparison.estimates_with(comparison.constants)["tiny-float.onnx"]


def rows_of(operators: tuple[Operator, ...], precisions: dict[str, PrecisionName] | PrecisionName = "fp16") -> tuple[EstimatedOperator, ...]:
    return estimated(operators, precisions).operators


def test_operators_are_matched_by_name_then_by_kind_in_order() -> None:
    old = rows_of((convolution("head", 3, 64), convolution("a", 64, 64), convolution("b", 64, 64), shuffle("up")))
    new = rows_of((convolution("head", 3, 64), convolution("x", 64, 64), convolution("extra", 64, 64), convolution("b", 64, 64), shuffle("last")))
    changes = {change.name: change for change in operator_changes(old, new)}
    assert (changes["x"].what, changes["x"].detail) == ("changed", "was a")
    assert changes["extra"].what == "added"
    assert changes["last"].detail == "was up"
    assert "head" not in changes
    assert "b" not in changes
    back = {change.name: change for change in operator_changes(new, old)}
    assert back["extra"].what == "removed"
    assert back["extra"].gained_ms == -changes["extra"].gained_ms


def test_a_lost_precision_is_named_with_what_it_cost() -> None:
    rows = (convolution("head", 3, 64), convolution("middle", 64, 64))
    old, new = rows_of(rows, {"head": "int8", "middle": "int8"}), rows_of(rows, {"head": "int8", "middle": "fp32"})
    changes = operator_changes(old, new)
    assert any(change.name == "middle" and "int8 -> fp32" in change.detail for change in changes)


def test_every_millisecond_of_the_change_is_assigned_to_an_operator() -> None:
    old, new = estimated(table(64).operators), estimated(table(200).operators)
    gained = sum(change.gained_ms for change in operator_changes(old.operators, new.operators))
    assert gained == pytest.approx(new.latency_ms - old.latency_ms)


def test_the_largest_gain_comes_first(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=128))))
    gained = [change.gained_ms for change in found.operators["onnx float"]]
    assert gained == sorted(gained, reverse=True)
