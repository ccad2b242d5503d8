"""Where the milliseconds of a network go on the target's device, operator by operator, as run.json keeps it for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcompress.errors import UsageError
from mcompress.record import Ceiling, LatencyBreakdown, OperatorCost
from mcompress.targets.columns import class_of
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import OperatorLatency, Precisions, estimate, estimate_in_parts
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.speeds import BYTES, CLASSES, PrecisionName


def breakdown_of(table: OperatorTable, device: Device, unit: str, precisions: Precisions, *, floats: PrecisionName) -> LatencyBreakdown:
    """Every operator of `table` on a unit of the device, and the fixed cost of an inference; raises as `estimate` does.

    A network in INT8 and one in `floats`, the precisions that files are written in, are what a precision plan can be compared with.
    """
    whole = estimate_in_parts(table, device, unit, precisions)
    return LatencyBreakdown(
        latency=whole.latency,
        unit=unit,
        fixed_ms=whole.fixed_ms,
        operators=tuple(_cost(operator, row, device.unit(row.unit)) for operator, row in zip(table.operators, whole.operators, strict=True)),
        all_in_ms=dict(_all_in(table, device, device.unit(unit), ("int8", floats))),
    )


def ceilings_of(device: Device, breakdowns: Sequence[LatencyBreakdown]) -> tuple[Ceiling, ...]:
    """What the units and precisions that any of the breakdowns computes on reach at most, with where that is known from."""
    places = dict.fromkeys((row.unit, row.computed_in) for breakdown in breakdowns for row in breakdown.operators)
    kinds = {row.kind for breakdown in breakdowns for row in breakdown.operators}
    return tuple(_ceiling(device, device.unit(name), precision, kinds) for name, precision in places)


def _cost(operator: Operator, row: OperatorLatency, unit: Unit) -> OperatorCost:
    computed = unit.computes_in[row.precision]
    return OperatorCost(
        name=operator.name,
        kind=class_of(operator),
        fused=operator.fused,
        input_shape=operator.input_shape,
        output_shape=operator.output_shape,
        unit=unit.name,
        precision=row.precision,
        computed_in=computed,
        macs=operator.macs,
        bytes=operator.moved_elements * BYTES[computed],
        compute_ms=row.compute_ms,
        memory_ms=row.memory_ms,
        dispatch_ms=row.dispatch_ms,
        boundary_ms=row.boundary_ms,
        stream_ms=row.stream_ms,
        apart_ms=row.apart_ms,
        latency_ms=row.latency_ms,
    )


def _all_in(table: OperatorTable, device: Device, unit: Unit, precisions: Sequence[PrecisionName]) -> Iterator[tuple[str, float]]:
    for precision in precisions:
        if precision in unit.runs:
            try:
                yield precision, estimate(table, device, unit.name, precision).value
            except UsageError:  # an operator that no unit of the chain runs in this precision: there is no such file
                continue


def _ceiling(device: Device, unit: Unit, precision: str, kinds: set[str]) -> Ceiling:
    speeds = next(found for name, found in unit.speeds.items() if name == precision)
    known = {name: speed for name in CLASSES if name in kinds and (speed := speeds.speed(name)) is not None}
    source = device.sources[speeds.memory.source]
    return Ceiling(
        unit=unit.name,
        title=unit.title,
        precision=precision,
        gbs=speeds.memory.gbs,
        cache_mb=speeds.memory.cache_mb,
        far_gbs=speeds.memory.far_gbs,
        gmacs={name: speed.gmacs for name, speed in known.items() if speed.gmacs is not None},
        moved_gbs={name: speeds.memory.gbs / speed.slowdown for name, speed in known.items() if speed.gmacs is None},
        channels=speeds.alignment.outputs,
        source=f"{source.text} ({source.runtime}, {source.date})",
    )
