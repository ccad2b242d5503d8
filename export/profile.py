"""Latency of exported files on this machine, on a phone or on any machine behind ssh: one way of timing for all of them.

`profile_files` copies `export/agent/` and the files to the device and reads its results as they come, one fresh process per file
(`export/profile_agent.py`); a phone has no Python, there the runtimes' own programs do the same (`export/profile_phone.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mcompress.environment import cpu_name
from mcompress.errors import DeviceError, ExportError, UsageError
from mcompress.export.profile_agent import lines, profile_of
from mcompress.export.profile_jobs import (
    BACKENDS,
    FailedJob,
    InputShape,
    Job,
    OperatorTime,
    Profile,
    Rules,
    backend_of_file,
    measurements,
    statistics,
)
from mcompress.export.profile_phone import Programs, profile_on_phone
from mcompress.targets.connect import Connection, Host, pinned
from mcompress.targets.schema import Measurement

__all__ = [
    "BACKENDS", "FailedJob", "InputShape", "Job", "OperatorTime", "Profile", "Programs", "Rules", "backend_of_file", "interleave", "measurements",
    "profile", "profile_files", "statistics",
]  # fmt: skip

RUN_MOST_QUERIES, RUN_WARM_UP_S = 50, 0.2
"""Of the measurement that a run makes of each of its files: a first figure, for which `mcompress profile` is the careful way."""


def profile_files(connection: Connection, jobs: Sequence[Job], *, programs: Programs | None = None) -> Iterator[Profile | FailedJob]:
    """Measure each file on the device behind `connection`, one fresh process per file, in order, giving each result as soon as it is there.

    A job that fails gives a `FailedJob` and the rest goes on. Raises `DeviceError` when the device is lost or cannot measure anything, after
    everything that was complete. `programs` are pushed to phones; None takes them from the environment.
    """
    there = [job.file.exists() for job in jobs]
    present = [job for job, is_there in zip(jobs, there, strict=True) if is_there]
    measured = _measured(connection, present, programs) if present else iter(())
    for job, is_there in zip(jobs, there, strict=True):
        if not is_there:
            yield FailedJob(job, f"{job.file} does not exist")
            continue
        found = next(measured, None)
        if found is None:
            raise DeviceError(f"{connection.name}: the measuring program ended without a result for {job.file.name} and what comes after it")
        yield found


def _measured(connection: Connection, jobs: Sequence[Job], programs: Programs | None) -> Iterator[Profile | FailedJob]:
    if connection.python is None:
        yield from profile_on_phone(connection, jobs, programs or Programs.from_environment())
        return
    for line in lines(connection, jobs, rounds=0, queries=0):
        job = jobs[line.job]
        yield profile_of(job, line.results[0], line) if line.results else FailedJob(job, line.reason, line.missing, line.usage)


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
    for line in lines(connection, [a, b], rounds=rounds, queries=queries_per_round):
        if len(line.results) != 2:
            raise ExportError(f"{a.file.name} and {b.file.name} could not be measured in turns on {connection.name}: {line.reason}")
        found = tuple(profile_of(job, result, line) for job, result in zip((a, b), line.results, strict=True))
        for side in found:
            if isinstance(side, FailedJob):
                raise ExportError(f"{side.job.file.name} could not be measured on {connection.name}: {side.reason}")
        first, second = found
        if isinstance(first, Profile) and isinstance(second, Profile):
            return first, second
    raise DeviceError(f"{connection.name}: the measuring program ended without a result")


def profile(
    backend: str,
    path: Path,
    shapes: Sequence[tuple[int, ...]],
    *,
    precision: str,
    threads: int,
    seconds: float,
) -> tuple[Measurement, ...]:
    """Latency (and peak memory of the process, runtime included) of `path` on this machine for inputs of `shapes`, in the file's order, as the
    network has them (NCHW).

    50 queries are made unless `seconds` pass first, but never fewer than 10. `precision` only labels the result. Raises `ExportError`.
    """
    rules = Rules(RUN_MOST_QUERIES, seconds, max(600.0, 2 * seconds), RUN_WARM_UP_S, cool_down_s=0.0)
    with Host() as host:
        cpus = pinned(host.facts(), host.name, threads, None).cpus
        shape, *further = shapes
        job = Job(path, backend, shape, threads, cpus, rules=rules, further_shapes=tuple(further))
        (found,) = profile_files(host, [job])
    if isinstance(found, FailedJob):
        raise ExportError(f"{backend} could not run {path.name}: {found.reason}")
    return measurements(found, device=cpu_name(), how="host", precision=precision)
