"""The program that runs on a device: its processes, their ends, and what it reads from the runtimes' own profilers."""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper
from onnx_graphs import info, node, write_graph
from stand_in_machine import MS, rules, sensors
from tiny_bundle import FAST

from mcompress.export import agent
from mcompress.export.agent import onnx_files, protocol
from mcompress.export.agent.executorch_files import etdump_operators
from mcompress.export.agent.stopwatch import WARM_UP_RUNS
from mcompress.export.agent.supervisor import cause_of_death
from mcompress.export.profile import Job, Rules, profile_files
from mcompress.export.profile_agent import PROGRAM, copy_program
from mcompress.targets.connect import Host


def supervised(tmp_path: Path, jobs: list[protocol.Job], *, fork: bool = True, sys_root: str = "/nowhere") -> list[dict[str, object]]:
    """Run the agent as it runs on a device, without mcompress."""
    request: protocol.Request = {"jobs": jobs, "rounds": 0, "queries_per_round": 0, "sys": sys_root, "fork": fork}
    with Host() as host:
        copy_program(tmp_path / "pushed" / PROGRAM)
        (tmp_path / "pushed" / "request.json").write_text(json.dumps(request), encoding="utf-8")
        host.push(tmp_path / "pushed", ".")
        lines = host.stream([str(host.python), PROGRAM, "request.json"])
        return [json.loads(line) for line in lines if '"alive"' not in line]


def job(file: Path, **changed: object) -> protocol.Job:
    base = {
        "file": str(file),
        "backend": "onnx",
        "shapes": [],
        "inputs": {},
        "threads": 1,
        "cpus": None,
        "rules": rules(min_seconds=0.05),
        "operators": False,
        **changed,
    }
    return protocol.Job(**base)  # type: ignore[typeddict-item]


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
    assert "signal 11 (SIGSEGV): a crash" in cause_of_death(signal.SIGSEGV)
    assert "another processor" in cause_of_death(signal.SIGILL)
    assert "code 3" in cause_of_death(3 << 8)


def test_breaking_off_ends_the_measuring_process(host: Host, onnx_file: Path) -> None:
    endless = Rules(10**9, 600.0, 600.0, 0.0, 0.0)
    results = profile_files(host, [Job(onnx_file, "onnx", rules=FAST), Job(onnx_file, "onnx", rules=endless)])
    next(results)
    until = time.monotonic() + 10
    while len(agents := [pid for pid in running("agent\0request.json") if f"{host._folder}" in str(Path(f"/proc/{pid}/cwd").readlink())]) < 2:
        assert time.monotonic() < until, "there is no agent with its measuring process"
        time.sleep(0.02)
    results.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in agents):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_signal_while_a_process_is_started_ends_that_one_too(tmp_path: Path, onnx_file: Path) -> None:
    """In a process of its own, because it ends: the signal comes when the measuring process is there and its number is not known yet."""
    request: protocol.Request = {"jobs": [job(onnx_file)], "rounds": 0, "queries_per_round": 0, "sys": "/nowhere", "fork": True}
    copy_program(tmp_path / PROGRAM)
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    script = """
import os, signal, sys, time
from agent import supervisor
real = os.fork
def fork():
    number = real()
    if number:
        os.write(2, b"%d " % number)
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        time.sleep(30)
    return number
os.fork = fork
sys.exit(supervisor.main(["request.json"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 143, done.stderr
    (number,) = (int(word) for word in done.stderr.split())
    until = time.monotonic() + 10
    while number in running("supervisor.main"):  # its parent is gone, and who gathers it is the system's business
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


def test_the_program_needs_neither_mcompress_nor_a_newer_python() -> None:
    for file in Path(agent.__file__).parent.glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))):
            if isinstance(statement, ast.ImportFrom) and statement.level:
                assert statement.level == 1, file.name
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                imported = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [alias.name for alias in statement.names]
                assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names, file.name


@pytest.mark.parametrize("python", [[sys.executable], [sys.executable, "-I", "-S"], ["python3.8"]])
def test_the_program_runs_alone(tmp_path: Path, python: list[str]) -> None:
    """Isolated, Python looks for nothing in its working directory; the oldest Python is tried where it is installed."""
    if shutil.which(python[0]) is None or subprocess.run([*python, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip("there is no Python 3.8 here")
    copy_program(tmp_path / PROGRAM)
    assert sorted(path.name for path in (tmp_path / PROGRAM).iterdir()) == sorted(path.name for path in Path(agent.__file__).parent.glob("*.py"))
    request: protocol.Request = {"jobs": [job(tmp_path / "x", backend="none")], "rounds": 0, "queries_per_round": 0, "sys": "/nowhere", "fork": False}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run([*python, PROGRAM, "request.json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["alive", "failed"]
    assert "'none' files cannot be executed here; allowed: onnx, tflite, executorch" in done.stdout
    assert done.stderr == ""


def runtime_that(folder: Path, does: str) -> str:
    """A stand-in for LiteRT's package that does this when it is imported; the folder to find it in."""
    package = folder / "packages" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(does, encoding="utf-8")
    return str(package.parent)


