"""What crossing costs: a tensor whose maker has another form (unit or computed precision) than its reader is converted, or moved to another unit.

A conversion reads the tensor in one form and writes it in the other: once for all readers of one form. Between precisions that is an operator of its
own; an operator that reads from another unit waits for that unit, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.targets.columns import Columns, Edges, Floats, Integers
from mcompress.targets.device import Unit
from mcompress.targets.roofline import SpeedArrays, stairs
from mcompress.targets.speeds import BYTES, PrecisionName


@dataclass(frozen=True)
class Form:
    """A unit, and a precision that it computes in."""

    unit: int
    """Position in the chain of fallbacks; 0 is the unit that was asked for."""
    computed: PrecisionName
    arrays: SpeedArrays
    dispatch_ms: float


@dataclass(frozen=True)
class Forms:
    """The forms that operators of a network have, as arrays; indices of forms are positions here."""

    units: Integers
    widths: Floats
    """Bytes of an element."""
    stored: Integers
    """Channels lie in memory in groups of this many."""
    near_gbs: Floats
    dispatch_ms: Floats
    hop_ms: Floats
    """By unit, not by form: what waiting for it takes."""

    @classmethod
    def of(cls, forms: Sequence[Form], chain: Sequence[Unit]) -> Forms:
        """`chain` are the units that the forms name."""
        return cls(
            units=np.array([one.unit for one in forms]),
            widths=np.array([BYTES[one.computed] for one in forms], float),
            stored=np.array([one.arrays.stored for one in forms]),
            near_gbs=np.array([one.arrays.near_gbs for one in forms]),
            dispatch_ms=np.array([one.dispatch_ms for one in forms]),
            hop_ms=np.array([one.boundary.hop_us / 1e3 for one in chain]),
        )

    def traffic_ms(self, elements: Floats, channels: Floats, there: Integers, here: Integers) -> Floats:
        """Reading `elements` in the form `there` and writing them in the form `here`, each padded as it lies there, at the speed of the wider one."""
        element_bytes = self.widths[here] * stairs(channels, self.stored[here]) + self.widths[there] * stairs(channels, self.stored[there])
        gbs = np.where(self.widths[here] >= self.widths[there], self.near_gbs[here], self.near_gbs[there])
        found: Floats = elements * element_bytes / (gbs * 1e6)
        return found

    def conversion_ms(self, there: Integers, here: Integers) -> Floats:
        """What one conversion costs besides its traffic: nothing between units, where it is part of moving."""
        return np.where(self.units[here] != self.units[there], 0.0, self.dispatch_ms[here])

    def wait_ms(self, one: Integers, other: Integers) -> Floats:
        """What an operator on the unit `one` waits that reads from the unit `other`: the one further up the chain is the accelerator, whose driver
        is waited for."""
        found: Floats = self.hop_ms[np.minimum(one, other)]
        return found


def boundary_ms(edges: Edges, columns: Columns, form: Integers, forms: Forms) -> Floats:
    """Milliseconds that each operator pays for tensors that come in another form than its own; `form` is that of each operator."""
    changed = form[edges.made_by] != form[edges.read_by]
    made_by, read_by = edges.made_by[changed], edges.read_by[changed]
    _, first, conversion = np.unique(made_by * len(forms.units) + form[read_by], return_index=True, return_inverse=True)
    # Readers may share a tensor, or each take a part of it; no more is there than its maker has written.
    elements = np.minimum(np.bincount(conversion, edges.elements[changed], len(first)), columns.written[made_by[first]])
    made_by, read_by = made_by[first], read_by[first]
    here, there = form[read_by], form[made_by]
    each = forms.traffic_ms(elements, columns.written_channels[made_by], there, here) + forms.conversion_ms(there, here)
    found: Floats = np.bincount(read_by, each, len(form)).astype(np.float64)

    hop = forms.units[here] != forms.units[there]
    waits = np.zeros((len(form), len(forms.hop_ms)), bool)
    waits[read_by[hop], forms.units[there][hop]] = True
    waiting, awaited = np.nonzero(waits)
    found += np.bincount(waiting, forms.wait_ms(forms.units[form[waiting]], awaited), len(form))
    return found
