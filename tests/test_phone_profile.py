"""Files that are timed on a stand-in device through adb: what is read, what fails and why, and how files get there."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from phone_programs import CSV, OUTPUT, RUNNER, benchmark, model, profiled, program
from stand_in_device import StandInDevice, needs_adb
from tflite_graphs import Made, write_tflite
from tiny_bundle import FAST

from mcompress.errors import DeviceError, UsageError
from mcompress.export import profile_phone
from mcompress.export.profile import FailedJob, InputShape, Job, Profile, interleave, profile_files
from mcompress.export.profile_phone import Programs
from mcompress.export.suite.running import SUITE_RULES
from mcompress.targets.connect import connect


@needs_adb
def test_a_profile_through_adb(stand_in: StandInDevice, tmp_path: Path) -> None:
    timing = benchmark(tmp_path, then=f"case \"$*\" in *op_profiling*) cat > operators.csv <<'X'\n{CSV}X\nesac\n")
    total = "echo 'I executorch:executor_runner.cpp:530] Model executed successfully 3 time(s) in 36.000000 ms.' >&2\n"
    runner = program(tmp_path, "executor_runner", f"cat >&2 <<'X'\n{RUNNER}X\n{total}")
    jobs = [
        replace(model(tmp_path), threads=2, cpus=(0,), operators=True),
        model(tmp_path, "b.pte"),
        model(tmp_path, "c.onnx"),
    ]
    with connect(f"adb:127.0.0.1:{stand_in.port}") as phone:
        tflite, pte, onnx = profile_files(phone, jobs, programs=Programs(timing, runner))
        with pytest.raises(DeviceError, match="no Python"):
            interleave(phone, jobs[0], jobs[1], rounds=1, queries_per_round=1)
    assert isinstance(tflite, Profile)
    assert (tflite.p50_ms, tflite.n, tflite.throttled) == (0.054, 50, None)
    assert [operator.kind for operator in tflite.operators] == ["CONV_2D", "ADD"]
    assert isinstance(pte, Profile)
    assert len(pte.samples_ms) == pte.n
    assert isinstance(onnx, FailedJob)
    assert "no program that times onnx files" in onnx.reason
    asked = next(command for command in stand_in.commands if "benchmark_model" in command and "--graph" in command)
    assert re.search(r"taskset 1 \./program-[0-9a-f]{16}/benchmark_model --graph=models/0-a\.tflite --num_threads=2", asked)
    assert asked_of(stand_in)[0] == "--num_runs=50 --min_secs=0 --max_secs=0.5"  # whichever comes first


@needs_adb
def test_sizes_that_a_file_leaves_open_are_asked_for_and_told_to_the_program(stand_in: StandInDevice, tmp_path: Path) -> None:
    shapes = {"x": (1, 1, 1, 3), "t": (1, 1), "y": (1, 1, 1, 3)}
    signatures = {"x": (-1, -1, -1, 3), "t": (-1, 1), "y": (-1, -1, -1, 3)}
    path = write_tflite(tmp_path / "open.tflite", [Made("ADD", "x t", "y")], shapes, "x t", "y", signatures=signatures)
    batch = write_tflite(tmp_path / "batch.tflite", [Made("RELU", "x", "y")], shapes, "x", "y", signatures={"x": (-1, 1, 1, 3), "y": (-1, 1, 1, 3)})
    asked = Job(path, "tflite", rules=FAST, inputs=(InputShape("x", (1, 8, 8, 3)), InputShape("t", (1, 1))))
    jobs = [
        Job(path, "tflite", rules=FAST),
        asked,
        Job(batch, "tflite", rules=FAST),
        replace(asked, file=model(tmp_path, "a.pte").file, backend="executorch"),
    ]
    runner = program(tmp_path, "executor_runner", "exit 1\n")
    refused, given, assumed, fixed = profiled(jobs, Programs(benchmark(tmp_path), runner))
    assert isinstance(refused, FailedJob)
    assert refused.reason == "the file leaves sizes open (x: ?,?,?,3; t: ?,1); give --input x=SHAPE --input t=SHAPE"
    assert isinstance(given, Profile)
    assert (given.inputs, given.assumed) == (asked.inputs, "")
    assert isinstance(assumed, Profile)
    assert (assumed.inputs, assumed.assumed) == ((InputShape("x", (1, 1, 1, 3)),), "batch 1 assumed, which the file leaves open")
    assert isinstance(fixed, FailedJob)
    assert "executor_runner measures at the sizes that a.pte states" in fixed.reason
    told = [re.findall(r"--input_layer\S+", command) for command in stand_in.commands if "--graph" in command]
    assert told == [["--input_layer=x,t", "--input_layer_shape=1,8,8,3:1,1"], ["--input_layer=x", "--input_layer_shape=1,1,1,3"]]


def of_40_ms(folder: Path) -> Path:
    """benchmark_model with a file whose queries take 40 ms: it makes `num_runs` of them, until `max_secs` at the latest."""
    script = """