@pytest.mark.parametrize("fork", [True, False])
def test_a_runtime_that_ends_its_process_when_imported_is_each_files_problem(
    tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, fork: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", runtime_that(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGILL)"))
    lines = supervised(tmp_path, [job(onnx_file, backend="tflite")] * 2, fork=fork)
    assert [line["event"] for line in lines] == ["failed", "failed"]
    assert {str(line["reason"]) for line in lines} == {
        "the runtime's process was ended by signal 4 (SIGILL): the runtime was built for another processor"
    }


def test_a_runtime_whose_library_cannot_be_loaded_is_missing(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", runtime_that(tmp_path, "raise OSError('libfoo.so: cannot open shared object file')"))
    (line,) = supervised(tmp_path, [job(onnx_file, backend="tflite")])
    assert line["missing"] is True
    assert line["reason"] == "ai_edge_litert.interpreter is installed and cannot be loaded: libfoo.so: cannot open shared object file"


def test_a_runtime_that_is_not_installed_says_how_to_install_it(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = "raise ModuleNotFoundError('no', name='ai_edge_litert')"
    monkeypatch.setenv("PYTHONPATH", runtime_that(tmp_path, absent))
    (line,) = supervised(tmp_path, [job(onnx_file, backend="tflite")])
    assert line["missing"] is True
    assert "neither ai-edge-litert nor tflite-runtime is installed for" in str(line["reason"])


def looping(path: Path, turns: int) -> Path:
    """A matrix product, and a loop of `turns` others, which hold a condition that is always true."""
    inner = helper.make_graph(
        [
            node("Identity", "c", "c2"),
            node("MatMul", "v a", "v1", name="inside"),
            node("If", "c", "v2", name="choice", then_branch=branch("Softmax", "s"), else_branch=branch("Relu", "r")),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("v", [32, 32])],
        [info("c2", [], TensorProto.BOOL), info("v2", [32, 32])],
    )
    nodes = [node("MatMul", "x a", "x1", name="outside"), node("Loop", "turns _ x1", "y", name="loop", body=inner)]
    weights = {"a": np.eye(32, dtype=np.float32), "turns": np.array(turns)}
    return write_graph(path, nodes, {"x": [32, 32]}, ["y"], weights)


def branch(kind: str, gives: str) -> GraphProto:
    return helper.make_graph([node(kind, "v1", gives)], gives, [], [info(gives, [32, 32])])


def test_operators_of_a_loop_are_counted_once_and_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against another way of reading the trace: the events of a run are those before its own, which comes last."""
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    options = ort.SessionOptions()
    options.enable_profiling = True
    session = ort.InferenceSession(str(looping(tmp_path / "loop.onnx", 7)), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP_RUNS + 4):
        session.run(None, {"x": np.ones((32, 32), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[Counter[str]] = [Counter()]
    times: list[Counter[str]] = [Counter()]
    for event in events:
        if event["name"] == "model_run":
            runs, times = [*runs, Counter()], [*times, Counter()]
        elif event["name"].endswith("_kernel_time"):
            runs[-1][event["name"].removesuffix("_kernel_time")] += 1
            times[-1][event["name"].removesuffix("_kernel_time")] += event["dur"]
    assert all(run["inside"] == 7 and run["outside"] == run["loop"] == 1 for run in runs[:-1])
    rows = {row["name"]: row for row in onnx_files.onnx_operators(events)}
    counted = times[WARM_UP_RUNS:-1]
    assert len(counted) == 4
    assert set(rows) == set(runs[0]) - {"loop", "choice"}
    for name, row in rows.items():
        assert row["mean_ms"] == pytest.approx(sum(run[name] for run in counted) / 4e3)
    assert rows["inside"]["kind"] == "MatMul"


def test_an_operator_that_holds_nothing_that_runs_is_kept() -> None:
    def kernel(name: str, kind: str, ts: int, dur: int) -> onnx_files.OnnxEvent:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": kind}}

    def run(start: int) -> list[onnx_files.OnnxEvent]:
        return [
            kernel("add", "Add", start + 1, 4),
            kernel("empty", "If", start + 5, 2),
            kernel("twin", "Mul", start + 10, 3),
            kernel("twin", "Mul", start + 13, 5),
            kernel("scan", "Scan", start + 9, 11),
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 30},
        ]

    events = [event for start in (0, 100, 200, 300, 400) for event in run(start)]
    cut_off = [kernel("add", "Add", 501, 4000)]
    rows = {row["name"]: row["mean_ms"] for row in onnx_files.onnx_operators(events + cut_off)}
    assert rows == {"add": 0.004, "empty": 0.002, "twin": 0.008}
    assert onnx_files.onnx_operators([]) == []


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
    rows = {row["name"].split(" ", 1)[1]: row["mean_ms"] for row in etdump_operators(dump)}
    assert len(rows) == 2
    assert rows["Convolution (NHWC, F32) GEMM"] > rows["native_call_add.out"] > 0
