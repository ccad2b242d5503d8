"""The microbenchmark suite: its files are what they say, run in the real runtime, and are measured so that nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mcompress.calibration.latency_fit import fit
from mcompress.errors import DeviceError, ExportError
from mcompress.export.profile import FailedJob, Profile
from mcompress.export.profile_runtime import installed
from mcompress.export.suite.cases import Case, cases
from mcompress.export.suite.networks import export_network
from mcompress.export.suite.running import Journal, Measured, Setting, Timing, in_even_order, measure_suite, timed
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.fitting import PRIORS
from mcompress.targets.columns import class_of
from mcompress.targets.connect import connect
from mcompress.targets.device_files import load_device
from mcompress.targets.speeds import CLASSES

pytestmark = pytest.mark.export
ALL = cases()
ONE_OF_EACH = {case.name.rstrip("0123456789_"): case for case in reversed(ALL)}
"""Beginning of the name -> its first case."""
HERE = Setting(device="here", number="fp32", threads=1, cpus=None)
FEW = tuple(ONE_OF_EACH[name] for name in ("convolution", "pointwise", "depthwise", "dense", "product", "sum", "clamp", "mean", "pad"))
ONE_ALIGNMENT = replace(PRIORS["fp32"], outputs=(16,), inputs=(1,))


def test_the_suite_is_the_same_every_time_and_has_no_case_twice() -> None:
    names = [case.name for case in ALL]
    assert names == [case.name for case in cases()]
    assert len(set(names)) == len(names) > 700


def test_a_share_of_the_suite_has_a_part_of_everything() -> None:
    few = cases(0.01)
    assert len(few) < len(ALL) / 5
    assert {name.split("_")[0] for name in ONE_OF_EACH} == {case.name.split("_")[0] for case in few}


def test_any_beginning_is_spread_over_the_whole() -> None:
    ordered = in_even_order(ALL)
    assert sorted(case.name for case in ordered) == sorted(case.name for case in ALL)
    for part in ("convolution", "pointwise", "chain"):
        share = sum(case.name.startswith(part) for case in ALL) / len(ALL)
        assert sum(case.name.startswith(part) for case in ordered[:100]) == pytest.approx(100 * share, abs=5)


@pytest.mark.parametrize("number", ["fp32", "int8"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_kind_of_file_runs(name: str, number: Number) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=ONE_OF_EACH[name].file(number), num_threads=1)
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        values = np.random.default_rng(0).normal(0, 20, given["shape"])
        interpreter.set_tensor(given["index"], values.clip(-128, 127).astype(given["dtype"]))
    interpreter.invoke()
    (result,) = interpreter.get_output_details()
    assert result["dtype"] == (np.int8 if number == "int8" else np.float32)
    assert np.isfinite(interpreter.get_tensor(result["index"])).all()


def test_files_hold_the_operators_that_they_are_named_after(tmp_path: Path) -> None:
    expected = {
        "pointwise": "pointwise_convolution",
        "convolution": "convolution",
        "grouped": "grouped_convolution",
        "depthwise": "depthwise_convolution",
        "transposed": "transposed_convolution",
        "dense": "matmul",
        "product": "batched_matmul",
        "attention": "attention",
        "sum": "add",
        "multiple": "multiply",
        "prelu": "prelu",
        "leaky_relu": "leaky_relu",
        "logistic": "sigmoid",
        "hard_swish": "hardswish",
        "softmax": "softmax",
        "largest_pool": "max_pool",
        "average_pool": "average_pool",
        "mean": "reduction",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "depth_to_space": "shuffle",
        "concatenate": "concatenate",
        "pad": "pad",
        "clamp": "clamp",
    }
    for name, wanted in expected.items():
        case = next(case for case in ALL if case.name.startswith(f"{name}_"))
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(case.file("fp32"))
        assert [class_of(row) for row in table_of_file(path).table.operators] == [wanted], name


def test_the_suite_determines_every_class_that_its_files_have(tmp_path: Path) -> None:
    """Of the classes only those that no phone network of today has are left to the prior."""
    device = load_device("host")
    assumed = {name for name, speed in device.units["cpu"].speeds["fp32"].operators.items() if speed.source == "assumed"}
    assert assumed <= {"normalization", "other", "pooling", "resize", "activation", "elementwise", "copy", "volumetric_convolution"}
    assert set(device.units["cpu"].speeds["fp32"].operators) <= set(CLASSES)


def test_the_host_meets_its_floor_on_networks_that_the_fit_did_not_see() -> None:
    for checked in load_device("host").units["cpu"].validation.values():
        assert len(checked.checks) >= 12
        assert checked.summary.mean <= 0.10
        assert checked.summary.within_20 >= 0.90
        assert not {check.network for check in checked.checks} & {case.name for case in ALL}


def some(count: int) -> tuple[Case, ...]:
    return tuple(case for case in ALL if case.name.startswith(("dense_1_", "sum_")))[:count]


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect("host") as connection:
        measured = measure_suite(connection, some(3), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        assert measured.complete
        assert [sample.name for sample in measured.samples] == [case.name for case in in_even_order(some(3))]
        assert all(sample.measured_ms > 0 for sample in measured.samples)
        monkeypatch.setattr("mcompress.export.suite.running.timed", lambda *_: pytest.fail("measured again"))
        again = measure_suite(connection, some(3), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
    assert again == replace(measured, quality=replace(measured.quality, earlier=6))
    assert str(again.quality).startswith("6 of 6 measurements from an earlier run")


def test_time_that_runs_out_keeps_what_there_is(tmp_path: Path) -> None:
    with connect("host") as connection:
        measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        measured = measure_suite(connection, some(5), HERE, tmp_path, seconds=0, progress=lambda done, of: None)
    assert len(measured.samples) == 2
    assert not measured.complete


def test_time_that_runs_out_ends_a_batch_in_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it, files in another precision, may need the time that is left."""
    told: list[tuple[int, int]] = []
    passed = iter([0.0] * 4 + [100.0] * 100)  # the clock of running.py: at the start, before the batch, in it, after the first file; then it is late
    with connect("host") as connection, monkeypatch.context() as changed:
        changed.setattr("mcompress.export.suite.running.time", SimpleNamespace(monotonic=lambda: next(passed)))
        measured = measure_suite(connection, some(5), HERE, tmp_path, seconds=60, progress=lambda done, of: told.append((done, of)))
    assert [sample.name for sample in measured.samples] == [case.name for case in in_even_order(some(5))[:2]]
    assert not measured.complete
    assert told == [(0, 10), (2, 10)]
    with connect("host") as connection:
        nothing = measure_suite(connection, some(5), HERE, tmp_path / "new", seconds=-1, progress=lambda done, of: None)
    assert (nothing.samples, nothing.nothing) == ((), "there was no time: give more --minutes")


