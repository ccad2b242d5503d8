"""Latency of an operator table on a device, estimated.

Per operator, following the roofline model (Williams et al., 2009) with effective instead of peak figures:

    time    = max(compute, memory) + stream + dispatch + boundary
    compute = padded multiply-adds / rate x (1 + ramp_inputs / padded inputs) x (1 + ramp_outputs / padded outputs)
    memory  = bytes x slowdown / bandwidth (x (1 + ramp_outputs / channels) for operators that multiply nothing)

- Everything is that of the precision in which the unit really computes: a GPU runs INT8 files in FP16.
- Channels are rounded up to the unit's alignment, so that 33 channels cost as much as 64 on a unit that works in groups of 32.
- The ramps are Hockney's n_1/2 (Hockney & Jesshope, 1981): at `ramp_inputs` input channels per group, half of the time is
  not multiplication but what is done once per tap.
- Bytes beyond the cache move at the slower, far bandwidth: those of activations by their own size; those of weights by the size of all weights of the
  network, which are read anew in every inference. That reading, `stream`, is waited for: no arithmetic is left to overlap with it.
- An operator that the unit does not take runs on its fallback unit.
- Between operators of different precision or unit the tensor is converted, which reads and writes it once more; going to another unit also waits.
- An activation that the unit's runtime does not compute inside the operator before it is a pass of its own over that operator's result.
- One inference has a fixed cost besides its operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.errors import UsageError
from mcompress.targets.columns import MULTIPLIES, OTHER, Columns, Floats, Integers, apart, columns_of
from mcompress.targets.device import Device, Unit, unknown_name
from mcompress.targets.operators import FUSES, OperatorTable
from mcompress.targets.schema import Measurement
from mcompress.targets.speeds import BYTES, CLASSES, STANDS_FOR, FilePrecision, Speeds

Precisions = Mapping[str, FilePrecision] | FilePrecision
"""One precision for all operators, or operator name -> precision. Operators without weights that are not named take that of the operator before."""

FILE_PRECISIONS: tuple[FilePrecision, ...] = ("int8", "w8a16", "fp16", "fp32")
STORED_BYTES: dict[FilePrecision, int] = {"int8": 1, "w8a16": 1, "fp16": 2, "fp32": 4}
"""Bytes of one weight in a file."""
ARITHMETICS = tuple(BYTES)
SHOWN = 3


@dataclass(frozen=True)
class OperatorLatency:
    """Where one operator runs, at which precision of the file, and what it costs there, milliseconds."""

    name: str
    unit: str
    precision: FilePrecision
    compute_ms: float
    memory_ms: float
    dispatch_ms: float
    boundary_ms: float
    stream_ms: float = 0.0
    """Weights that the cache does not hold: fetched anew in every inference, which nothing overlaps with."""
    apart_ms: float = 0.0
    """An activation that the table has inside the operator, and that the unit computes in a pass of its own."""

    @property
    def latency_ms(self) -> float:
        """Compute and memory traffic overlap; the rest adds up."""
        return max(self.compute_ms, self.memory_ms) + self.dispatch_ms + self.boundary_ms + self.stream_ms + self.apart_ms


def estimate(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> Measurement:
    """Estimated latency of one inference in ms, with the error band of the unit's constants.

    Raises `TargetError` for an unknown unit, `UsageError` for an operator that neither the unit nor its fallback can run, a mapping that leaves out
    an operator with weights, or a table without operators.
    """
    chosen = device.unit(unit)
    costs = _table_costs(table, device, chosen, precisions)
    files = sorted({FILE_PRECISIONS[index] for index in costs.precisions}, key=FILE_PRECISIONS.index)
    away, count = int(costs.away.sum()), len(table.operators)
    told = device.units[chosen.fallback_unit] if away == count and chosen.fallback_unit else chosen
    computed = next(told.computes_in[file] for file in files if file in told.computes_in)
    seen = device.sources[told.speeds[computed].memory.source]
    place = chosen.name if not away else f"{chosen.fallback_unit}" if away == count else f"{chosen.name}+{chosen.fallback_unit}"
    machine = f", measured on {seen.machine}" if seen.machine else ""
    note = f"; {away} of {count} operators on {chosen.fallback_unit}, which the {chosen.name} does not take" if away else ""
    return Measurement(
        what="latency",
        value=float(costs.latency_ms.sum() + costs.invoke_ms[0]),
        unit="ms",
        how="estimated",
        on=f"{device.name} {place} {'+'.join(files)}",
        band=device.elsewhere(told) or _band(told, files, 0 if told is not chosen else away),
        source=f"operator table x constants of {device.name} {told.name} ({seen.runtime}, {seen.date}{machine}){note}{_unknown(table, costs)}",
    )


def estimate_many(tables: Sequence[OperatorTable], device: Device, unit: str, precision: FilePrecision) -> Floats:
    """Estimated milliseconds of each table, all operators at one precision; the numbers of `estimate`, without the words.

    Raises as `estimate` does.
    """
    if not tables:
        return np.zeros(0)
    chosen = device.unit(unit)
    if not all(table.operators for table in tables):
        raise UsageError("an operator table is empty; there is nothing to estimate")
    columns = columns_of(tables)
    costs = _costs(columns, np.full(len(columns.classes), _index(precision)), device, chosen, tables)
    return columns.per_table(costs.latency_ms) + costs.invoke_ms


def operator_latencies(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> tuple[OperatorLatency, ...]:
    """The rows behind `estimate`, in execution order; the fixed cost of the inference is not in them."""
    chosen = device.unit(unit)
    costs = _table_costs(table, device, chosen, precisions)
    figures = zip(
        costs.away.tolist(),
        costs.precisions.tolist(),
        *(values.tolist() for values in (costs.compute_ms, costs.memory_ms, costs.dispatch_ms, costs.boundary_ms, costs.stream_ms, costs.apart_ms)),
        strict=True,
    )
    return tuple(
        OperatorLatency(operator.name, f"{chosen.fallback_unit}" if away else chosen.name, FILE_PRECISIONS[index], *times)
        for operator, (away, index, *times) in zip(table.operators, figures, strict=True)
    )


def weight_bytes(table: OperatorTable, precisions: Precisions) -> int:
    """Bytes of all weights at their operators' precisions, without the file format's own overhead."""
    stored = np.array([STORED_BYTES[name] for name in FILE_PRECISIONS])[_assign(table, precisions)]
    return int(sum(operator.weight_elements * int(size) for operator, size in zip(table.operators, stored, strict=True)))


@dataclass(frozen=True)
class UnitCosts:
    """Compute and memory time of each operator on one unit, milliseconds."""

    compute_ms: Floats
    memory_ms: Floats
    stream_ms: Floats
    """Fetching weights that the cache does not hold, on top of both."""
    doubt_ms: Floats
    """How much of the time of an unknown operator is more than moving its data takes."""


@dataclass(frozen=True)
class SpeedArrays:
    """The numbers of `Speeds`, per class in the order of `CLASSES`."""

    gmacs: Floats
    """Infinite for classes that multiply nothing."""
    ramp_inputs: Floats
    ramp_outputs: Floats
    slowdown: Floats
    near_gbs: float
    far_gbs: float
    cache_mb: float
    """Infinite where there is no far memory."""
    outputs: int
    inputs: int
    pads_memory: bool

    @property
    def stored(self) -> int:
        """Channels lie in memory in groups of this many."""
        return self.outputs if self.pads_memory else 1

    @classmethod
    def of(cls, speeds: Speeds) -> SpeedArrays:
        """An unknown operator moves data as slowly as the slowest known one, and does its assumed multiply-adds as fast as a matrix product."""
        rows = [speeds.speed(name) for name in CLASSES]
        slowdown = np.array([row.slowdown if row else 1.0 for row in rows])
        if rows[OTHER] is None:
            slowdown[OTHER] = max(slowdown.max(), 1.0)
        memory, alignment = speeds.memory, speeds.alignment
        gmacs = np.array([row.gmacs if row and row.gmacs else np.inf for row in rows])
        gmacs[OTHER] = gmacs[CLASSES.index("matmul")]
        return cls(
            gmacs=gmacs,
            ramp_inputs=np.array([row.ramp_inputs if row else 0.0 for row in rows]),
            ramp_outputs=np.array([row.ramp_outputs if row else 0.0 for row in rows]),
            slowdown=slowdown,
            near_gbs=memory.gbs,
            far_gbs=memory.far_gbs or memory.gbs,
            cache_mb=memory.cache_mb or np.inf,
            outputs=alignment.outputs,
            inputs=alignment.inputs,
            pads_memory=alignment.pads_memory,
        )


def unit_costs(columns: Columns, arrays: SpeedArrays, element_bytes: int) -> UnitCosts:
    """The model itself: what every operator costs on a unit of these speeds, with elements of `element_bytes`."""
    classes = columns.classes
    multiplies = (MULTIPLIES[classes] | (classes == OTHER)) & (columns.macs > 0)
    more_outputs, more_inputs = _stairs(columns.outputs, arrays.outputs), _stairs(columns.inputs, arrays.inputs)
    ramps = 1 + arrays.ramp_inputs[classes] / np.maximum(columns.inputs * more_inputs, 1.0)
    ramps *= 1 + arrays.ramp_outputs[classes] / np.maximum(columns.outputs * more_outputs, 1.0)
    padded = columns.macs * more_outputs * more_inputs
    compute_ms = np.where(multiplies, padded / (arrays.gmacs[classes] * 1e6) * ramps, 0.0)

    read = columns.read * _stairs(columns.read_channels, arrays.stored)
    written = columns.written * _stairs(columns.written_channels, arrays.stored)
    activation_mb, weights_mb = (read + written) * element_bytes / 1e6, columns.weights * element_bytes / 1e6
    all_weights_mb = columns.per_table(weights_mb)[columns.tables]
    beyond = _beyond(all_weights_mb, arrays.cache_mb)
    stream_ms = weights_mb * beyond / arrays.far_gbs
    moved_ms = _moved_ms(activation_mb, activation_mb, arrays) + weights_mb * (1 - beyond) / arrays.near_gbs
    # A row of channels is what movers copy at a time.
    memory_ms = moved_ms * arrays.slowdown[classes] * np.where(MULTIPLIES[classes], 1.0, 1 + arrays.ramp_outputs[classes] / columns.written_channels)
    return UnitCosts(compute_ms, memory_ms, stream_ms, np.where(classes == OTHER, np.maximum(compute_ms, memory_ms) - moved_ms, 0.0))


def activation_ms(columns: Columns, arrays: SpeedArrays, element_bytes: int, classes: Integers) -> Floats:
    """Milliseconds of a pass over each operator's result by an activation of `classes`; without meaning where that is -1."""
    megabytes = 2 * columns.written * _stairs(columns.written_channels, arrays.stored) * element_bytes / 1e6
    return _moved_ms(megabytes, megabytes, arrays) * arrays.slowdown[classes] * (1 + arrays.ramp_outputs[classes] / columns.written_channels)


