"""This machine as a device."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Self

from mcompress.errors import DeviceError
from mcompress.targets.connect.facts import FACTS, DeviceFacts, parse_facts
from mcompress.targets.connect.files import link_or_copy
from mcompress.targets.connect.interface import QUICK_S, SILENCE_S, CommandFailed, Done
from mcompress.targets.connect.processes import nothing_lost, run_process, stream_process

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "USER", "LOGNAME")
"""What a command on the host inherits; thread counts, tracers and debuggers of the caller do not reach it."""


class Host:
    """This machine."""

    def __init__(self) -> None:
        """Make the private folder."""
        self.name = "host"
        self.python: str | None = sys.executable
        self._folder = Path(tempfile.mkdtemp(prefix="mcompress-"))

    def facts(self) -> DeviceFacts:
        """What this machine says about itself."""
        return parse_facts(self.run(["sh", "-c", FACTS], timeout_s=QUICK_S).stdout)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        """As `Connection.run`; a program that is not there ends with code 127, as in a shell."""
        try:
            return run_process(self.name, argv, argv, timeout_s=timeout_s, folder=self._folder, environment=_own_environment())
        except FileNotFoundError:
            return Done(127, "", f"{argv[0]}: not found")

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """As `Connection.stream`."""
        try:
            yield from stream_process(self.name, argv, argv, silence_s, nothing_lost, folder=self._folder, environment=_own_environment())
        except FileNotFoundError as problem:
            raise CommandFailed(self.name, argv, Done(127, "", f"{argv[0]}: not found")) from problem

    def push(self, local: Path, remote: str) -> None:
        """Link where the file system allows it, copy otherwise: a model may be gigabytes."""
        destination = self._folder / remote
        try:
            for source in sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]:
                target = destination / source.relative_to(local) if local.is_dir() else destination
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)
        except OSError as problem:
            raise DeviceError(
                f"host: {local} could not be copied to {destination}: {problem}. Free some space or set TMPDIR to another disk"
            ) from problem

    def close(self) -> None:
        """Remove the private folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the private folder."""
        self.close()


@cache
def this_machine() -> str:
    """`DeviceFacts.processor` of the machine on which mcompress runs."""
    with Host() as host:
        return host.facts().processor


def _own_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}
