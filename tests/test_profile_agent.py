"""The program that runs on a device: its processes, their ends, and what it reads from the runtimes' own profilers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_machine import MS, rules, sensors
from tiny_bundle import write_onnx

from mcompress.export import agent
from mcompress.export.profile import Job, Rules, profile_files
from mcompress.targets.connect import Host

FAST = Rules(20, 0.1, 5.0, 0.01, 0.0)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "enlarge.onnx"
    write_onnx(path)
    return path


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