def test_a_file_with_few_queries_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single query has no spread, and would look perfectly stable."""

    def slow(*arguments: object) -> Iterator[Profile | FailedJob]:
        for found in timed(*arguments):  # type: ignore[arg-type]
            assert isinstance(found, Profile)
            yield replace(found, n=1, cv=0.0)

    monkeypatch.setattr("mcompress.export.suite.running.timed", slow)
    with connect("host") as connection:
        measured = measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
    assert str(measured.quality) == "4 measurements, 4 of fewer than 10 queries"


def a_broken_runtime(folder: Path, line: str) -> None:
    """Python packages of LiteRT whose import ends with this line; nothing else of the runtime is found before them."""
    for name in ("ai_edge_litert", "tflite_runtime"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"{line}\n", encoding="ascii")


def test_a_device_that_cannot_say_its_runtime_is_not_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect("host") as connection:
        there = installed(connection, "tflite", None)
        assert there is not None
        assert re.fullmatch(r"ai-edge-litert \d\S* CPU", there.runtime)
        a_broken_runtime(tmp_path / "absent", "raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
        assert installed(connection, "tflite", None) is None
        a_broken_runtime(tmp_path / "broken", "raise RuntimeError('no such instruction')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
        with pytest.raises(DeviceError, match=r"host could not say which runtime it has for tflite files; .*RuntimeError: no such instruction"):
            installed(connection, "tflite", None)


def test_what_was_measured_now_counts_whatever_is_known_of_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcompress.export.suite.running.installed", lambda *_: None)
    with connect("host") as connection:
        measured = measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        assert len(measured.samples) == 2
        assert measured.complete
        assert measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None).quality.earlier == 0


@pytest.mark.filterwarnings("ignore")  # the converter's own
def test_a_network_of_the_validation_is_exported_for_real_and_once(tmp_path: Path) -> None:
    """The same operators in both precisions; a file that is there is not made again."""
    tables = {number: table_of_file(export_network("patchgan", number, tmp_path)) for number in ("fp32", "int8")}
    kinds = [[operator.kind for operator in read.table.operators if operator.macs] for read in tables.values()]
    assert kinds[0] == kinds[1] == ["convolution"] * len(kinds[0])
    assert len(kinds[0]) >= 4
    precisions = tables["int8"].precisions or {}
    assert {precisions[operator.name] for operator in tables["int8"].table.operators if operator.macs} == {"int8"}
    (tmp_path / "patchgan_fp32.tflite").write_bytes(b"kept")
    assert export_network("patchgan", "fp32", tmp_path).read_bytes() == b"kept"


def a_timing(name: str) -> Timing:
    return Timing(name=name, p50_ms=1.5, cv=0.1, n=20, runtime="x 1", program="", digest="0", day="2026-11-20")


def test_a_journal_survives_a_torn_line_and_refuses_another_setting(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    journal = Journal(path, HERE)
    journal.add(a_timing("a"))
    path.write_text(path.read_text() + '{"name": "b", "p50', encoding="utf-8")
    assert set(Journal(path, HERE).timings) == {("a", 0)}
    with pytest.raises(ExportError, match=r"suite\.jsonl was measured with device 'here', not 'elsewhere'; remove it, or .* --keep DIR"):
        Journal(path, Setting(device="elsewhere", number="fp32", threads=1, cpus=None))


@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b'{"name": "\xe9", "p50_ms": 1.5}', b"\x80"])
def test_a_journal_with_a_line_that_is_no_text_keeps_the_others(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "suite.jsonl"
    Journal(path, HERE).add(a_timing("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n")
    Journal(path, HERE).add(a_timing("b\u2028"))  # no end of a line
    assert set(Journal(path, HERE).timings) == {("a", 0), ("b\u2028", 0)}
    path.write_bytes(line + b"\n" + whole)
    journal = Journal(path, HERE)
    assert journal.timings == {}
    assert journal.notes[0].endswith("suite.jsonl.old, and everything is measured again")


def test_a_journal_whose_process_was_killed_goes_on(tmp_path: Path) -> None:
    """In its first line, and in the middle of a later one, which must not spoil the one that follows."""
    path = tmp_path / "suite.jsonl"
    path.write_text('{"device": "he', encoding="utf-8")
    Journal(path, HERE).add(a_timing("a"))
    path.write_text(path.read_text() + '{"name": "b", "p50', encoding="utf-8")
    Journal(path, HERE).add(a_timing("c"))
    assert set(Journal(path, HERE).timings) == {("a", 0), ("c", 0)}


def test_a_journal_of_an_earlier_version_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    old = '{"cpus": null, "device": "here", "number": "fp32", "threads": 1}\n{"name": "a", "p50_ms": 1.0, "cv": 0.0, "n": 20, "runtime": "x 1"}\n'
    path.write_text(old, encoding="utf-8")
    journal = Journal(path, HERE)
    assert journal.timings == {}
    assert journal.notes == [
        f"{path} does not say which runtime and which files were measured; it is now {path}.old, and everything is measured again"
    ]
    assert (tmp_path / "suite.jsonl.old").read_text(encoding="utf-8") == old
    assert Journal(path, HERE).notes == []


def test_a_changed_file_and_another_runtime_are_measured_again(tmp_path: Path) -> None:
    def measure(suite: tuple[Case, ...]) -> Measured:
        with connect("host") as connection:
            return measure_suite(connection, suite, HERE, tmp_path, seconds=60, progress=lambda done, of: None)

    first, second = some(2)
    measure((first, second))
    measured = measure((first, replace(second, build=some(3)[2].build)))  # a suite that has changed, and kept the name
    assert measured.quality.earlier == 2
    assert "2 measurements in " in measured.quality.notes[0]
    assert "files that have changed" in measured.quality.notes[0]
    tables = {sample.name: sample.table for sample in measured.samples}
    (tmp_path / "c.tflite").write_bytes(some(3)[2].file("fp32"))
    assert tables[second.name] == table_of_file(tmp_path / "c.tflite").table
    journal = tmp_path / "suite_fp32.jsonl"
    runtime = measured.runtime
    journal.write_text(journal.read_text(encoding="utf-8").replace(runtime, "ai-edge-litert 0.1 CPU"), encoding="utf-8")
    assert measure((first,)).quality.earlier == 0
    assert measure((first,)).quality.earlier == 2
    assert measure((first,)).runtime == runtime


def test_the_date_is_the_one_of_the_measurements(tmp_path: Path) -> None:
    journal = tmp_path / "suite_fp32.jsonl"
    with connect("host") as connection:
        measured = measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        today = measured.quality.days[0]
        journal.write_text(journal.read_text(encoding="utf-8").replace(today, "2025-01-31"), encoding="utf-8")
        again = measure_suite(connection, some(2), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
    assert again.quality.days == ("2025-01-31", "2025-01-31")


@pytest.mark.parametrize("cools", [True, False])
def test_what_was_throttled_is_measured_once_more_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cools: bool) -> None:
    """Every timing of the first file is throttled the first time; it counts only if it is not throttled when it is repeated, or later still."""
    hot, cool = in_even_order(some(2))
    seen: list[str] = []

    def heated(*arguments: object) -> Iterator[Profile | FailedJob]:
        for found in timed(*arguments):  # type: ignore[arg-type]
            assert isinstance(found, Profile)
            seen.append(found.job.label)
            again = seen.count(hot.name) > 2
            is_hot = found.job.label == hot.name and not (again and cools)
            yield replace(found, throttled="the clock fell" if is_hot else None, p50_ms=1000.0 if is_hot else found.p50_ms, cv=0.5)

    monkeypatch.setattr("mcompress.export.suite.running.timed", heated)
    with connect("host") as connection:
        measured = measure_suite(connection, (hot, cool), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        assert seen == [hot.name, cool.name, hot.name, cool.name, hot.name, hot.name]  # never a third time
        seen.clear()
        again = measure_suite(connection, (hot, cool), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
        assert seen == ([] if cools else [hot.name] * 4)  # still hot: both rounds, and each of them once more
        journal = tmp_path / "suite_fp32.jsonl"
        assert again.quality.notes == (() if cools else (f"2 measurements in {journal} were throttled, and are made again",))
        monkeypatch.setattr("mcompress.export.suite.running.timed", timed)
        later = measure_suite(connection, (hot, cool), HERE, tmp_path, seconds=60, progress=lambda done, of: None)
    assert later.complete
    assert {sample.name for sample in later.samples} == {hot.name, cool.name}
    assert (later.quality.earlier, later.quality.left_out) == (4 if cools else 2, 0)
    assert [sample.name for sample in measured.samples] == ([hot.name] if cools else []) + [cool.name]
    assert all(sample.measured_ms < 100 for sample in measured.samples)
    said = "2 throttled and measured again" + ("" if cools else ", 2 throttled and left out")
    assert f"{said}, {4 if cools else 2} unstable (coefficient of variation above 20 %)" in str(measured.quality)
    assert again.samples == measured.samples


def test_a_fit_follows_the_machine(tmp_path: Path) -> None:
    """The same suite, twice as slow in every file, gives a unit that is half as fast."""
    with connect("host") as connection:
        measured = measure_suite(connection, FEW, HERE, tmp_path, seconds=120, progress=lambda done, of: None)
    slower = [replace(sample, measured_ms=2 * sample.measured_ms) for sample in measured.samples]
    once, twice = fit(measured.samples, ONE_ALIGNMENT), fit(slower, ONE_ALIGNMENT)
    tables = [sample.table for sample in measured.samples]
    ratio = twice.estimate_ms(tables) / once.estimate_ms(tables)
    assert np.median(ratio) == pytest.approx(2.0, rel=0.1)
