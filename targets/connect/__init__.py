"""Host, Ssh, Adb: run a command there and move files there, in a private folder that is removed at the end.

    with connect("ssh:pi@raspberrypi") as device:
        print(device.facts().model)
        device.push(Path("model.tflite"), "model.tflite")
        device.run(["sha256sum", "model.tflite"], timeout_s=10)

Relative remote paths, and the working directory of every command, are the private folder. Only the standard library and the user's own `ssh` and
`adb` clients are used. Environment: `MCOMPRESS_SSH_OPTIONS` (added to every ssh call, e.g. `-i key -F config`), `MCOMPRESS_SSH_PYTHON` (the
interpreter on the other side, `python3` if unset), `MCOMPRESS_ADB` (the adb client, if it is not on PATH).
"""

from __future__ import annotations

import re

from mcompress.errors import UsageError
from mcompress.targets.connect.adb import Adb
from mcompress.targets.connect.facts import DeviceFacts, Pinned, parse_cpus, pinned, threads_text
from mcompress.targets.connect.host import Host
from mcompress.targets.connect.interface import CommandFailed, Connection, Done
from mcompress.targets.connect.processes import ended_gently
from mcompress.targets.connect.ssh import Ssh

__all__ = [
    "Adb", "CommandFailed", "Connection", "DeviceFacts", "Done", "Host", "Pinned", "Ssh", "connect", "ended_gently", "parse_cpus", "pinned",
    "threads_text",
]  # fmt: skip

ON_FORMS = "host, adb, adb:SERIAL, ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT"


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
