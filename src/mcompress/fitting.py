"""Fits a device's constants to what is measured on it, and checks them on networks that the fit did not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mcompress.calibration.device_file import device_text
from mcompress.calibration.latency_fit import Prior
from mcompress.errors import DeviceError, ExportError, UsageError
from mcompress.export.backend import captured
from mcompress.export.profile import Rules
from mcompress.export.suite.cases import cases
from mcompress.export.suite.networks import NETWORKS, export_network
from mcompress.export.suite.running import Measured, Plan, Quality, measure_rounds, measure_suite
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.fitted_device import fitted_device, free_key
from mcompress.measuring import How, Wanted, as_fitted, check_asked, check_machine, qualities_text
from mcompress.refitting import Before, Refit, refit
from mcompress.targets.connect import connect, ended_gently
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import estimate
from mcompress.targets.names import unknown_name
from mcompress.targets.speeds import CLASSES, PrecisionName
from mcompress.targets.validation import Check, Validation

NUMBERS: tuple[Number, ...] = ("fp32", "int8")
PRIORS: dict[Number, Prior] = {
    "fp32": Prior("fp32", 50.0, 30.0, 0.5, 2.0, (4, 8, 16, 32), (1, 4), (False,), CLASSES, True, 8.0, 10.0, 1.5),
    "int8": Prior("int8", 150.0, 30.0, 0.5, 2.0, (4, 8, 16, 32), (1, 4, 8), (False,), CLASSES, True, 8.0, 10.0, 1.5),
}
"""Where fits of a suite start: a present-day core, known only by its order of magnitude."""
WHOLE_NETWORK_RULES = Rules(min_queries=200, min_seconds=1.0, max_seconds=10.0, warm_up_s=0.3, cool_down_s=30.0)
Told = Callable[[str, int, int], None]
"""Told what is being measured, how much is done, of how much."""


@dataclass(frozen=True)
class Fitted:
    """A fitted device, and what went into it."""

    device: Device
    measured: dict[Number, Measured]
    fits: dict[Number, Refit]
    whole: int
    """Files of the whole suite."""
    seconds: float
    left: dict[Number, str]
    """What stays as the device has it, with the reason: nothing was measured, or nothing that decides more."""
    unchecked: tuple[PrecisionName, ...]
    """Precisions of files whose validation was of speeds that are others now, and is gone."""

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


def fit_on(wanted: Wanted, told: Told) -> Fitted:
    """Measure the suite on the device and fit the unit to it; facts that are known of the device stay, and speeds of precisions not measured too.

    Where the time is up before anything is measured in one precision, its speeds stay as well; and where it is up before all that was fitted of this
    machine and setting can be fitted again (`refit`), what is not decided anew stays. Raises `DeviceError` for a device that cannot be reached or is
    lost, where there are no speeds that may stay, and where all of them would, `MissingBackendError` for one that has no runtime (what was measured
    is kept in the folder), `UsageError` for a share that leaves nothing to measure, and for a machine that is not the device.
    """
    if not 0 < wanted.share <= 1:
        raise UsageError(f"the share of the suite is {wanted.share:g}; it must be above 0 and at most 1")
    check_asked(wanted)
    started, suite, whole = time.monotonic(), cases(wanted.share), len(cases())
    unit = None if wanted.known is None else wanted.known.units.get(wanted.unit)
    before = {} if wanted.known is None or unit is None else {name: Before(speeds, wanted.known.sources) for name, speeds in unit.speeds.items()}
    numbers = _numbers(unit)
    if not numbers:
        raise UsageError(f"{wanted.name} {wanted.unit} computes neither fp32 nor int8 files as such; the suite has no others: use --published")
    every: dict[Number, Measured] = {}
    with ended_gently(), connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        check_machine(wanted, wanted.known, facts, fitting=True)
        how = How.of(connection, facts, wanted.threads or 1, wanted.cpus)
        for index, number in enumerate(numbers):
            left = (wanted.seconds - (time.monotonic() - started)) / (len(numbers) - index)
            folder = wanted.folder / "suite"
            progress = partial(told, f"suite {number}")
            setting = how.setting(facts, number)
            every[number] = measure_suite(connection, suite, setting, folder, seconds=left, progress=progress, programs=wanted.programs)
        unmeasured = {number: found.nothing for number, found in every.items() if found.nothing is not None}
        lacking = {number: why for number, why in unmeasured.items() if len(unmeasured) == len(numbers) or not how.may_stay(wanted, facts, number)}
        if lacking:
            raise DeviceError(f"{connection.name}: {_nothing_for(wanted.name, lacking)}")
        stays = {number: f"nothing was measured in {number} ({why})" for number, why in unmeasured.items()}
        every_fit = {number: refit(found.samples, PRIORS[number], before.get(number), how, facts) for number, found in every.items() if found.samples}
        fits = {number: found for number, found in every_fit.items() if found.kept is None or found.fit.determined}
        for number in (number for number in every_fit if number not in fits):
            count = len(every[number].samples)
            stays[number] = f"{count} of {whole} files decide the speed of no class of operators in {number}: give more --minutes, and no --share"
        if not fits:
            raise DeviceError(f"{wanted.name} has a fuller fit than this one, and stays as it is; {'; '.join(stays.values())}")
    measured = {number: every[number] for number in fits}
    device = fitted_device(wanted, facts, how, measured, fits, whole)
    unchecked = () if unit is None else tuple(file for file in unit.validation if file not in device.units[wanted.unit].validation)
    return Fitted(device, measured, fits, whole, time.monotonic() - started, stays, unchecked)


def validate_on(device: Device, wanted: Wanted, told: Told, networks: Sequence[str] = NETWORKS) -> Validated:
    """Measure networks that no fit has seen, with as many threads as the fit, and put the errors of their estimates into the device.

    Raises `DeviceError` and `MissingBackendError` as `fit_on` does, `UsageError` for an unknown network, and for threads or processors that are not
    those of the fit. What converters say goes to `log.txt` in the folder.
    """
    check_asked(wanted)
    unknown = [name for name in networks if name not in NETWORKS]
    if unknown:
        raise UsageError(unknown_name("network", unknown[0], NETWORKS))
    failed: dict[str, str] = {}
    checks: dict[PrecisionName, list[Check]] = {}
    qualities: dict[Number, Quality] = {}
    unit, runtime = device.unit(wanted.unit), "none"
    threads, cpus = as_fitted(device, unit, wanted)
    with ended_gently(), connect(wanted.on) as connection, _kept(wanted.folder):
        facts = connection.facts()
        check_machine(wanted, device, facts, fitting=False)
        how = How.of(connection, facts, threads, cpus)
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
    key = free_key("networks", device, {record.source for _, record in unit.records()} | {found.source for found in kept.values()}, unit.name)
    text = f"networks with random weights, measured on {facts.model} by mcompress device validate, {how}; {qualities_text(qualities)}"
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
        count = sum(max(0, len(journal.read_bytes().splitlines()) - 1) for journal in journals)
        if not count:
            raise
        raise DeviceError(f"{str(problem).rstrip('.')}. {count} measurements are kept in {folder}; the same command goes on from there") from problem


def _numbers(unit: Unit | None) -> tuple[Number, ...]:
    """What can be measured and said of a unit: precisions of files that it takes and computes in as LiteRT does."""
    return NUMBERS if unit is None else tuple(number for number in NUMBERS if unit.computes_in.get(number) == number)


def _nothing_for(name: str, lacking: Mapping[Number, str]) -> str:
    """Why there is no device: precisions -> why nothing was measured in them."""
    reasons = " and ".join(f"in {number} ({why})" for number, why in lacking.items())
    return f"nothing was measured {reasons}, and {name} has no speeds of it that may stay: none at all, or of another machine, or with other threads"
