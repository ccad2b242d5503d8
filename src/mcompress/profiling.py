"""The command `profile`: which files of a bundle are measured where, and how the result is shown and kept.

A result file is written again after every measured file, so that whatever ends the command, what was complete is there.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from mcompress.console import LastingConsole
from mcompress.errors import DeviceError, DiskFullError, ExportError, MCompressError, MissingBackendError, UsageError
from mcompress.export.profile import BACKENDS, FailedJob, InputShape, Job, Profile, Rules, backend_of_file, measurements, profile_files
from mcompress.export.profile_phone import Programs
from mcompress.opening import check_named, given_inputs
from mcompress.targets.connect import Connection, DeviceFacts, connect, ended_gently, parse_cpus, pinned, threads_text

SCHEMA = 1
SHOWN_OPERATORS = 12
TABLE_WIDTH = 110
"""Columns that nine figures and names need; a narrower terminal wraps lines, which is easier to read than wrapped cells."""


@dataclass(frozen=True)
class Asked:
    """What `mcompress profile` was asked for."""

    source: Path
    """A bundle, or one model file."""
    on: str
    file: str | None = None
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    inputs: tuple[InputShape, ...] = ()
    """Shapes of a file's inputs where it leaves sizes open."""
    quick: bool = False
    operators: bool = False
    out: Path | None = None
    programs: Programs = field(default_factory=Programs.from_environment)


@dataclass
class Outcome:
    """What came out, as far as it got."""

    asked: Asked
    device: str
    facts: DeviceFacts
    cpus: tuple[int, ...] | None
    cpus_because: str
    done: list[Profile | FailedJob]
    left_out: dict[str, str]
    """File -> why it was not measured."""
    lost: str | None = None
    unwritten: OSError | None = None
    """Why the result file does not hold what is here."""

    def as_json(self) -> dict[str, JsonValue]:
        """The result file, schema 1."""
        facts = self.facts
        return {
            "schema": SCHEMA,
            "source": str(self.asked.source),
            "device": self.device,
            "how": "host" if self.device == "host" else "device",
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": {
                "model": facts.model,
                "soc": facts.soc,
                "os": facts.os,
                "machine": facts.machine,
                "cores_khz": list(facts.cores_khz),
                "memory_mb": facts.memory_mb,
                "governor": facts.governor,
            },
            "quick": self.asked.quick,
            "threads": self.asked.threads,
            "cpus": None if self.cpus is None else list(self.cpus),
            "files": [_row(found, self) for found in self.done],
            "left_out": [{"file": name, "reason": reason} for name, reason in self.left_out.items()],
            "lost": self.lost,
        }

    @property
    def misused(self) -> bool:
        """Whether nothing was measured because `--input` does not suit any of the files, which is for the user to mend and no finding."""
        return not self.lost and bool(self.done) and all(isinstance(found, FailedJob) and found.usage for found in self.done)

    def raise_for_status(self) -> None:
        """Raise what the exit code should say: a lost device, a missing runtime, a file that could not be run, an `--input` that does not suit it, a
        result file that was not written."""
        unwritten = "" if self.unwritten is None else f"{self.unwritten.strerror or self.unwritten}"
        also = f"\nThe results could not be written to {self.asked.out}: {unwritten}" if unwritten else ""
        if self.lost:
            kept = f"{len(self.done)} results are kept" + (f" in {self.asked.out}" if self.asked.out and not self.unwritten else " above")
            raise DeviceError(f"{self.lost.rstrip('.')}. {kept}.{also}")
        failed = [found for found in self.done if isinstance(found, FailedJob)]
        if failed:
            lines = "\n".join(f"{found.job.file.name}: {found.reason}" for found in failed)
            if self.misused:
                raise UsageError(f"{lines}{also}")
            kind: type[MCompressError] = MissingBackendError if all(found.missing for found in failed) else ExportError
            raise kind(f"{len(failed)} of {len(self.done)} files could not be measured on {self.device}:\n{lines}{also}")
        if not self.done:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            raise UsageError(f"nothing in {self.asked.source} can be measured on {self.device}: {reasons}")
        if self.unwritten is not None:
            if self.unwritten.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"the results above could not be written to {self.asked.out} ({unwritten}); free some space, or give another --out"
                )
            raise UsageError(f"--out is {self.asked.out}, and the results above could not be written there ({unwritten}); give another file")


