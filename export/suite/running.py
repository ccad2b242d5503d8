"""Runs model files on a device and gives each one's operator table with its measured latency; what is measured is kept, file by file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mcompress.calibration.latency_fit import Sample
from mcompress.environment import today
from mcompress.errors import DeviceError, ExportError, MissingBackendError
from mcompress.export.agent.stopwatch import LEAST_QUERIES
from mcompress.export.profile import FailedJob, Job, Profile, Programs, Rules, profile_files
from mcompress.export.profile_runtime import Installed, installed
from mcompress.export.profile_throttle import UNSTABLE_CV
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
SCHEMA = 2
"""Of a journal; those of the first did not say which runtime and which bytes were measured."""


class Timing(BaseModel):
    """One measured file; a line of the journal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    round: int = 0
    p50_ms: float
    cv: float
    n: int
    runtime: str
    program: str
    """Digest of the program that was pushed to measure it; empty where none was."""
    digest: str
    """Of the file's bytes."""
    day: str
    """When it was measured: `2026-11-21`."""
    throttled: str | None = None
    """Why the device was, or seems to have been, slowed down meanwhile."""
    repeated: bool = False
    """Whether it stands for one that was throttled."""
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
        """Raises `ExportError` for a journal of another setting. One that an earlier mcompress wrote is set aside, and `notes` says so."""
        self._path, self.timings = path, dict[tuple[str, int], Timing]()
        self.notes: list[str] = []
        self.added: set[tuple[str, int]] = set()
        """What was measured since the journal was opened."""
        head = json.dumps({"schema": SCHEMA, **asdict(setting)}, sort_keys=True).encode()
        first, complete, rest = (path.read_bytes() if path.exists() else b"").partition(b"\n")
        if complete and _schema(first) != SCHEMA:
            aside = path.with_name(f"{path.name}.old")
            path.replace(aside)
            self.notes.append(f"{path} does not say which runtime and which files were measured; it is now {aside}, and everything is measured again")
            complete = b""
        if not complete:  # new, or its process was killed before anything was measured
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head + b"\n")
            return
        if first != head:
            raise ExportError(f"{path} was measured with {_difference(first, head)}; remove it, or keep this fit in another folder with --keep DIR")
        for line in rest.splitlines():
            try:
                timing = Timing.model_validate_json(line)
            except ValidationError:
                continue  # the line at which a process was killed, or one that something else damaged
            self.timings[timing.name, timing.round] = timing
        if rest and not rest.endswith(b"\n"):  # what comes next must not become a part of that line
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")

    def add(self, timing: Timing) -> None:
        """Keep a timing."""
        self.timings[timing.name, timing.round] = timing
        self.added.add((timing.name, timing.round))
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(timing.model_dump_json() + "\n")


@dataclass(frozen=True)
class Quality:
    """How good the measurements are, and when they were made."""

    timings: int
    """Those that count."""
    earlier: int
    """Of them, from an earlier run."""
    repeated: int
    """Throttled ones that were measured again."""
    left_out: int
    """Those that were throttled again, or could not be repeated."""
    unstable: int
    """Of those that count, with a coefficient of variation above `UNSTABLE_CV`."""
    days: tuple[str, str]
    """First and last, `2026-11-21`."""
    notes: tuple[str, ...] = ()
    few: int = 0
    """Of those that count, with fewer than `LEAST_QUERIES` queries: too slow for the time that they had."""

    def __str__(self) -> str:
        """For a person: everything that is not as it should be."""
        said = [f"{self.earlier} of {self.timings} measurements from an earlier run" if self.earlier else f"{self.timings} measurements"]
        said += [f"{self.repeated} throttled and measured again"] if self.repeated else []
        said += [f"{self.left_out} throttled and left out"] if self.left_out else []
        said += [f"{self.unstable} unstable (coefficient of variation above {100 * UNSTABLE_CV:.0f} %)"] if self.unstable else []
        said += [f"{self.few} of fewer than {LEAST_QUERIES} queries"] if self.few else []
        said += [f"from {self.days[0]} to {self.days[1]}"] if self.days[0] != self.days[1] else []
        return ", ".join(said)


