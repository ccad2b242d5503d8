"""Measuring: the clock, the rules, throttling, the runtimes' profilers, the command. Fake clocks and sensors where the thing cannot happen here."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIDE, write_onnx
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import DeviceError, ExportError, MissingBackendError, UsageError
from mcompress.export import agent, profile_throttle
from mcompress.export import profile as profiling
from mcompress.export.profile import FailedJob, Job, Profile, Rules, interleave, profile_files, statistics
from mcompress.export.profile_throttle import Reading, drift, throttled, unsteady
from mcompress.profiling import Asked, profile_source
from mcompress.targets.connect import Host, connect, parse_cpus

FAST = Rules(20, 0.1, 5.0, 0.01, 0.0)
MS = 1_000_000


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "enlarge.onnx"
    write_onnx(path)
    return path


class FakeMachine:
    """Clocks that move when a query runs, and as told between queries."""

    def __init__(self) -> None:
        self.monotonic_ns = self.wall_ns = self.processor_ns = 10**12
        self.clocks = agent.Clocks(lambda: self.monotonic_ns, lambda: self.wall_ns, lambda: self.processor_ns)

    def work(self, ns: int, *, wall_ns: int | None = None, processor_ns: int | None = None) -> None:
        self.monotonic_ns += ns
        self.wall_ns += ns if wall_ns is None else wall_ns
        self.processor_ns += ns if processor_ns is None else processor_ns


def rules(**changed: float) -> agent.Rules:
    base = {"min_queries": 20, "min_seconds": 1.0, "max_seconds": 10.0, "warm_up_s": 0.01, "cool_down_s": 0.0, **changed}
    return agent.Rules(**base)  # type: ignore[typeddict-item]


def test_a_quiet_clock_drops_nothing() -> None:
    machine = FakeMachine()
    watch = agent.measure(lambda: machine.work(5 * MS), rules(), machine.clocks)
    assert watch.samples_ns == [5 * MS] * 20
    assert watch.jumps == []


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        (lambda machine: machine.work(5 * MS, wall_ns=3600 * 1000 * MS), "wall clock jumped by +3599"),
        (lambda machine: machine.work(5 * MS, wall_ns=-1000 * MS), "wall clock jumped by -1.0"),
        (lambda machine: machine.work(-20 * MS), "went back by 0.020 s"),
        (lambda machine: machine.work(30_000 * MS, processor_ns=5 * MS), "30.0 s and no processor time: the machine stood still"),
    ],
)
def test_a_clock_that_jumps_is_noticed_and_its_query_dropped(strange: Callable[[FakeMachine], None], said: str) -> None:
    machine, calls = FakeMachine(), itertools.count()
    watch = agent.Stopwatch(machine.clocks)
    for _ in range(30):
        watch.query(lambda: strange(machine) if next(calls) == 12 else machine.work(5 * MS))
    assert watch.samples_ns == [5 * MS] * 29
    assert len(watch.jumps) == 1
    assert said in watch.jumps[0]


def test_a_slow_query_that_computes_is_kept() -> None:
    machine, calls = FakeMachine(), itertools.count()
    watch = agent.Stopwatch(machine.clocks)
    for _ in range(10):
        watch.query(lambda: machine.work(2000 * MS if next(calls) == 5 else 5 * MS))
    assert len(watch.samples_ns) == 10
    assert max(watch.samples_ns) == 2000 * MS


def test_a_clock_that_never_stops_jumping_ends() -> None:
    machine = FakeMachine()
    watch = agent.measure(lambda: machine.work(MS, wall_ns=10**12), rules(max_seconds=1.0), machine.clocks)
    assert watch.samples_ns == []
    assert len(watch.jumps) >= 20


def test_the_rules_are_queries_or_seconds_whichever_comes_first_but_ten_at_least() -> None:
    def count(each_ns: int, asked: agent.Rules) -> int:
        machine = FakeMachine()
        return len(agent.measure(lambda: machine.work(each_ns), asked, machine.clocks).samples_ns)

    assert count(MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 1024
    assert count(1000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 60
    assert count(20_000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 10
    assert count(100_000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 6
    single = Rules.SINGLE_STREAM
    assert (single.min_queries, single.min_seconds) == (1024, 60.0)


def test_turns_keep_whole_rounds_of_both() -> None:
    machine, calls = FakeMachine(), itertools.count()
    order: list[str] = []

    def a() -> None:
        order.append("a")
        machine.work(2 * MS, wall_ns=10**12 if next(calls) == 5 else None)

    def b() -> None:
        order.append("b")
        machine.work(3 * MS)

    first, second, jumps = agent.alternate(a, b, 4, 3, machine.clocks)
    assert "".join(order) == "aaaabbbb" * 4  # one that does not count, then three
    assert (first, second) == ([2 * MS] * 9, [3 * MS] * 9)
    assert len(jumps) == 1


def sensors(root: Path, *, temp: int = 40_000, state: int = 0, limit: int = 2_000_000, count: int = 3) -> Path:
    """A /sys with one core, one zone and one cooling device."""
    files = {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": limit,
        "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": limit,
        "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": 2_000_000,
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": count,
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": temp,
        "class/thermal/thermal_zone0/trip_point_0_type": "passive",
        "class/thermal/thermal_zone0/trip_point_0_temp": 85_000,
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": state,
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n", encoding="ascii")
    return root


def reading(root: Path) -> Reading:
    return Reading.model_validate(agent.read_sensors(root))


def test_the_readings_of_both_sides_have_the_same_fields(tmp_path: Path) -> None:
    assert set(agent.Reading.__annotations__) == set(Reading.model_fields)
    assert reading(tmp_path) == Reading()


def test_throttling_that_the_device_says_is_said(tmp_path: Path) -> None:
    cool = reading(sensors(tmp_path))
    assert throttled([cool, cool], [1.0] * 100) is None
    for changed, said in (
        ({"count": 8}, "counted 5 throttling events"),
        ({"limit": 1_200_000}, "clock limit of cpu0 fell from 2.00 to 1.20 GHz"),
        ({"state": 2}, "cooling device cooling_device0 cpufreq-cpu0 went to state 2"),
        ({"temp": 86_000}, "reached 86 degrees, its limit is 85"),
    ):
        after = reading(sensors(tmp_path, **changed))  # type: ignore[arg-type]
        assert said in (throttled([cool, after], [1.0] * 100) or ""), changed
        if "count" not in changed:  # seen in the middle, and gone at the end
            assert said in (throttled([cool, after, cool], [1.0] * 100) or ""), changed


def test_a_falling_clock_and_the_firmware_are_said() -> None:
    clocks = [600_000, 2_000_000, 2_000_000, 1_990_000, 1_500_000, 1_490_000, 1_480_000, 600_000]
    said = throttled([Reading(clock_khz={"cpu4": clock, "cpu0": 300_000}) for clock in clocks], [1.0] * 100)
    assert said is not None
    assert "fell from 2.00 to 1.49 GHz" in said
    assert throttled([Reading(firmware=0), Reading(firmware=0x20002)], [1.0]) == "the firmware says: clock capped"
    assert throttled([Reading(firmware=0x50000), Reading(firmware=0x50000)], [1.0]) is None  # since boot, not now


def test_drift_is_heat_only_when_it_lasts_and_never_chance() -> None:
    random = np.random.default_rng(0)
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(10.0, 1.0, 1000)
        assert throttled([], tuple(noise)) is None
    slowing = 10 * np.linspace(1.0, 1.4, 1000) + random.normal(0, 0.3, 1000)
    assert "slower than the first" in (throttled([], tuple(slowing)) or "")
    assert throttled([], tuple(slowing / 100)) is None  # 0.1 s in all: not heat
    assert "another load began" in (unsteady(tuple(slowing / 100)) or "")
    assert "still settling" in (unsteady(tuple(slowing[::-1])) or "")
    assert drift([5.0] * 100) == (1.0, 0.0)
    assert drift([1.0] * 3) == (1.0, 0.0)


def test_the_rank_sum_is_mann_and_whitneys() -> None:
    """U counts the pairs of which the later query is slower, half of the ties; its mean is n^2 / 2, its variance n^2 (2 n + 1) / 12."""
    values = np.random.default_rng(1).integers(0, 300, 400).astype(float)
    first, last = values[:100], values[-100:]
    slower, ties = (last[:, None] > first).sum(), (last[:, None] == first).sum()
    assert ties > 10
    z = (slower + ties / 2 - 100**2 / 2) / np.sqrt(100**2 * 201 / 12)
    assert drift(tuple(values)) == (pytest.approx(np.median(last) / np.median(first)), pytest.approx(z))
    assert drift(tuple(values[::-1]))[1] == pytest.approx(-z)


def test_statistics_are_the_formulas() -> None:
    p50, p90, mean, cv = statistics([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (p50, mean) == (3.0, 22.0)
    assert p90 == pytest.approx(4 + 0.6 * 96)
    assert cv == pytest.approx(np.std([1, 2, 3, 4, 100], ddof=1) / 22)
    assert statistics([2.0]) == (2.0, 2.0, 2.0, 0.0)


def supervised(tmp_path: Path, jobs: list[agent.Job], *, fork: bool = True, sys_root: str = "/nowhere") -> list[dict[str, object]]:
    """Run the agent as it runs on a device, without mcompress."""
    request: agent.Request = {"jobs": jobs, "rounds": 0, "queries_per_round": 0, "sys": sys_root, "fork": fork}
    with Host() as host:
        (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
        host.push(Path(agent.__file__), "agent.py")
        host.push(tmp_path / "request.json", "request.json")
        lines = host.stream([str(host.python), "agent.py", "request.json"])
        return [json.loads(line) for line in lines if '"alive"' not in line]


def job(file: Path, **changed: object) -> agent.Job:
    base = {
        "file": str(file),
        "backend": "onnx",
        "shape": [],
        "threads": 1,
        "cpus": None,
        "rules": rules(min_seconds=0.05),
        "operators": False,
        **changed,
    }
    return agent.Job(**base)  # type: ignore[typeddict-item]


@pytest.mark.parametrize("fork", [True, False])
def test_forked_and_spawned_processes_measure_the_same_things(tmp_path: Path, onnx_file: Path, fork: bool) -> None:
    (line,) = supervised(tmp_path, [job(onnx_file, operators=True)], fork=fork)
    assert line["event"] == "result"
    (found,) = line["results"]  # type: ignore[misc]
    assert len(found["samples_ms"]) == 20
    assert {row["kind"] for row in line["operators"]} >= {"Conv"}  # type: ignore[attr-defined]


def test_a_hot_device_rests_and_a_crash_is_one_files_problem(tmp_path: Path, onnx_file: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    hot = str(sensors(tmp_path / "sys", temp=90_000))
    resting = rules(min_seconds=0.05, cool_down_s=0.3)
    lines = supervised(tmp_path, [job(broken, rules=resting), job(onnx_file, rules=resting)], sys_root=hot)
    assert [line["event"] for line in lines] == ["failed", "result"]
    assert "the runtime cannot load it (" in str(lines[0]["reason"])
    assert "the file has 11 bytes; if it is cut off or damaged, copy or export it again" in str(lines[0]["reason"])
    assert "cpu-thermal is at 90 degrees, its limit is 85" in str(lines[1]["hot"])
    assert 0.3 <= float(str(lines[1]["rested_s"])) < 2.0
    assert len(lines[1]["readings"]) >= 2  # type: ignore[arg-type]


def test_a_process_that_is_killed_is_told_by_its_signal() -> None:
    assert "signal 11 (SIGSEGV): a crash" in agent._death(signal.SIGSEGV)
    assert "another processor" in agent._death(signal.SIGILL)
    assert "code 3" in agent._death(3 << 8)


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.mark.export
def test_every_file_gets_its_result_in_order(host: Host, onnx_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    absent = tmp_path / "absent.onnx"
    jobs = [
        Job(onnx_file, "onnx", rules=FAST, cpus=(0,), label="first"),
        Job(absent, "onnx", rules=FAST),
        Job(broken, "onnx", rules=FAST),
        Job(onnx_file, "onnx", (1, 3, SIDE + 1, SIDE), rules=FAST),
        Job(onnx_file, "onnx", rules=FAST, cpus=(4095,)),
        Job(onnx_file, "coreml", rules=FAST),
        Job(onnx_file, "onnx", (1, SIDE, SIDE, 3), rules=FAST),
    ]
    found = list(profile_files(host, jobs))
    assert [one.job for one in found] == jobs
    first, last = found[0], found[-1]
    assert isinstance(first, Profile)
    assert isinstance(last, Profile)
    assert first.n >= 10
    assert first.peak_memory_mb is not None
    assert first.peak_memory_mb < 250
    reasons = [one.reason for one in found[1:-1] if isinstance(one, FailedJob)]
    for reason, said in zip(
        reasons, ("does not exist", "", "shape [1, 3, 12, 12], and [1, 3, 13, 12]", "cannot be pinned", "'coreml' files"), strict=True
    ):
        assert said in reason


@pytest.mark.export
def test_memory_is_the_files_own(host: Host, onnx_file: Path) -> None:
    """A job for another runtime before it must not leave its libraries in the process."""
    alone = next(iter(profile_files(host, [Job(onnx_file, "onnx", rules=FAST)])))
    after = list(profile_files(host, [Job(onnx_file, "executorch", rules=FAST), Job(onnx_file, "onnx", rules=FAST)]))[1]
    assert isinstance(alone, Profile)
    assert isinstance(after, Profile)
    assert alone.peak_memory_mb is not None
    assert after.peak_memory_mb == pytest.approx(alone.peak_memory_mb, rel=0.3)


def test_a_clock_that_spoiled_every_query_fails_the_file_with_its_reason(tmp_path: Path) -> None:
    result = profiling._Result(runtime="r", load_ms=1.0, samples_ms=(), clock_jumps=7, peak_memory_mb=None, warnings=("the wall clock jumped",))
    found = profiling._profile(Job(tmp_path, "onnx"), result, profiling._Line(event="result"))
    assert isinstance(found, FailedJob)
    assert found.reason == "no query counted: the wall clock jumped"


@pytest.mark.export
def test_two_files_in_turns(host: Host, onnx_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    write_onnx(other)
    a, b = Job(onnx_file, "onnx", rules=FAST), Job(other, "onnx", rules=FAST)
    first, second = interleave(host, a, b, rounds=6, queries_per_round=5)
    assert (first.job, second.job) == (a, b)
    assert len(first.samples_ms) == len(second.samples_ms)
    assert len(first.samples_ms) % 5 == 0
    assert first.peak_memory_mb is None
    other.write_bytes(b"not a model")
    with pytest.raises(ExportError, match="could not be measured in turns"):
        interleave(host, a, b, rounds=2, queries_per_round=2)
    with pytest.raises(UsageError, match="at least 1"):
        interleave(host, a, b, rounds=0, queries_per_round=2)


def test_breaking_off_ends_the_measuring_process(host: Host, onnx_file: Path) -> None:
    endless = Rules(10**9, 600.0, 600.0, 0.0, 0.0)
    results = profile_files(host, [Job(onnx_file, "onnx", rules=FAST), Job(onnx_file, "onnx", rules=endless)])
    next(results)
    until = time.monotonic() + 10
    while len(agents := [pid for pid in running("agent.py") if f"{host._folder}" in str(Path(f"/proc/{pid}/cwd").readlink())]) < 2:
        assert time.monotonic() < until, "there is no agent with its measuring process"
        time.sleep(0.02)
    results.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in agents):
        assert time.monotonic() < until
        time.sleep(0.05)


def running(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # the compiler's own, while it is imported
def test_an_etdump_is_read_by_executorchs_inspector(tmp_path: Path) -> None:
    """The wheel's runtime writes no ETDump; this one is made with ExecuTorch's own serializer.

    Takes the seconds in which ExecuTorch's tools import the whole of its compiler, once per session.
    """
    schema = pytest.importorskip("executorch.devtools.etdump.schema_flatcc")
    from executorch.devtools.etdump.serialize import serialize_to_etdump_flatcc

    def event(name: str, start: int, end: int, delegate: str | None = None) -> object:
        return schema.Event(
            profile_event=schema.ProfileEvent(
                name=name, chain_index=0, instruction_id=1, delegate_debug_id_int=-1, delegate_debug_id_str=delegate, delegate_debug_metadata=None,
                start_time=start, end_time=end,
            ),
            allocation_event=None, debug_event=None,
        )  # fmt: skip

    runs = [
        schema.RunData(
            name="Execute", bundled_input_index=-1, allocators=[],
            events=[
                event("DELEGATE_CALL", 0, 9 * MS), event("", 0, (3 + i) * MS, "Convolution (NHWC, F32) GEMM"), event("native_call_add.out", 0, MS),
            ],
        )
        for i in range(5)
    ]  # fmt: skip
    dump = tmp_path / "x.etdump"
    content = serialize_to_etdump_flatcc(schema.ETDumpFlatCC(version=0, run_data=runs))
    dump.write_bytes(len(content).to_bytes(4, "little") + content)  # the runtime writes the size first
    rows = {row["name"].split(" ", 1)[1]: row["mean_ms"] for row in agent.etdump_operators(dump)}
    assert len(rows) == 2
    assert rows["Convolution (NHWC, F32) GEMM"] > rows["native_call_add.out"] > 0


def test_what_can_be_asked(tmp_path: Path, onnx_file: Path) -> None:
    assert parse_cpus(None) is None
    assert parse_cpus("0,2-4,2") == (0, 2, 3, 4)
    for wrong in ("", "a", "3-1", "1,", "-1", "99999"):
        with pytest.raises(UsageError, match="numbers of processors"):
            parse_cpus(wrong)
    other = tmp_path / "x.txt"
    other.write_text("x", encoding="utf-8")
    for asked, said in (
        (Asked(tmp_path / "no.onnx", "host"), "does not exist"),
        (Asked(other, "host"), "suffix is '.txt'"),
        (Asked(onnx_file, "host", file="x"), "leave --file out"),
        (Asked(onnx_file, "phone"), "--on is 'phone'"),
        (Asked(onnx_file, "host", threads=0), "--threads is 0"),
        (Asked(onnx_file, "host", cpus=(0, 4000)), "--cpus names 4000, which host does not have; choose among 0-"),
        (Asked(onnx_file, "host", out=tmp_path), "--out is"),
    ):
        with pytest.raises(UsageError, match=said):
            profile_source(asked)
    for wrong in ("ssh:", "adb:", "ssh:a:70000", "ssh:-oProxyCommand=x", "hosts"):
        with pytest.raises(UsageError, match="it must be host, adb"):
            connect(wrong)


@pytest.mark.export
def test_the_command_measures_a_bundle(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rules, "QUICK", FAST)
    out = tmp_path / "out.json"
    done = CliRunner().invoke(app, ["profile", str(bundle), "--quick", "--operators", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout)["files"] == kept["files"]
    assert (kept["schema"], kept["how"], kept["lost"]) == (1, "host", None)
    (row,) = kept["files"]
    assert row["n"] == len(row["samples_ms"])
    assert row["p50_ms"] == pytest.approx(np.median(row["samples_ms"]), rel=1e-4)
    assert {m["what"] for m in row["measurements"]} == {"latency", "peak memory of the process"}
    assert sum(operator["share"] for operator in row["operators"]) == pytest.approx(1.0)
    shown = CliRunner().invoke(app, ["profile", str(bundle), "--quick", "--file", row["file"]])
    assert shown.exit_code == 0
    assert row["file"] in shown.stdout
    for wrong, said in (
        (["--file", "absent"], "--file is 'absent'"),
        (["--benchmark-binary", str(tmp_path / "no")], "which is not a file"),
        (["--benchmark-binary", str(out)], "is for phones, and --on is 'host'"),
    ):
        refused = CliRunner().invoke(app, ["profile", str(bundle), *wrong]).exception
        assert isinstance(refused, UsageError)
        assert said in str(refused)


def test_a_lost_device_and_a_missing_runtime_have_their_exit_codes(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Job(onnx_file, "onnx")

    def lost(*_: object, **__: object) -> Iterator[FailedJob]:
        yield FailedJob(one, "it did not fit")
        raise DeviceError("host was lost")

    monkeypatch.setattr("mcompress.profiling.profile_files", lost)
    outcome = profile_source(Asked(onnx_file, "host", out=tmp_path / "o.json"))
    assert len(json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["files"]) == 1
    with pytest.raises(DeviceError, match="1 results are kept"):
        outcome.raise_for_status()
    for missing, kind in ((True, MissingBackendError), (False, ExportError)):
        monkeypatch.setattr("mcompress.profiling.profile_files", lambda *_, missing=missing, **__: iter([FailedJob(one, "why", missing)]))
        with pytest.raises(kind, match="why"):
            profile_source(Asked(onnx_file, "host")).raise_for_status()


def test_the_old_way_of_asking_is_the_same_machinery(onnx_file: Path) -> None:
    latency, memory = profiling.profile("onnx", onnx_file, (1, 3, SIDE, SIDE), precision="fp32", threads=1, seconds=0.1)
    assert latency.p50 == latency.value
    assert latency.how == memory.how == "host"
    assert latency.n is not None
    assert latency.n >= 10
    assert "fp32 1 thread" in latency.on
    with pytest.raises(ExportError, match="does not exist"):
        profiling.profile("onnx", onnx_file.with_name("no.onnx"), (1, 3, SIDE, SIDE), precision="fp32", threads=1, seconds=0.1)
    assert profile_throttle.LEAST_S > 1