def run_command(
    source: Path,
    on: str,
    file: str | None,
    threads: int,
    cpus: str | None,
    inputs: Sequence[str] | None,
    out: Path | None,
    benchmark_binary: Path | None,
    *,
    quick: bool,
    operators: bool,
    as_json: bool,
) -> None:
    """`mcompress profile`: results on standard output, a line per measured file on standard error. Raises what the exit code should say."""
    given = given_inputs(inputs)
    check_named(given)
    asked = Asked(source, on, file, threads, parse_cpus(cpus), tuple(given), quick, operators, out, Programs.asked(on, benchmark_binary))
    notes = LastingConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def said(found: Profile | FailedJob) -> None:
        result = f"p50 {found.p50_ms:.4g} ms" if isinstance(found, Profile) else "not measured"  # why is said once, by the error at the end
        notes.print(f"{found.job.file.name}: {result}", markup=False)

    outcome = profile_source(asked, said)
    console = LastingConsole(highlight=False, emoji=False, soft_wrap=as_json)
    console.width = max(console.width, TABLE_WIDTH)
    if as_json:
        console.print(json.dumps(outcome.as_json(), indent=2), markup=False)
    elif not outcome.misused:
        show(outcome, console)
    outcome.raise_for_status()


def profile_source(asked: Asked, said: Callable[[Profile | FailedJob], None] = lambda _found: None) -> Outcome:
    """Measure the files of a bundle, or one file. `said` hears each result as it comes; a lost device is in `Outcome.lost`, and does not raise.

    Raises `UsageError` for what cannot be asked, `ParityError` for a damaged bundle, `DeviceError` when the device cannot be reached at all.
    """
    _check_out(asked.out)
    jobs, left_out = _jobs(asked)
    with ended_gently(), connect(asked.on) as device:
        facts = device.facts()
        on = pinned(facts, device.name, asked.threads, asked.cpus)
        outcome = Outcome(asked, device.name, facts, on.cpus, on.because, [], left_out)
        _measure(device, [replace(job, cpus=on.cpus) for job in jobs], outcome, said)
    return outcome


def show(outcome: Outcome, console: Console) -> None:
    """The table, and the operators where they were asked for."""
    facts = outcome.facts
    soc = f", {facts.soc}" if facts.soc and facts.soc not in facts.model else ""
    pinned = f", processors {','.join(map(str, outcome.cpus))} ({outcome.cpus_because})" if outcome.cpus is not None else ""
    console.print(f"{outcome.device}: {facts.model}{soc}, {facts.os}; {threads_text(outcome.asked.threads, ())}{pinned}", markup=False)
    table = Table(box=None, header_style="bold")
    for name in ("file", "runtime", "p50 ms", "p90 ms", "mean ms", "cv %", "n", "peak MB"):
        table.add_column(name, justify="left" if name in ("file", "runtime") else "right", overflow="fold", no_wrap=name != "runtime")
    for found in outcome.done:
        if isinstance(found, FailedJob):
            table.add_row(found.job.file.name, found.job.backend, *(["-"] * 6))
            continue
        memory = "-" if found.peak_memory_mb is None else f"{found.peak_memory_mb:.0f}"
        figures = (f"{value:.4g}" for value in (found.p50_ms, found.p90_ms, found.mean_ms))
        table.add_row(found.job.file.name, found.runtime, *figures, f"{100 * found.cv:.1f}", str(found.n), memory)
    console.print(table, markup=False)
    for found in outcome.done:
        for note in _notes(found) if isinstance(found, Profile) else ():
            console.print(f"{found.job.file.name}: {note}", markup=False, soft_wrap=True)
    for name, reason in outcome.left_out.items():
        console.print(f"{name}: left out, {reason}", markup=False, soft_wrap=True)
    for found in outcome.done:
        if isinstance(found, Profile) and found.operators:
            console.print(_operators(found), markup=False)


def _measure(device: Connection, jobs: Sequence[Job], outcome: Outcome, said: Callable[[Profile | FailedJob], None]) -> None:
    _keep(outcome)
    try:
        for found in profile_files(device, jobs, programs=outcome.asked.programs):
            outcome.done.append(found)
            _keep(outcome)
            said(found)
    except DeviceError as problem:
        outcome.lost = str(problem)
        _keep(outcome)


def _check_out(out: Path | None) -> None:
    """Raise `UsageError` for a result file that cannot be written: measuring takes minutes."""
    if out is None:
        return
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageError(f"--out is {out}; it must be a file in a folder that exists")
    try:
        _part(out).touch()
        _part(out).unlink()
    except OSError as error:
        raise UsageError(f"--out is {out}, and nothing can be written beside it ({error.strerror}); give a file in another folder") from error


