"""The emulated Arm64 machine on this disk: where it lies, what is in it, and how a request is run on it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.errors import DeviceError, MissingBackendError
from mcompress.export.arm64 import program
from mcompress.targets.connect.processes import last_words, run_process

FOLDER = "MCOMPRESS_ARM64"
"""Environment variable: the folder of the emulation."""
RECIPE = 1
"""Raised when what is set up changes; a folder with another number is set up again."""
MARK = "set_up.json"
RUNTIME, NUMPY = "2.14.0", "1.26.4"
"""Of tflite-runtime, its last release, and of the numpy that it was built for."""
ROOT, PACKAGES, QEMU = "root", "packages", "qemu-aarch64-static"
PYTHON = "usr/bin/python3.11"
TIMEOUT_S = 900.0
"""For one file in one way; emulation is some hundred times slower than the processor."""


class Mark(BaseModel):
    """What says that a folder was set up to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: int
    packages: tuple[str, ...]
    """File names of the Debian packages, with their versions."""


class Answer(BaseModel):
    """`program.Answer` as it arrives; `refused` is what the runtime said when it did not take the file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    runtime: str
    operators: int = 0
    delegated: int = 0
    refused: str = ""
    step: str = ""


@dataclass(frozen=True)
class Emulation:
    """A folder that was set up to its end."""

    folder: Path

    @property
    def runtime(self) -> str:
        """What runs there."""
        return f"tflite-runtime {RUNTIME}"

    def ask(self, request: program.Request, *, core: str, what: str, timeout_s: float = TIMEOUT_S) -> Answer | str:
        """Run the program with `request` on a processor of the type `core` (`qemu-aarch64-static -cpu help` lists them).

        Returns its answer, or, where it ended without one (a kernel crashed), what it said last. `what` names the file for messages.
        Raises `DeviceError` after `timeout_s`, or if the emulator itself cannot be started.
        """
        with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
            asked = Path(name) / "request.json"
            asked.write_text(json.dumps(request), encoding="utf-8")
            root = self.folder / ROOT
            emulated = [str(root / PYTHON), "-I", str(Path(program.__file__).resolve()), str(asked)]
            command = [str(self.folder / QEMU), "-cpu", core, "-L", str(root), *emulated]
            try:
                # An empty environment: what this machine's programs and libraries are told must not reach Arm's.
                done = run_process(f"emulated {core}", [QEMU, what], command, timeout_s=timeout_s, environment={"TMPDIR": name})
            except DeviceError as error:
                raise DeviceError(f"{what}: {error}. Emulation is slow: verify a bundle whose network takes smaller inputs") from error
            except OSError as error:
                raise DeviceError(f"the emulator in {self.folder} cannot be started ({error}); set it up again: {set_up_command()}") from error
        try:
            return Answer.model_validate_json(done.stdout.strip().rsplit("\n", 1)[-1])
        except ValidationError:
            return f"code {done.rc}: {last_words(done)}"


def default_folder() -> Path:
    """`MCOMPRESS_ARM64`, or `mcompress/arm64` in the user's cache folder."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mcompress" / "arm64"


def set_up_command() -> str:
    """What a user has to type."""
    return f"{sys.executable} -m mcompress.export.arm64"


def find_emulation() -> Emulation:
    """The emulation of this user. Raises `MissingBackendError` with the command that sets it up if it is not there, half there or outdated."""
    folder = default_folder()
    mark = mark_of(folder)
    if mark is not None and mark.recipe == RECIPE:
        return Emulation(folder)
    why = f"{folder} was set up by another mcompress" if mark is not None else f"{folder} holds none"
    raise MissingBackendError(
        f"no emulated Arm64 is set up for this user: {why}. On Debian (no root is needed, 100 MB are downloaded) set it up with: {set_up_command()}"
        f"; or name the folder of one in {FOLDER}"
    )


def mark_of(folder: Path) -> Mark | None:
    """The mark of a folder that was set up to its end; None for any other folder."""
    try:
        return Mark.model_validate_json((folder / MARK).read_bytes())
    except (OSError, ValidationError):
        return None
