"""The bodies of `mcompress device fit` and `mcompress device validate`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.console import Step, Terminal
from mcompress.errors import UsageError
from mcompress.targets.connect import parse_cpus
from mcompress.targets.device import Device, Unit
from mcompress.targets.device_files import DEVICE_SUFFIXES, list_devices, load_device, shipped_device
from mcompress.targets.latency import estimate
from mcompress.targets.names import near
from mcompress.targets.speeds import LONGEST_NAME, NAME_PATTERN
from mcompress.targets.validation import LEAST_FOR_SHARES, Check

if TYPE_CHECKING:
    from mcompress.fitting import Fitted
    from mcompress.measuring import Wanted


MOST_NAMED = 4


@dataclass(frozen=True)
class Subject:
    """The device that a command is about, and the file that its result goes to."""

    name: str
    device: Device | None
    """None for one that is not known yet."""
    out: Path


@dataclass(frozen=True)
class Measuring:
    """How a suite or networks are measured; the options that `device fit` and `device validate` share."""

    on: str
    unit: str
    threads: int | None
    cpus: str | None
    keep: Path
    benchmark_binary: Path | None


def subject(name: str, out: Path | None) -> Subject:
    """`name` is a device that ships (or its alias), a file, or a new name; `out` is what `--out` names.

    The files of the package are never written, unless `out` names one: the result for a device that ships, and for a new one, is `NAME.yaml` in the
    working directory, and that of a file is the file. Raises `UsageError` for a name that no device can have, and for a file that would be
    overwritten without having been named, or cannot be written.
    """
    named = Path(name) if name.endswith(DEVICE_SUFFIXES) else None
    known = shipped_device(name) if named is None else load_device(name) if named.exists() else None
    device = known.name if known is not None else name.strip() if named is None else named.stem
    if len(device) > LONGEST_NAME or not re.fullmatch(NAME_PATTERN, device):
        allowed = f"small letters, digits, '_', '.' and '-', starting with a letter or digit, at most {LONGEST_NAME}"
        raise UsageError(f"a device cannot be called {device!r}; names are {allowed}. Give such a name, or a file that ends in .yaml")
    path = out or named or Path(f"{device}.yaml")
    if path.suffix not in DEVICE_SUFFIXES:
        raise UsageError(f"--out is {path}; a device file ends in {' or '.join(DEVICE_SUFFIXES)}")
    if out is None and named is None and path.exists():
        raise UsageError(
            f"{path} exists already: name that file instead of {name} to go on from what it holds, or give --out FILE to write elsewhere or over it"
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written, because {path if path.is_dir() else folder} is no folder for it; give another --out FILE")
    return Subject(device, known, path)


def fit_measured(name: str, how: Measuring, *, minutes: float, share: float, out: Path | None) -> str:
    """Measure the suite, fit, write the device file; what to tell the user."""
    from mcompress.fitting import fit_on, write_device

    about = subject(name, out)
    wanted = replace(_wanted(about, how), seconds=minutes * 60, share=share)
    with Terminal() as reporter:
        if about.device is None:
            reporter.note(f"{about.name} is a new device{near(about.name, list_devices())}")
        found = fit_on(wanted, _told(reporter))
    if out is None and about.out.exists():
        _check_not_lost(found, about.out, how)
    write_device(found.device, about.out)
    lines = [f"{about.out}: {found.device.title}, unit {how.unit}, fitted in {found.seconds:.0f} s"]
    for number, measured in found.measured.items():
        missing = f"; {len(measured.failed)} could not be measured, the first: {next(iter(measured.failed.items()))}" if measured.failed else ""
        short = "" if measured.complete else "; the time ran out before the rest (--minutes)"
        lines.append(f"  {number}: {len(measured.samples)} files of the suite, {measured.runtime}; {measured.quality}{missing}{short}")
        lines += [f"  {number}: {note}" for note in measured.quality.notes]
    lines += [f"  warning: {why}; its speeds stay as they were" for why in found.left.values()]
    for number, fit in found.fits.items():
        if fit.kept is not None:
            every = len(fit.kept.operators)
            decided = f"{len(fit.decided)} of {every} classes of operators in {number} ({', '.join(fit.decided)})"
            lines.append(f"  warning: the files decide the speed of {decided}; all else there stays as it was fitted before")
        if fit.lost:
            lines.append(f"  warning: these classes of operators in {number} were fitted, and are assumed now: {_counted(fit.lost)}")
    if found.unchecked:
        lines.append(f"  warning: the validation of {' and '.join(found.unchecked)} files was of the speeds before, and is not in the file any more")
    if found.partial:
        lines.append(f"  warning: {found.partial}; {_assumed(found.device, how.unit)}")
    next_step = f"next: mcompress device validate {about.out} --on {how.on}, so that estimates carry their error"
    return "\n".join([*lines, *_use(about), next_step])


def _check_not_lost(found: Fitted, path: Path, how: Measuring) -> None:
    """Raise `UsageError` where a file would lose fitted speeds to assumed ones without having been named as what is written."""
    lost = [f"{_counted(fit.lost)} in {number}" for number, fit in found.fits.items() if fit.lost]
    if lost:
        raise UsageError(
            f"{path} has fitted speeds of {' and '.join(lost)}, which this fit would only assume, and which cannot stay beside it: they are of "
            f"another machine, of publications, or with other threads or processors. Nothing was written; what was measured is kept in {how.keep}. "
            f"Give more --minutes (and no --share), or --out FILE to write this fit elsewhere (--out {path} over it)"
        )


def _counted(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join([*names[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


def _assumed(device: Device, unit: str) -> str:
    """How many of the speeds are not fitted."""
    said = []
    for precision, speeds in device.unit(unit).speeds.items():
        fitted = [bool(device.sources[speed.source].fitted_to) for speed in speeds.operators.values()]
        said.append(f"{fitted.count(False)} of {len(fitted)} classes of operators in {precision} are assumed")
    return ", ".join(said)


def fit_to_published(name: str, table: Path, where: Sequence[str], *, unit: str, precision: str, out: Path | None) -> str:
    """Fit a unit to published latencies, write the device file; what to tell the user."""
    from mcompress.fitting import write_device
    from mcompress.published import fit_published, read_published

    device, about = load_device(name), subject(name, out)
    conditions = dict(condition_of(text) for text in where)
    rows = read_published(table, where=conditions, unit=unit, precision=precision)
    fitted, validation = fit_published(device, rows, unit, precision)
    write_device(fitted, about.out)
    left = [f"left out: {rows.left_out}"] if rows.left_out else []
    return "\n".join([f"{about.out}: unit {unit}, {precision} files: {validation.band}", *left, *_use(about)])


def validate_measured(name: str, how: Measuring, networks: str | None, *, out: Path | None) -> str:
    """Measure networks, write the device file with their checks; the file's name."""
    from mcompress.export.suite.networks import NETWORKS
    from mcompress.fitting import validate_on, write_device

    device, about = load_device(name), subject(name, out)
    chosen = tuple(part.strip() for part in networks.split(",")) if networks else NETWORKS
    with Terminal() as reporter:
        found = validate_on(device, _wanted(about, how), _told(reporter), chosen)
        for what, reason in found.failed.items():
            reporter.note(f"{what} could not be measured: {reason}")
        for number, quality in found.qualities.items():
            reporter.note("\n".join(f"{number}: {text}" for text in (str(quality), *quality.notes)))
        write_device(found.device, about.out)
        reporter.note("\n".join([f"{about.out}: written", *_use(about)]))
    return str(about.out)