def _part(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _keep(outcome: Outcome) -> None:
    """Write the result file again. What is in the way is kept for the end: a full disk must not take the measurements with it."""
    out = outcome.asked.out
    if out is None:
        return
    try:
        _part(out).write_text(json.dumps(outcome.as_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(_part(out), out)  # noqa: PTH105  (whole or not at all)
    except OSError as error:
        outcome.unwritten = error
        with suppress(OSError):
            _part(out).unlink()
    else:
        outcome.unwritten = None


def _jobs(asked: Asked) -> tuple[list[Job], dict[str, str]]:
    rules = Rules.QUICK if asked.quick else Rules.SINGLE_STREAM
    if not asked.source.exists():
        raise UsageError(f"{asked.source} does not exist; give a bundle, or a {', '.join(BACKENDS)} file")
    if asked.source.is_file():
        if asked.file:
            raise UsageError(f"--file chooses a file of a bundle, and {asked.source} is a file itself; leave --file out")
        backend = backend_of_file(asked.source)
        job = Job(asked.source, backend, (), asked.threads, rules=rules, operators=asked.operators, inputs=asked.inputs)
        return [job], {}
    if asked.inputs:
        raise UsageError(f"--input is {asked.inputs[0].option}, and {asked.source} is a bundle, whose files have their sizes; leave --input out")
    from mcompress.export.bundle import read_manifest

    manifest = read_manifest(asked.source)
    names = [file.path for file in manifest.files]
    if asked.file is not None and asked.file not in names:
        raise UsageError(f"--file is '{asked.file}'; {asked.source} has {', '.join(names)}")
    jobs, left_out = [], {}
    for file in manifest.files:
        if asked.file not in (None, file.path):
            continue
        if file.backend not in BACKENDS.values():
            left_out[file.path] = f"{file.backend} files are measured on Apple's systems with Xcode's performance report; mcompress cannot start it"
            continue
        label = "+".join(precision for precision, count in file.precision_counts.items() if count)
        shape, *further = (facts.shape for facts in file.inputs)
        path, operators = asked.source / file.path, asked.operators
        jobs.append(Job(path, file.backend, shape, asked.threads, rules=rules, operators=operators, label=label, further_shapes=tuple(further)))
    return jobs, left_out


def _notes(found: Profile) -> list[str]:
    notes = [f"THROTTLED: {found.throttled}"] if found.throttled else []
    notes += [f"{found.clock_jumps} queries dropped, the clock jumped"] if found.clock_jumps else []
    notes += [found.assumed] if found.assumed else []
    return notes + list(found.warnings)


def _operators(found: Profile) -> Table:
    table = Table(box=None, header_style="bold", title=f"{found.job.file.name}: where the time goes", title_justify="left")
    for name in ("operator", "kind", "mean ms", "share %"):
        table.add_column(name, justify="left" if name in ("operator", "kind") else "right", overflow="fold")
    for operator in found.operators[:SHOWN_OPERATORS]:
        table.add_row(operator.name, operator.kind, f"{operator.mean_ms:.4g}", f"{100 * operator.share:.1f}")
    rest = found.operators[SHOWN_OPERATORS:]
    if rest:
        table.add_row(f"{len(rest)} more", "", f"{sum(o.mean_ms for o in rest):.4g}", f"{100 * sum(o.share for o in rest):.1f}")
    return table


def _row(found: Profile | FailedJob, outcome: Outcome) -> dict[str, JsonValue]:
    job = found.job
    row: dict[str, JsonValue] = {"file": job.file.name, "backend": job.backend, "threads": job.threads, "shape": list(job.shape)}
    if isinstance(found, FailedJob):
        return {**row, "failed": found.reason, "runtime_missing": found.missing}
    facts = outcome.facts
    said = measurements(
        found,
        device=facts.model if outcome.device == "host" else f"{facts.model} ({outcome.device})",
        how="host" if outcome.device == "host" else "device",
        precision=job.label,
    )
    return {
        **row,
        "runtime": found.runtime,
        "p50_ms": found.p50_ms,
        "p90_ms": found.p90_ms,
        "mean_ms": found.mean_ms,
        "cv": found.cv if math.isfinite(found.cv) else None,
        "n": found.n,
        "load_ms": found.load_ms,
        "peak_memory_mb": found.peak_memory_mb,
        "throttled": found.throttled,
        "clock_jumps": found.clock_jumps,
        "inputs": [{"name": one.name, "shape": list(one.shape)} for one in found.inputs],
        "assumed": found.assumed or None,
        "warnings": list(found.warnings),
        "operators": [{"name": o.name, "kind": o.kind, "mean_ms": o.mean_ms, "share": o.share} for o in found.operators],
        "samples_ms": [round(sample, 6) for sample in found.samples_ms],
        "measurements": [measurement.model_dump(mode="json", exclude_none=True) for measurement in said],
    }
