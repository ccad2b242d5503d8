"""Fits a device's constants to what is measured on it, and checks them on networks that the fit did not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from mcompress.calibration.device_file import device_text
from mcompress.calibration.latency_fit import Fit, Prior, fit
from mcompress.errors import DeviceError, ExportError, UsageError
from mcompress.export.backend import captured
from mcompress.export.profile import FailedJob, Programs, Rules
from mcompress.export.suite.cases import cases
from mcompress.export.suite.networks import NETWORKS, export_network
from mcompress.export.suite.running import ROUNDS, Journal, Measured, Setting, measure_suite, timed
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.targets.connect import Connection, DeviceFacts, connect
from mcompress.targets.device import HOST, Device, MemoryLimit, Unit, list_devices, unknown_name
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import CLASSES, KINDS, Boundary, FilePrecision, Source
from mcompress.targets.validation import Check, Validation

NUMBERS: tuple[Number, ...] = ("fp32", "int8")
PRIORS: dict[Number, Prior] = {
    "fp32": Prior("fp32", 50.0, 30.0, 0.5, 2.0, (4, 8, 16, 32), (1, 4), (False,), CLASSES, True, 8.0, 10.0, 1.5),
    "int8": Prior("int8", 150.0, 30.0, 0.5, 2.0, (4, 8, 16, 32), (1, 4, 8), (False,), CLASSES, True, 8.0, 10.0, 1.5),
}
"""Where fits of a suite start: a present-day core, known only by its order of magnitude."""
WHOLE_NETWORK_RULES = Rules(min_queries=200, min_seconds=1.0, max_seconds=10.0, warm_up_s=0.3, cool_down_s=30.0)
LEAST_MEMORY_MB = 1024.0
"""Taken for a device that does not say how much memory it has."""
SUITE = "suite"
"""Key of the source of fitted constants."""
Told = Callable[[str, int, int], None]
"""Told what is being measured, how much is done, of how much."""


@dataclass(frozen=True)
class Wanted:
    """What to fit or to validate, and where to keep what is measured."""

    name: str
    """Name of the device in its file."""
    known: Device | None
    """The device as it is so far: its facts stay, the unit's speeds are replaced. None for a new one."""
    on: str
    """`host`, `adb[:SERIAL]` or `ssh:HOST`."""
    folder: Path
    unit: str = "cpu"
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    seconds: float = 600.0
    """For everything together."""
    share: float = 1.0
    """Of the suite."""
    programs: Programs | None = None
    """Pushed to phones; None takes them from the environment."""


@dataclass(frozen=True)
class Fitted:
    """A fitted device, and what went into it."""

    device: Device
    measured: dict[Number, Measured]
    fits: dict[Number, Fit]
    seconds: float


def fit_on(wanted: Wanted, told: Told) -> Fitted:
    """Measure the suite on the device and fit the unit to it; facts that are known of the device stay.

    Raises `DeviceError` for a device that cannot be reached or is lost, `MissingBackendError` for one that has no runtime (what was measured is kept
    in the folder), `UsageError` for a share or a time that leaves nothing to measure, and for a machine that is not the device.
    """
    if not 0 < wanted.share <= 1:
        raise UsageError(f"the share of the suite is {wanted.share:g}; it must be above 0 and at most 1")
    _check_unit(wanted)
    started, suite = time.monotonic(), cases(wanted.share)
    measured: dict[Number, Measured] = {}
    with connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        if wanted.known is not None and wanted.known.name != HOST:
            _check_machine(wanted, wanted.known, facts)
        for index, number in enumerate(NUMBERS):
            left = (wanted.seconds - (time.monotonic() - started)) / (len(NUMBERS) - index)
            setting = _setting(wanted, facts, number)
            folder = wanted.folder / "suite"
            progress = partial(told, f"suite {number}")
            measured[number] = measure_suite(connection, suite, setting, folder, seconds=left, progress=progress, programs=wanted.programs)
    fits = {number: fit(measured[number].samples, PRIORS[number]) for number in NUMBERS}
    device = _device(wanted, facts, measured, fits)
    return Fitted(device, measured, fits, time.monotonic() - started)


