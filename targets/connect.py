"""Host, Ssh, Adb: run a command there and move files there and back, in a private folder that is removed at the end.

    with connect("ssh:pi@raspberrypi") as device:
        print(device.facts().model)
        device.push(Path("model.tflite"), "model.tflite")
        device.run(["sha256sum", "model.tflite"], timeout_s=10)

Relative remote paths, and the working directory of every command, are the private folder. Only the standard library and the user's own `ssh` and
`adb` clients are used. Environment: `MCOMPRESS_SSH_OPTIONS` (added to every ssh call, e.g. `-i key -F config`), `MCOMPRESS_SSH_PYTHON` (the
interpreter on the other side, `python3` if unset), `MCOMPRESS_ADB` (the adb client, if it is not on PATH).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

from mcompress.errors import DeviceError, UsageError

CONNECT_S = 15.0
QUICK_S = 30.0
PUSH_S = 600.0
CLOSE_S = 3.0
SILENCE_S = 120.0
"""A command that is being read from and says nothing for so long has hung, or the device has."""
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "USER", "LOGNAME")
"""What a command on the host inherits; thread counts, tracers and debuggers of the caller do not reach it."""
ON_FORMS = "host, adb, adb:SERIAL, ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT"
ANSWER_TAIL = 600

FOLDER_MARK = "mcompress-folder="
HOLD_FOLDER = (
    f'umask 077; d=$(mktemp -d "${{TMPDIR:-/tmp}}/mcompress.XXXXXXXX") || exit 9; echo "{FOLDER_MARK}$d"; cat > /dev/null; cd /; rm -rf -- "$d"'
)

FACTS = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
say machine "$(uname -m)"; say kernel "$(uname -sr)"
if command -v getprop >/dev/null 2>&1; then
  say android "$(getprop ro.build.version.release)"; say maker "$(getprop ro.product.manufacturer)"; say phone "$(getprop ro.product.model)"
  say soc "$(getprop ro.soc.model)"; say platform "$(getprop ro.board.platform)"
fi
if [ -r /proc/device-tree/model ]; then say tree "$(tr -d '\000' < /proc/device-tree/model)"; fi
if [ -r /etc/os-release ]; then say release "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | tr -d '"')"; fi
if [ -r /proc/cpuinfo ]; then
  say cpu "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | sed -n 1p)"
  say hardware "$(sed -n 's/^Hardware[^:]*: *//p' /proc/cpuinfo | sed -n 1p)"
fi
if [ -r /proc/meminfo ]; then say memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"; fi
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  [ -d "$core" ] && say "core${core##*/cpu}" "$(cat "$core/cpufreq/cpuinfo_max_freq" 2>/dev/null)"
done
say governor "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
if command -v sw_vers >/dev/null 2>&1; then
  say macos "$(sw_vers -productVersion)"; say tree "$(sysctl -n hw.model)"; say cpu "$(sysctl -n machdep.cpu.brand_string)"
  say memory_bytes "$(sysctl -n hw.memsize)"; say count "$(sysctl -n hw.ncpu)"
fi
:
"""
"""A POSIX shell script that prints what the device says about itself, one `key=value` a line; runs on Linux, Android (toybox) and macOS."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says about itself; None where it does not."""

    model: str
    """For example `Google Pixel 8`, `Raspberry Pi 5 Model B Rev 1.0`; the processor's name where there is nothing better."""
    soc: str | None
    """For example `SM8250`, as the device says it."""
    os: str
    """For example `Android 14`, `Debian GNU/Linux 12 (bookworm)`."""
    machine: str
    """For example `aarch64`, `x86_64`."""
    cores_khz: tuple[int | None, ...]
    """Highest clock of each processor core, kHz; None where the system does not say."""
    memory_mb: float | None
    """Main memory, 10^6 bytes."""
    governor: str | None
    """Frequency governor of the first core, for example `schedutil`."""


@dataclass(frozen=True)
class Done:
    """A finished command."""

    rc: int
    stdout: str
    stderr: str


