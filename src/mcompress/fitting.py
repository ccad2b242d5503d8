"""Fits a device's constants to what is measured on it, and checks them on networks that the fit did not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from mcompress.calibration.device_file import device_text
from mcompress.calibration.latency_fit import Fit, Prior, Sample, fit
from mcompress.errors import DeviceError, ExportError, UsageError
from mcompress.export.backend import captured
from mcompress.export.profile import Programs, Rules
from mcompress.export.suite.cases import cases
from mcompress.export.suite.networks import NETWORKS, export_network
from mcompress.export.suite.running import Measured, Plan, Quality, Setting, measure_rounds, measure_suite
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.targets.columns import class_of
from mcompress.targets.connect import Connection, DeviceFacts, Pinned, connect, ended_gently, pinned
from mcompress.targets.device import HOST, Device, MemoryLimit, Unit
from mcompress.targets.device_files import shipped_device
from mcompress.targets.identity import contradiction
from mcompress.targets.latency import estimate
from mcompress.targets.names import unknown_name
from mcompress.targets.speeds import CLASSES, KINDS, Boundary, PrecisionName, Record, Source, SpeedClass
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
LEAST_SIZES = 4
"""A class of operators counts as fitted with files of so many different sizes."""
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
    threads: int | None = None
    """None: one for a fit, those of the fit for a validation."""
    cpus: tuple[int, ...] | None = None
    """None: the fastest where they are not all alike, those of the fit for a validation."""
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
    whole: int
    """Files of the whole suite."""
    seconds: float

    @property
    def partial(self) -> str | None:
        """What to say of a fit to less than the whole suite; None for the whole."""
        few = {number: len(found.samples) for number, found in self.measured.items() if len(found.samples) < self.whole}
        return f"not a full suite: {' and '.join(f'{count} of {self.whole} files in {number}' for number, count in few.items())}" if few else None


@dataclass(frozen=True)
class Validated:
    """A device with its checks."""

    device: Device
    failed: dict[str, str]
    """What could not be measured, with the reason."""
    qualities: dict[Number, Quality]


@dataclass(frozen=True)
class _How:
    """How files are measured on one device."""

    threads: int
    on: Pinned

    @classmethod
    def of(cls, connection: Connection, facts: DeviceFacts, threads: int, cpus: tuple[int, ...] | None) -> _How:
        return cls(threads, pinned(facts, connection.name, threads, cpus))

    def setting(self, facts: DeviceFacts, number: Number) -> Setting:
        return Setting(device=f"{facts.model}, {facts.os}, {facts.machine}", number=number, threads=self.threads, cpus=self.on.cpus)

    def source(self, text: str, facts: DeviceFacts, runtime: str, qualities: Mapping[Number, Quality], fitted_to: tuple[str, ...] = ()) -> Source:
        day = max((quality.days[1] for quality in qualities.values()), default=_today())
        return Source(
            text=text, date=day, runtime=runtime, machine=facts.processor, threads=self.threads, cpus=self.on.cpus or (), fitted_to=fitted_to
        )

    def __str__(self) -> str:
        because = f" ({self.on.because})" if self.on.because else ""
        return f"{_threads(self.threads, self.on.cpus or ())}{because}"


def fit_on(wanted: Wanted, told: Told) -> Fitted:
    """Measure the suite on the device and fit the unit to it; facts that are known of the device stay, and speeds of precisions not measured too.

    Raises `DeviceError` for a device that cannot be reached or is lost, `MissingBackendError` for one that has no runtime (what was measured is kept
    in the folder), `UsageError` for a share or a time that leaves nothing to measure, and for a machine that is not the device.
    """
    if not 0 < wanted.share <= 1:
        raise UsageError(f"the share of the suite is {wanted.share:g}; it must be above 0 and at most 1")
    _check_asked(wanted)
    started, suite, whole = time.monotonic(), cases(wanted.share), len(cases())
    numbers = _numbers(None if wanted.known is None else wanted.known.units.get(wanted.unit))
    if not numbers:
        raise UsageError(f"{wanted.name} {wanted.unit} computes neither fp32 nor int8 files as such; the suite has no others: use --published")
    measured: dict[Number, Measured] = {}
    with ended_gently(), connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        _check_machine(wanted, wanted.known, facts, fitting=True)
        how = _How.of(connection, facts, wanted.threads or 1, wanted.cpus)
        for index, number in enumerate(numbers):
            left = (wanted.seconds - (time.monotonic() - started)) / (len(numbers) - index)
            folder = wanted.folder / "suite"
            progress = partial(told, f"suite {number}")
            setting = how.setting(facts, number)
            measured[number] = measure_suite(connection, suite, setting, folder, seconds=left, progress=progress, programs=wanted.programs)
    fits = {number: _decided(fit(found.samples, PRIORS[number]), found.samples) for number, found in measured.items()}
    return Fitted(_device(wanted, facts, how, measured, fits, whole), measured, fits, whole, time.monotonic() - started)


def validate_on(device: Device, wanted: Wanted, told: Told, networks: Sequence[str] = NETWORKS) -> Validated:
    """Measure networks that no fit has seen, with as many threads as the fit, and put the errors of their estimates into the device.

    Raises `DeviceError` and `MissingBackendError` as `fit_on` does, `UsageError` for an unknown network, and for threads or processors that are not
    those of the fit. What converters say goes to `log.txt` in the folder.
    """
    _check_asked(wanted)
    unknown = [name for name in networks if name not in NETWORKS]
    if unknown:
        raise UsageError(unknown_name("network", unknown[0], NETWORKS))
    failed: dict[str, str] = {}
    checks: dict[PrecisionName, list[Check]] = {}
    qualities: dict[Number, Quality] = {}
    unit, runtime = device.unit(wanted.unit), "none"
    threads, cpus = _as_fitted(device, unit, wanted)
    with ended_gently(), connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        _check_machine(wanted, device, facts, fitting=False)
        how = _How.of(connection, facts, threads, cpus)
        for number in NUMBERS:
            if number not in unit.runs:
                continue
            paths = {}
            for name in networks:
                try:
                    with captured(wanted.folder / "log.txt"):
                        paths[name] = export_network(name, number, wanted.folder / "networks")
                except ExportError as problem:
                    failed[f"{name} {number}"] = str(problem)
            plan = Plan(tuple(paths), paths.__getitem__, how.setting(facts, number), WHOLE_NETWORK_RULES, batch=1, programs=wanted.programs)
            found = measure_rounds(connection, plan, wanted.folder / f"networks_{number}.jsonl", partial(told, f"networks {number}"))
            qualities[number] = found.quality
            failed |= {f"{name} {number}": reason for name, reason in found.failed.items()}
            for name, measured_ms in found.best.items():
                read = table_of_file(paths[name])
                estimated = estimate(read.table, device, unit.name, read.precisions).value
                checks.setdefault(number, []).append(Check(network=name, measured_ms=measured_ms, estimated_ms=estimated))
                runtime = found.runtime
    if not checks:
        throttled = "all of them were throttled" if any(quality.left_out for quality in qualities.values()) else "there was none"
        raise DeviceError(f"{connection.name}: no network could be measured; the first reason: {next(iter(failed.values()), throttled)}")
    kept = {precision: found for precision, found in unit.validation.items() if precision not in checks}
    key = _free("networks", device, {record.source for _, record in unit.records()} | {found.source for found in kept.values()}, unit.name)
    text = f"networks with random weights, measured on {facts.model} by mcompress device validate, {how}; {_qualities(qualities)}"
    source = how.source(text, facts, runtime, qualities)
    found_now = {number: Validation(how="networks that the fit did not see", source=key, checks=tuple(some)) for number, some in checks.items()}
    checked = unit.model_copy(update={"validation": {**kept, **found_now}})
    return Validated(device.with_unit(checked, {key: source}), failed, qualities)


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
        raise DeviceError(f"{str(problem).rstrip('.')}. {count} measurements are kept in {folder}; the same command goes on from there") from problem


def _numbers(unit: Unit | None) -> tuple[Number, ...]:
    """What can be measured and said of a unit: precisions of files that it takes and computes in as LiteRT does."""
    return NUMBERS if unit is None else tuple(number for number in NUMBERS if unit.computes_in.get(number) == number)


def _decided(found: Fit, samples: Sequence[Sample]) -> Fit:
    """A class counts as fitted only with files of `LEAST_SIZES` different sizes; with fewer, rate, ramps and memory cannot be told apart."""
    sizes: dict[SpeedClass, set[tuple[int, ...]]] = {}
    for sample in samples:
        size = tuple(number for row in sample.table.operators for number in (row.macs, row.elements_read, row.elements_written))
        for row in sample.table.operators:
            sizes.setdefault(class_of(row), set()).add(size)
    return replace(found, determined=frozenset(name for name in found.determined if len(sizes.get(name, ())) >= LEAST_SIZES))


def _device(wanted: Wanted, facts: DeviceFacts, how: _How, measured: dict[Number, Measured], fits: dict[Number, Fit], whole: int) -> Device:
    runtime = next(iter(measured.values())).runtime
    qualities = {number: found.quality for number, found in measured.items()}
    counts = " and ".join(f"{len(found.samples)} of {whole} files in {number}" for number, found in measured.items())
    few = f"; a class counts as fitted with files of {LEAST_SIZES} different sizes"
    text = f"fit of the microbenchmark suite, {counts}, {how}{few}; {_qualities(qualities)}"
    assumed_text = (
        f"fewer than {LEAST_SIZES} files of different sizes have this class of operators, or their times do not depend on it; relative to the "
        "others as the prior of the fit has it"
    )
    known = wanted.known
    unit = known.units.get(wanted.unit) if known is not None else None
    left: set[str] = set()  # sources of what stays as it is
    if known is not None:
        left = {known.memory.source} | {record.source for place, record in _records(known) if not _measured_anew(place, wanted.unit, fits)}
        left |= {found.source for one in known.units.values() for file, found in one.validation.items() if not _stale(one, file, wanted.unit, fits)}
    suite, assumed = _free(SUITE, known, left, wanted.unit), _free("assumed", known, left, wanted.unit)
    sources = {
        suite: how.source(text, facts, runtime, qualities, ("suite",)),
        assumed: Source(text=assumed_text, date=_today(), runtime=runtime),
    }
    speeds = {number: found.speeds(fitted=suite, assumed=assumed) for number, found in fits.items()}
    if known is not None and unit is not None:
        kept = {file: found for file, found in unit.validation.items() if not _stale(unit, file, wanted.unit, fits)}
        # What convolutions fuse is a property of the runtime that the new speeds belong to.
        unit = unit.model_copy(update={"speeds": {**unit.speeds, **speeds}, "validation": kept, "fuses": "litert"})
    else:
        unit = Unit(
            name=wanted.unit,
            title=f"{facts.model}, {_threads(how.threads, how.on.cpus or ())}",
            runs=dict.fromkeys(("int8", "fp16", "fp32"), KINDS),
            # LiteRT widens the weights of fp16 files and computes in fp32.
            computes_in={"int8": "int8", "fp16": "fp32", "fp32": "fp32"},
            boundary=Boundary(hop_us=0.0, source=assumed) if known is None else known.unit().boundary,
            fuses="litert",
            speeds=dict(speeds.items()),
        )
    if known is not None:
        return (known.model_copy(update={"os": _system(facts)}) if known.name == HOST else known).with_unit(unit, sources)
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


def _records(device: Device) -> Iterator[tuple[str, Record]]:
    for name, unit in device.units.items():
        yield from ((f"{name}.{place}", record) for place, record in unit.records())


def _measured_anew(place: str, unit: str, fits: Mapping[Number, Fit]) -> bool:
    return any(place.startswith(f"{unit}.speeds.{number}.") for number in fits)


def _stale(unit: Unit, file: PrecisionName, fitted: str, fits: Mapping[Number, Fit]) -> bool:
    """Whether a validation is of speeds that are measured anew."""
    return unit.name == fitted and unit.computes_in.get(file) in fits


def _free(key: str, known: Device | None, left: Set[str], unit: str) -> str:
    """A key for a new source: never that of a source which something that stays cites."""
    if known is None or key not in left:
        return key
    return next(name for name in (f"{key}-{unit}", *(f"{key}-{unit}-{number}" for number in range(2, 100))) if name not in left)


def _qualities(found: Mapping[Number, Quality]) -> str:
    return "; ".join(f"{number}: {quality}" for number, quality in found.items())


def _as_fitted(device: Device, unit: Unit, wanted: Wanted) -> tuple[int, tuple[int, ...] | None]:
    """Threads and processors of the fit; estimates with others would be compared with what they are not about. Raises `UsageError`."""
    cited = (device.sources[record.source] for place, record in unit.records() if place.startswith("speeds."))
    fitted = next(((source.threads, source.cpus) for source in cited if source.threads is not None), None)
    if fitted is None or fitted[0] is None:
        return wanted.threads or 1, wanted.cpus
    threads, cpus = fitted
    if wanted.threads not in (None, threads) or (wanted.cpus is not None and set(wanted.cpus) != set(cpus)):
        asked = _threads(wanted.threads or threads, cpus if wanted.cpus is None else wanted.cpus)
        raise UsageError(
            f"{device.name} was fitted with {_threads(threads, cpus)}, and would be measured with {asked}: leave --threads and --cpus out, or fit it "
            "as it is to be measured, with mcompress device fit"
        )
    return threads, cpus or None


def _check_asked(wanted: Wanted) -> None:
    if wanted.unit != "cpu":
        raise UsageError(f"--unit is {wanted.unit}; files are measured on the cpu only. Leave --unit out")
    if wanted.name == HOST and wanted.on != "host":
        raise UsageError(
            f"{HOST} is the machine on which mcompress runs, and --on is {wanted.on}; measure with --on host, or give that machine a name of its "
            f"own, for example: mcompress device fit my_machine --on {wanted.on}"
        )


def _check_machine(wanted: Wanted, device: Device | None, facts: DeviceFacts, *, fitting: bool) -> None:
    """What one machine measures is never said of another, whatever it is reached through."""
    device = device or shipped_device(wanted.name)  # a new file may have the name of a device that ships
    if device is None or (fitting and device.name == HOST):
        return
    system = _system(facts)
    fitted_on = device.measured_on(device.units[wanted.unit]) if wanted.unit in device.units else ()
    own = f"mcompress device fit {HOST if device.name == HOST and wanted.on == 'host' else 'my_machine'} --on {wanted.on}"
    if fitted_on and facts.processor not in fitted_on:
        raise UsageError(
            f"{device.name} was measured on {', '.join(fitted_on)}, and {wanted.on} is {facts.processor}: measure on that machine, or fit this one "
            f"with: {own}"
        )
    why = None if fitted_on and shipped_device(device.name) is None else contradiction(device, facts)
    if device.os != system or why:
        raise UsageError(
            f"{device.name} is {device.title} ({device.os}), and {wanted.on} is {facts.model} ({system})"
            f"{f'; {why}' if why else ''}: measure on {device.name} itself, or give the machine a name of its own, for example: {own}"
        )


def _system(facts: DeviceFacts) -> Literal["android", "linux", "macos"]:
    lower = facts.os.lower()
    return "android" if "android" in lower else "macos" if "mac" in lower else "linux"


def _threads(threads: int, cpus: Sequence[int]) -> str:
    pinned_to = f" on processors {', '.join(map(str, cpus))}" if cpus else ""
    return f"{threads} thread{'s' if threads > 1 else ''}{pinned_to}"


def _today() -> str:
    return datetime.now(tz=UTC).date().isoformat()
