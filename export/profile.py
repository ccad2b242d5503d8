"""Latency of exported files on this machine, on a phone or on any machine behind ssh: one way of timing for all of them.

`profile_files` copies `export/agent.py` and the files to the device and reads its results as they come, one fresh process per file; a phone has no
Python, there the runtimes' own programs do the same (`export/profile_phone.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.environment import cpu_name
from mcompress.errors import DeviceError, ExportError, UsageError
from mcompress.export import agent
from mcompress.export.profile_throttle import Reading, throttled, unsteady
from mcompress.targets.connect import CommandFailed, Connection, Host
from mcompress.targets.schema import Measurement

if TYPE_CHECKING:
    from mcompress.export.profile_phone import Programs

BACKENDS = {".onnx": "onnx", ".tflite": "tflite", ".pte": "executorch"}
"""Suffix -> backend of the files that can be timed."""
CLEAN_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LEGACY_MOST_RUNS, LEGACY_WARM_UP_S = 50, 0.2


@dataclass(frozen=True)
class Rules:
    """When a measurement is finished: with `min_queries` or after `min_seconds`, whichever comes first, but not before 10 queries."""

    min_queries: int
    min_seconds: float
    max_seconds: float
    """Never longer than this, with however many queries there are then."""
    warm_up_s: float
    cool_down_s: float = 60.0
    """The longest wait before a measurement for a device that says that it is hot."""

    SINGLE_STREAM: ClassVar[Rules]
    """MLPerf's numbers for one stream, 1,024 queries and 60 s, of which either is enough; rests up to 5 minutes, as its app does."""
    QUICK: ClassVar[Rules]
    """For a look, and for tests."""
    BRIEF: ClassVar[Rules]
    """For a suite of hundreds of small files."""


Rules.SINGLE_STREAM = Rules(1024, 60.0, 600.0, 1.0, 300.0)
Rules.QUICK = Rules(128, 1.0, 10.0, 0.2, 10.0)
Rules.BRIEF = Rules(20, 0.1, 5.0, 0.02, 5.0)


@dataclass(frozen=True)
class Job:
    """One file to be timed, and how."""

    file: Path
    backend: str
    """`onnx`, `tflite` or `executorch`."""
    shape: tuple[int, ...] = ()
    """Shape of the input (of the first one) in the file's own layout, for a file that leaves dimensions open; () takes what the file states."""
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    """Processors that the process may use; None leaves the choice to the system."""
    rules: Rules = Rules.SINGLE_STREAM
    operators: bool = False
    """Also the time of each operator, from the runtime's own profiler, after the timing."""
    label: str = ""
    """Whatever the caller wants to find its job by."""


@dataclass(frozen=True)
class OperatorTime:
    """One operator of a file, as the runtime's own profiler names it."""

    name: str
    kind: str
    mean_ms: float
    share: float
    """Of the sum over all operators; 0 to 1."""


@dataclass(frozen=True)
class Profile:
    """What was measured of one file. Times in milliseconds, memory in megabytes (10^6 bytes)."""

    job: Job
    runtime: str
    """Name and version, for example `onnxruntime 1.31.1 CPU`."""
    p50_ms: float
    p90_ms: float
    mean_ms: float
    cv: float
    """Coefficient of variation: standard deviation / mean."""
    n: int
    load_ms: float
    peak_memory_mb: float | None
    """Largest resident size of the measuring process, runtime included; None where the device does not say."""
    throttled: str | None
    """Why the device was slowed down during the measurement, or seems to have been; None if nothing says so."""
    clock_jumps: int
    """Queries that were dropped because the clocks disagreed or the machine stood still."""
    warnings: tuple[str, ...]
    operators: tuple[OperatorTime, ...]
    samples_ms: tuple[float, ...]
    """Every query that counted, in order."""


@dataclass(frozen=True)
class FailedJob:
    """A job that could not be measured; the others go on."""

    job: Job
    reason: str
    missing: bool = False
    """True when the device has no runtime for the file; the reason says what to install."""


