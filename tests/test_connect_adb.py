"""adb: the real client of the Android SDK against a stand-in device (stand_in_device.py), and the outputs of the phone's programs as they print them.

No phone is reached here: what the stand-in's benchmark_model prints is LiteRT's real format, with made-up numbers, small enough for a
program that ends at once.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in_device import StandInDevice, adb_client

from mcompress.cli import app
from mcompress.errors import DeviceError, MissingBackendError, UsageError
from mcompress.export import profile_phone, profile_phone_output
from mcompress.export.profile import FailedJob, Job, Profile, Rules, interleave, profile_files
from mcompress.export.profile_phone import Programs
from mcompress.export.suite.cases import cases
from mcompress.export.suite.running import Journal, Measured, Setting, Timing, measure_suite
from mcompress.targets.connect import CommandFailed, connect

needs_adb = pytest.mark.skipif(adb_client() is None, reason="there is no adb client here (pip install adbutils, or Debian: apt install adb)")
FAST = Rules(50, 0.5, 2.0, 0.1, 0.05)
BENCHMARK = """STARTING!
Log parameter values verbosely: [0]
Min num runs: [50]
Num threads: [2]
Graph: [model.tflite]
#threads used for CPU inference: [2]
Loaded model model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
The input model file size (MB): 0.012788
Initialized session in 18.777ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=9 first=64 curr=56 min=54 max=65 avg=57.7582 std=4

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=58 curr=53 min=53 max=60 avg=55.0432 std=1.562{percentiles}

Inference timings in us: Init: 18777, First inference: 64, Warmup (avg): 57.7582, Inference (avg): 55.0432
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime.
Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""
PERCENTILES = " p5=53 median=54 p95=58"
TABLE = """Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         AllocateTensors\t    0.102\t    0.102\t  0.683%\t100.000%\t     0.000\t        1\tAllocateTensors/0

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, QU8) IGEMM\t    0.267\t    0.278\t  37.83%\t  37.83%\t     0.000\t        1\tDelegate/Convolution (NHWC, QU8) IGEMM:0
\tAdd (ND)\t    0.243\t    0.122\t  36.81%\t  74.64%\t     0.000\t        1\tDelegate/Add (ND):1

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tAdd (ND)\t    0.243\t    0.122\t  36.81%\t  74.64%\t     0.000\t        1\tDelegate/Add (ND):1

Number of nodes executed: 2
"""
CSV = """Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 1.5, 1.25, 50%, 50%, 0, 1, "[conv, relu]:0"
ADD, 0.5, 0.25, 10%, 60%, 0, 1, [sum]:1
Number of nodes executed: 2
"""
RUNNER = "".join(f"I 00:00:00.0{i:02d}0 executorch:executor_runner.cpp:523] Iteration {i} of 40: 0.{10 + i % 4}5000 ms\n" for i in range(1, 41))


def test_the_output_of_benchmark_model() -> None:
    timed = profile_phone_output.parse_benchmark(BENCHMARK.format(percentiles=PERCENTILES))
    assert timed is not None
    assert (timed.n, timed.mean, timed.p50, timed.p90, timed.load) == (50, 0.0550432, 0.054, 0.058, 18.777)
    assert timed.cv == pytest.approx(1.562 / 55.0432)
    assert timed.warnings == ("p90 is the 95th percentile: benchmark_model does not say the 90th",)
    older = profile_phone_output.parse_benchmark(BENCHMARK.format(percentiles=""))
    assert older is not None
    assert (older.p50, older.p90) == (0.0550432, 0.06)
    assert len(older.warnings) == 2
    alike = profile_phone_output.parse_benchmark("count=3 curr=120\n")
    assert alike is not None
    assert alike.mean == 0.12
    assert profile_phone_output.parse_benchmark("STARTING!\nERROR: Failed to load model\n") is None
    with_operators = profile_phone_output.parse_benchmark(
        BENCHMARK.format(percentiles=PERCENTILES) + TABLE + "Timings (microseconds): count=1 curr=14944\n"
    )
    assert with_operators == timed


