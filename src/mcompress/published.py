"""Latencies that others measured and published: read from a table, and a unit's constants fitted to them.

A table is a CSV file with a header. `model` (or `network`) and `latency_ms` are needed; a row's `component`, `device`, `unit`, `precision`, `runtime`
and `release` choose which rows count, and `layers` with `npu`, `gpu` and `cpu` leave out rows that were not run by one unit alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import get_args

from mcompress.calibration.latency_fit import Prior, Sample, fit, leave_families_out
from mcompress.compress.models import MODELS
from mcompress.compress.networks import NETWORKS, family_of, network_table, published_as
from mcompress.environment import today
from mcompress.errors import UsageError
from mcompress.export.tables import is_file
from mcompress.opening import open_model
from mcompress.targets.device import Device, Unit
from mcompress.targets.names import unknown_name
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import CLASSES, MULTIPLYING, STANDS_FOR, PrecisionName, Source, SpeedClass, Speeds
from mcompress.targets.validation import Validation

NEUTRAL_SPREAD = 3.0
"""Of the levels of `neutral_prior`: an NPU is a hundred times as fast as where it starts."""
LEAST_ROWS = 5
"""Fewer networks than this do not determine a unit, and say nothing about its error."""
COLUMNS = (
    "model", "network", "component", "latency_ms", "device", "unit", "precision", "runtime", "release", "layers", "npu", "gpu", "cpu", "peak_mb",
)  # fmt: skip
UNITS = ("npu", "gpu", "cpu")
CHOOSING = ("model", "network", "component", "device", "unit", "precision", "runtime", "release")
"""Columns that `where` may name."""
WRITTEN_AS: dict[str, tuple[PrecisionName, ...]] = {
    "int8": ("int8",),
    "w8a8": ("int8",),
    "w8a16": ("w8a16",),
    "fp16": ("fp16",),
    "float16": ("fp16",),
    "fp32": ("fp32",),
    "float32": ("fp32",),
    "float": ("fp16", "fp32"),
}
"""What the column `precision` may hold -> precisions of files that it means; other words are read, and never chosen without `where`."""
ALIGNMENTS = (1, 4, 8, 16, 32, 64)
SHOWN = 5


@dataclass(frozen=True)
class Published:
    """One network with its published latency."""

    network: str
    table: OperatorTable
    latency_ms: float
    runtime: str
    release: str

    @property
    def sample(self) -> Sample:
        """For a fit."""
        return Sample(self.network, self.table, self.latency_ms, family=family_of(self.network))


@dataclass(frozen=True)
class PublishedRows:
    """What a table says about one unit and precision, one row per network, and what was left out of it."""

    rows: tuple[Published, ...]
    file: str
    chosen: str
    """How the rows were chosen, for a source: `device RB5 (Proxy), unit gpu, int8`."""
    unknown: tuple[str, ...] = ()
    """Models that no network, zoo name or file stands for."""
    shared: tuple[str, ...] = ()
    """Models some of whose layers ran on other units."""

    def __iter__(self) -> Iterator[Published]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def left_out(self) -> str:
        """`2 models are not known: a, b; 1 left layers to other units: c`, or nothing."""
        parts = ((self.unknown, "not known"), (self.shared, "left out because other units ran some of their layers"))
        return "; ".join(f"{len(names)} model{'s' if len(names) > 1 else ''} {what}: {_listed(names)}" for names, what in parts if names)

    @property
    def runtime(self) -> str:
        """The runtimes, with their releases where the table has them."""
        found = dict.fromkeys(" ".join(filter(None, (row.runtime, row.release))) for row in self.rows)
        return ", ".join(filter(None, found)) or "not stated"


def read_published(
    path: Path, *, where: Mapping[str, str], unit: str, precision: str, releases: Sequence[str] = (), least: int = LEAST_ROWS
) -> PublishedRows:
    """The rows of a CSV file that are about `unit` and files of `precision` (`int8`, `w8a16`, `fp16` or `fp32`), and match `where` (column -> value).

    A network is a name in `mcompress.compress.networks.NETWORKS` (`model`, or `model/component`), a network of the zoo (at its default input) or the
    path of an .onnx or .tflite file beside the table; others are left out and named. Of several releases the first of `releases` counts, or the
    newest. Raises `UsageError` for a file that cannot be read, unknown or missing columns, latencies that are no positive numbers, networks with
    different figures under the same conditions, and fewer than `least` networks.
    """
    lines, columns = _read(path)
    _check_where(path, where, columns)
    if precision not in get_args(PrecisionName):
        raise UsageError(unknown_name("precision", precision, get_args(PrecisionName)))
    conditions = {**({"unit": unit} if "unit" in columns else {}), **where}
    found: dict[str, Published] = {}
    unknown: dict[str, None] = {}
    shared: dict[str, None] = {}
    for number, line in lines:
        if any(line.get(column, "").strip().lower() != value.strip().lower() for column, value in conditions.items()):
            continue
        if "precision" in columns and "precision" not in where and precision not in WRITTEN_AS.get(line["precision"].strip().lower(), ()):
            continue
        release = line.get("release", "").strip()
        if releases and "release" in columns and release not in releases:
            continue
        model, component = (line.get("model") or line.get("network") or "").strip(), line.get("component", "").strip()
        if not model:
            raise UsageError(f"{path}:{number}: the row names no model; give a network, a zoo name or a file in column 'model'")
        latency_ms = _latency(path, number, line.get("latency_ms", ""))
        known = _name_of(model, component, path.parent)
        if known is None:
            unknown[f"{model}/{component}" if component and component != model else model] = None
        elif not _alone(line, unit):
            shared[known] = None
        else:
            row = Published(known, _table(known, path.parent), latency_ms, line.get("runtime", "").strip(), release)
            found[known] = _newer(found.get(known), row, releases, path, number)
    chosen = ", ".join([*(f"{column} {value}" for column, value in conditions.items()), *(() if "precision" in where else (precision,))])
    result = PublishedRows(
        tuple(found[name] for name in sorted(found)), path.name, chosen, tuple(unknown), tuple(n for n in shared if n not in found)
    )
    if len(found) < least:
        reason = f"; {result.left_out}" if result.left_out else ""
        raise UsageError(f"{path} has {len(found)} known networks with {chosen}; at least {least} are needed to fit a unit{reason}")
    return result


def fit_published(
    device: Device, rows: PublishedRows, unit: str, precision: str, prior: Prior | None = None, *, text: str = ""
) -> tuple[Device, Validation]:
    """The device with the speeds of `unit`, in the precision that it computes files of `precision` in, fitted to `rows`; and how far they are off.

    Without a `prior` the device's own constants are where the fit starts, and what it keeps where the rows do not decide; but a neutral prior
    (`neutral_prior`) where any of these networks decided the unit's constants before: a start that has seen what is left out would make the error
    look smaller than it is. `text` is the source's.
    Checks of other files that the unit computes with the same constants are dropped, because these have changed. Raises `UsageError` for a unit that
    does not run files of this precision, or fewer than `LEAST_ROWS` rows.
    """
    chosen = device.unit(unit)
    if len(rows) < LEAST_ROWS:
        raise UsageError(f"{len(rows)} networks cannot determine a unit; give at least {LEAST_ROWS}")
    file: PrecisionName | None = next((name for name in chosen.computes_in if name == precision), None)
    if file is None:
        raise UsageError(f"{device.name} {unit} does not run {precision} files; it runs {', '.join(chosen.computes_in)}")
    computed = chosen.computes_in[file]
    samples = [row.sample for row in rows]
    seen = sorted(_decided_by(device, chosen) & {sample.name for sample in samples})
    if prior is not None:
        start, where = prior, "a given prior"
    elif seen:
        start, where = neutral_prior(computed), f"a neutral prior, because {len(seen)} of these networks had decided the constants before"
    else:
        start, where = prior_of(chosen.speeds[computed], computed), "the constants before, which no source says these networks to have decided"
    found = fit(samples, replace(start, fuses=chosen.fuses))
    # Alignments are not chosen anew without each family: that would take minutes.
    held = leave_families_out(samples, partial(fit, prior=found.narrowed))
    chose = ", alignments chosen with these networks in view" if len(start.outputs) * len(start.inputs) * len(start.pads_memory) > 1 else ""
    apart = f" ({len(rows.shared)} that other units shared left out)" if rows.shared else ""
    key, kept = f"{chosen.name}-{file}", f"{chosen.name}-{file}-kept"
    left = f"; {rows.left_out}" if rows.left_out else ""
    whole = text or f"fit to published latencies of {len(rows)} networks, {rows.file}, {rows.chosen}{left}"
    sources = {
        key: Source(text=whole, date=today(), runtime=rows.runtime, fitted_to=tuple(row.network for row in rows)),
        kept: Source(text=f"no network of {rows.file} decides it: relative to the others as in {where}", date=today(), runtime="none"),
    }
    validation = Validation(how=f"{held.how}, starting at {where}{chose}{apart}", source=key, checks=held.checks)
    checks = {name: checked for name, checked in chosen.validation.items() if chosen.computes_in[name] != computed} | {file: validation}
    fitted = chosen.model_copy(update={"speeds": {**chosen.speeds, computed: found.speeds(fitted=key, assumed=kept)}, "validation": checks})
    return device.with_unit(fitted, sources), validation


def neutral_prior(computed: PrecisionName) -> Prior:
    """A start that has seen no network: a small unit's levels, free to move by orders of magnitude, and the relations that `Prior` assumes of any."""
    return Prior(computed, gmacs=200.0, gbs=10.0, dispatch_us=10.0, invoke_us=300.0, level_spread=NEUTRAL_SPREAD)


