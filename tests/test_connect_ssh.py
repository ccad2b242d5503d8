"""ssh against a real OpenSSH server, which the tests start on the loopback interface with keys and a configuration of their own."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import FAST
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import DeviceError, UsageError
from mcompress.export.profile import FailedJob, Job, Profile, Rules, profile_files
from mcompress.export.suite import layers
from mcompress.export.suite.writer import Graph
from mcompress.profiling import Asked, profile_source
from mcompress.targets.connect import CommandFailed, Ssh, connect
from mcompress.targets.connect.host import this_machine

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None,
    reason="there is no sshd, ssh or ssh-keygen here (Debian: apt install openssh-server)",
)


@dataclass
class Server:
    """A running sshd."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def on(self) -> str:
        return f"ssh:127.0.0.1:{self.port}"

    def kill(self) -> None:
        """The machine goes away: the server and every connection that it serves."""
        for pid in [*children(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def kill_while_it_measures(self) -> None:
        """Wait until a process that measures a file runs below it, which is a child of the agent, then `kill`."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if sum(b"agent\0request.json" in command_line(pid) for pid in children(self.process.pid)) >= 2:
                break  # the agent and its child
            time.sleep(0.02)
        self.kill()


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = task.read_text(encoding="ascii").split()
        except OSError:  # it has just ended
            continue
        for child in below:
            found += [*children(int(child)), int(child)]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for name in ("host_key", "user_key", "stranger_key"):
        write_key(folder / name)
    shutil.copyfile(folder / "user_key.pub", folder / "authorized")
    port = free_port()
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host_key", f"AuthorizedKeysFile {folder}/authorized", "StrictModes no",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no", f"PidFile {folder}/pid", "PermitRootLogin prohibit-password",
        f"SetEnv TMPDIR={folder} HOME={folder}",  # nothing of the user's start-up files, nothing left behind
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    host_key = (folder / "host_key.pub").read_text(encoding="ascii").split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n", encoding="ascii")
    client = [f"IdentityFile {folder}/user_key", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known", "StrictHostKeyChecking yes"]
    (folder / "ssh_config").write_text("\n".join(client) + "\n", encoding="utf-8")
    monkeypatch.setenv("MCOMPRESS_SSH_OPTIONS", f"-F {folder}/ssh_config")
    monkeypatch.setenv("MCOMPRESS_SSH_PYTHON", sys.executable)
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    running = Server(port, folder, process)
    until = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if process.poll() is not None or time.monotonic() > until:
            running.kill()
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text(encoding='utf-8')[-300:]}")
        time.sleep(0.02)
    yield running
    if process.poll() is None:
        running.kill()


@pytest.fixture(scope="session")
def tflite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One convolution."""
    graph = Graph("fp32")
    picture = graph.activation((1, 16, 16, 3))
    path = tmp_path_factory.mktemp("tflite") / "conv.tflite"
    path.write_bytes(graph.file([picture], [layers.convolution(graph, picture, 4, 3, 1)]))
    return path


@needs_sshd
def test_commands_files_and_facts_through_ssh(server: Server, tmp_path: Path) -> None:
    with connect(server.on) as device:
        assert device.name == server.on
        facts, done = device.facts(), device.run(["pwd"], timeout_s=10)
        folder = Path(done.stdout.strip())
        assert folder.is_dir()
        assert folder.name.startswith("mcompress.")
        assert (folder.stat().st_mode & 0o077) == 0
        assert facts.machine == os.uname().machine
        assert len(facts.cores_khz) == os.cpu_count()
        content = bytes(np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8))
        (tmp_path / "a b").write_bytes(content)
        device.push(tmp_path / "a b", "sub folder/it's $HOME")
        assert (folder / "sub folder/it's $HOME").read_bytes() == content
        (tmp_path / "tree/x").mkdir(parents=True)
        (tmp_path / "tree/x/y").write_bytes(b"1")
        device.push(tmp_path / "tree", ".")
        assert device.run(["cat", "x/y"], timeout_s=10).stdout == "1"
        assert device.run(["cat"], timeout_s=10).stdout == ""  # there is no input to wait for
        assert device.run(["sh", "-c", "echo said >&2; exit 7"], timeout_s=10).rc == 7
        assert device.run(["sh", "-c", "exit 255"], timeout_s=10).rc == 255  # ssh's own code, and the connection is still there
        assert list(device.stream(["seq", "1", "3"])) == ["1", "2", "3"]
        with pytest.raises(CommandFailed, match="code 3"):
            list(device.stream(["sh", "-c", "echo x; exit 3"]))
        with pytest.raises(DeviceError, match=r"within 0\.3 s"):
            device.run(["sleep", "1"], timeout_s=0.3)
        with pytest.raises(DeviceError, match="nothing for"):
            list(device.stream(["sleep", "1"], silence_s=0.3))
    assert not folder.exists()


@needs_sshd
@pytest.mark.export
def test_a_whole_profile_through_ssh(server: Server, onnx_file: Path, tflite_file: Path) -> None:
    jobs = [Job(onnx_file, "onnx", rules=FAST), Job(tflite_file, "tflite", rules=FAST, cpus=(0,), operators=True)]
    with connect(server.on) as device:
        results = list(profile_files(device, jobs))
    for job, found in zip(jobs, results, strict=True):
        assert isinstance(found, Profile), found
        assert found.job == job
        assert found.n == len(found.samples_ms) >= 10
        assert 0 < found.p50_ms <= found.p90_ms
        assert found.mean_ms == pytest.approx(np.mean(found.samples_ms))
        assert found.peak_memory_mb is not None
        assert 10 < found.peak_memory_mb < 250
    tflite = results[1]
    assert isinstance(tflite, Profile)
    assert any("Convolution" in operator.kind for operator in tflite.operators), tflite.warnings
    assert sum(operator.share for operator in tflite.operators) == pytest.approx(1.0)


@needs_sshd
@pytest.mark.export
def test_a_lost_machine_keeps_what_was_complete(server: Server, onnx_file: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.onnx"
    shutil.copyfile(onnx_file, slow)
    seen: list[Profile | FailedJob] = []
    with connect(server.on) as device:
        jobs = [Job(onnx_file, "onnx", rules=FAST), Job(slow, "onnx", rules=Rules(10**9, 600.0, 600.0, 0.0, 0.0))]
        started = time.monotonic()
        with pytest.raises(DeviceError, match="was lost"):  # noqa: PT012  (what came before is kept)
            for found in profile_files(device, jobs):
                seen.append(found)
                threading.Thread(target=server.kill_while_it_measures).start()
        assert time.monotonic() - started < 30
    assert [found.job.file for found in seen] == [onnx_file]
    assert isinstance(seen[0], Profile)


@needs_sshd
@pytest.mark.export
def test_the_command_keeps_partial_results_in_its_file(server: Server, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcompress.profiling.Rules.QUICK", FAST)
    out = tmp_path / "results.json"
    assert profile_source(Asked(onnx_file, server.on, quick=True, out=out)).lost is None
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert kept["how"] == "device"
    assert [row["file"] for row in kept["files"]] == ["enlarge.onnx"]
    assert kept["files"][0]["measurements"][0]["how"] == "device"
    monkeypatch.setattr("mcompress.profiling.Rules.QUICK", Rules(10**9, 600.0, 600.0, 0.0, 0.0))
    threading.Thread(target=server.kill_while_it_measures).start()
    result = CliRunner().invoke(app, ["profile", str(onnx_file), "--on", server.on, "--quick", "--out", str(out)])
    assert isinstance(result.exception, DeviceError)
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert kept["files"] == []
    assert "was lost" in kept["lost"]


@needs_sshd
def test_what_cannot_be_reached_says_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"Connection refused.*`ssh -p \d+ 127\.0\.0\.1 true`"):
        connect(f"ssh:127.0.0.1:{free_port()}")
    monkeypatch.setenv("MCOMPRESS_SSH_OPTIONS", f"-F {server.folder}/ssh_config -o IdentityFile=none -i {server.folder}/stranger_key")
    config = (server.folder / "ssh_config").read_text(encoding="utf-8").replace("user_key", "stranger_key")
    (server.folder / "stranger_config").write_text(config, encoding="utf-8")
    monkeypatch.setenv("MCOMPRESS_SSH_OPTIONS", f"-F {server.folder}/stranger_config")
    with pytest.raises(DeviceError, match=r"Permission denied.*ssh-copy-id -p \d+ 127\.0\.0\.1`"):
        connect(server.on)
    (server.folder / "known").write_text("", encoding="ascii")
    with pytest.raises(DeviceError, match=r"Host key verification failed.*see and accept"):
        connect(server.on)
    monkeypatch.setenv("PATH", str(server.folder))
    with pytest.raises(DeviceError, match="no `ssh` on PATH"):
        Ssh("127.0.0.1", port=server.port)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh here (Debian: apt install openssh-client)")
def test_options_that_no_shell_would_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCOMPRESS_SSH_OPTIONS", "-o 'x")
    with pytest.raises(UsageError, match=r"MCOMPRESS_SSH_OPTIONS is \"-o 'x\", which cannot be split into options \(No closing quotation\)"):
        connect("ssh:nowhere.invalid")


@needs_sshd
def test_a_machine_without_python_or_runtime_says_what_to_install(
    server: Server, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCOMPRESS_SSH_PYTHON", "python-that-is-not-there")
    with connect(server.on) as device, pytest.raises(DeviceError, match=r"no `python-that-is-not-there`.*MCOMPRESS_SSH_PYTHON"):
        list(profile_files(device, [Job(onnx_file, "onnx", rules=FAST)]))
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n', encoding="ascii")  # no site-packages: neither numpy nor a runtime
    bare.chmod(0o755)
    monkeypatch.setenv("MCOMPRESS_SSH_PYTHON", str(bare))
    with connect(server.on) as device:
        (found,) = profile_files(device, [Job(onnx_file, "onnx", rules=FAST)])
    assert isinstance(found, FailedJob)
    assert found.missing
    assert "pip install onnxruntime numpy" in found.reason
    result = CliRunner().invoke(app, ["profile", str(onnx_file), "--on", server.on, "--quick"])
    assert getattr(result.exception, "exit_code", None) == 4


@needs_sshd
def test_a_python_that_is_too_old_says_what_is_needed(server: Server, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for an old interpreter, which says its version and can read nothing newer."""
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" = -c ] && { printf mcompress-python=3.6; exit 0; }\necho SyntaxError >&2; exit 1\n', encoding="ascii")
    old.chmod(0o755)
    monkeypatch.setenv("MCOMPRESS_SSH_PYTHON", str(old))
    with connect(server.on) as device, pytest.raises(DeviceError, match=r"is Python 3\.6, and measuring needs 3\.8 or newer.*MCOMPRESS_SSH_PYTHON"):
        list(profile_files(device, [Job(onnx_file, "onnx", rules=FAST)]))


@needs_sshd
@pytest.mark.parametrize("verb", ["fit", "validate"])
@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("raspberrypi5", f"its processor is {this_machine()} (x86), and that of Raspberry Pi 5 is an Arm one"),
        ("host", "host is the machine on which mcompress runs, and --on is ssh:127.0.0.1:"),
        ("snapdragon865", "(x86), and that of Qualcomm Snapdragon 865 is an Arm one"),
    ],
)
def test_what_this_machine_measures_through_ssh_is_not_said_of_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, device: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if platform.machine() != "x86_64":
        pytest.skip("the machine here is no x86 one")
    with pytest.raises(UsageError, match=re.escape(said)):
        app(["device", verb, device, "--on", server.on], standalone_mode=False)
    assert not list(tmp_path.glob("*.yaml"))
