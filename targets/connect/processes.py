"""Child processes on this machine, which is what every command on a device comes down to: run to the end, or read line by line."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from mcompress.errors import DeviceError
from mcompress.targets.connect.interface import ANSWER_TAIL, CommandFailed, Done


class Lost(Protocol):
    """Raises `DeviceError` if a command that ended with `rc` and `said` something means that the device is gone; returns otherwise."""

    def __call__(self, rc: int | None, said: str = "") -> None:
        """Raise or return."""


def nothing_lost(rc: int | None, said: str = "") -> None:
    """This machine is always there."""
    del rc, said


@contextlib.contextmanager
def ended_gently() -> Iterator[None]:
    """Inside, a signal that ends the process unwinds it first, as an interrupt at the keyboard does: connections close, private folders go.

    Only the main thread can say what a signal does; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_process(
    name: str,
    shown: Sequence[str],
    argv: Sequence[str],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run `argv` to its end; `name` is the device's and `shown` the command as the user knows it, both for messages.

    Raises `DeviceError` when `timeout_s` pass, `OSError` for a program that cannot be started: `FileNotFoundError` if it is not there.
    """
    try:
        done = subprocess.run(list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, cwd=folder, env=environment, check=False)
    except subprocess.TimeoutExpired as problem:
        raise DeviceError(f"{name}: `{shlex.join(shown)[:200]}` did not finish within {timeout_s:g} s") from problem
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def stream_process(
    name: str,
    shown: Sequence[str],
    argv: Sequence[str],
    silence_s: float,
    lost: Lost,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run `argv` and give its standard output line by line; closing the iterator ends it. `lost` is asked whenever something is odd.

    Raises `DeviceError` when nothing comes for `silence_s`, `CommandFailed` for another code than 0, `FileNotFoundError` as `run_process` does.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment, start_new_session=True
        )
        try:
            if process.stdout is not None:
                for line in lines_of(process.stdout, silence_s):
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
            end_process(process)


def lines_of(stream: IO[bytes], silence_s: float) -> Iterator[str | None]:
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


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Close its pipes and end it, gently first."""
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


def last_words(done: Done) -> str:
    """The end of what a command said, for a message."""
    return (done.stderr.strip() or done.stdout.strip() or f"nothing, with code {done.rc}")[-ANSWER_TAIL:]
