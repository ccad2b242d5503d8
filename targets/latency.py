"""Latency of an operator table on a device, estimated.

Per operator, following the roofline model (Williams et al., 2009) with effective instead of peak figures:

    time = max(multiply-adds / rate, bytes / bandwidth) + dispatch + boundary

- The rate is that of the precision in which the unit really computes: a GPU runs INT8 files in FP16.
- Channels are rounded up to the unit's alignment, so that 33 channels cost as much as 64 on a unit that works in groups of 32.
- An operator that the unit does not take runs on its fallback unit.
- Between operators of different precision or unit the tensor is converted, which reads and writes it once more; going to another unit also waits.
- One inference has a fixed cost besides its operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mcompress.errors import UsageError
from mcompress.targets.device import BYTES, MULTIPLYING, Device, PrecisionName, Unit, unknown_name
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.schema import Measurement

Precisions = Mapping[str, PrecisionName] | PrecisionName
"""One precision for all operators, or operator name -> precision. Operators without weights that are not named take that of the operator before."""


@dataclass(frozen=True)
class OperatorLatency:
    """Where one operator runs, at which precision of the file, and what it costs there, milliseconds."""

    name: str
    unit: str
    precision: PrecisionName
    compute_ms: float
    memory_ms: float
    dispatch_ms: float
    boundary_ms: float

    @property
    def latency_ms(self) -> float:
        """Compute and memory traffic overlap; the rest adds up."""
        return max(self.compute_ms, self.memory_ms) + self.dispatch_ms + self.boundary_ms


def estimate(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> Measurement:
    """Estimated latency of one inference in ms, with the error band of the unit's constants.

    Raises `TargetError` for an unknown unit, `UsageError` for an operator that neither the unit nor its fallback can run, or a mapping that leaves
    out an operator with weights.
    """
    chosen = device.unit(unit)
    rows = operator_latencies(table, device, unit, precisions)
    total = float(np.sum([row.latency_ms for row in rows])) + chosen.invoke_us.value / 1e3
    names = _file_precision(rows)
    away = sum(row.unit != chosen.name for row in rows)
    constant = next(iter(chosen.bandwidth_gbs.values()))
    place = chosen.name if not away else f"{chosen.fallback_unit}" if away == len(rows) else f"{chosen.name}+{chosen.fallback_unit}"
    note = f"; {away} of {len(rows)} operators on {chosen.fallback_unit}, which the {chosen.name} does not take" if away else ""
    return Measurement(
        what="latency",
        value=total,
        unit="ms",
        how="estimated",
        on=f"{device.name} {place} {names}",
        band=_band(chosen, rows),
        source=f"operator table x constants of {device.name} {chosen.name} ({constant.runtime}, {constant.date}){note}",
    )


def operator_latencies(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> tuple[OperatorLatency, ...]:
    """The rows behind `estimate`, in execution order; the fixed cost of the inference (`Unit.invoke_us`) is not in them."""
    chosen = device.unit(unit)
    assigned = _assign(table, precisions)
    rows: list[OperatorLatency] = []
    before: tuple[str, PrecisionName] | None = None
    for operator, precision in zip(table.operators, assigned, strict=True):
        where = _place(operator, precision, chosen, device)
        computed = where.computes_in[precision]
        here = (where.name, computed)
        rows.append(
            OperatorLatency(
                name=operator.name,
                unit=where.name,
                precision=precision,
                compute_ms=_compute_ms(operator, where, computed),
                memory_ms=_memory_ms(operator, where, computed),
                dispatch_ms=where.dispatch_us.value / 1e3,
                boundary_ms=_boundary_ms(operator, before, where, chosen) if before is not None and before != here else 0.0,
            )
        )
        before = here
    return tuple(rows)


def operator_latencies_ms(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> tuple[float, ...]:
    """Milliseconds per operator, in execution order; what `operator_latencies` adds up to per row."""
    return tuple(row.latency_ms for row in operator_latencies(table, device, unit, precisions))


def weight_bytes(table: OperatorTable, precisions: Precisions) -> int:
    """Bytes of all weights at their operators' precisions, without the file format's own overhead."""
    return sum(op.weight_elements * BYTES[p] for op, p in zip(table.operators, _assign(table, precisions), strict=True))


def _assign(table: OperatorTable, precisions: Precisions) -> list[PrecisionName]:
    if isinstance(precisions, str):
        if precisions not in BYTES:
            raise UsageError(unknown_name("precision", precisions, tuple(BYTES)))
        return [precisions] * len(table.operators)
    known = {operator.name for operator in table.operators}
    strange = [name for name in precisions if name not in known]
    if strange:
        raise UsageError(unknown_name("operator", strange[0], tuple(sorted(known)), "in the operator table", show=(f"{len(known)} names",)))
    wrong = [(name, p) for name, p in precisions.items() if p not in BYTES]
    if wrong:
        raise UsageError(f"operator {wrong[0][0]!r}: " + unknown_name("precision", wrong[0][1], tuple(BYTES)))
    missing = [op.name for op in table.operators if op.name not in precisions and op.macs]
    if missing:
        raise UsageError(f"{len(missing)} operators with multiply-adds have no precision, the first is {missing[0]!r}; give one to each")
    first: PrecisionName = next((precisions[op.name] for op in table.operators if op.name in precisions), "fp16")
    assigned: list[PrecisionName] = []
    for operator in table.operators:
        first = precisions.get(operator.name, first)
        assigned.append(first)
    return assigned


def _place(operator: Operator, precision: PrecisionName, unit: Unit, device: Device) -> Unit:
    if unit.takes(operator.kind, precision):
        return unit
    fallback = device.units[unit.fallback_unit] if unit.fallback_unit else None
    if fallback is not None and fallback.takes(operator.kind, precision):
        return fallback
    what = f"operator {operator.name!r} ({operator.kind}) in {precision}"
    allowed = ", ".join(f"{name} on {u.name}" for u in device.units.values() for name, kinds in u.runs.items() if operator.kind in kinds) or "nothing"
    raise UsageError(f"{device.name} {unit.name} cannot run {what}, and nor can its fallback; the device can run it as: {allowed}")


def _boundary_ms(operator: Operator, before: tuple[str, PrecisionName], where: Unit, chosen: Unit) -> float:
    unit_before, precision_before = before
    computed = next(iter(where.bandwidth_gbs)) if precision_before not in where.bandwidth_gbs else precision_before
    # The tensor is read in one form and written in the other; the wider of the two stands for both.
    moved = 2 * operator.elements_read * BYTES[_wider(precision_before, computed)]
    fixed_us = chosen.boundary_us.value if unit_before != where.name else where.dispatch_us.value
    return fixed_us / 1e3 + moved / (where.bandwidth_gbs[computed].value * 1e6)


def _compute_ms(operator: Operator, unit: Unit, computed: PrecisionName) -> float:
    macs = padded_macs(operator, unit)
    return macs / (unit.gmacs[computed][operator.kind].value * 1e6) if macs else 0.0


def _memory_ms(operator: Operator, unit: Unit, computed: PrecisionName) -> float:
    slower = unit.slowdown[operator.kind].value if operator.kind in unit.slowdown else 1.0
    return padded_elements(operator, unit) * BYTES[computed] * slower / (unit.bandwidth_gbs[computed].value * 1e6)


def padded_macs(operator: Operator, unit: Unit) -> float:
    """Multiply-adds that the unit carries out: channels rounded up to its alignment. 0 for operators that only move memory."""
    if operator.kind not in MULTIPLYING:
        return 0.0
    if len(operator.input_shape) < 4 or not operator.kernel:
        return float(operator.macs)
    outputs = _stairs(_channels(operator.output_shape), unit.channel_alignment)
    if operator.groups > 1:
        return operator.macs * outputs
    # Dot-product instructions take four input channels at a time.
    return operator.macs * outputs * _stairs(_channels(operator.input_shape), min(unit.channel_alignment, 4))


def padded_elements(operator: Operator, unit: Unit) -> float:
    """Elements that the unit reads and writes, weights included; activations with padded channels if the unit stores them so."""
    read, written = float(operator.elements_read), float(operator.elements_written)
    if unit.pads_memory:
        read *= _stairs(_channels(operator.input_shape), unit.channel_alignment)
        written *= _stairs(_channels(operator.output_shape), unit.channel_alignment)
    return read + written + operator.weight_elements


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _stairs(channels: int, alignment: int) -> float:
    return math.ceil(channels / alignment) * alignment / channels


def _wider(one: PrecisionName, other: PrecisionName) -> PrecisionName:
    return one if BYTES[one] >= BYTES[other] else other


def _file_precision(rows: tuple[OperatorLatency, ...]) -> str:
    names = sorted({row.precision for row in rows}, key=lambda name: BYTES[name])
    return "+".join(names)


def _band(unit: Unit, rows: tuple[OperatorLatency, ...]) -> str:
    names = {row.precision for row in rows}
    # A unit that computes INT8 and FP16 files alike (a GPU) is as well validated on a mixture of them as on either.
    if all(row.unit == unit.name for row in rows) and len({unit.computes_in[name] for name in names}) == 1:
        return unit.band(min(names, key=lambda name: (name not in unit.validation, name)))
    return "not validated (mixed precision or several units)"
