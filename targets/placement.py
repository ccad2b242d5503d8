"""Where each operator of a table runs, and what the network costs there: the units' own times, and what crossing between them adds.

- An operator that the unit does not take runs on the unit that it falls back on, or on the one that this falls back on, the first that takes it.
- Everything is that of the precision in which the unit really computes: a GPU runs INT8 files in FP16.
- A tensor whose maker has another form (unit or computed precision) than its reader is converted, which reads and writes it once more: once for all
  readers of one form, and paid by the first of them. Between precisions that is an operator of its own; an operator that reads from another
  unit waits for that unit, once.
- An activation that the unit's runtime does not compute inside the operator before it is a pass of its own over that operator's result.
- One inference has a fixed cost besides its operators, on every unit that takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.errors import UsageError
from mcompress.targets.columns import Columns, Floats, Integers, apart, columns_of, edges_of
from mcompress.targets.crossings import Form, Forms, boundary_ms
from mcompress.targets.device import Device, Unit
from mcompress.targets.operators import OperatorTable
from mcompress.targets.roofline import SpeedArrays, activation_ms, unit_costs
from mcompress.targets.speeds import BYTES, CLASSES, PRECISIONS, STANDS_FOR


@dataclass(frozen=True)
class Placed:
    """One or more tables on the units of a device; every array but `invoke_ms` has one entry per operator."""

    chain: tuple[Unit, ...]
    columns: Columns
    precisions: Integers
    """Of the file, index into `PRECISIONS`."""
    units: Integers
    """Index into `chain`."""
    computed: Integers
    """Index into `PRECISIONS`."""
    passes: Integers
    """Class of the activation that is a pass of its own; -1 where there is none."""
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
        """Of each operator: compute and memory traffic overlap; the rest adds up."""
        return np.maximum(self.compute_ms, self.memory_ms) + self.dispatch_ms + self.boundary_ms + self.stream_ms + self.apart_ms


def place(tables: Sequence[OperatorTable], precisions: Integers | int, device: Device, unit: str) -> Placed:
    """`precisions` are of the file, indices into `PRECISIONS`: one of each operator or one for all. No table may be empty.

    Raises `TargetError` for an unknown unit, `UsageError` for an operator that neither the unit nor any that it falls back on takes.
    """
    chain, columns = device.chain(unit), columns_of(tables)
    count = len(columns.classes)
    of_file: Integers = np.full(count, precisions) if isinstance(precisions, int) else precisions
    takes = np.stack([taken_by(one)[of_file, columns.classes] for one in chain])
    homeless = ~takes.any(0)
    if homeless.any():
        raise UsageError(_cannot_run(tables, columns, of_file, int(np.argmax(homeless)), device, chain))
    units = takes.argmax(0)

    compute, memory, stream, dispatch, apart_ms, doubt = (np.zeros(count) for _ in range(6))
    form, passes, forms = np.zeros(count, np.int64), np.full(count, -1), list[Form]()
    invoke_ms = np.zeros(len(columns.starts))
    for index, one in enumerate(chain):
        mine = units == index
        used = dict.fromkeys(one.computes_in[PRECISIONS[found]] for found in np.flatnonzero(np.bincount(of_file[mine])))
        fixed_us = max((one.speeds[computed].overhead.invoke_us for computed in used), default=0.0)
        if used:
            invoke_ms += fixed_us / 1e3 * (columns.per_table(mine.astype(float)) > 0)
        for computed in used:
            speeds = one.speeds[computed]
            so_computed = [file for file, name in enumerate(PRECISIONS) if one.computes_in.get(name) == computed]
            rows = mine & np.isin(of_file, so_computed)
            forms.append(Form(index, computed, SpeedArrays.of(speeds), speeds.overhead.dispatch_us / 1e3))
            arrays = forms[-1].arrays
            costs = unit_costs(columns, arrays, BYTES[computed])
            for whole, part in ((compute, costs.compute_ms), (memory, costs.memory_ms), (stream, costs.stream_ms), (doubt, costs.doubt_ms)):
                whole[rows] = part[rows]
            form[rows], dispatch[rows] = len(forms) - 1, forms[-1].dispatch_ms
            if one.fuses:
                found = apart(tables, one.fuses, computed)
                rows &= found >= 0
                passes[rows] = found[rows]
                apart_ms[rows] = (activation_ms(columns, arrays, BYTES[computed], found) + forms[-1].dispatch_ms)[rows]

    boundary = boundary_ms(edges_of(tables, columns), columns, form, Forms.of(forms, chain)) if len(forms) > 1 else np.zeros(count)
    arithmetics = np.array([PRECISIONS.index(one.computed) for one in forms])[form]
    return Placed(chain, columns, of_file, units, arithmetics, passes, compute, memory, dispatch, boundary, stream, apart_ms, doubt, invoke_ms)


def taken_by(unit: Unit) -> np.ndarray:
    """Precision of the file x class -> whether the unit takes it."""
    found = np.zeros((len(PRECISIONS), len(CLASSES)), bool)
    for row, precision in enumerate(PRECISIONS):
        kinds = unit.runs.get(precision, ())
        found[row] = [STANDS_FOR.get(name, name) in kinds for name in CLASSES]
    return found


def _cannot_run(
    tables: Sequence[OperatorTable], columns: Columns, precisions: Integers, index: int, device: Device, chain: Sequence[Unit]
) -> str:  # fmt: skip
    table = tables[int(columns.tables[index])]
    operator = table.operators[index - int(columns.starts[columns.tables[index]])]
    what = f"operator {operator.name!r} ({operator.kind}) in {PRECISIONS[precisions[index]]}"
    able = (f"{name} on {unit.name}" for unit in device.units.values() for name, kinds in unit.runs.items() if operator.kind in kinds)
    chosen, *others = (unit.name for unit in chain)
    neither = f", and nor can its fallback, the {' or the '.join(others)}" if others else ""
    return f"{device.name} {chosen} cannot run {what}{neither}; the device can run it as: {', '.join(able) or 'nothing'}"