def reproduced(device: Device, unit: Unit, file: str) -> tuple[Check, ...]:
    """The networks that decided the constants, estimated with these constants, slowest first, where they are too few to say how far others are off.

    `file` is a precision of file that the unit has been validated for. Empty for `LEAST_FOR_SHARES` networks and more, and for a measured suite. What
    decided from another device is not published for this one, and is left out. Takes seconds: the networks are built.
    """
    precision, checked = next((name, found) for name, found in unit.validation.items() if name == file)
    decided = device.sources[checked.source].fitted_to
    if not 0 < len(decided) < LEAST_FOR_SHARES:
        return ()
    from mcompress.compress.networks import NETWORKS, network_table

    published = [check for check in checked.checks if check.network in decided and check.network in NETWORKS]
    again = {c.network: estimate(network_table(c.network), device, unit.name, precision).value for c in published}
    slowest_first = sorted(published, key=lambda check: -check.measured_ms)
    return tuple(check.model_copy(update={"estimated_ms": again[check.network]}) for check in slowest_first)


def reproduced_lines(device: Device, unit: Unit, file: str) -> list[str]:
    """The same for people, and how many times as long as the last the first takes; nothing where `reproduced` is empty."""
    rows = reproduced(device, unit, file)
    if not rows:
        return []
    columns = [f"  {c.network:<36} {c.measured_ms:>10.3f} ms {c.estimated_ms:>10.3f} ms {c.error:>+8.1%}" for c in rows]
    if len(rows) > 1:
        published, estimated = rows[0].measured_ms / rows[-1].measured_ms, rows[0].estimated_ms / rows[-1].estimated_ms
        name = f"{rows[0].network} to {rows[-1].network}"
        columns.append(f"  {name:<36} {published:>10.2f} x  {estimated:>10.2f} x  {estimated / published - 1:>+8.1%}")
    runtime = next(device.sources[found.source].runtime for name, found in unit.validation.items() if name == file)
    return [f"  the same with these networks in the fit, which says nothing of others ({runtime}):", *columns]


def _wanted(about: Subject, how: Measuring) -> Wanted:
    from mcompress.export.profile_phone import Programs
    from mcompress.measuring import Wanted
    from mcompress.pipeline import check_out

    check_out(how.keep, "--keep")
    programs = Programs.asked(how.on, how.benchmark_binary)
    return Wanted(about.name, about.device, how.on, how.keep / f"device-{about.name}", how.unit, how.threads, parse_cpus(how.cpus), programs=programs)


def _use(about: Subject) -> list[str]:
    """How to use a file that stands for a device that ships."""
    if about.device is None or shipped_device(about.name) is None:
        return []
    return [f"use it as --device {about.out}, or device: {about.out} in a target; {about.name} by name is still the device that ships with mcompress"]


def belongs_to(given: Mapping[str, object], other: str, instead: str) -> None:
    """Raise `UsageError` naming the options that were given and do nothing here. `other` is what they belong to, `instead` what to do."""
    useless = [option for option, value in given.items() if value is not None]
    if useless:
        verb = "belongs" if len(useless) == 1 else "belong"
        raise UsageError(f"{', '.join(useless)} {verb} to {other}; {instead}")


def condition_of(text: str) -> tuple[str, str]:
    """`COLUMN=VALUE` as a pair. Raises `UsageError`."""
    column, found, value = text.partition("=")
    if not found or not column:
        raise UsageError(f"--where is {text!r}; give COLUMN=VALUE, for example --where 'device=RB5 (Proxy)'")
    return column, value


def _told(reporter: Terminal) -> Callable[[str, int, int], None]:
    """A progress line per title."""
    steps: dict[str, Step] = {}

    def told(title: str, done: int, total: int) -> None:
        if title not in steps:
            steps[title] = reporter.progress(title)
        steps[title](done, total, "")

    return told