for word; do case "$word" in --num_runs=*) runs=${word#*=};; --max_secs=*) most=${word#*=};; esac; done
count=$(awk "BEGIN { fit = int($most / 0.04) + 1; print fit < $runs ? fit : $runs }")
sleep "$(awk "BEGIN { print 0.04 * $count }")"
echo "count=$count first=40000 curr=40000 min=39000 max=41000 avg=40000 std=100 p5=39000 median=40000 p95=41000"
"""
    return program(folder, "benchmark_model", script + f"case \"$*\" in *op_profiling*) cat > operators.csv <<'X'\n{CSV}X\nesac\n")


def asked_of(stand_in: StandInDevice) -> list[str]:
    """Queries and seconds of each call to benchmark_model."""
    return [text for command in stand_in.commands for text in re.findall(r"--num_runs=\S+ --min_secs=\S+ --max_secs=\S+", command)]


@needs_adb
def test_a_slow_file_is_timed_ten_times(stand_in: StandInDevice, tmp_path: Path) -> None:
    """In the time that the rules give a fast one it would have two queries: it is run once more, and its operators as often."""
    job = replace(model(tmp_path), rules=SUITE_RULES, operators=True)
    (found,) = profiled([job], Programs(of_40_ms(tmp_path)))
    assert isinstance(found, Profile)
    assert (found.n, found.p50_ms) == (10, 40.0)
    assert not any("queries" in warning for warning in found.warnings)
    assert asked_of(stand_in) == [
        "--num_runs=40 --min_secs=0 --max_secs=0.06",
        "--num_runs=10 --min_secs=0 --max_secs=3",
        "--num_runs=10 --min_secs=0 --max_secs=3",
    ]


@needs_adb
@pytest.mark.parametrize(("seconds", "count"), [(0.1, "3 queries"), (0.02, "1 query")])
def test_a_file_that_is_too_slow_for_ten_says_so(stand_in: StandInDevice, tmp_path: Path, seconds: float, count: str) -> None:
    """Its time ends it; a single query has no spread, and would look perfectly stable."""
    (found,) = profiled([replace(model(tmp_path), rules=replace(SUITE_RULES, max_seconds=seconds))], Programs(of_40_ms(tmp_path)))
    assert isinstance(found, Profile)
    assert found.n == int(count[0])
    assert any(f"only {count} in the time that there was; at least 10 are wanted" in warning for warning in found.warnings)


@needs_adb
def test_programs_that_are_missing_or_fail(stand_in: StandInDevice, tmp_path: Path) -> None:
    job = model(tmp_path)
    broken = program(tmp_path, "benchmark_model", "echo 'ERROR: Failed to load model' >&2; exit 1\n")
    silent = program(tmp_path, "silent", "echo STARTING!\n")
    foreign = program(tmp_path, "foreign", "echo 'cannot execute binary file' >&2; exit 126\n")
    absent, failed, mute, unfit = (profiled([job], Programs(binary))[0] for binary in (None, broken, silent, foreign))
    with pytest.raises(UsageError, match="is not a file"):
        profiled([job], Programs(tmp_path / "no"))
    assert isinstance(absent, FailedJob)
    assert absent.missing
    assert "MCOMPRESS_BENCHMARK_MODEL" in absent.reason
    assert isinstance(failed, FailedJob)
    assert "code 1: ERROR: Failed to load model" in failed.reason
    assert isinstance(mute, FailedJob)
    assert "nothing that can be read as a time" in mute.reason
    assert isinstance(unfit, FailedJob)
    assert unfit.missing
    assert "code 126: cannot execute binary file. It was probably built for another processor" in unfit.reason


@needs_adb
@pytest.mark.parametrize("changed", ["avg=2055043.2", "min=-1000053"])
def test_a_phones_clock_that_jumps_fails_the_file(stand_in: StandInDevice, tmp_path: Path, changed: str) -> None:
    """benchmark_model reads the wall clock: set forward, its times add up to more than it ran; set back, one of them is negative."""
    key = changed.partition("=")[0]
    before, last = OUTPUT.split("count=50")
    jumping = benchmark(tmp_path, output=f"{before}count=50{re.sub(rf'{key}=[0-9.]+', changed, last)}")
    (found,) = profiled([model(tmp_path)], Programs(jumping))
    assert isinstance(found, FailedJob)
    assert re.search(r"the phone's clock jumped: benchmark_model says 50 queries of .* s together, and ran for .* s; measure again", found.reason)


@needs_adb
def test_a_hot_phone_is_said(stand_in: StandInDevice, tmp_path: Path) -> None:
    stand_in.add_program("dumpsys", "echo 'Thermal Status: 3'\n")
    (found,) = profiled([model(tmp_path)], Programs(benchmark(tmp_path)))
    assert isinstance(found, Profile)
    assert found.throttled == "Android's thermal status is severe"
    assert any("measured hot" in warning for warning in found.warnings)


@needs_adb
def test_a_phone_whose_clock_is_limited_says_so(stand_in: StandInDevice, tmp_path: Path) -> None:
    """Of the processors that are used."""
    for core, limit in (("cpu0", 1_800_000), ("cpu7", 1_420_800)):
        folder = stand_in.sys / "devices/system/cpu" / core / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_max_freq").write_text(f"{limit}\n", encoding="ascii")
        (folder / "cpuinfo_max_freq").write_text(f"{2_841_600 if core == 'cpu7' else 1_800_000}\n", encoding="ascii")
    job = model(tmp_path)
    pinned, free = profiled([replace(job, cpus=(0,)), job], Programs(benchmark(tmp_path)))
    assert isinstance(pinned, Profile)
    assert isinstance(free, Profile)
    assert not any("clock limit" in warning for warning in pinned.warnings)
    assert "the clock limit of cpu7 is 1.42 of 2.84 GHz" in free.warnings


@needs_adb
def test_an_unplugged_phone_keeps_what_was_complete(stand_in: StandInDevice, tmp_path: Path) -> None:
    slow = benchmark(tmp_path, first='case "$*" in *b.tflite*) sleep 30;; esac\n')
    seen = []
    jobs = [model(tmp_path, name) for name in ("a.tflite", "b.tflite")]
    with connect("adb") as phone:
        started = time.monotonic()
        with pytest.raises(DeviceError, match="was lost"):  # noqa: PT012  (what came before is kept)
            for found in profile_files(phone, jobs, programs=Programs(slow)):
                seen.append(found)
                threading.Timer(0.3, stand_in.unplug).start()
        assert time.monotonic() - started < 20
    assert [found.job.file.name for found in seen] == ["a.tflite"]


@needs_adb
def test_many_files_are_pushed_together_and_not_one_by_one(stand_in: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to adb takes longer than a small file: one per measurement is left, and the program is sent once however often it is needed."""
    jobs = [replace(model(tmp_path, f"{number}.tflite", b"a model " * 16), label=str(number)) for number in range(60)]
    programs = Programs(benchmark(tmp_path, first='[ -s "${1#--graph=}" ] || exit 1\n'))
    monkeypatch.setattr(profile_phone, "PUSHED_TOGETHER_BYTES", 40 * 128)
    with connect("adb") as phone:
        pushed: list[str] = []
        push = phone.push
        monkeypatch.setattr(phone, "push", lambda local, remote: (pushed.append(remote), push(local, remote)))
        stand_in.commands.clear()
        started = time.monotonic()
        found = [*profile_files(phone, jobs[:30], programs=programs), *profile_files(phone, jobs[30:], programs=programs)]
        took_s = time.monotonic() - started
        held = {path.name for path in stand_in.tmp.glob("*/models/*")}
    assert [one.job.label for one in found] == [str(number) for number in range(60)]
    assert all(isinstance(one, Profile) for one in found)
    assert pushed[1:] == ["models"] * 2
    assert pushed[0].endswith("/benchmark_model")
    assert sum("--graph=" in command for command in stand_in.commands) == 60
    assert len(stand_in.commands) < 80
    assert held == {f"{number}-{30 + number}.tflite" for number in range(30)}  # those before them are gone
    assert took_s < 60


@needs_adb
def test_files_that_are_too_large_together_go_one_after_the_other(stand_in: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [model(tmp_path, f"{number}.tflite", b"x" * 1000) for number in range(3)]
    listed = benchmark(tmp_path, first="ls models >> ../seen\n")
    monkeypatch.setattr(profile_phone, "PUSHED_TOGETHER_BYTES", 900)
    assert all(isinstance(one, Profile) for one in profiled(jobs, Programs(listed)))
    assert (stand_in.tmp / "seen").read_text(encoding="ascii").split() == ["0-0.tflite", "1-1.tflite", "2-2.tflite"]