class CommandFailed(DeviceError):  # noqa: N818  (what it says)
    """A command ran on a device that is still there, and ended with another code than 0."""

    def __init__(self, name: str, argv: Sequence[str], done: Done) -> None:
        """Keep the result; the message has the end of what the command said."""
        self.done = done
        said = (done.stderr.strip() or done.stdout.strip() or "nothing")[-ANSWER_TAIL:]
        super().__init__(f"{name}: `{shlex.join(argv[:4])}` ended with code {done.rc} and said: {said}")


class Connection(Protocol):
    """One device. A context manager: leaving it removes the private folder."""

    name: str
    """`host`, `adb:SERIAL` or `ssh:HOST`."""
    python: str | None
    """The Python interpreter there; None on a phone, which has none."""

    def facts(self) -> DeviceFacts:
        """What the device says about itself. Raises `DeviceError` when it is lost."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """Run a command in the private folder. Raises `DeviceError` when it is lost or `timeout_s` pass; a code other than 0 does not raise."""

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """Run a command in the private folder and give its standard output line by line, without line ends, as it comes.

        Raises `DeviceError` when the device is lost or silent for `silence_s`, `CommandFailed` when the command ends with another code than 0.
        Closing the iterator ends the command.
        """

    def push(self, local: Path, remote: str) -> None:
        """Copy a file, or a folder with everything in it, to the private folder. Raises `DeviceError`."""

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the private folder. Raises `DeviceError`."""

    def close(self) -> None:
        """Remove the private folder; safe to call twice, and when the device is gone."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """`close`."""


def connect(on: str) -> Connection:
    """Open `host`, `adb`, `adb:SERIAL`, `ssh:HOST`, `ssh:USER@HOST` or `ssh:USER@HOST:PORT`.

    Raises `UsageError` for anything else, `DeviceError` (what was tried, what to do) when the device cannot be reached.
    """
    kind, _, rest = on.partition(":")
    if on == "host":
        return Host()
    if kind == "adb" and (rest or on == "adb"):
        return Adb(rest or None)
    if kind == "ssh":
        found = re.fullmatch(r"(?:(?P<user>[^@:\s-][^@:\s]*)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@:\s-][^@:\s]*)(?::(?P<port>\d{1,5}))?", rest)
        if found and (not found["port"] or 0 < int(found["port"]) < 65536):
            return Ssh(found["host"].strip("[]"), user=found["user"], port=int(found["port"]) if found["port"] else None)
    raise UsageError(f"--on is '{on}'; it must be {ON_FORMS}")


class Host:
    """This machine."""

    def __init__(self) -> None:
        """Make the private folder."""
        self.name = "host"
        self.python: str | None = sys.executable
        self._folder = Path(tempfile.mkdtemp(prefix="mcompress-"))

    def facts(self) -> DeviceFacts:
        """What this machine says about itself."""
        return _parse_facts(self.run(["sh", "-c", FACTS], timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """As `Connection.run`; a program that is not there ends with code 127, as in a shell."""
        try:
            return _run(self.name, argv, argv, timeout_s=timeout_s, stdin=stdin, folder=self._folder, environment=_own_environment())
        except FileNotFoundError:
            return Done(127, "", f"{argv[0]}: not found")

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        try:
            yield from _stream(self.name, argv, argv, silence_s, _nothing_lost, folder=self._folder, environment=_own_environment())
        except FileNotFoundError as problem:
            raise CommandFailed(self.name, argv, Done(127, "", f"{argv[0]}: not found")) from problem

    def push(self, local: Path, remote: str) -> None:
        """Link where the file system allows it, copy otherwise: a model may be gigabytes."""
        destination = self._folder / remote
        try:
            for source in sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]:
                target = destination / source.relative_to(local) if local.is_dir() else destination
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                try:
                    target.hardlink_to(source.resolve())
                except OSError:  # another file system, or one without hard links
                    shutil.copyfile(source, target)
        except OSError as problem:
            raise DeviceError(
                f"host: {local} could not be copied to {destination}: {problem}. Free some space or set TMPDIR to another disk"
            ) from problem

    def pull(self, remote: str, local: Path) -> None:
        """Copy it."""
        try:
            shutil.copyfile(self._folder / remote, local)
        except OSError as problem:
            raise DeviceError(f"host: {remote} could not be copied to {local}: {problem}") from problem

    def close(self) -> None:
        """Remove the private folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the private folder."""
        self.close()


class Ssh:
    """A machine behind the user's own OpenSSH client: keys, known hosts and jump hosts come from the user's configuration.

    One connection is opened and shared by every command. Nothing is ever asked for: a password or an unknown host key is an error.
    """

    def __init__(self, host: str, *, user: str | None = None, port: int | None = None) -> None:
        """Connect and make the private folder. Raises `DeviceError`."""
        self._address = (f"{user}@" if user else "") + host + (f":{port}" if port else "")
        self.name = f"ssh:{self._address}"
        self.python: str | None = os.environ.get("MCOMPRESS_SSH_PYTHON", "python3")
        if shutil.which("ssh") is None:
            raise DeviceError(f"{self.name} needs the OpenSSH client, and there is no `ssh` on PATH; install it (Debian: apt install openssh-client)")
        options = shlex.split(os.environ.get("MCOMPRESS_SSH_OPTIONS", ""))
        keep_alive = ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        # A short path: the name of a unix socket may have about 100 characters, and TMPDIR may be long.
        self._sockets = Path(tempfile.mkdtemp(prefix="mcs-", dir="/tmp" if Path("/tmp").is_dir() else None))
        socket = f"ControlPath={self._sockets / 's'}"
        self._ssh = ["ssh", *options, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S:.0f}", *keep_alive, "-o", socket]
        self._to = [*(["-p", str(port)] if port else []), *(["-l", user] if user else []), "--", host]
        self._folder: str | None = None
        self._master: subprocess.Popen[bytes] | None = None
        try:
            self._folder = self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> str:
        """Start the connection that the others share; its own command holds the private folder, and removes it when the connection ends."""
        log = self._sockets / "log"
        with log.open("wb") as stream:
            self._master = subprocess.Popen(
                [*self._ssh, "-o", "ControlMaster=yes", "-T", *self._to, f"sh -c {shlex.quote(HOLD_FOLDER)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,  # an interrupt at the keyboard ends the command first, then the connection
            )
        heard = []
        if self._master.stdout is not None:
            for line in _lines(self._master.stdout, 2 * CONNECT_S):
                if line is None:
                    break
                if line.startswith(FOLDER_MARK + "/"):
                    return line[len(FOLDER_MARK) :]
                heard.append(line)  # a login script may say something first
        said = (log.read_text(encoding="utf-8", errors="replace").strip() or "\n".join(heard) or f"no answer within {2 * CONNECT_S:.0f} s")[
            -ANSWER_TAIL:
        ]
        raise DeviceError(f"{self.name} cannot be reached: {said}. {_ssh_advice(said, self._to)}")

    def facts(self) -> DeviceFacts:
        """What the machine says about itself."""
        return _parse_facts(self._raw(FACTS, timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """As `Connection.run`."""
        return self._raw(self._there(argv), timeout_s=timeout_s, stdin=stdin)

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        self._lost(None)
        yield from _stream(self.name, argv, self._client(self._there(argv)), silence_s, self._lost)

    def push(self, local: Path, remote: str) -> None:
        """Through `cat` for a file, `tar` for a folder; the size of a file is compared."""
        place = shlex.quote(remote)
        if local.is_dir():
            with tempfile.TemporaryFile() as packed:
                _pack(local, packed)
                done = self._feed(f"mkdir -p -- {place} && tar -xf - -C {place}", packed)
                if done.rc != 0:
                    raise DeviceError(f"{self.name}: {local} could not be copied: {_said(done)}")
            return
        parent = shlex.quote(str(Path(remote).parent))
        with local.open("rb") as stream:
            done = self._feed(f"mkdir -p -- {parent} && cat > {place} && wc -c < {place}", stream)
        if done.rc != 0 or done.stdout.strip() != str(local.stat().st_size):
            raise DeviceError(
                f"{self.name}: {local} ({local.stat().st_size} bytes) could not be copied, {done.stdout.strip()} arrived: {_said(done)}"
            )

    def pull(self, remote: str, local: Path) -> None:
        """Through `cat`."""
        command = self._client(f"cd {shlex.quote(self._folder or '')} && cat -- {shlex.quote(remote)}")
        with local.open("wb") as stream:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.PIPE, timeout=PUSH_S, check=False)
        if done.returncode != 0:
            local.unlink()
            self._lost(done.returncode)
            raise DeviceError(f"{self.name}: {remote} could not be copied: {done.stderr.decode(errors='replace').strip()[-ANSWER_TAIL:]}")

    def close(self) -> None:
        """Remove the private folder and end the connection."""
        master, self._master = self._master, None
        self._folder = None
        if master is not None:
            if master.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    master.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                master.wait(timeout=CLOSE_S)
            _end(master)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _there(self, argv: Sequence[str]) -> str:
        return f"cd {shlex.quote(self._folder or '')} && exec {shlex.join(argv)}"

    def _client(self, command: str) -> list[str]:
        return [*self._ssh, "-o", "ControlMaster=no", "-T", *self._to, command]

    def _raw(self, command: str, *, timeout_s: float, stdin: bytes | None = None) -> Done:
        self._lost(None)
        done = _run(self.name, [command], self._client(f"sh -c {shlex.quote(command)}"), timeout_s=timeout_s, stdin=stdin)
        self._lost(done.rc, done.stderr)
        return done

    def _feed(self, command: str, stream: IO[bytes]) -> Done:
        self._lost(None)
        client = self._client(f"cd {shlex.quote(self._folder or '')} && {command}")
        try:
            done = subprocess.run(client, stdin=stream, capture_output=True, timeout=PUSH_S, check=False)
        except subprocess.TimeoutExpired as problem:
            raise DeviceError(f"{self.name}: a copy did not finish within {PUSH_S:.0f} s; check the network and try again") from problem
        answer = Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        self._lost(answer.rc, answer.stderr)
        return answer

    def _lost(self, rc: int | None, said: str = "") -> None:
        """Raise `DeviceError` if the connection is gone. ssh's own failures have the code 255, which a command may have as well."""
        if self._master is None:
            raise DeviceError(f"{self.name}: the connection is closed")
        if rc == 255:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(timeout=0.5)  # the client that shares the connection may notice first
        if self._master.poll() is not None:
            log = (self._sockets / "log").read_text(encoding="utf-8", errors="replace").strip()
            why = (log or said.strip() or "the connection was closed")[-ANSWER_TAIL:]
            raise DeviceError(f"{self.name} was lost: {why}. Check its power, its network and sshd there, then start again")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()


