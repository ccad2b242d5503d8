"""From what was measured and fitted to the device that its file describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from mcompress.environment import today
from mcompress.export.suite.running import Measured
from mcompress.export.suite.writer import Number
from mcompress.measuring import How, Wanted, qualities_text, system_of
from mcompress.refitting import LEAST_SIZES, Refit
from mcompress.targets.connect import DeviceFacts, threads_text
from mcompress.targets.device import HOST, Device, MemoryLimit, Unit
from mcompress.targets.speeds import KINDS, Boundary, PrecisionName, Record, Source

LEAST_MEMORY_MB = 1024.0
"""Taken for a device that does not say how much memory it has."""
SUITE = "suite"
"""Key of the source of fitted constants."""


def fitted_device(wanted: Wanted, facts: DeviceFacts, how: How, measured: dict[Number, Measured], fits: dict[Number, Refit], whole: int) -> Device:
    """The device that is known with the speeds that were measured now and everything else as it is, or a new one. `whole` is the suite's size."""
    runtime = next(iter(measured.values())).runtime
    qualities = {number: found.quality for number, found in measured.items()}
    counts = " and ".join(f"{len(found.samples)} of {whole} files in {number}" for number, found in measured.items())
    few = f"; a class counts as fitted with files of {LEAST_SIZES} different sizes"
    rest = "".join(f"; in {number} of {', '.join(found.decided)} only, next to the fit before it" for number, found in fits.items() if found.kept)
    text = f"fit of the microbenchmark suite, {counts}, {how}{few}; {qualities_text(qualities)}{rest}"
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
    suite, assumed = free_key(SUITE, known, left, wanted.unit), free_key("assumed", known, left, wanted.unit)
    sources = {
        suite: how.source(text, facts, runtime, qualities, ("suite",)),
        assumed: Source(text=assumed_text, date=today(), runtime=runtime),
    }
    speeds = {number: found.speeds(fitted=suite, assumed=assumed) for number, found in fits.items()}
    if known is not None and unit is not None:
        kept = {file: found for file, found in unit.validation.items() if not _stale(unit, file, wanted.unit, fits)}
        # What convolutions fuse is a property of the runtime that the new speeds belong to.
        unit = unit.model_copy(update={"speeds": {**unit.speeds, **speeds}, "validation": kept, "fuses": "litert"})
    else:
        unit = Unit(
            name=wanted.unit,
            title=f"{facts.model}, {threads_text(how.threads, how.on.cpus or ())}",
            runs=dict.fromkeys(("int8", "fp16", "fp32"), KINDS),
            # LiteRT widens the weights of fp16 files and computes in fp32.
            computes_in={"int8": "int8", "fp16": "fp32", "fp32": "fp32"},
            boundary=Boundary(hop_us=0.0, source=assumed) if known is None else known.unit().boundary,
            fuses="litert",
            speeds=dict(speeds.items()),
        )
    if known is not None:
        return (known.model_copy(update={"os": system_of(facts)}) if known.name == HOST else known).with_unit(unit, sources)
    whole_mb = facts.memory_mb or LEAST_MEMORY_MB
    sources["memory"] = Source(text=f"an assumption: half of the {whole_mb:.0f} MB that the device has", date=today(), runtime="none")
    return Device(
        name=wanted.name,
        title=facts.model,
        os=system_of(facts),
        sources=sources,
        memory=MemoryLimit(limit_mb=whole_mb / 2, source="memory"),
        preferred_unit=wanted.unit,
        units={wanted.unit: unit},
    )


def _records(device: Device) -> Iterator[tuple[str, Record]]:
    for name, unit in device.units.items():
        yield from ((f"{name}.{place}", record) for place, record in unit.records())


def _measured_anew(place: str, unit: str, fits: Mapping[Number, Refit]) -> bool:
    places = {number: f"{unit}.speeds.{number}." for number in fits}
    return any(place.startswith(start) and fits[number].replaces(place.removeprefix(start)) for number, start in places.items())


def _stale(unit: Unit, file: PrecisionName, fitted: str, fits: Mapping[Number, Refit]) -> bool:
    """Whether a validation is of speeds that are measured anew."""
    return unit.name == fitted and unit.computes_in.get(file) in fits


def free_key(key: str, known: Device | None, left: Set[str], unit: str) -> str:
    """A key for a new source: never that of a source which something that stays cites."""
    if known is None or key not in left:
        return key
    return next(name for name in (f"{key}-{unit}", *(f"{key}-{unit}-{number}" for number in range(2, 100))) if name not in left)
