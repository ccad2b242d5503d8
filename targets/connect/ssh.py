"""A machine behind the user's own OpenSSH client."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from mcompress.errors import DeviceError, UsageError
from mcompress.targets.connect.facts import FACTS, DeviceFacts, parse_facts
from mcompress.targets.connect.interface import ANSWER_TAIL, PUSH_S, QUICK_S, SILENCE_S, Done
from mcompress.targets.connect.processes import end_process, last_words, lines_of, run_process, stream_process

CONNECT_S = 15.0
CLOSE_S = 3.0
SLOW_COPY = f"a copy did not finish within {PUSH_S:.0f} s; check the network and try again"
FOLDER_MARK = "mcompress-folder="
HOLD_FOLDER = (
    f'umask 077; d=$(mktemp -d "${{TMPDIR:-/tmp}}/mcompress.XXXXXXXX") || exit 9; echo "{FOLDER_MARK}$d"; cat > /dev/null; cd /; rm -rf -- "$d"'
)


class Ssh:
    """A machine behind the user's own OpenSSH client: keys, known hosts and jump hosts come from the user's configuration.

    One connection is opened and shared by every command. Nothing is ever asked for: a password or an unknown host key is an error.
    """

    def __init__(self, host: str, *, user: str | None = None, port: int | None = None) -> None:
        """Connect and make the private folder. Raises `DeviceError`; `UsageError` for options in `MCOMPRESS_SSH_OPTIONS` that no shell would take."""
        self._address = (f"{user}@" if user else "") + host + (f":{port}" if port else "")
        self.name = f"ssh:{self._address}"
        self.python: str | None = os.environ.get("MCOMPRESS_SSH_PYTHON", "python3")
        if shutil.which("ssh") is None:
            raise DeviceError(f"{self.name} needs the OpenSSH client, and there is no `ssh` on PATH; install it (Debian: apt install openssh-client)")
        options = _options()
        keep_alive = ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        # A short path: the name of a unix socket may have about 100 characters, and TMPDIR may be long.
        self._sockets = Path(tempfile.mkdtemp(prefix="mcs-", dir="/tmp" if Path("/tmp").is_dir() else None))
        socket = f"ControlPath={self._sockets / 's'}"
        self._ssh = ["ssh", *options, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S:.0f}", *keep_alive, "-o", socket]
        self._typed = shlex.join([*(["-p", str(port)] if port else []), (f"{user}@" if user else "") + host])
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
            for line in lines_of(self._master.stdout, 2 * CONNECT_S):
                if line is None:
                    break
                if line.startswith(FOLDER_MARK + "/"):
                    return line[len(FOLDER_MARK) :]
                heard.append(line)  # a login script may say something first
        said = (log.read_text(encoding="utf-8", errors="replace").strip() or "\n".join(heard) or f"no answer within {2 * CONNECT_S:.0f} s")[
            -ANSWER_TAIL:
        ]
        raise DeviceError(f"{self.name} cannot be reached: {said.rstrip('.')}. {_advice(said, self._typed)}")

    def facts(self) -> DeviceFacts:
        """What the machine says about itself."""
        return parse_facts(self._raw(FACTS, timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        """As `Connection.run`."""
        return self._raw(self._there(argv), timeout_s=timeout_s)

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        self._lost(None)
        yield from stream_process(self.name, argv, self._client(self._there(argv)), silence_s, self._lost)

    def push(self, local: Path, remote: str) -> None:
        """Through `cat` for a file, `tar` for a folder; the size of a file is compared."""
        place = shlex.quote(remote)
        if local.is_dir():
            with tempfile.TemporaryFile() as packed:
                _pack(local, packed)
                done = self._feed(f"mkdir -p -- {place} && tar -xf - -C {place}", packed)
                if done.rc != 0:
                    raise DeviceError(f"{self.name}: {local} could not be copied: {last_words(done)}")
            return
        parent = shlex.quote(str(Path(remote).parent))
        with local.open("rb") as stream:
            done = self._feed(f"mkdir -p -- {parent} && cat > {place} && wc -c < {place}", stream)
        if done.rc != 0 or done.stdout.strip() != str(local.stat().st_size):
            raise DeviceError(
                f"{self.name}: {local} ({local.stat().st_size} bytes) could not be copied, {done.stdout.strip()} arrived: {last_words(done)}"
            )

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
            end_process(master)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _there(self, argv: Sequence[str]) -> str:
        return f"cd {shlex.quote(self._folder or '')} && exec {shlex.join(argv)}"

    def _client(self, command: str) -> list[str]:
        return [*self._ssh, "-o", "ControlMaster=no", "-T", *self._to, command]

    def _raw(self, command: str, *, timeout_s: float) -> Done:
        self._lost(None)
        done = run_process(self.name, [command], self._client(f"sh -c {shlex.quote(command)}"), timeout_s=timeout_s)
        self._lost(done.rc, done.stderr)
        return done

    def _feed(self, command: str, stream: IO[bytes]) -> Done:
        self._lost(None)
        client = self._client(f"cd {shlex.quote(self._folder or '')} && {command}")
        try:
            done = subprocess.run(client, stdin=stream, capture_output=True, timeout=PUSH_S, check=False)
        except subprocess.TimeoutExpired as problem:
            raise DeviceError(f"{self.name}: {SLOW_COPY}") from problem
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
            raise DeviceError(f"{self.name} was lost: {why.rstrip('.')}. Check its power, its network and sshd there, then start again")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()


def _options() -> list[str]:
    """`MCOMPRESS_SSH_OPTIONS`, as a shell would split it."""
    text = os.environ.get("MCOMPRESS_SSH_OPTIONS", "")
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise UsageError(
            f"MCOMPRESS_SSH_OPTIONS is {text!r}, which cannot be split into options ({problem}); write it as for a shell, like -i key -F config"
        ) from problem


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


def _advice(said: str, typed: str) -> str:
    """What to do about it; `typed` is the address as the user gives it to ssh."""
    if "Permission denied" in said:
        return f"No key of yours is accepted there, and passwords are not asked for; copy one with `ssh-copy-id {typed}`, or name it in ~/.ssh/config"
    if "Host key verification failed" in said:
        return f"Connect once with `ssh {typed}` to see and accept its key"
    return f"Check the address, that the machine is on, and that `ssh {typed} true` works without questions"
