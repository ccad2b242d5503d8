"""Latency of an operator table on a device, estimated.

Per operator:

    time = max(compute, memory) + stream + dispatch + boundary + apart

`targets.roofline` has compute, memory and stream: what the operator costs on a unit. `targets.placement` has the rest: the unit on which it runs, and
what converting and moving tensors between units and precisions adds. One inference has a fixed cost besides its operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.errors import UsageError
from mcompress.targets.columns import Floats, Integers
from mcompress.targets.device import Device
from mcompress.targets.latency_words import band, files_of, on, provenance
from mcompress.targets.names import unknown_name
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.placement import Placed, place
from mcompress.targets.schema import Measurement
from mcompress.targets.speeds import PRECISIONS, PrecisionName

__all__ = ["OperatorLatency", "Precisions", "WholeLatency", "estimate", "estimate_in_parts", "estimate_many", "operator_latencies", "weight_bytes"]

Precisions = Mapping[str, PrecisionName] | PrecisionName
"""One precision for all operators, or operator name -> precision. Operators without multiply-adds that are not named take that of the operator whose
result they read, of the last one where they read several."""

STORED_BYTES: dict[PrecisionName, int] = {"int8": 1, "w8a16": 1, "fp16": 2, "fp32": 4}
"""Bytes of one weight in a file."""


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
    """Converting and moving the tensors that it is the first to read in its form."""
    stream_ms: float
    """Weights that the cache does not hold: fetched anew in every inference, which nothing overlaps with."""
    apart_ms: float
    """An activation that the table has inside the operator, and that the unit computes in a pass of its own."""
    latency_ms: float
    """The whole: compute and memory traffic overlap, the rest adds up (`Placed.latency_ms`)."""


@dataclass(frozen=True)
class WholeLatency:
    """An estimate and what it consists of: the operators, in execution order, and the fixed cost of one inference."""

    latency: Measurement
    operators: tuple[OperatorLatency, ...]
    fixed_ms: float


def estimate(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> Measurement:
    """Estimated latency of one inference in ms, with the error band of the unit's constants.

    Raises `TargetError` for an unknown unit, `UsageError` for an operator that neither the unit nor any that it falls back on can run, a mapping that
    leaves out an operator with multiply-adds, or a table without operators.
    """
    return _measurement(table, device, _placed(table, device, unit, precisions))


def estimate_in_parts(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> WholeLatency:
    """`estimate` and where its milliseconds go; raises as it does."""
    placed = _placed(table, device, unit, precisions)
    return WholeLatency(_measurement(table, device, placed), _operator_latencies(table, placed), float(placed.invoke_ms[0]))


def _measurement(table: OperatorTable, device: Device, placed: Placed) -> Measurement:
    return Measurement(
        what="latency",
        value=float(placed.latency_ms.sum() + placed.invoke_ms[0]),
        unit="ms",
        how="estimated",
        on=f"{device.name} {on(placed)} {'+'.join(files_of(placed))}",
        band=band(placed, device),
        source=f"operator table x {provenance(table, placed, device)}",
    )


def estimate_many(tables: Sequence[OperatorTable], device: Device, unit: str, precision: PrecisionName) -> Floats:
    """Estimated milliseconds of each table, all operators at one precision; the numbers of `estimate`, without the words.

    Raises as `estimate` does.
    """
    if not tables:
        return np.zeros(0)
    if not all(table.operators for table in tables):
        raise UsageError("an operator table is empty; there is nothing to estimate")
    placed = place(tables, _index(precision), device, unit)
    return placed.columns.per_table(placed.latency_ms) + placed.invoke_ms


def operator_latencies(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> tuple[OperatorLatency, ...]:
    """The rows behind `estimate`, in execution order; the fixed cost of the inference is not in them."""
    return _operator_latencies(table, _placed(table, device, unit, precisions))


def _operator_latencies(table: OperatorTable, placed: Placed) -> tuple[OperatorLatency, ...]:
    parts = (placed.compute_ms, placed.memory_ms, placed.dispatch_ms, placed.boundary_ms, placed.stream_ms, placed.apart_ms)
    figures = zip(placed.units.tolist(), placed.precisions.tolist(), *(values.tolist() for values in (*parts, placed.latency_ms)), strict=True)
    return tuple(
        OperatorLatency(operator.name, placed.chain[where].name, PRECISIONS[index], *milliseconds)
        for operator, (where, index, *milliseconds) in zip(table.operators, figures, strict=True)
    )


def weight_bytes(table: OperatorTable, precisions: Precisions) -> int:
    """Bytes of all weights at their operators' precisions, without the file format's own overhead; those of a module called twice are stored once."""
    stored = np.array([STORED_BYTES[name] for name in PRECISIONS])[_assign(table, precisions)]
    own = ((operator, int(size)) for operator, size in zip(table.operators, stored, strict=True) if not operator.weights_of)
    return sum(operator.weight_elements * size for operator, size in own)


def _placed(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> Placed:
    if not table.operators:
        raise UsageError("the operator table is empty; there is nothing to estimate")
    device.unit(unit)  # an unknown unit comes before what is wrong with the precisions
    return place((table,), _assign(table, precisions), device, unit)


def _assign(table: OperatorTable, precisions: Precisions) -> Integers:
    if isinstance(precisions, str):
        return np.full(len(table.operators), _index(precisions))
    known = {operator.name for operator in table.operators}
    strange = [name for name in precisions if name not in known]
    if strange:
        raise UsageError(unknown_name("operator", strange[0], tuple(sorted(known)), "in the operator table", show=(f"{len(known)} names",)))
    wrong = [(name, p) for name, p in precisions.items() if p not in PRECISIONS]
    if wrong:
        raise UsageError(f"operator {wrong[0][0]!r}: " + unknown_name("precision", wrong[0][1], PRECISIONS))
    missing = [op.name for op in table.operators if op.name not in precisions and op.macs]
    if missing:
        raise UsageError(f"{len(missing)} operators with multiply-adds have no precision, the first is {missing[0]!r}; give one to each")
    first: PrecisionName = next((precisions[op.name] for op in table.operators if op.name in precisions), "fp16")
    assigned: list[PrecisionName] = []
    for index, operator in enumerate(table.operators):
        assigned.append(precisions.get(operator.name) or (assigned[_before(operator, index)] if index else first))
    return np.array([PRECISIONS.index(precision) for precision in assigned], np.int64)


def _before(operator: Operator, index: int) -> int:
    """The operator whose precision the one at `index` takes over."""
    return max((maker for maker, _ in operator.sources), default=index - 1) if operator.sources else index - 1


def _index(precision: str) -> int:
    if precision not in PRECISIONS:
        raise UsageError(unknown_name("precision", precision, PRECISIONS))
    return PRECISIONS.index(precision)
