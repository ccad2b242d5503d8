"""What a connection to a device can do, whatever it goes through; what a command on it ended with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from mcompress.errors import DeviceError
from mcompress.targets.connect.facts import DeviceFacts

SILENCE_S = 120.0
"""A command that is being read from and says nothing for so long has hung, or the device has."""
QUICK_S = 30.0
"""The longest that a command may take which only asks or tidies up."""
PUSH_S = 600.0
"""The longest that copying a file or a folder may take."""
ANSWER_TAIL = 800
"""Characters that a message quotes from the end of what a program said."""


@dataclass(frozen=True)
class Done:
    """A finished command."""

    rc: int
    stdout: str
    stderr: str


class CommandFailed(DeviceError):  # noqa: N818  (what it says)
    """A command ran on a device that is still there, and ended with another code than 0."""

    def __init__(self, name: str, argv: Sequence[str], done: Done) -> None:
        """The message has the end of what the command said."""
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

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Done:
        """Run a command in the private folder. Raises `DeviceError` when it is lost or `timeout_s` pass; a code other than 0 does not raise."""

    def stream(self, argv: Sequence[str], *, silence_s: float = SILENCE_S) -> Iterator[str]:
        """Run a command in the private folder and give its standard output line by line, without line ends, as it comes.

        Raises `DeviceError` when the device is lost or silent for `silence_s`, `CommandFailed` when the command ends with another code than 0.
        Closing the iterator ends the command.
        """

    def push(self, local: Path, remote: str) -> None:
        """Copy a file, or a folder with everything in it, to the private folder. Raises `DeviceError`."""

    def close(self) -> None:
        """Remove the private folder; safe to call twice, and when the device is gone."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """`close`."""