def validate_on(device: Device, wanted: Wanted, told: Told, networks: Sequence[str] = NETWORKS) -> tuple[Device, dict[str, str]]:
    """Measure networks that no fit has seen, and put the errors of their estimates into the device; also what could not be measured, with reasons.

    Raises `DeviceError` and `MissingBackendError` as `fit_on` does, `UsageError` for an unknown network. What converters say goes to `log.txt` in the
    folder.
    """
    _check_unit(wanted)
    unknown = [name for name in networks if name not in NETWORKS]
    if unknown:
        raise UsageError(unknown_name("network", unknown[0], NETWORKS))
    failed: dict[str, str] = {}
    checks: dict[FilePrecision, list[Check]] = {}
    unit, runtime = device.unit(wanted.unit), "none"
    with connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        _check_machine(wanted, device, facts)
        for number in NUMBERS:
            if number not in unit.runs:
                continue
            setting = _setting(wanted, facts, number)
            journal = Journal(wanted.folder / f"networks_{number}.jsonl", setting)
            paths = {}
            for name in networks:
                try:
                    with captured(wanted.folder / "log.txt"):
                        paths[name] = export_network(name, number, wanted.folder / "networks")
                except ExportError as problem:
                    failed[f"{name} {number}"] = str(problem)
            visits = [(turn, name) for turn in range(ROUNDS) for name in paths]
            for done, (turn, name) in enumerate(visits):
                told(f"networks {number}", done, len(visits))
                if (name, turn) not in journal.timings and f"{name} {number}" not in failed:
                    _time(connection, wanted, paths[name], name, turn, setting, journal, failed)
            told(f"networks {number}", len(visits), len(visits))
            for name, path in paths.items():
                turns = [timing for (of, _), timing in journal.timings.items() if of == name]
                if turns:
                    read = table_of_file(path)
                    estimated = estimate(read.table, device, unit.name, read.precisions).value
                    check = Check(network=name, measured_ms=min(timing.p50_ms for timing in turns), estimated_ms=estimated)
                    checks.setdefault(number, []).append(check)
                    runtime = turns[0].runtime
    source = Source(
        text=f"networks with random weights, measured on {facts.model} by mcompress device validate, {_where(wanted)}",
        date=_today(),
        runtime=runtime,
        machine=facts.processor,
    )
    if not checks:
        raise DeviceError(f"{connection.name}: no network could be measured; the first reason: {next(iter(failed.values()), 'there was none')}")
    found = {number: Validation(how="networks that the fit did not see", source="networks", checks=tuple(some)) for number, some in checks.items()}
    checked = unit.model_copy(update={"validation": {**unit.validation, **found}})
    update = {"sources": {**device.sources, "networks": source}, "units": {**device.units, unit.name: checked}}
    return Device.model_validate(device.model_copy(update=update).model_dump()), failed


def write_device(device: Device, path: Path) -> None:
    """The device's file, for `--device FILE` and `device: FILE`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(device_text(device, f"{device.title}. Written by mcompress device fit; run it again rather than editing speeds."), "utf-8")
    unfinished.replace(path)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Say of a lost device where its measurements are."""
    try:
        yield
    except DeviceError as problem:
        journals = [*folder.glob("*.jsonl"), *folder.glob("suite/*.jsonl")]
        count = sum(max(0, len(journal.read_text(encoding="utf-8").splitlines()) - 1) for journal in journals)
        if not count:
            raise
        raise DeviceError(f"{problem}. {count} measurements are kept in {folder}; the same command goes on from there") from problem


def _time(
    connection: Connection, wanted: Wanted, path: Path, name: str, turn: int, setting: Setting, journal: Journal, failed: dict[str, str]
) -> None:
    for found in timed(connection, {path: name}, setting, WHOLE_NETWORK_RULES, turn, wanted.programs):
        if isinstance(found, FailedJob):
            failed[f"{name} {setting.number}"] = found.reason
        else:
            journal.add(found)


def _setting(wanted: Wanted, facts: DeviceFacts, number: Number) -> Setting:
    return Setting(device=f"{facts.model}, {facts.os}, {facts.machine}", number=number, threads=wanted.threads, cpus=wanted.cpus)


