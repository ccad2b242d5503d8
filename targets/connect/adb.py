"""An Android device behind the Android SDK's own `adb` client."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from mcompress.errors import DeviceError, UsageError
from mcompress.targets.connect.facts import FACTS, DeviceFacts, parse_facts
from mcompress.targets.connect.interface import ANSWER_TAIL, PUSH_S, QUICK_S, SILENCE_S, Done
from mcompress.targets.connect.processes import last_words, run_process, stream_process


class Adb:
    """An Android device behind the Android SDK's own `adb` client. Needs Android 7 or newer (the shell protocol that passes exit codes)."""

    def __init__(self, serial: str | None = None) -> None:
        """Find the device (the only one if `serial` is None) and make the private folder. Raises `DeviceError`; `UsageError` if there are several."""
        self._adb = find_client()
        self._serial = self._choose(serial)
        self.name = f"adb:{self._serial}"
        self.python: str | None = None
        self._folder: str | None = None
        if "shell_v2" not in self._call(["features"]).stdout:
            raise DeviceError(f"{self.name} has no shell protocol that passes exit codes; Android 7 (API 24) or newer is needed")
        made = self._shell("umask 077; mktemp -d /data/local/tmp/mcompress.XXXXXXXX", timeout_s=QUICK_S)
        if made.rc != 0 or not made.stdout.strip().startswith("/"):
            raise DeviceError(f"{self.name}: no private folder could be made in /data/local/tmp: {last_words(made)}")
        self._folder = made.stdout.strip()

    def _choose(self, serial: str | None) -> str:
        try:
            listed = run_process("adb", ["adb", "devices"], [self._adb, "devices"], timeout_s=QUICK_S)
        except OSError as problem:  # a file that may be executed, and is no program of this machine
            raise DeviceError(
                f"the adb client {self._adb} cannot be executed: {problem.strerror}; set MCOMPRESS_ADB to the client of this machine, or leave it "
                "unset to use the one on PATH"
            ) from problem
        if listed.rc != 0:
            raise DeviceError(f"adb could not list devices: {last_words(listed)}")
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
        return parse_facts(self._shell(FACTS, timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        """As `Connection.run`."""
        return self._shell(self._there(argv), timeout_s=timeout_s)

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        yield from stream_process(self.name, argv, [*self._client(), "shell", "-T", self._there(argv)], silence_s, self._lost)

    def push(self, local: Path, remote: str) -> None:
        """`adb push`."""
        place = f"{self._folder}/{remote}"
        source = f"{local}/." if local.is_dir() else str(local)
        if local.is_dir() or "/" in remote:
            self.run(["mkdir", "-p", remote if local.is_dir() else str(Path(remote).parent)], timeout_s=QUICK_S)
        done = self._call(["push", source, place], timeout_s=PUSH_S)
        if done.rc != 0:
            raise DeviceError(f"{self.name}: {local} could not be copied: {last_words(done)}")

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

    def _shell(self, command: str, *, timeout_s: float) -> Done:
        return self._call(["shell", "-T", command], timeout_s=timeout_s)

    def _call(self, arguments: Sequence[str], *, timeout_s: float = QUICK_S) -> Done:
        done = run_process(self.name, arguments, [*self._client(), *arguments], timeout_s=timeout_s)
        self._lost(done.rc, done.stderr)
        return done

    def _lost(self, rc: int | None, said: str = "") -> None:
        """Raise `DeviceError` if the device is no longer there. Asked after every call: a shell whose device goes away ends with the code 0."""
        del rc
        state = run_process(self.name, ["get-state"], [*self._client(), "get-state"], timeout_s=QUICK_S)
        if state.stdout.strip() != "device":
            seen = (state.stderr.strip() or state.stdout.strip() or said.strip())[-ANSWER_TAIL:].rstrip(".")
            raise DeviceError(f"{self.name} was lost: {seen}. Plug it in again (or `adb connect` it), check `adb devices`, then start again")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()


def find_client() -> str:
    """`MCOMPRESS_ADB`, the one on PATH, or the one inside the Python package adbutils. Raises `DeviceError` when there is none."""
    named = os.environ.get("MCOMPRESS_ADB")
    if named:
        if shutil.which(named) is None:
            raise DeviceError(
                f"MCOMPRESS_ADB is '{named}', which cannot be executed; set it to the adb client, or leave it unset to use the one on PATH"
            )
        return named
    found = shutil.which("adb") or _carried_client()
    if found is None:
        raise DeviceError(
            "there is no `adb` on PATH; install Android's platform-tools (Debian: apt install adb; or pip install adbutils), or set MCOMPRESS_ADB to "
            "the client"
        )
    return found


def _carried_client() -> str | None:
    """The client in adbutils' wheel; importing the package would read the whole of it."""
    package = importlib.util.find_spec("adbutils")
    return shutil.which(Path(package.origin).parent / "binaries" / "adb") if package is not None and package.origin else None
