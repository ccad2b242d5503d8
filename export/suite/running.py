"""Runs model files on a device and gives each one's operator table with its measured latency; what is measured is kept, file by file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.calibration.latency_fit import Sample
from mcompress.errors import DeviceError, ExportError, MissingBackendError
from mcompress.export.profile import FailedJob, Job, Profile, Programs, Rules, profile_files
from mcompress.export.suite.cases import Case
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.targets.connect import Connection

BATCH = 40
"""Files that are written, pushed and measured together."""
SUITE_RULES = Rules(min_queries=40, min_seconds=0.06, max_seconds=3.0, warm_up_s=0.02, cool_down_s=5.0)
ROUNDS = 2
"""How often every file is measured, all others in between: a neighbour that slows a machine for a minute then slows one of two measurements."""
STEP = 0.6180339887498949
"""The golden ratio's fractional part: visiting every n-th case by it keeps any beginning of the suite evenly spread over its parts."""


class Timing(BaseModel):
    """One measured file; a line of the journal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    round: int = 0
    p50_ms: float
    cv: float
    n: int
    runtime: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """Where and how files are measured; a journal holds for one setting."""

    device: str
    """What the device says that it is."""
    number: Number
    threads: int
    cpus: tuple[int, ...] | None


class Journal:
    """Timings of one setting, a JSON line each, so that an unplugged device or a killed process loses nothing."""

    def __init__(self, path: Path, setting: Setting) -> None:
        """Raises `ExportError` for a journal of another setting."""
        self._path, self.timings = path, dict[tuple[str, int], Timing]()
        head = json.dumps(asdict(setting), sort_keys=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        first, complete, rest = text.partition("\n")
        if not complete:  # new, or its process was killed before anything was measured
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
            return
        if first != head:
            raise ExportError(f"{path} was measured as {first[:200]}, not as {head}; remove it, or keep this fit in another folder")
        for line in rest.splitlines():
            try:
                timing = Timing.model_validate_json(line)
            except ValidationError:
                continue  # the line at which a process was killed
            self.timings[timing.name, timing.round] = timing
        if rest and not rest.endswith("\n"):  # what comes next must not become a part of that line
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")

    def add(self, timing: Timing) -> None:
        """Keep a timing."""
        self.timings[timing.name, timing.round] = timing
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(timing.model_dump_json() + "\n")


@dataclass(frozen=True)
class Measured:
    """Samples for a fit, and what could not be measured: name -> reason."""

    samples: tuple[Sample, ...]
    failed: dict[str, str]
    runtime: str
    complete: bool
    """False where time ran out first."""


def in_even_order(cases: Sequence[Case]) -> list[Case]:
    """All cases, so that any beginning is spread over the whole."""
    return [case for _, case in sorted(((index * STEP) % 1.0, case) for index, case in enumerate(cases))] if cases else []


def measure_suite(
    connection: Connection,
    cases: Sequence[Case],
    setting: Setting,
    folder: Path,
    *,
    seconds: float,
    progress: Callable[[int, int], None],
    programs: Programs | None = None,
) -> Measured:
    """Write, push and time the cases `ROUNDS` times in the order of `in_even_order`, for at most `seconds`; `progress` is told how many of how many.

    The fastest round counts: whatever else a machine does only ever adds time. Files and the journal lie in `folder`. `programs` are pushed to
    phones; None takes them from the environment. Raises `DeviceError` when the device is lost or none of the first files can be measured,
    `MissingBackendError` at the first file for which it has no runtime; everything measured so far is in the journal.
    """
    journal = Journal(folder / f"suite_{setting.number}.jsonl", setting)
    ordered, until = in_even_order(cases), time.monotonic() + seconds
    todo = [(case, turn) for turn in range(ROUNDS) for case in ordered if (case.name, turn) not in journal.timings]
    failed: dict[str, str] = {}
    done = ROUNDS * len(ordered) - len(todo)
    for start in range(0, len(todo), BATCH):
        if time.monotonic() > until or (start and not journal.timings):
            break
        batch = [(case, turn) for case, turn in todo[start : start + BATCH] if case.name not in failed]
        for turn in sorted({turn for _, turn in batch}):
            files = {_written(case, setting.number, folder): case.name for case, other in batch if other == turn}
            for found in timed(connection, files, setting, SUITE_RULES, turn, programs):
                if isinstance(found, Timing):
                    journal.add(found)
                else:
                    failed[found.job.label] = found.reason
        done += len(batch)
        progress(done, ROUNDS * len(ordered))
    if not journal.timings:
        reason = next(iter(failed.values()), "there was no time")
        raise DeviceError(f"{connection.name}: no file of the suite could be measured; the first reason: {reason}")
    best: dict[str, float] = {}
    for (name, _), timing in journal.timings.items():
        best[name] = min(timing.p50_ms, best.get(name, timing.p50_ms))
    samples = tuple(
        Sample(case.name, table_of_file(_written(case, setting.number, folder)).table, best[case.name], case.weight)
        for case in ordered
        if case.name in best
    )
    runtime = next(iter(journal.timings.values())).runtime
    return Measured(samples, failed, runtime, len(journal.timings) + ROUNDS * len(failed) >= ROUNDS * len(ordered))


def timed(
    connection: Connection, files: dict[Path, str], setting: Setting, rules: Rules, turn: int, programs: Programs | None
) -> Iterator[Timing | FailedJob]:
    """Each file (path -> name) measured as `setting` says. Raises `MissingBackendError` where there is no runtime: the next file would fail too."""
    jobs = [Job(path, "tflite", threads=setting.threads, cpus=setting.cpus, rules=rules, label=name) for path, name in files.items()]
    for found in profile_files(connection, jobs, programs=programs):
        if isinstance(found, FailedJob) and found.missing:
            raise MissingBackendError(f"{connection.name} cannot measure anything: {found.reason}")
        yield _timing(found, turn) if isinstance(found, Profile) else found


def _timing(found: Profile, turn: int) -> Timing:
    notes = (*found.warnings, *((found.throttled,) if found.throttled else ()))
    return Timing(name=found.job.label, round=turn, p50_ms=found.p50_ms, cv=found.cv, n=found.n, runtime=found.runtime, notes=notes)


def _written(case: Case, number: Number, folder: Path) -> Path:
    path = folder / number / f"{case.name}.tflite"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.file(number))
    return path