def _moved_ms(megabytes: Floats, together_mb: Floats, arrays: SpeedArrays) -> Floats:
    """Milliseconds to move data; `together_mb` is what has to fit into the cache for it to be near."""
    near, further = 1.0 / arrays.near_gbs, 1.0 / arrays.far_gbs - 1.0 / arrays.near_gbs
    return megabytes * (near + further * _beyond(together_mb, arrays.cache_mb))


@dataclass(frozen=True)
class _Costs:
    precisions: Integers
    away: Integers
    """1 for operators on the fallback unit."""
    compute_ms: Floats
    memory_ms: Floats
    dispatch_ms: Floats
    boundary_ms: Floats
    stream_ms: Floats
    apart_ms: Floats
    doubt_ms: Floats
    invoke_ms: Floats
    """Per table: the fixed cost of an inference on each unit that takes part in it."""

    @property
    def latency_ms(self) -> Floats:
        return np.maximum(self.compute_ms, self.memory_ms) + self.dispatch_ms + self.boundary_ms + self.stream_ms + self.apart_ms


def _table_costs(table: OperatorTable, device: Device, chosen: Unit, precisions: Precisions) -> _Costs:
    if not table.operators:
        raise UsageError("the operator table is empty; there is nothing to estimate")
    return _costs(columns_of((table,)), _assign(table, precisions), device, chosen, (table,))