def test_the_operators_of_benchmark_model_as_table_and_as_csv() -> None:
    assert profile_phone_output.parse_operators(BENCHMARK.format(percentiles="") + TABLE) == [
        ("Delegate/Convolution (NHWC, QU8) IGEMM:0", "Convolution (NHWC, QU8) IGEMM", 0.278),
        ("Delegate/Add (ND):1", "Add (ND)", 0.122),
    ]
    rows = profile_phone_output.parse_operators(CSV)
    assert [(kind, ms) for _, kind, ms in rows] == [("CONV_2D", 1.25), ("ADD", 0.25)]
    assert profile_phone_output.parse_operators("nothing") == []


def test_the_output_of_executor_runner() -> None:
    timed = profile_phone_output.parse_runner("I executorch:executor_runner.cpp:400] Model loaded in 3.250000 ms.\n" + RUNNER, warm_up_s=0.0005)
    assert timed is not None
    assert timed.load == 3.25
    assert timed.n == len(timed.samples) == 40 - 5  # 0.115 + 0.125 + 0.135 + 0.105 ms are below 0.5 ms, the fifth goes past it
    assert timed.p50 == pytest.approx(0.12, abs=0.006)
    old = profile_phone_output.parse_runner("Model executed successfully 4 time(s) in 10.000000 ms.", warm_up_s=0.05)
    assert old is not None
    assert (old.mean, old.n) == (2.5, 4)
    assert "the sum alone" in old.warnings[0]
    assert profile_phone_output.parse_runner("E executorch: Loading of method forward failed", warm_up_s=0.0) is None