@dataclass(frozen=True)
class Measured:
    """Samples for a fit, perhaps none, and what could not be measured: name -> reason."""

    samples: tuple[Sample, ...]
    failed: dict[str, str]
    runtime: str
    complete: bool
    """False where time ran out first."""
    quality: Quality

    @property
    def nothing(self) -> str | None:
        """Why there are no samples, and what to do; None where there are some."""
        if self.samples:
            return None
        return "every measured file was throttled: let the device cool" if self.quality.left_out else "there was no time: give more --minutes"


@dataclass(frozen=True)
class Rounds:
    """What came out of several rounds of files."""

    best: dict[str, float]
    """Name -> the fastest median, ms: whatever else a machine does only ever adds time."""
    failed: dict[str, str]
    runtime: str
    complete: bool
    quality: Quality


@dataclass(frozen=True)
class Plan:
    """Which files are measured, and how."""

    names: Sequence[str]
    """In the order in which they are measured."""
    file_of: Callable[[str], Path]
    """Writes the file where it is not there yet."""
    setting: Setting
    rules: Rules
    batch: int
    """So many are pushed and measured together."""
    seconds: float = float("inf")
    """For all of them."""
    may_all_fail: bool = True
    """Whether to go on when none of the first batch could be measured."""
    programs: Programs | None = None
    """Pushed to phones; None takes them from the environment."""