def _costs(columns: Columns, precisions: Integers, device: Device, chosen: Unit, tables: Sequence[OperatorTable]) -> _Costs:
    count = len(columns.classes)
    fallback = device.units[chosen.fallback_unit] if chosen.fallback_unit else None
    here = _takes(chosen)[precisions, columns.classes]
    there = _takes(fallback)[precisions, columns.classes] if fallback else np.zeros(count, bool)
    homeless = ~(here | there)
    if homeless.any():
        raise UsageError(_cannot_run(columns, precisions, int(np.argmax(homeless)), device, chosen, tables))

    compute, memory, stream, dispatch, apart_ms, doubt, width, near = (np.zeros(count) for _ in range(8))
    form, stored = np.zeros(count, np.int64), np.ones(count, np.int64)
    invoke_ms = np.zeros(len(columns.starts))
    units = [(chosen, here), *(((fallback, ~here),) if fallback is not None else ())]
    for unit, mask in units:
        fixed_us = [unit.speeds[unit.computes_in[FILE_PRECISIONS[index]]].overhead.invoke_us for index in np.unique(precisions[mask])]
        invoke_ms += max(fixed_us, default=0.0) / 1e3 * (columns.per_table(mask.astype(float)) > 0)
        activations = apart(tables, FUSES[unit.fuses]) if unit.fuses else None
        for index in np.unique(precisions[mask]):
            computed = unit.computes_in[FILE_PRECISIONS[index]]
            chosen_rows, speeds = mask & (precisions == index), unit.speeds[computed]
            arrays = SpeedArrays.of(speeds)
            found = unit_costs(columns, arrays, BYTES[computed])
            if activations is not None:
                passes = activation_ms(columns, arrays, BYTES[computed], activations) + speeds.overhead.dispatch_us / 1e3
                apart_ms[chosen_rows] = np.where(activations >= 0, passes, 0.0)[chosen_rows]
            for whole, part in ((compute, found.compute_ms), (memory, found.memory_ms), (stream, found.stream_ms), (doubt, found.doubt_ms)):
                whole[chosen_rows] = part[chosen_rows]
            dispatch[chosen_rows], width[chosen_rows], near[chosen_rows] = speeds.overhead.dispatch_us / 1e3, BYTES[computed], speeds.memory.gbs
            form[chosen_rows], stored[chosen_rows] = ARITHMETICS.index(computed), arrays.stored

    away = (~here).astype(np.int64)
    hop = np.diff(away, prepend=away[:1]) != 0
    change = (hop | (np.diff(form, prepend=form[:1]) != 0)) & ~columns.first
    # The tensor is read in one form and written in the other, each padded as it lies there, as fast as the memory of the wider one.
    before, near_before = np.roll(width, 1), np.roll(near, 1)
    element_bytes = width * _stairs(columns.read_channels, stored) + before * _stairs(columns.read_channels, np.roll(stored, 1))
    moved_ms = columns.read * element_bytes / (np.where(width >= before, near, near_before) * 1e6)
    boundary = np.where(change, np.where(hop, chosen.boundary.hop_us / 1e3, dispatch) + moved_ms, 0.0)
    return _Costs(precisions, away, compute, memory, dispatch, boundary, stream, apart_ms, doubt, invoke_ms)