def profile_files(connection: Connection, jobs: Sequence[Job], *, programs: Programs | None = None) -> Iterator[Profile | FailedJob]:
    """Measure each file on the device behind `connection`, one fresh process per file, in order, giving each result as soon as it is there.

    A job that fails gives a `FailedJob` and the rest goes on. Raises `DeviceError` when the device is lost or cannot measure anything, after
    everything that was complete. `programs` are pushed to phones; None takes them from the environment.
    """
    present = [job for job in jobs if job.file.exists()]
    measured = _measured(connection, present, programs) if present else iter(())
    for job in jobs:
        yield next(measured) if job.file.exists() else FailedJob(job, f"{job.file} does not exist")


def _measured(connection: Connection, jobs: Sequence[Job], programs: Programs | None) -> Iterator[Profile | FailedJob]:
    if connection.python is None:
        from mcompress.export.profile_phone import Programs, profile_on_phone

        yield from profile_on_phone(connection, jobs, programs or Programs.from_environment())
        return
    waiting = dict(enumerate(jobs))
    for line in _lines(connection, jobs, rounds=0, queries=0):
        job = waiting.pop(line.job)
        yield _profile(job, line.results[0], line) if line.results else FailedJob(job, line.reason, line.missing)
    if waiting:
        raise DeviceError(
            f"{connection.name}: the measuring program ended without a result for {', '.join(job.file.name for job in waiting.values())}"
        )


def interleave(connection: Connection, a: Job, b: Job, *, rounds: int, queries_per_round: int) -> tuple[Profile, Profile]:
    """Measure two files A B A B ... in one fresh process, `queries_per_round` queries of each per round after one that does not count.

    Of the jobs' `rules` the warm-up alone counts; processors and cool-down are those of `a`. `samples_ms` of both hold whole rounds in order: a round
    in which the clock jumped is left out of both. Raises `DeviceError` when the device is lost or has no Python, `ExportError` when a file cannot be
    run.
    """
    if rounds < 1 or queries_per_round < 1:
        raise UsageError(f"rounds is {rounds} and queries_per_round {queries_per_round}; both must be at least 1")
    if connection.python is None:
        raise DeviceError(f"{connection.name} has no Python, which measuring two files in turns needs; measure on the host or through ssh")
    for job in (a, b):
        if not job.file.exists():
            raise ExportError(f"{job.file} does not exist")
    if a.backend == b.backend == "executorch" and a.threads != b.threads:
        raise UsageError(f"ExecuTorch has one thread pool per process; {a.threads} and {b.threads} threads cannot be measured in turns")
    for line in _lines(connection, [a, b], rounds=rounds, queries=queries_per_round):
        if len(line.results) != 2:
            raise ExportError(f"{a.file.name} and {b.file.name} could not be measured in turns on {connection.name}: {line.reason}")
        found = tuple(_profile(job, result, line) for job, result in zip((a, b), line.results, strict=True))
        for side in found:
            if isinstance(side, FailedJob):
                raise ExportError(f"{side.job.file.name} could not be measured on {connection.name}: {side.reason}")
        first, second = found
        if isinstance(first, Profile) and isinstance(second, Profile):
            return first, second
    raise DeviceError(f"{connection.name}: the measuring program ended without a result")


def backend_of_file(path: Path) -> str:
    """`onnx`, `tflite` or `executorch`, by the file's suffix. Raises `UsageError` for others."""
    try:
        return BACKENDS[path.suffix]
    except KeyError as error:
        raise UsageError(f"{path.name} cannot be timed: its suffix is '{path.suffix}'; allowed are {', '.join(BACKENDS)}") from error


def measurements(found: Profile, *, device: str, how: Literal["device", "host"], precision: str) -> tuple[Measurement, ...]:
    """A profile in the words of a report: latency and, where the device says it, peak memory."""
    job = found.job
    on = f"{device} {found.runtime} {precision} {job.threads} thread{'s' if job.threads > 1 else ''}".replace("  ", " ")
    notes = [f"fresh process, mean {found.mean_ms:.4g} ms, coefficient of variation {100 * found.cv:.1f} %"]
    notes += [f"input {'x'.join(map(str, job.shape))}"] if job.shape else []
    notes += [f"throttled: {found.throttled}"] if found.throttled else []
    latency = Measurement(
        what="latency",
        value=found.p50_ms,
        unit="ms",
        how=how,
        on=on,
        p50=found.p50_ms,
        p90=found.p90_ms,
        n=found.n,
        source="; ".join([*notes, *found.warnings]),
    )
    if found.peak_memory_mb is None:
        return (latency,)
    memory = Measurement(what="peak memory of the process", value=found.peak_memory_mb, unit="MB", how=how, on=on, source="runtime included")
    return latency, memory


