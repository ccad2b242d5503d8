"""Asking `export/agent.py` on a device that has Python: what is copied there, what is asked, and how its lines become profiles."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.errors import DeviceError
from mcompress.export import agent
from mcompress.export.profile_jobs import FailedJob, Job, Profile, shares, statistics
from mcompress.export.profile_throttle import Reading, cautions, throttled
from mcompress.targets.connect import CommandFailed, Connection
from mcompress.targets.connect.files import link_or_copy

CLEAN_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Operator(BaseModel):
    name: str
    kind: str
    mean_ms: float


class Result(BaseModel):
    """`agent.Result` as it arrives."""

    runtime: str
    load_ms: float
    samples_ms: tuple[float, ...]
    clock_jumps: int
    peak_memory_mb: float | None
    warnings: tuple[str, ...]


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
    readings: tuple[Reading, ...] = ()
    rested_s: float = 0.0
    hot: str = ""


def lines(connection: Connection, jobs: Sequence[Job], *, rounds: int, queries: int) -> Iterator[Line]:
    """Copy everything there, start the agent, and read what it says."""
    python = connection.python or "python3"
    with tempfile.TemporaryDirectory(prefix="mcompress-") as name:
        folder = Path(name)
        names = [_stage(job.file, folder / "files" / str(index)) for index, job in enumerate(jobs)]
        request: agent.Request = {
            "jobs": [_asked(job, f"files/{index}/{named}") for index, (job, named) in enumerate(zip(jobs, names, strict=True))],
            "rounds": rounds,
            "queries_per_round": queries,
            "sys": "/sys",
            "fork": True,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        shutil.copyfile(Path(agent.__file__), folder / "agent.py")
        connection.push(folder, ".")
    threads = str(max(job.threads for job in jobs))
    command = ["env", *(f"{variable}={threads}" for variable in CLEAN_THREADS), python, "agent.py", "request.json"]
    try:
        for text in connection.stream(command):
            try:
                line = Line.model_validate_json(text)
            except ValidationError:
                continue  # a login script or a library that writes to standard output
            if line.event != "alive":
                yield line
    except CommandFailed as problem:
        if problem.done.rc in (126, 127):
            advice = "set MCOMPRESS_SSH_PYTHON to the interpreter there" if connection.name.startswith("ssh:") else "check the Python installation"
            raise DeviceError(
                f"{connection.name} has no `{python}` ({problem.done.stderr.strip()[-200:]}); install Python 3.8 or newer, or {advice}"
            ) from problem
        raise


def _stage(file: Path, folder: Path) -> str:
    """Link the file, and the weights that an .onnx may keep beside itself, into a folder of its own; its name there."""
    folder.mkdir(parents=True)
    for source in (file, file.with_name(f"{file.name}.data"), file.with_name(f"{file.name}_data")):
        if source.exists():
            link_or_copy(source, folder / source.name)
    return file.name


def _asked(job: Job, name: str) -> agent.Job:
    rules: agent.Rules = {
        "min_queries": job.rules.min_queries,
        "min_seconds": job.rules.min_seconds,
        "max_seconds": job.rules.max_seconds,
        "warm_up_s": job.rules.warm_up_s,
        "cool_down_s": job.rules.cool_down_s,
    }
    return {
        "file": name,
        "backend": job.backend,
        "shape": list(job.shape),
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
        warnings=(*result.warnings, *line.unsaid, *cautions(samples, cv, line.rested_s, line.hot)),
        operators=shares([(operator.name, operator.kind, operator.mean_ms) for operator in line.operators]),
        samples_ms=samples,
    )