def _takes(unit: Unit) -> np.ndarray:
    """Precision of the file x class -> whether the unit takes it."""
    found = np.zeros((len(FILE_PRECISIONS), len(CLASSES)), bool)
    for row, precision in enumerate(FILE_PRECISIONS):
        kinds = unit.runs.get(precision, ())
        found[row] = [STANDS_FOR.get(name, name) in kinds for name in CLASSES]
    return found


def _cannot_run(columns: Columns, precisions: Integers, index: int, device: Device, chosen: Unit, tables: Sequence[OperatorTable]) -> str:
    table = tables[int(columns.tables[index])]
    operator = table.operators[index - int(columns.starts[columns.tables[index]])]
    what = f"operator {operator.name!r} ({operator.kind}) in {FILE_PRECISIONS[precisions[index]]}"
    able = (f"{name} on {unit.name}" for unit in device.units.values() for name, kinds in unit.runs.items() if operator.kind in kinds)
    neither = f", and nor can its fallback, the {chosen.fallback_unit}" if chosen.fallback_unit else ""
    return f"{device.name} {chosen.name} cannot run {what}{neither}; the device can run it as: {', '.join(able) or 'nothing'}"


def _assign(table: OperatorTable, precisions: Precisions) -> Integers:
    if isinstance(precisions, str):
        return np.full(len(table.operators), _index(precisions))
    known = {operator.name for operator in table.operators}
    strange = [name for name in precisions if name not in known]
    if strange:
        raise UsageError(unknown_name("operator", strange[0], tuple(sorted(known)), "in the operator table", show=(f"{len(known)} names",)))
    wrong = [(name, p) for name, p in precisions.items() if p not in FILE_PRECISIONS]
    if wrong:
        raise UsageError(f"operator {wrong[0][0]!r}: " + unknown_name("precision", wrong[0][1], FILE_PRECISIONS))
    missing = [op.name for op in table.operators if op.name not in precisions and op.macs]
    if missing:
        raise UsageError(f"{len(missing)} operators with multiply-adds have no precision, the first is {missing[0]!r}; give one to each")
    current: FilePrecision = next((precisions[op.name] for op in table.operators if op.name in precisions), "fp16")
    assigned = []
    for operator in table.operators:
        current = precisions.get(operator.name, current)
        assigned.append(FILE_PRECISIONS.index(current))
    return np.array(assigned, np.int64)