@dataclass
class _State:
    journal: Journal
    there: Installed | None
    digest_of: Callable[[str], str]
    failed: dict[str, str] = field(default_factory=dict)

    def kept(self, name: str, turn: int) -> Timing | None:
        """The timing of these very bytes with this very runtime, if there is one; of earlier runs, none that was throttled: it may be cooler now."""
        found = self.journal.timings.get((name, turn))
        if found is None or (name, turn) in self.journal.added:
            return found
        if found.throttled or self.there is None:
            return None
        same = (found.runtime, found.program) == (self.there.runtime, self.there.program)
        return found if same and found.digest == self.digest_of(name) else None

    def done(self, every: Sequence[tuple[str, int]]) -> int:
        """How many of these need not be measured any more."""
        return sum(name in self.failed or self.kept(name, turn) is not None for name, turn in every)


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

    The fastest round counts. Files and the journal lie in `folder`. `programs` are pushed to phones; None takes them from the environment. Without
    time, or where everything was throttled, there are no samples. Raises `DeviceError` when the device is lost or none of the first files can be
    measured, `MissingBackendError` at the first file for which it has no runtime; everything measured so far is in the journal.
    """
    ordered = in_even_order(cases)
    by_name = {case.name: case for case in ordered}

    @cache
    def file_of(name: str) -> Path:
        return _written(by_name[name], setting.number, folder)

    plan = Plan(tuple(by_name), file_of, setting, SUITE_RULES, BATCH, seconds, may_all_fail=False, programs=programs)
    found = measure_rounds(connection, plan, folder / f"suite_{setting.number}.jsonl", progress)
    if not found.best and found.failed:
        reason = next(iter(found.failed.values()))
        raise DeviceError(f"{connection.name}: no {setting.number} file of the suite could be measured; the first reason: {reason}")
    samples = tuple(
        Sample(case.name, table_of_file(file_of(case.name)).table, found.best[case.name], case.weight) for case in ordered if case.name in found.best
    )
    return Measured(samples, found.failed, found.runtime, found.complete, found.quality)


def measure_rounds(connection: Connection, plan: Plan, journal: Path, progress: Callable[[int, int], None]) -> Rounds:
    """Time every file `ROUNDS` times; what was throttled once more at the end, and else it does not count.

    What the journal has of the same bytes, runtime and setting is not measured again. Raises `ExportError` for a journal of another setting,
    `DeviceError` and `MissingBackendError` as `measure_suite` does.
    """
    kept, until = Journal(journal, plan.setting), time.monotonic() + plan.seconds
    digests = cache(lambda name: hashlib.sha256(plan.file_of(name).read_bytes()).hexdigest()[:16])
    state = _State(kept, installed(connection, "tflite", plan.programs), digests)
    every = [(name, turn) for turn in range(ROUNDS) for name in plan.names]
    todo = [key for key in every if state.kept(*key) is None]
    again = [kept.timings[key] for key in todo if key in kept.timings]
    throttled = sum(timing.throttled is not None for timing in again)
    if throttled:
        kept.notes.append(f"{throttled} measurements in {journal} were throttled, and are made again")
    if len(again) > throttled:
        stale = len(again) - throttled
        kept.notes.append(f"{stale} measurements in {journal} are of another runtime or of files that have changed, and are made again")
    for start in range(0, len(todo), plan.batch):
        progress(state.done(every), len(every))
        if time.monotonic() > until or (start and not plan.may_all_fail and not any(state.kept(*key) for key in every)):
            break
        _batch(connection, plan, state, todo[start : start + plan.batch], until, again=False)
    hot = [key for key in every if (found := state.kept(*key)) is not None and found.throttled and not found.repeated]
    for start in range(0, len(hot), plan.batch):
        _batch(connection, plan, state, hot[start : start + plan.batch], until, again=True)
    progress(state.done(every), len(every))
    return _found(plan, state, every)


def _batch(connection: Connection, plan: Plan, state: _State, keys: Sequence[tuple[str, int]], until: float, *, again: bool) -> None:
    """Measure these until `time.monotonic()` is `until`, in the middle of a batch if need be: another part may need the time that is left."""
    for turn in sorted({turn for _, turn in keys}):
        if time.monotonic() > until:
            return
        files = {plan.file_of(name): name for name, other in keys if other == turn and name not in state.failed}
        for found in timed(connection, files, plan.setting, plan.rules, plan.programs) if files else ():
            if isinstance(found, FailedJob):
                state.failed[found.job.label] = found.reason
            else:
                state.journal.add(_timing(found, turn, state, again=again))
            if time.monotonic() > until:
                return


def _found(plan: Plan, state: _State, every: Sequence[tuple[str, int]]) -> Rounds:
    kept = {key: found for key in every if (found := state.kept(*key)) is not None}
    counted = {key: found for key, found in kept.items() if not found.throttled}
    best: dict[str, float] = {}
    for (name, _), timing in counted.items():
        best[name] = min(timing.p50_ms, best.get(name, timing.p50_ms))
    days = sorted(timing.day for timing in counted.values()) or [today()]
    quality = Quality(
        timings=len(counted),
        earlier=sum(key not in state.journal.added for key in counted),
        repeated=sum(timing.repeated for timing in kept.values()),
        left_out=len(kept) - len(counted),
        unstable=sum(timing.cv > UNSTABLE_CV for timing in counted.values()),
        days=(days[0], days[-1]),
        notes=tuple(state.journal.notes),
        few=sum(timing.n < LEAST_QUERIES for timing in counted.values()),
    )
    missing = [key for key in every if key not in kept and key[0] not in state.failed]
    failed = {name: reason for name, reason in state.failed.items() if name not in best}
    runtime = next((timing.runtime for timing in counted.values()), "none")
    return Rounds({name: best[name] for name in plan.names if name in best}, failed, runtime, not missing, quality)


def timed(
    connection: Connection, files: Mapping[Path, str], setting: Setting, rules: Rules, programs: Programs | None
) -> Iterator[Profile | FailedJob]:
    """Each file (path -> name) measured as `setting` says. Raises `MissingBackendError` where there is no runtime: the next file would fail too."""
    jobs = [Job(path, "tflite", threads=setting.threads, cpus=setting.cpus, rules=rules, label=name) for path, name in files.items()]
    for found in profile_files(connection, jobs, programs=programs):
        if isinstance(found, FailedJob) and found.missing:
            raise MissingBackendError(f"{connection.name} cannot measure anything: {found.reason}")
        yield found


def _timing(found: Profile, turn: int, state: _State, *, again: bool) -> Timing:
    name = found.job.label
    return Timing(
        name=name,
        round=turn,
        p50_ms=found.p50_ms,
        cv=found.cv,
        n=found.n,
        runtime=found.runtime,
        program=state.there.program if state.there else "",
        digest=state.digest_of(name),
        day=today(),
        throttled=found.throttled,
        repeated=again,
        notes=found.warnings,
    )


def _written(case: Case, number: Number, folder: Path) -> Path:
    """The case's file; one that another mcompress wrote under its name is replaced."""
    path, content = folder / number / f"{case.name}.tflite", case.file(number)
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def _schema(head: bytes) -> object:
    try:
        found = json.loads(head)
    except ValueError:  # no JSON, or no text at all
        return None
    return found.get("schema") if isinstance(found, dict) else None


def _difference(one: bytes, other: bytes) -> str:
    """What two heads of journals differ in."""
    there, here = json.loads(one), json.loads(other)
    return "; ".join(f"{key} {there.get(key)!r}, not {here.get(key)!r}" for key in here if there.get(key) != here[key])
