"""What would execute files on a device: the runtime's version, or the program that is pushed. Times of another one are other times."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mcompress.errors import DeviceError
from mcompress.export.profile_agent import PROGRAM, copy_program, python_of
from mcompress.export.profile_phone import Programs, runtime_of
from mcompress.targets.connect import Connection
from mcompress.targets.connect.interface import QUICK_S
from mcompress.targets.connect.processes import last_words

MARK, NONE = "mcompress-runtime=", "none"
ASK = f"""
import sys
from {PROGRAM} import loaders, protocol
try:
    found = loaders.runtime_of(sys.argv[1])
except protocol.MissingRuntime:
    found = "{NONE}"
sys.stdout.write("{MARK}" + found)
"""


@dataclass(frozen=True)
class Installed:
    """The runtime of one device."""

    runtime: str
    """As `Profile.runtime`: `ai-edge-litert 2.3.0 CPU`."""
    program: str
    """Digest of the pushed program; empty where none is pushed."""


def installed(connection: Connection, backend: str, programs: Programs | None) -> Installed | None:
    """What executes files of `backend` there; None if nothing does, which measuring says with more words.

    Raises `DeviceError` when the device is lost, its Python is too old or the question fails, `UsageError` for a program that is not a file.
    """
    if connection.python is None:
        path = (programs or Programs.from_environment()).of(backend)
        if path is None:
            return None
        with path.open("rb") as stream:
            return Installed(runtime_of(path), hashlib.file_digest(stream, "sha256").hexdigest()[:16])
    python = python_of(connection)
    with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
        copy_program(Path(name) / PROGRAM)
        connection.push(Path(name), ".")
    done = connection.run([python, "-c", ASK, backend], timeout_s=4 * QUICK_S)
    _, found, runtime = done.stdout.rpartition(MARK)
    if done.rc != 0 or not found:
        said = last_words(done).splitlines()[-1]  # of a traceback, what went wrong
        raise DeviceError(f"{connection.name} could not say which runtime it has for {backend} files; `{python}` ended with: {said}")
    return None if runtime.strip() == NONE else Installed(runtime.strip(), "")