class Adb:
    """An Android device behind the Android SDK's own `adb` client. Needs Android 7 or newer (the shell protocol that passes exit codes)."""

    def __init__(self, serial: str | None = None) -> None:
        """Find the device (the only one if `serial` is None) and make the private folder. Raises `DeviceError`; `UsageError` if there are several."""
        self._adb = _adb_client()
        self._serial = self._choose(serial)
        self.name = f"adb:{self._serial}"
        self.python: str | None = None
        self._folder: str | None = None
        if "shell_v2" not in self._call(["features"]).stdout:
            raise DeviceError(f"{self.name} has no shell protocol that passes exit codes; Android 7 (API 24) or newer is needed")
        made = self._shell("umask 077; mktemp -d /data/local/tmp/mcompress.XXXXXXXX", timeout_s=QUICK_S)
        if made.rc != 0 or not made.stdout.strip().startswith("/"):
            raise DeviceError(f"{self.name}: no private folder could be made in /data/local/tmp: {_said(made)}")
        self._folder = made.stdout.strip()

    def _choose(self, serial: str | None) -> str:
        listed = _run("adb", ["adb", "devices"], [self._adb, "devices"], timeout_s=QUICK_S)
        if listed.rc != 0:
            raise DeviceError(f"adb could not list devices: {_said(listed)}")
        rows = [line.split("\t") for line in listed.stdout.splitlines()[1:] if "\t" in line]
        states = {row[0].strip(): row[1].strip() for row in rows}
        if serial is None and len(states) > 1:
            raise UsageError(f"adb sees {len(states)} devices; say which: {', '.join(f'--on adb:{name}' for name in states)}")
        wanted = serial or next(iter(states), None)
        advice = "Plug it in, switch on Developer options > USB debugging, accept the computer's key on its screen, and try `adb devices`"
        if wanted is None:
            raise DeviceError(f"adb sees no device. {advice}")
        if wanted not in states:
            raise DeviceError(
                f"adb does not see '{wanted}'; it sees {', '.join(states) or 'no device'}. {advice}, or `adb connect HOST:PORT` for one by network"
            )
        if states[wanted] != "device":
            raise DeviceError(f"adb:{wanted} is {states[wanted]}. {advice}")
        return wanted

    def facts(self) -> DeviceFacts:
        """What the phone says about itself."""
        return _parse_facts(self._shell(FACTS, timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """As `Connection.run`."""
        return self._shell(self._there(argv), timeout_s=timeout_s, stdin=stdin)

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        yield from _stream(self.name, argv, [*self._client(), "shell", "-T", self._there(argv)], silence_s, self._lost)

    def push(self, local: Path, remote: str) -> None:
        """`adb push`."""
        place = f"{self._folder}/{remote}"
        source = f"{local}/." if local.is_dir() else str(local)
        if local.is_dir() or "/" in remote:
            self.run(["mkdir", "-p", remote if local.is_dir() else str(Path(remote).parent)], timeout_s=QUICK_S)
        done = self._call(["push", source, place], timeout_s=PUSH_S)
        if done.rc != 0:
            raise DeviceError(f"{self.name}: {local} could not be copied: {_said(done)}")

    def pull(self, remote: str, local: Path) -> None:
        """`adb pull`."""
        done = self._call(["pull", f"{self._folder}/{remote}", str(local)], timeout_s=PUSH_S)
        if done.rc != 0:
            raise DeviceError(f"{self.name}: {remote} could not be copied: {_said(done)}")

    def close(self) -> None:
        """Remove the private folder."""
        folder, self._folder = self._folder, None
        if folder:
            with contextlib.suppress(DeviceError):
                self._shell(f"rm -rf {shlex.quote(folder)}", timeout_s=QUICK_S)

    def _there(self, argv: Sequence[str]) -> str:
        return f"cd {shlex.quote(self._folder or '/nowhere')} && exec {shlex.join(argv)}"

    def _client(self) -> list[str]:
        return [self._adb, "-s", self._serial]

    def _shell(self, command: str, *, timeout_s: float, stdin: bytes | None = None) -> Done:
        return self._call(["shell", "-T", command], timeout_s=timeout_s, stdin=stdin)

    def _call(self, arguments: Sequence[str], *, timeout_s: float = QUICK_S, stdin: bytes | None = None) -> Done:
        done = _run(self.name, arguments, [*self._client(), *arguments], timeout_s=timeout_s, stdin=stdin)
        self._lost(done.rc, done.stderr)
        return done

    def _lost(self, rc: int | None, said: str = "") -> None:
        """Raise `DeviceError` if a call failed and the device is no longer there."""
        if not rc:
            return
        state = _run(self.name, ["get-state"], [*self._client(), "get-state"], timeout_s=QUICK_S)
        if state.stdout.strip() != "device":
            seen = (state.stderr.strip() or state.stdout.strip() or said.strip())[-ANSWER_TAIL:]
            raise DeviceError(f"{self.name} was lost: {seen}. Plug it in again (or `adb connect` it), check `adb devices`, then start again")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()


class _Lost(Protocol):
    def __call__(self, rc: int | None, said: str = "") -> None: ...


def _nothing_lost(rc: int | None, said: str = "") -> None:
    del rc, said  # this machine is always there


def _own_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def _run(
    name: str,
    shown: Sequence[str],
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(list(argv), capture_output=True, timeout=timeout_s, cwd=folder, env=environment, check=False, **given)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as problem:
        raise DeviceError(f"{name}: `{shlex.join(shown)[:200]}` did not finish within {timeout_s:g} s") from problem
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _stream(
    name: str,
    shown: Sequence[str],
    argv: Sequence[str],
    silence_s: float,
    lost: _Lost,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment, start_new_session=True
        )
        try:
            if process.stdout is not None:
                for line in _lines(process.stdout, silence_s):
                    if line is None:
                        lost(255)
                        raise DeviceError(
                            f"{name}: `{shlex.join(shown[:4])}` said nothing for {silence_s:g} s; the device may hang. Restart it and try again"
                        )
                    yield line
            rc = process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            lost(rc, said)
            if rc != 0:
                raise CommandFailed(name, shown, Done(rc, "", said))
        finally:
            _end(process)


def _lines(stream: IO[bytes], silence_s: float) -> Iterator[str | None]:
    """Lines as they come; None, as the last, when nothing came for `silence_s`."""
    left = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=silence_s):
                yield None
                return
            came = os.read(stream.fileno(), 65536)
            if not came:
                break
            *whole, left = (left + came).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").rstrip("\r")
    if left:
        yield left.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pack(folder: Path, stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w", dereference=True) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                facts = tarfile.TarInfo(str(path.relative_to(folder)))  # plain: neither owner nor permissions of this machine
                facts.size, facts.mode = path.stat().st_size, 0o700 if os.access(path, os.X_OK) else 0o600
                with path.open("rb") as content:
                    archive.addfile(facts, content)
    stream.flush()
    stream.seek(0, io.SEEK_SET)


def _said(done: Done) -> str:
    return (done.stderr.strip() or done.stdout.strip() or f"nothing, with code {done.rc}")[-ANSWER_TAIL:]


def _ssh_advice(said: str, to: Sequence[str]) -> str:
    if "Permission denied" in said:
        return (
            f"No key of yours is accepted there, and passwords are not asked for; copy one with `ssh-copy-id {to[-1]}`, or name it in ~/.ssh/config"
        )
    if "Host key verification failed" in said:
        return f"Connect once with `ssh {to[-1]}` to see and accept its key"
    return f"Check the address, that the machine is on, and that `ssh {to[-1]} true` works without questions"


def _adb_client() -> str:
    """`MCOMPRESS_ADB`, the one on PATH, or the one inside the Python package adbutils."""
    named = os.environ.get("MCOMPRESS_ADB") or shutil.which("adb")
    if named is None and (found := importlib.util.find_spec("adbutils")) is not None and found.origin:
        carried = Path(found.origin).parent / "binaries" / "adb"
        named = str(carried) if carried.exists() else None
    if named is None or shutil.which(named) is None:
        seen = f"MCOMPRESS_ADB is '{named}', which cannot be executed" if named else "there is no `adb` on PATH"
        raise DeviceError(
            f"{seen}; install Android's platform-tools (Debian: apt install adb; or pip install adbutils), or set MCOMPRESS_ADB to the client"
        )
    return named


def _parse_facts(text: str) -> DeviceFacts:
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value.strip() and key not in said:
            said[key] = value.strip()
    cores: list[int | None] = []
    numbered = sorted(int(key[4:]) for key in (line.partition("=")[0] for line in text.splitlines()) if re.fullmatch(r"core\d+", key))
    for number in numbered:
        clock = said.get(f"core{number}", "")
        cores.append(int(clock) if clock.isdigit() else None)
    if not cores and said.get("count", "").isdigit():
        cores = [None] * int(said["count"])
    phone = " ".join(part for part in (said.get("maker"), said.get("phone")) if part)
    kib, size = said.get("memory_kib", ""), said.get("memory_bytes", "")
    system = f"Android {said['android']}" if "android" in said else f"macOS {said['macos']}" if "macos" in said else said.get("release")
    return DeviceFacts(
        model=phone or said.get("tree") or said.get("cpu") or said.get("hardware") or said.get("machine", "unknown"),
        soc=said.get("soc") or said.get("platform") or said.get("hardware"),
        os=system or said.get("kernel", "unknown"),
        machine=said.get("machine", "unknown"),
        cores_khz=tuple(cores),
        memory_mb=int(kib) * 1024 / 1e6 if kib.isdigit() else int(size) / 1e6 if size.isdigit() else None,
        governor=said.get("governor"),
    )
