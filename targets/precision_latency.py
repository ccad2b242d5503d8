"""The latency of an operator table as a function of each operator's precision, in the terms in which a solver can minimise it.

`targets.latency.estimate` prices one assignment of precisions. Here is the same sum taken apart: what every operator costs at every precision, and
what every pair of forms adds on the way from its maker to its readers. Nothing is approximated: for any assignment `of` gives what `estimate` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.targets.columns import Columns, Edges, Floats, Integers, columns_of, edges_of
from mcompress.targets.crossings import Form, Forms, boundary_ms
from mcompress.targets.device import Device
from mcompress.targets.operators import OperatorTable
from mcompress.targets.placement import place, taken_by
from mcompress.targets.roofline import SpeedArrays
from mcompress.targets.speeds import PRECISIONS, PrecisionName


@dataclass(frozen=True)
class PrecisionLatency:
    """One unit of a device and one table. Arrays are rows of the table x `precisions`."""

    unit: str
    precisions: tuple[PrecisionName, ...]
    own_ms: Floats
    """Compute, memory, dispatch and whatever else does not depend on the neighbours; infinite where no unit of the chain runs the operator so."""
    form: Integers
    """Index into `forms`; without meaning where `own_ms` is infinite."""
    forms: Forms
    computed: tuple[PrecisionName, ...]
    """By form: in what it computes."""
    invoke_ms: Floats
    """By form: the fixed cost of an inference in which its unit computes so; of a unit's forms the largest counts, once."""
    columns: Columns
    edges: Edges

    def of(self, chosen: Integers) -> float:
        """Milliseconds of one inference with these precisions, index into `precisions` for every row."""
        rows = np.arange(len(chosen))
        form = self.form[rows, chosen]
        crossing = boundary_ms(self.edges, self.columns, form, self.forms).sum() if len(self.forms.units) > 1 else 0.0
        fixed = sum(
            self.invoke_ms[[f for f in set(form.tolist()) if self.forms.units[f] == unit]].max() for unit in set(self.forms.units[form].tolist())
        )
        return float(self.own_ms[rows, chosen].sum() + crossing + fixed)


def precision_latency(table: OperatorTable, device: Device, unit: str, precisions: Sequence[PrecisionName]) -> PrecisionLatency:
    """Price `table` on the unit at each of `precisions`. Raises `TargetError` for an unknown unit."""
    chain = device.chain(unit)
    columns = columns_of((table,))
    count = len(table.operators)
    takes = np.stack([taken_by(one) for one in chain])  # unit x precision x class
    taken = np.any(takes[:, :, columns.classes], axis=0, keepdims=True)[0]  # precision x operator
    able = taken[[PRECISIONS.index(p) for p in precisions]].T
    runs_as = np.argmax(taken, axis=0)  # some precision that each operator can have at all
    own = np.full((count, len(precisions)), np.inf)
    form = np.zeros((count, len(precisions)), np.int64)
    forms: dict[tuple[int, PrecisionName], Form] = {}
    invoke_ms: list[float] = []
    for position, precision in enumerate(precisions):
        mine = able[:, position]
        placed = place((table,), np.where(mine, PRECISIONS.index(precision), runs_as), device, unit)
        own[mine, position] = (placed.latency_ms - placed.boundary_ms)[mine]
        for row in np.flatnonzero(mine):
            key = int(placed.units[row]), PRECISIONS[placed.computed[row]]
            if key not in forms:
                speeds = chain[key[0]].speeds[key[1]]
                forms[key] = Form(*key, SpeedArrays.of(speeds), speeds.overhead.dispatch_us / 1e3)
                invoke_ms.append(speeds.overhead.invoke_us / 1e3)
            form[row, position] = list(forms).index(key)
    computed = tuple(computed for _, computed in forms)
    arrays = Forms.of(list(forms.values()), chain)
    return PrecisionLatency(unit, tuple(precisions), own, form, arrays, computed, np.array(invoke_ms), columns, edges_of((table,), columns))
