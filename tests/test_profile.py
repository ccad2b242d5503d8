"""Files measured on this machine, one after the other and in turns, and the command `profile`."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx_graphs import node, write_graph
from small_fits import few
from tiny_bundle import FAST, SIDE, export_record, facts, make_bundle, write_onnx
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import DeviceError, DiskFullError, ExportError, MissingBackendError, UsageError
from mcompress.export.agent.protocol import Unusable
from mcompress.export.bundle import ExportedFile, TestVector
from mcompress.export.profile import FailedJob, InputShape, Job, Profile, Rules, interleave, profile, profile_files
from mcompress.export.profile_phone_sizes import sizes_on_phone
from mcompress.profiling import Asked, profile_source, run_command
from mcompress.targets.connect import Host, connect, parse_cpus


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
    expected = ("does not exist", "the runtime cannot load it (", "shape [1, 3, 12, 12], and [1, 3, 13, 12]", "cannot be pinned", "'coreml' files")
    for reason, said in zip(reasons, expected, strict=True):
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


@pytest.mark.export
def test_every_input_of_a_bundles_file_has_the_size_that_the_bundle_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "two.onnx"
    nodes = [node("ReduceMean", "audio", "level", keepdims=0), node("Mul", "face level", "output")]
    write_graph(path, nodes, {"face": [1, 3, 8, 8], "audio": [1, 1, "bands", "frames"]}, {"output": [1, 3, 8, 8]})
    face, audio = np.ones((1, 3, 8, 8), np.float32), np.full((1, 1, 5, 4), 0.5, np.float32)
    inputs = (facts("face", 8), facts("audio", 8, shape=audio.shape, picture=False, colour_order=None))
    vector = TestVector("half as bright", (face, audio), face / 2, face / 2)
    bundle = make_bundle(tmp_path, ExportedFile(export_record(path), path, inputs, (facts("output", 8),), (vector,)))
    monkeypatch.setattr(Rules, "QUICK", FAST)
    done = CliRunner().invoke(app, ["profile", str(bundle), "--quick", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["files"]
    assert row["inputs"] == [{"name": "face", "shape": [1, 3, 8, 8]}, {"name": "audio", "shape": [1, 1, 5, 4]}]
    assert "input face 1x3x8x8, audio 1x1x5x4" in row["measurements"][0]["source"]


def test_a_lost_device_and_a_missing_runtime_have_their_exit_codes(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Job(onnx_file, "onnx")

    def lost(*_: object, **__: object) -> Iterator[FailedJob]:
        yield FailedJob(one, "it did not fit")
        raise DeviceError("ssh:pi was lost: closed by remote host. Start again.")

    monkeypatch.setattr("mcompress.profiling.profile_files", lost)
    outcome = profile_source(Asked(onnx_file, "host", out=tmp_path / "o.json"))
    assert len(json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["files"]) == 1
    with pytest.raises(DeviceError, match=r"Start again\. 1 results are kept in .*o\.json\.$"):
        outcome.raise_for_status()
    for missing, kind in ((True, MissingBackendError), (False, ExportError)):
        monkeypatch.setattr("mcompress.profiling.profile_files", lambda *_, missing=missing, **__: iter([FailedJob(one, "why", missing)]))
        with pytest.raises(kind, match="why"):
            profile_source(Asked(onnx_file, "host")).raise_for_status()


def test_a_result_file_that_cannot_be_written_is_refused_before_anything_is_measured(onnx_file: Path, tmp_path: Path) -> None:
    for out in [tmp_path / ("x" * 252), *(folder / "x.json" for folder in [Path("/proc")] if folder.is_dir())]:
        with pytest.raises(UsageError, match=r"--out is .*, and nothing can be written beside it"):
            profile_source(Asked(onnx_file, "phone", out=out))
    with pytest.raises(UsageError, match="--on is 'phone'"):
        profile_source(Asked(onnx_file, "phone", out=tmp_path / "x.json"))
    assert list(tmp_path.iterdir()) == [onnx_file]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, UsageError)])
def test_results_are_shown_where_they_cannot_be_written(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(Rules, "QUICK", FAST)
    real, out = Path.write_text, tmp_path / "o.json"
    full = [False]

    def write_text(path: Path, text: str, encoding: str) -> int:
        if path.name == ".o.json.part" and full[0]:
            real(path, text[:10], encoding=encoding)
            raise OSError(number, os.strerror(number))
        full[0] = full[0] or path.name == ".o.json.part"
        return real(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(kind, match=rf"the results above could not be written .*{os.strerror(number)}"):
        run_command(onnx_file, "host", None, 1, None, None, out, None, quick=True, operators=False, as_json=False)
    assert "enlarge.onnx  onnxruntime" in capfd.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["files"] == []  # what was written before is whole
    assert not list(tmp_path.glob(".*"))


def test_a_run_measures_its_files_with_the_same_machinery_and_without_torch(onnx_file: Path) -> None:
    latency, memory = profile("onnx", onnx_file, [(1, 3, SIDE, SIDE)], precision="fp32", threads=1, seconds=0.1)
    assert (latency.what, latency.unit, latency.how, memory.how) == ("latency", "ms", "host", "host")
    assert latency.n is not None
    assert latency.n >= 10
    assert latency.p50 == latency.value
    assert latency.p50 is not None
    assert latency.p90 is not None
    assert 0 < latency.p50 <= latency.p90
    assert "onnxruntime" in latency.on
    assert "fp32 1 thread" in latency.on
    assert memory.unit == "MB"
    assert 20 < memory.value < 250  # PyTorch alone would take more
    with pytest.raises(ExportError, match="does not exist"):
        profile("onnx", onnx_file.with_name("no.onnx"), [(1, 3, SIDE, SIDE)], precision="fp32", threads=1, seconds=0.1)


def test_why_a_file_was_not_measured_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot load it") as caught:
        run_command(broken, "host", None, 1, None, None, None, None, quick=True, operators=False, as_json=False)
    assert str(caught.value).count("cannot load it") == 1
    said = capfd.readouterr()
    assert "cannot load it" not in said.out + said.err
    assert said.err == "broken.onnx: not measured\n"


@pytest.mark.export
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_leaves_nothing_behind(onnx_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    command = [sys.executable, "-m", "mcompress.cli", "profile", str(onnx_file)]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not list(place.glob("mcompress-*/files/0/*.onnx")):
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert not list(place.glob("mcompress-*"))


def test_more_threads_than_processors_are_refused(onnx_file: Path) -> None:
    with pytest.raises(UsageError, match=r"--threads is 2, and --cpus is 0: .*; name at least 2 processors, or give --threads 1"):
        profile_source(Asked(onnx_file, "host", threads=2, cpus=(0,)))


@pytest.mark.export
@pytest.mark.parametrize(
    ("sizes", "inputs", "said"),
    [
        ((1, 3, SIDE, SIDE), ["foo=1,8,16,16"], "--input names 'foo'"),
        ((1, 3, SIDE, SIDE), ["1,8,16"], "--input is 1,8,16, but"),
        ((1, 3, SIDE, SIDE), ["x=1,8,16"], "--input is x=1,8,16, but"),
        ((1, 3, "h", "w"), [], "leaves sizes open"),
        (("n", 3, "h", "h"), ["1,3,8,9"], "one size for 'h'"),
    ],
)
def test_an_input_that_does_not_suit_the_file_is_wrong_usage(tmp_path: Path, sizes: Sequence[int | str], inputs: list[str], said: str) -> None:
    """Exit code 2 as for `count` of the same, and no table of nothing."""
    path = write_graph(tmp_path / "a.onnx", [node("Relu", "x", "y")], {"x": sizes}, ["y"], {})
    done = CliRunner().invoke(app, ["profile", str(path), "--quick", *(part for one in inputs for part in ("--input", one))])
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
    assert str(done.exception).startswith("a.onnx: ")
    assert said in str(done.exception)
    assert done.stdout == ""


def test_a_wrong_input_beside_another_failure_is_a_failure(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Job(onnx_file, "onnx")
    wrong, broken = FailedJob(one, "--input is 1", usage=True), FailedJob(one, "a crash")
    for found, kind in (([wrong, wrong], UsageError), ([wrong, broken], ExportError), ([wrong, FailedJob(one, "none", missing=True)], ExportError)):
        monkeypatch.setattr("mcompress.profiling.profile_files", lambda *_, found=found, **__: iter(found))
        with pytest.raises(kind, match="--input is 1"):
            profile_source(Asked(onnx_file, "host")).raise_for_status()


def test_sizes_that_a_phone_is_not_asked_for_with_an_input_are_no_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(few()[0].file("fp32"))
    with pytest.raises(UsageError, match=r"--input is 1,2, but the file takes"):
        sizes_on_phone(Job(path, "tflite", inputs=(InputShape("", (1, 2)),)))
    with pytest.raises(Unusable, match=r"and \[1, 2\] was asked for"):  # by a bundle
        sizes_on_phone(Job(path, "tflite", (1, 2)))