def test_what_a_phones_sensors_say() -> None:
    text = "\n".join(
        [
            "/sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq=1804800",
            "/sys/devices/system/cpu/cpu7/cpufreq/cpuinfo_max_freq=2841600",
            "/sys/class/thermal/thermal_zone3/type=cpu-1-3",
            "/sys/class/thermal/thermal_zone3/temp=96000",
            "/sys/class/thermal/thermal_zone3/trip_point_0_type=passive",
            "/sys/class/thermal/thermal_zone3/trip_point_0_temp=95000",
            "/sys/class/thermal/thermal_zone9/type=battery",
            "/sys/class/thermal/thermal_zone9/temp=99000",
            "/sys/class/thermal/cooling_device2/type=thermal-cpufreq-1",
            "/sys/class/thermal/cooling_device2/cur_state=0",
            "status=2",
        ]
    )
    reading, status = profile_phone_output.parse_sensors(text)
    assert reading.limit_khz == {"cpu7": 1804800}
    assert reading.zones_mc == {"thermal_zone3 cpu-1-3": 96000}
    assert status == 2
    assert profile_phone_output.hot(reading, status) == "Android's thermal status is moderate"
    assert "96 degrees, its limit is 95" in profile_phone_output.hot(reading, 0)
    assert profile_phone_output.hot(profile_phone_output.parse_sensors("")[0], -1) == ""


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An adb server of the tests' own, and the environment that leads to it."""
    home = tmp_path_factory.mktemp("adb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    reached = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "TMPDIR": str(home)}  # its key and its log lie there
    everything = {**os.environ, **reached}
    subprocess.run([adb_client() or "", "start-server"], check=True, capture_output=True, timeout=30, env=everything)
    yield reached
    subprocess.run([adb_client() or "", "kill-server"], check=False, capture_output=True, timeout=30, env=everything)


def attach(stand_in: StandInDevice) -> None:
    """`adb connect`, until the server calls it a device."""
    client = adb_client() or ""
    subprocess.run([client, "connect", f"127.0.0.1:{stand_in.port}"], check=True, capture_output=True, timeout=30)
    until = time.monotonic() + 10
    while b"\tdevice" not in subprocess.run([client, "devices"], capture_output=True, check=True, timeout=30).stdout:
        assert time.monotonic() < until, "adb does not accept the stand-in device"
        time.sleep(0.02)


@pytest.fixture
def device(adb_server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDevice]:
    """A stand-in device, the only one that the adb server knows."""
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    client = adb_client() or ""
    stand_in = StandInDevice(tmp_path / "device")
    stand_in.add_program(
        "getprop", 'case "$1" in ro.product.model) echo Stand-in;; ro.soc.model) echo SM8250;; ro.build.version.release) echo 14;; esac\n'
    )
    stand_in.add_program("dumpsys", "echo 'Thermal Status: 0'\n")
    try:
        attach(stand_in)
        yield stand_in
    finally:
        stand_in.unplug()
        subprocess.run([client, "disconnect"], capture_output=True, check=False, timeout=30)


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
    path.chmod(0o755)
    return path


@needs_adb
def test_commands_files_and_facts_through_adb(device: StandInDevice, tmp_path: Path) -> None:
    with connect("adb") as phone:
        assert phone.name == f"adb:127.0.0.1:{device.port}"
        assert phone.python is None
        facts = phone.facts()
        assert (facts.model, facts.soc, facts.os) == ("Stand-in", "SM8250", "Android 14")
        folder = Path(phone.run(["pwd"], timeout_s=10).stdout.strip())
        assert folder.parent == device.tmp
        content = os.urandom(200_001)
        (tmp_path / "a b").write_bytes(content)
        phone.push(tmp_path / "a b", "a b")
        assert (folder / "a b").read_bytes() == content
        done = phone.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=10)
        assert (done.rc, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert list(phone.stream(["seq", "1", "3"])) == ["1", "2", "3"]
        with pytest.raises(CommandFailed, match="code 3"):
            list(phone.stream(["sh", "-c", "exit 3"]))
    assert not folder.exists()


@needs_adb
def test_a_profile_through_adb(device: StandInDevice, tmp_path: Path) -> None:
    for name in ("a.tflite", "b.pte", "c.onnx"):
        (tmp_path / name).write_bytes(b"a model")
    text = BENCHMARK.format(percentiles=PERCENTILES)
    benchmark = program(
        tmp_path, "benchmark_model", f"cat <<'X'\n{text}\nX\ncase \"$*\" in *op_profiling*) cat > operators.csv <<'X'\n{CSV}X\nesac\n"
    )
    total = "echo 'I executorch:executor_runner.cpp:530] Model executed successfully 3 time(s) in 36.000000 ms.' >&2\n"
    runner = program(tmp_path, "executor_runner", f"cat >&2 <<'X'\n{RUNNER}X\n{total}")
    jobs = [
        Job(tmp_path / "a.tflite", "tflite", threads=2, cpus=(0,), rules=FAST, operators=True),
        Job(tmp_path / "b.pte", "executorch", rules=FAST),
        Job(tmp_path / "c.onnx", "onnx", rules=FAST),
    ]
    with connect(f"adb:127.0.0.1:{device.port}") as phone:
        tflite, pte, onnx = profile_files(phone, jobs, programs=Programs(benchmark, runner))
        with pytest.raises(DeviceError, match="no Python"):
            interleave(phone, jobs[0], jobs[1], rounds=1, queries_per_round=1)
    assert isinstance(tflite, Profile)
    assert (tflite.p50_ms, tflite.n, tflite.throttled) == (0.054, 50, None)
    assert [operator.kind for operator in tflite.operators] == ["CONV_2D", "ADD"]
    assert isinstance(pte, Profile)
    assert len(pte.samples_ms) == pte.n
    assert isinstance(onnx, FailedJob)
    assert "no program that times onnx files" in onnx.reason
    asked = next(command for command in device.commands if "benchmark_model" in command and "--graph" in command)
    assert re.search(r"taskset 1 \./program-[0-9a-f]{16}/benchmark_model --graph=models/0-a\.tflite --num_threads=2", asked)
    assert "--num_runs=50 --min_secs=0 --max_secs=0.5" in asked


@needs_adb
def test_programs_that_are_missing_or_fail(device: StandInDevice, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"a model")
    job = Job(tmp_path / "a.tflite", "tflite", rules=FAST)
    broken = program(tmp_path, "benchmark_model", "echo 'ERROR: Failed to load model' >&2; exit 1\n")
    silent = program(tmp_path, "silent", "echo STARTING!\n")
    foreign = program(tmp_path, "foreign", "echo 'cannot execute binary file' >&2; exit 126\n")
    with connect("adb") as phone:
        (absent,) = profile_files(phone, [job], programs=Programs())
        (failed,) = profile_files(phone, [job], programs=Programs(broken))
        (mute,) = profile_files(phone, [job], programs=Programs(silent))
        (unfit,) = profile_files(phone, [job], programs=Programs(foreign))
        with pytest.raises(UsageError, match="is not a file"):
            list(profile_files(phone, [job], programs=Programs(tmp_path / "no")))
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
def test_a_phones_clock_that_jumps_fails_the_file(device: StandInDevice, tmp_path: Path, changed: str) -> None:
    """benchmark_model reads the wall clock: set forward, its times add up to more than it ran; set back, one of them is negative."""
    (tmp_path / "a.tflite").write_bytes(b"a model")
    key = changed.partition("=")[0]
    before, last = BENCHMARK.format(percentiles=PERCENTILES).split("count=50")
    benchmark = program(tmp_path, "benchmark_model", f"cat <<'X'\n{before}count=50{re.sub(rf'{key}=[0-9.]+', changed, last)}\nX\n")
    with connect("adb") as phone:
        (found,) = profile_files(phone, [Job(tmp_path / "a.tflite", "tflite", rules=FAST)], programs=Programs(benchmark))
    assert isinstance(found, FailedJob)
    assert re.search(r"the phone's clock jumped: benchmark_model says 50 queries of .* s together, and ran for .* s; measure again", found.reason)


@needs_adb
def test_a_suite_without_a_program_ends_at_the_first_file(device: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCOMPRESS_BENCHMARK_MODEL", raising=False)
    suite, setting = cases(0.01)[:6], Setting("a stand-in", "fp32", 1, None)
    told: list[int] = []

    def measure(programs: Programs) -> Measured:
        with connect("adb") as phone:
            return measure_suite(
                phone, suite, setting, tmp_path / "suite", seconds=60.0, progress=lambda done, _of: told.append(done), programs=programs
            )

    with pytest.raises(MissingBackendError, match=r"adb:.* cannot measure anything: no program was given: --benchmark-binary or MCOMPRESS_"):
        measure(Programs())
    benchmark = program(tmp_path, "benchmark_model", f"cat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n")
    broken = program(tmp_path, "broken", "echo >> ../runs; exit 1\n")
    with monkeypatch.context() as changed:
        changed.setattr("mcompress.export.suite.running.BATCH", 2)
        with pytest.raises(DeviceError, match="no file of the suite could be measured; the first reason: broken ended with code 1"):
            measure(Programs(broken))
    assert len((device.tmp / "runs").read_text(encoding="ascii").splitlines()) == 2  # one batch, not all of the suite
    assert measure(Programs(benchmark)).complete


@needs_adb
def test_a_hot_phone_is_said(device: StandInDevice, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"a model")
    device.add_program("dumpsys", "echo 'Thermal Status: 3'\n")
    benchmark = program(tmp_path, "benchmark_model", f"cat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n")
    with connect("adb") as phone:
        (found,) = profile_files(phone, [Job(tmp_path / "a.tflite", "tflite", rules=FAST)], programs=Programs(benchmark))
    assert isinstance(found, Profile)
    assert found.throttled == "Android's thermal status is severe"
    assert any("measured hot" in warning for warning in found.warnings)


@needs_adb
def test_an_unplugged_phone_keeps_what_was_complete(device: StandInDevice, tmp_path: Path) -> None:
    for name in ("a.tflite", "b.tflite"):
        (tmp_path / name).write_bytes(b"a model")
    script = f"case \"$*\" in *b.tflite*) sleep 30;; esac\ncat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n"
    benchmark = program(tmp_path, "benchmark_model", script)
    seen = []
    jobs = [Job(tmp_path / name, "tflite", rules=FAST) for name in ("a.tflite", "b.tflite")]
    with connect("adb") as phone:
        started = time.monotonic()
        with pytest.raises(DeviceError, match="was lost"):  # noqa: PT012  (what came before is kept)
            for found in profile_files(phone, jobs, programs=Programs(benchmark)):
                seen.append(found)
                threading.Timer(0.3, device.unplug).start()
        assert time.monotonic() - started < 20
    assert [found.job.file.name for found in seen] == ["a.tflite"]


@needs_adb
def test_a_phone_that_is_not_there_says_what_to_do(device: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"does not see 'NOPE'.*USB debugging"):
        connect("adb:NOPE")
    device.unplug()
    subprocess.run([adb_client() or "", "disconnect"], capture_output=True, check=False, timeout=30)
    with pytest.raises(DeviceError, match="sees no device"):
        connect("adb")
    monkeypatch.setenv("MCOMPRESS_ADB", "/nowhere/adb")
    with pytest.raises(DeviceError, match="cannot be executed"):
        connect("adb")


@needs_adb
def test_many_files_are_pushed_together_and_not_one_by_one(device: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to adb takes longer than a small file: one per measurement is left, and the program is sent once however often it is needed."""
    jobs = []
    for number in range(60):
        (tmp_path / f"{number}.tflite").write_bytes(b"a model " * 16)
        jobs.append(Job(tmp_path / f"{number}.tflite", "tflite", rules=FAST, label=str(number)))
    benchmark = program(
        tmp_path, "benchmark_model", f"[ -s \"${{1#--graph=}}\" ] || exit 1\ncat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n"
    )
    monkeypatch.setattr(profile_phone, "PUSHED_TOGETHER_BYTES", 40 * 128)
    with connect("adb") as phone:
        pushed: list[str] = []
        push = phone.push
        monkeypatch.setattr(phone, "push", lambda local, remote: (pushed.append(remote), push(local, remote)))
        device.commands.clear()
        started = time.monotonic()
        found = [*profile_files(phone, jobs[:30], programs=Programs(benchmark)), *profile_files(phone, jobs[30:], programs=Programs(benchmark))]
        took_s = time.monotonic() - started
        held = {path.name for path in device.tmp.glob("*/models/*")}
    assert [one.job.label for one in found] == [str(number) for number in range(60)]
    assert all(isinstance(one, Profile) for one in found)
    assert pushed[1:] == ["models"] * 2
    assert pushed[0].endswith("/benchmark_model")
    assert sum("--graph=" in command for command in device.commands) == 60
    assert len(device.commands) < 80
    assert held == {f"{number}-{30 + number}.tflite" for number in range(30)}  # those before them are gone
    assert took_s < 60


@needs_adb
def test_files_that_are_too_large_together_go_one_after_the_other(device: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    for number in range(3):
        (tmp_path / f"{number}.tflite").write_bytes(b"x" * 1000)
        jobs.append(Job(tmp_path / f"{number}.tflite", "tflite", rules=FAST))
    listed = program(tmp_path, "benchmark_model", f"ls models >> ../seen\ncat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n")
    monkeypatch.setattr(profile_phone, "PUSHED_TOGETHER_BYTES", 900)
    with connect("adb") as phone:
        assert all(isinstance(one, Profile) for one in profile_files(phone, jobs, programs=Programs(listed)))
    assert (device.tmp / "seen").read_text(encoding="ascii").split() == ["0-0.tflite", "1-1.tflite", "2-2.tflite"]


@needs_adb
def test_a_suite_on_a_phone_that_is_unplugged_goes_on_where_it_was(device: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = cases(0.01)[:6]
    benchmark = program(tmp_path, "benchmark_model", f"echo >> ../../runs\ncat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n")
    monkeypatch.setenv("MCOMPRESS_BENCHMARK_MODEL", str(benchmark))
    setting = Setting("a stand-in", "fp32", 1, None)
    journal = tmp_path / "suite" / "suite_fp32.jsonl"

    def kept() -> int:
        return len(journal.read_text(encoding="utf-8").splitlines()) - 1

    def unplug_in_time(add: Callable[[Journal, Timing], None]) -> Callable[[Journal, Timing], None]:
        def added(self: Journal, timing: Timing) -> None:
            add(self, timing)
            if len(self.timings) == 4:
                device.unplug()

        return added

    def measure() -> Measured:
        with connect("adb") as phone:
            return measure_suite(phone, suite, setting, tmp_path / "suite", seconds=60.0, progress=lambda _done, _of: None)

    with monkeypatch.context() as changed:
        changed.setattr(Journal, "add", unplug_in_time(Journal.add))
        with pytest.raises(DeviceError, match="was lost"):
            measure()
    assert kept() == 4
    again = StandInDevice(tmp_path / "again")
    subprocess.run([adb_client() or "", "disconnect"], check=True, capture_output=True, timeout=30)
    attach(again)
    measured = measure()
    again.unplug()
    assert measured.complete
    assert len(measured.samples) == 6
    assert kept() == 12  # both rounds of six
    assert sum("--graph=" in command for command in again.commands) == 8


@needs_adb
def test_a_phone_is_only_what_it_says_that_it_is(device: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in says SM8250, on x86 unless it says something else of its processor."""
    monkeypatch.chdir(tmp_path)
    benchmark = program(tmp_path, "benchmark_model", "exit 1\n")

    def fit(name: str) -> None:
        app(["device", "fit", name, "--on", "adb", "--share", "0.01", "--benchmark-binary", str(benchmark)], standalone_mode=False)

    device.add_program("uname", 'case "$1" in -m) echo x86_64;; *) echo Linux 6;; esac\n')
    with pytest.raises(UsageError, match=r"\(x86\), and that of Qualcomm Snapdragon 865 is an Arm one"):
        fit("kona")
    device.add_program("uname", 'case "$1" in -m) echo aarch64;; *) echo Linux 6;; esac\n')
    for name, said in (
        ("lahaina", r"snapdragon888 is .* and adb is Stand-in \(android\); its SoC is SM8250, which is snapdragon865: measure on snapdragon888"),
        ("raspberrypi5", r"raspberrypi5 is Raspberry Pi 5 \(linux\), and adb is Stand-in \(android\)"),
        ("host", "host is the machine on which mcompress runs, and --on is adb"),
    ):
        with pytest.raises(UsageError, match=said):
            fit(name)
    with pytest.raises(DeviceError, match="no file of the suite could be measured; the first reason: benchmark_model ended with code 1"):
        fit("kona")  # it is one: measuring begins


@needs_adb
def test_another_program_measures_again(device: StandInDevice, tmp_path: Path) -> None:
    suite, setting = cases(0.01)[:2], Setting("a stand-in", "fp32", 1, None)

    def measure(version: str) -> Measured:
        benchmark = program(tmp_path, "benchmark_model", f"# {version}\ncat <<'X'\n{BENCHMARK.format(percentiles=PERCENTILES)}\nX\n")
        with connect("adb") as phone:
            return measure_suite(phone, suite, setting, tmp_path / "suite", seconds=60.0, progress=lambda *_: None, programs=Programs(benchmark))

    assert [measure(version).quality.earlier for version in ("1", "1", "2", "2")] == [0, 4, 0, 4]
