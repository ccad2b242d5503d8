"""What is to be measured of a file, and what was: jobs with their rules, profiles, and figures of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mcompress.errors import UsageError
from mcompress.targets.connect import threads_text
from mcompress.targets.schema import Measurement

BACKENDS = {".onnx": "onnx", ".tflite": "tflite", ".pte": "executorch"}
"""Suffix -> backend of the files that can be timed."""


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


Rules.SINGLE_STREAM = Rules(1024, 60.0, 600.0, 1.0, 300.0)
Rules.QUICK = Rules(128, 1.0, 10.0, 0.2, 10.0)


@dataclass(frozen=True)
class InputShape:
    """An input of a file by its name, and its sizes in the file's own layout."""

    name: str
    """Empty: the first input."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}{' ' if self.name else ''}{'x'.join(map(str, self.shape)) or 'scalar'}"

    @property
    def option(self) -> str:
        """As `--input` takes it."""
        return f"{self.name}{'=' if self.name else ''}{','.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Job:
    """One file to be timed, and how."""

    file: Path
    backend: str
    """`onnx`, `tflite` or `executorch`."""
    shape: tuple[int, ...] = ()
    """Shape of the first input, for a file that leaves sizes open; () takes what the file states. A file that states all its sizes may have them in
    another layout."""
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    """Processors that the process may use; None leaves the choice to the system."""
    rules: Rules = Rules.SINGLE_STREAM
    operators: bool = False
    """Also the time of each operator, from the runtime's own profiler, after the timing."""
    label: str = ""
    """Whatever the caller wants to find its job by."""
    inputs: tuple[InputShape, ...] = ()
    """Shapes just as the file has them, which decide in the place of `shape`."""
    further_shapes: tuple[tuple[int, ...], ...] = ()
    """Of the inputs behind the first, as `shape` is of that."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all inputs; () where nothing was asked for."""
        return (self.shape, *self.further_shapes) if self.shape or self.further_shapes else ()


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
    inputs: tuple[InputShape, ...] = ()
    """The shapes that were measured; empty where the device does not say."""
    assumed: str = ""
    """What the file leaves open and was decided for the measurement; empty if nothing was."""


@dataclass(frozen=True)
class FailedJob:
    """A job that could not be measured; the others go on."""

    job: Job
    reason: str
    missing: bool = False
    """True when the device has no runtime for the file; the reason says what to install."""
    usage: bool = False
    """True when the sizes that were asked for, or that were not, do not suit the file: with others it may be measured."""


def backend_of_file(path: Path) -> str:
    """`onnx`, `tflite` or `executorch`, by the file's suffix. Raises `UsageError` for others."""
    try:
        return BACKENDS[path.suffix]
    except KeyError as error:
        raise UsageError(f"{path.name} cannot be timed: its suffix is '{path.suffix}'; allowed are {', '.join(BACKENDS)}") from error


def measurements(found: Profile, *, device: str, how: Literal["device", "host"], precision: str) -> tuple[Measurement, ...]:
    """A profile in the words of a report: latency and, where the device says it, peak memory."""
    job = found.job
    on = f"{device} {found.runtime} {precision} {threads_text(job.threads, ())}".replace("  ", " ")
    notes = [f"fresh process, mean {found.mean_ms:.4g} ms, coefficient of variation {100 * found.cv:.1f} %"]
    if job.shapes or job.inputs or found.assumed:
        notes.append(f"input {', '.join(map(str, found.inputs or job.inputs or [InputShape('', shape) for shape in job.shapes]))}")
    notes += [found.assumed] if found.assumed else []
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