def _decided_by(device: Device, unit: Unit) -> frozenset[str]:
    """Networks that any of the unit's constants were fitted to, in any precision."""
    return frozenset(name for _, record in unit.records() for name in device.sources[record.source].fitted_to)


def prior_of(speeds: Speeds, computed: PrecisionName, rate_spread: float = 0.5) -> Prior:
    """Known constants as the prior of a fit: whole networks move them as a whole first, and relative to one another by about `rate_spread`."""
    convolution = speeds.speed("convolution")
    level = convolution.gmacs if convolution is not None and convolution.gmacs else 100.0
    classes = tuple(name for name in CLASSES if name not in STANDS_FOR or name in speeds.operators)
    rates: dict[SpeedClass, float] = {}
    slowdowns: dict[SpeedClass, float] = {}
    for name in classes:
        row = speeds.speed(name)
        if row is not None and name in MULTIPLYING and row.gmacs:
            rates[name] = row.gmacs / level
        elif row is not None and name not in MULTIPLYING:
            slowdowns[name] = row.slowdown
    return Prior(
        computed=computed,
        gmacs=level,
        gbs=speeds.memory.gbs,
        dispatch_us=max(speeds.overhead.dispatch_us, 0.1),
        invoke_us=max(speeds.overhead.invoke_us, 1.0),
        outputs=tuple(sorted({*ALIGNMENTS, speeds.alignment.outputs})),
        inputs=tuple(sorted({1, speeds.alignment.inputs})),
        pads_memory=tuple(sorted({False, speeds.alignment.pads_memory})),
        classes=classes,
        rate_spread=rate_spread,
        rates=rates,
        slowdowns=slowdowns,
    )