def profile(
    backend: str,
    path: Path,
    shape: tuple[int, ...],
    *,
    precision: str,
    threads: int,
    seconds: float,
) -> tuple[Measurement, ...]:
    """Latency (and peak memory of the process, runtime included) of `path` on this machine for inputs of `shape` (N, C, H, W).

    50 runs are made unless `seconds` pass first, but never fewer than 10. `precision` only labels the result. Raises `ExportError`.
    """
    rules = Rules(LEGACY_MOST_RUNS, seconds, max(600.0, 2 * seconds), LEGACY_WARM_UP_S, cool_down_s=0.0)
    job = Job(path, backend, shape, threads, rules=rules)
    with Host() as host:
        (found,) = profile_files(host, [job])
    if isinstance(found, FailedJob):
        raise ExportError(f"{backend} could not run {path.name}: {found.reason}")
    return measurements(found, device=cpu_name(), how="host", precision=precision)


def statistics(samples_ms: Sequence[float]) -> tuple[float, float, float, float]:
    """(p50, p90, mean, coefficient of variation) of at least one sample; percentiles are interpolated as numpy does it."""
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p90 = (float(found) for found in np.percentile(values, (50, 90)))
    mean = float(values.mean())
    return p50, p90, mean, float(values.std(ddof=1) / mean) if len(values) > 1 and mean > 0 else 0.0


def shares(operators: Sequence[tuple[str, str, float]]) -> tuple[OperatorTime, ...]:
    """(name, kind, mean ms) with their share of the sum, the slowest first."""
    total = sum(mean_ms for _, _, mean_ms in operators) or 1.0
    rows = [OperatorTime(name, kind, mean_ms, mean_ms / total) for name, kind, mean_ms in operators]
    return tuple(sorted(rows, key=lambda row: -row.mean_ms))


class _Operator(BaseModel):
    name: str
    kind: str
    mean_ms: float


class _Result(BaseModel):
    """`agent.Result` as it arrives."""

    runtime: str
    load_ms: float
    samples_ms: tuple[float, ...]
    clock_jumps: int
    peak_memory_mb: float | None
    warnings: tuple[str, ...]


class _Line(BaseModel):
    """One line of the agent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event: Literal["alive", "result", "failed"]
    job: int = -1
    results: tuple[_Result, ...] = ()
    operators: tuple[_Operator, ...] = ()
    unsaid: tuple[str, ...] = ()
    """What the runtime's profiler cannot say."""
    reason: str = ""
    missing: bool = False
    readings: tuple[Reading, ...] = ()
    rested_s: float = 0.0
    hot: str = ""


def _lines(connection: Connection, jobs: Sequence[Job], *, rounds: int, queries: int) -> Iterator[_Line]:
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
                line = _Line.model_validate_json(text)
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
    beside = [path for path in file.parent.glob(f"{file.name}*") if path.name in (f"{file.name}.data", f"{file.name}_data")]
    for source in (file, *beside):
        link_or_copy(source, folder / source.name)
    return file.name


def link_or_copy(source: Path, target: Path) -> None:
    """The same content under another name, without a copy where the file system allows it: a model may be gigabytes."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


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


def _profile(job: Job, result: _Result, line: _Line) -> Profile | FailedJob:
    samples = result.samples_ms
    if not samples:
        return FailedJob(job, f"no query counted: {'; '.join(result.warnings) or 'the time was up before the first one'}")
    p50, p90, mean, cv = statistics(samples)
    warnings = [*result.warnings, *line.unsaid]
    if line.hot:
        warnings.append(f"measured hot, after resting for {line.rested_s:.0f} s: {line.hot}")
    elif line.rested_s:
        warnings.append(f"rested for {line.rested_s:.0f} s before, because the device was hot")
    odd = unsteady(samples)
    if odd:
        warnings.append(odd)
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
        warnings=tuple(warnings),
        operators=shares([(operator.name, operator.kind, operator.mean_ms) for operator in line.operators]),
        samples_ms=samples,
    )