def _index(precision: str) -> int:
    if precision not in FILE_PRECISIONS:
        raise UsageError(unknown_name("precision", precision, FILE_PRECISIONS))
    return FILE_PRECISIONS.index(precision)


def rounded_up(channels: Floats, group: int) -> Floats:
    """Channels as a unit that works in groups of `group` processes them."""
    return channels * _stairs(channels, group)


def _stairs(channels: Floats, group: int | Integers) -> Floats:
    """What rounding up to a multiple of `group` multiplies the work by."""
    if isinstance(group, int) and group == 1:
        return np.ones_like(channels)
    safe = np.maximum(channels, 1.0)
    stairs: Floats = np.ceil(safe / group) * group / safe
    return stairs


def _beyond(megabytes: Floats, cache_mb: float) -> Floats:
    """The share of data of this size that the cache does not hold."""
    share: Floats = np.maximum(0.0, 1.0 - cache_mb / np.maximum(megabytes, 1e-12)) if np.isfinite(cache_mb) else np.zeros_like(megabytes)
    return share


def _unknown(table: OperatorTable, costs: _Costs) -> str:
    names = list(dict.fromkeys(operator.operation for operator in table.operators if operator.kind == "other"))
    if not names:
        return ""
    count = sum(operator.kind == "other" for operator in table.operators)
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    taken, spare = float(costs.latency_ms[[operator.kind == "other" for operator in table.operators]].sum()), float(costs.doubt_ms.sum())
    known = f"{count} operators of no known kind ({shown}) are {taken:.3g} ms of it, an assumption"
    return f"; {known}; moving their data alone takes {taken - spare:.3g} ms"


def _band(unit: Unit, files: Sequence[FilePrecision], away: int) -> str:
    if away:
        return "not validated (several units)"
    if len({unit.computes_in[name] for name in files}) == 1:
        # A unit that computes INT8 and FP16 files alike (a GPU) is as well validated on a mixture of them as on either.
        return unit.band(min(files, key=lambda name: (name not in unit.validation, name)))
    known = [name for name in files if name in unit.validation]
    if len(known) < len(files):
        return "not validated (mixed precision)"
    widest = max(known, key=lambda name: unit.validation[name].summary.median)
    return f"{unit.band(widest)}, files all in {widest}; mixtures are not validated"