def _read(path: Path) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = tuple(name.strip().lower() for name in reader.fieldnames or ())
            reader.fieldnames = list(columns)
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a CSV file in UTF-8: {getattr(error, 'strerror', None) or error}") from error
    strange = [name for name in columns if name not in COLUMNS]
    if strange:
        raise UsageError(f"{path}:1: " + unknown_name("column", strange[0], COLUMNS))
    for needed in (("model", "network"), ("latency_ms",)):
        if not set(needed) & set(columns):
            raise UsageError(f"{path}:1: there is no column '{needed[0]}'; the columns are {', '.join(columns) or 'none'}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"{path}:1: a column is there twice: {', '.join(columns)}")
    long = next((number for number, line in lines if "" in line), None)
    if long is not None:
        raise UsageError(f"{path}:{long}: the row has more values than the {len(columns)} columns of the header")
    return lines, columns


def _check_where(path: Path, where: Mapping[str, str], columns: tuple[str, ...]) -> None:
    for column in where:
        if column not in CHOOSING or column not in columns:
            raise UsageError(unknown_name("column", column, tuple(name for name in CHOOSING if name in columns), f"in {path} to choose rows by"))


def _latency(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{path}:{number}: latency_ms is '{text}'; it must be a number of milliseconds above 0")
    return value


def _alone(line: Mapping[str, str], unit: str) -> bool:
    """Whether the unit ran all layers, as far as the row says."""
    layers, own = line.get("layers", "").strip(), line.get(unit.lower(), "").strip()
    return not layers or not any(line.get(name, "").strip() for name in UNITS) or own == layers


def _newer(before: Published | None, row: Published, releases: Sequence[str], path: Path, number: int) -> Published:
    if before is None:
        return row
    if row.release != before.release:
        if releases:
            return min(before, row, key=lambda one: releases.index(one.release))
        return max(before, row, key=lambda one: _version(one.release))
    if row.latency_ms != before.latency_ms:
        raise UsageError(
            f"{path}:{number}: {row.network} is there twice, with {before.latency_ms:g} and {row.latency_ms:g} ms; choose with --where "
            f"COLUMN=VALUE (columns are {', '.join(CHOOSING)})"
        )
    return before


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in text).split())


def _name_of(model: str, component: str, folder: Path) -> str | None:
    named = published_as(model, component)
    if named is None and (model in MODELS or (is_file(model) and (folder / model).is_file())):
        return model
    return named


@cache
def _table(name: str, folder: Path) -> OperatorTable:
    if name in NETWORKS:
        return network_table(name)
    return open_model(str(folder / name) if is_file(name) else name, None, "{}").table


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
