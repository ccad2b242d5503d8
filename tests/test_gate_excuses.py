"""Who decides what is allowed, and what excuses a difference: two gates, another runtime, processor, counter, better constants, strangers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate_bundles import PACKAGES, a_comparison, gate_bundle, recorded, table
from gate_checks import check, row, side
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tiny_bundle import facts

from mcompress.errors import UsageError
from mcompress.export.bundle import ExportedFile
from mcompress.export.comparison import stored_estimate
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.reports.gate.compare import compare
from mcompress.reports.gate.file_rows import NotTimed, Side
from mcompress.targets.device import Device
from mcompress.targets.gate import Gate, stricter

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


def taking(*inputs: tuple[str, tuple[int, ...]]) -> Callable[[ExportedFile], ExportedFile]:
    """The same file, said to take these inputs, the picture first."""

    def changed(made: ExportedFile) -> ExportedFile:
        (name, shape), *further = inputs
        others = (facts(name, 0, shape=shape, picture=False, colour_order=None) for name, shape in further)
        (vector,) = made.vectors
        values = tuple(np.zeros(shape, np.float32) for _, shape in inputs)
        return replace(made, inputs=(facts(name, 0, shape=shape), *others), vectors=(replace(vector, inputs=values),))

    return changed


FACE, AUDIO = ("face", (1, 6, 96, 96)), ("audio", (1, 1, 80, 16))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            (FACE, AUDIO),
            (FACE, ("audio", (1, 1, 80, 20))),
            "input audio of onnx float: the baseline has [1, 1, 80, 16], the new bundle [1, 1, 80, 20]",
        ),
        (
            (FACE, AUDIO),
            (("face", (1, 6, 64, 64)), AUDIO),
            "input face of onnx float: the baseline has [1, 6, 96, 96], the new bundle [1, 6, 64, 64]",
        ),
        ((FACE, AUDIO), (FACE,), "inputs of onnx float: the baseline has face, audio, the new bundle face"),
        ((FACE,), (("face", (1, 6, 64, 64)),), "input of onnx float: the baseline has [1, 6, 96, 96], the new bundle [1, 6, 64, 64]"),
    ],
)
def test_every_input_is_compared(
    old: tuple[tuple[str, tuple[int, ...]], ...], new: tuple[tuple[str, tuple[int, ...]], ...], message: str, tmp_path: Path
) -> None:
    there, here = (gate_bundle(tmp_path / name, export=taking(*inputs)) for name, inputs in (("old", old), ("new", new)))
    assert check(there, there).verdict == "ok"
    with pytest.raises(UsageError) as caught:
        check(there, here)
    assert [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")] == [message]


@pytest.mark.parametrize("what", STRANGERS)
def test_strangers_are_refused_naming_both_values(what: str, baseline: Path, tmp_path: Path) -> None:
    make, message = STRANGERS[what]
    with pytest.raises(UsageError) as caught:
        check(baseline, make(tmp_path))
    assert f"  {message}\n" in str(caught.value)
    assert "--against" in str(caught.value)
    assert "regression" not in str(caught.value)
