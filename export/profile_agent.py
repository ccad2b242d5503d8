"""Asking `export/agent/` on a device that has Python: what is copied there, what is asked, and how its lines become profiles."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.errors import DeviceError
from mcompress.export.agent import protocol
from mcompress.export.profile_jobs import FailedJob, InputShape, Job, Profile, shares, statistics
from mcompress.export.profile_throttle import Reading, cautions, throttled
from mcompress.targets.connect import Connection
from mcompress.targets.connect.files import link_or_copy
from mcompress.targets.connect.interface import QUICK_S
from mcompress.targets.connect.processes import last_words

LEAST_PYTHON = (3, 8)
LEAST_TEXT = ".".join(map(str, LEAST_PYTHON))
ASK_VERSION = "import sys; sys.stdout.write('mcompress-python=%d.%d' % sys.version_info[:2])"
"""Read by any Python, from 2 on."""
PROGRAM = "agent"
"""The folder there, which Python runs as a program."""
CLEAN_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Operator(BaseModel):
    name: str
    kind: str
    mean_ms: float


class _Input(BaseModel):
    name: str
    shape: tuple[int, ...]


class Result(BaseModel):
    """`protocol.Result` as it arrives."""

    runtime: str
    load_ms: float
    samples_ms: tuple[float, ...]
    clock_jumps: int
    peak_memory_mb: float | None
    warnings: tuple[str, ...]
    inputs: tuple[_Input, ...] = ()
    assumed: str = ""


class Line(BaseModel):
    """One line of the agent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event: Literal["alive", "result", "failed"]
    job: int = -1
    results: tuple[Result, ...] = ()
    operators: tuple[_Operator, ...] = ()
    unsaid: tuple[str, ...] = ()
    """What the runtime's profiler cannot say."""
    reason: str = ""
    missing: bool = False
    usage: bool = False
    readings: tuple[Reading, ...] = ()
    rested_s: float = 0.0
    hot: str = ""


def lines(connection: Connection, jobs: Sequence[Job], *, rounds: int, queries: int) -> Iterator[Line]:
    """Copy everything there, start the agent, and read what it says."""
    python = python_of(connection)
    with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
        folder = Path(name)
        names = [_stage(job.file, folder / "files" / str(index)) for index, job in enumerate(jobs)]
        request: protocol.Request = {
            "jobs": [_asked(job, f"files/{index}/{named}") for index, (job, named) in enumerate(zip(jobs, names, strict=True))],
            "rounds": rounds,
            "queries_per_round": queries,
            "sys": "/sys",
            "fork": True,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        copy_program(folder / PROGRAM)
        connection.push(folder, ".")
    threads = str(max(job.threads for job in jobs))
    command = ["env", *(f"{variable}={threads}" for variable in CLEAN_THREADS), python, PROGRAM, "request.json"]
    for text in connection.stream(command):
        try:
            line = Line.model_validate_json(text)
        except ValidationError:
            continue  # a login script or a library that writes to standard output
        if line.event != "alive":
            yield line


def copy_program(folder: Path) -> None:
    """Copy the files of the program into a new folder; not what Python has compiled of them here."""
    folder.mkdir(parents=True)
    for file in Path(protocol.__file__).parent.glob("*.py"):
        shutil.copyfile(file, folder / file.name)


def python_of(connection: Connection) -> str:
    """The interpreter there. Raises `DeviceError` for one that is missing, or too old for the program to be read by it at all."""
    python = connection.python or "python3"
    if connection.name == "host":
        return python
    done = connection.run([python, "-c", ASK_VERSION], timeout_s=QUICK_S)
    advice = "set MCOMPRESS_SSH_PYTHON to the interpreter there" if connection.name.startswith("ssh:") else "check the Python installation"
    found = re.search(r"mcompress-python=(\d+)\.(\d+)", done.stdout)
    if done.rc != 0 or found is None:
        said = last_words(done)[-200:]
        raise DeviceError(f"{connection.name} has no `{python}` that works ({said}); install Python {LEAST_TEXT} or newer, or {advice}")
    if (int(found[1]), int(found[2])) < LEAST_PYTHON:
        raise DeviceError(
            f"{connection.name}: `{python}` is Python {found[1]}.{found[2]}, and measuring needs {LEAST_TEXT} or newer; install it there, or {advice}"
        )
    return python


def _stage(file: Path, folder: Path) -> str:
    """Link the file, and the weights that an .onnx may keep beside itself, into a folder of its own; its name there."""
    folder.mkdir(parents=True)
    for source in (file, file.with_name(f"{file.name}.data"), file.with_name(f"{file.name}_data")):
        if source.exists():
            link_or_copy(source, folder / source.name)
    return file.name


def _asked(job: Job, name: str) -> protocol.Job:
    rules: protocol.Rules = {
        "min_queries": job.rules.min_queries,
        "min_seconds": job.rules.min_seconds,
        "max_seconds": job.rules.max_seconds,
        "warm_up_s": job.rules.warm_up_s,
        "cool_down_s": job.rules.cool_down_s,
    }
    return {
        "file": name,
        "backend": job.backend,
        "shapes": [list(shape) for shape in job.shapes],
        "inputs": {one.name: list(one.shape) for one in job.inputs},
        "threads": job.threads,
        "cpus": None if job.cpus is None else list(job.cpus),
        "rules": rules,
        "operators": job.operators,
    }


def profile_of(job: Job, result: Result, line: Line) -> Profile | FailedJob:
    """One result of a line as a profile; a failed job where no query counted."""
    samples = result.samples_ms
    if not samples:
        return FailedJob(job, f"no query counted: {'; '.join(result.warnings) or 'the time was up before the first one'}")
    p50, p90, mean, cv = statistics(samples)
    return Profile(
        job=job,
        runtime=result.runtime,
        p50_ms=p50,
        p90_ms=p90,
        mean_ms=mean,
        cv=cv,
        n=len(samples),
        load_ms=result.load_ms,
        peak_memory_mb=result.peak_memory_mb,
        throttled=throttled(line.readings, samples),
        clock_jumps=result.clock_jumps,
        warnings=(*result.warnings, *line.unsaid, *cautions(samples, len(samples), cv, line.rested_s, line.hot, line.readings[:1], job.cpus)),
        operators=shares([(operator.name, operator.kind, operator.mean_ms) for operator in line.operators]),
        samples_ms=samples,
        inputs=tuple(InputShape(one.name, one.shape) for one in result.inputs),
        assumed=result.assumed,
    )