def _device(wanted: Wanted, facts: DeviceFacts, measured: dict[Number, Measured], fits: dict[Number, Fit]) -> Device:
    runtime = measured["fp32"].runtime
    counts = " and ".join(f"{len(found.samples)} files in {number}" for number, found in measured.items())
    assumed = "no file of the suite has this class of operators; relative to the others as the prior of the fit has it"
    text = f"fit of the microbenchmark suite, {counts}, {_where(wanted)}"
    sources = {
        SUITE: Source(text=text, date=_today(), runtime=runtime, machine=facts.processor, fitted_to=("suite",)),
        "assumed": Source(text=assumed, date=_today(), runtime=runtime),
    }
    known = wanted.known
    unit = Unit(
        name=wanted.unit,
        title=known.units[wanted.unit].title if known and wanted.unit in known.units else f"{facts.model}, {_where(wanted)}",
        runs=dict.fromkeys(("int8", "fp16", "fp32"), KINDS),
        # LiteRT widens the weights of fp16 files and computes in fp32.
        computes_in={"int8": "int8", "fp16": "fp32", "fp32": "fp32"},
        boundary=Boundary(hop_us=0.0, source="assumed") if known is None else known.units.get(wanted.unit, known.unit()).boundary,
        fuses="litert",
        speeds={number: found.speeds(fitted=SUITE, assumed="assumed") for number, found in fits.items()},
    )
    if known is not None:
        update = {"sources": {**known.sources, **sources}, "units": {**known.units, wanted.unit: unit}}
        return _cited_only(Device.model_validate(known.model_copy(update=update).model_dump()))
    whole_mb = facts.memory_mb or LEAST_MEMORY_MB
    sources["memory"] = Source(text=f"an assumption: half of the {whole_mb:.0f} MB that the device has", date=_today(), runtime="none")
    return Device(
        name=wanted.name,
        title=facts.model,
        os=_system(facts),
        sources=sources,
        memory=MemoryLimit(limit_mb=whole_mb / 2, source="memory"),
        preferred_unit=wanted.unit,
        units={wanted.unit: unit},
    )


def _check_unit(wanted: Wanted) -> None:
    if wanted.unit != "cpu":
        raise UsageError(f"--unit is {wanted.unit}; files are measured on the cpu only. Leave --unit out")


def _check_machine(wanted: Wanted, device: Device, facts: DeviceFacts) -> None:
    """What one machine measures is never said of another."""
    system = _system(facts)
    fitted_on = device.measured_on(device.units[wanted.unit]) if wanted.unit in device.units else ()
    if wanted.on == "host" and fitted_on and facts.processor not in fitted_on:
        own = HOST if device.name == HOST else "my_machine"
        raise UsageError(
            f"{device.name} was measured on {', '.join(fitted_on)}, and host is {facts.processor}: measure on that machine, or fit this one with: "
            f"mcompress device fit {own} --on host"
        )
    other = wanted.on == "host" and device.name in list_devices() and device.name != HOST
    if other or device.os != system:
        raise UsageError(
            f"{device.name} is {device.title} ({device.os}), and {wanted.on} is {facts.model} ({system}): measure on {device.name} itself, through "
            f"adb or ssh, or give the machine a name of its own, for example: mcompress device fit my_machine --on {wanted.on}"
        )


def _cited_only(device: Device) -> Device:
    """Without sources that no constant names any more."""
    cited = {source for _, source in device.cited()}
    return device.model_copy(update={"sources": {key: source for key, source in device.sources.items() if key in cited}})


def _system(facts: DeviceFacts) -> Literal["android", "linux", "macos"]:
    lower = facts.os.lower()
    return "android" if "android" in lower else "macos" if "mac" in lower else "linux"


def _where(wanted: Wanted) -> str:
    pinned = f" on processors {', '.join(map(str, wanted.cpus))}" if wanted.cpus else ""
    return f"{wanted.threads} thread{'s' if wanted.threads > 1 else ''}{pinned}"


def _today() -> str:
    return datetime.now(tz=UTC).date().isoformat()
