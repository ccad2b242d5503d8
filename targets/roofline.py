"""What operators cost on one unit at one precision: the roofline model (Williams et al., 2009) with effective instead of peak figures.

    compute = padded multiply-adds / rate x (1 + ramp_inputs / padded inputs) x (1 + ramp_outputs / padded outputs)
    memory  = bytes x slowdown / bandwidth (x (1 + ramp_outputs / channels) for operators that multiply nothing)
    stream  = bytes of weights that the cache does not hold / far bandwidth
    scores  = bytes of the matrix of scores / their rate, as memory, for attention that a runtime computes with that matrix as a whole

- Channels are rounded up to the unit's alignment, so that 33 channels cost as much as 64 on a unit that works in groups of 32.
- The ramps are Hockney's n_1/2 (Hockney & Jesshope, 1981): at `ramp_inputs` input channels per group, half of the time is
  not multiplication but what is done once per tap.
- Bytes beyond the cache move at the slower, far bandwidth: those of activations by their own size; those of weights by the size of all that the
  network reads anew in every inference, of a table that is looked up in what is found there. That reading, `stream`, is waited for: no arithmetic is
  left to overlap with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcompress.targets.columns import CLASS_INDEX, MULTIPLIES, OTHER, Columns, Floats, Integers
from mcompress.targets.speeds import CLASSES, Speeds

COMPUTED_AS: Integers = np.array([CLASS_INDEX["matmul" if index == OTHER else name] for index, name in enumerate(CLASSES)])
"""Class -> the class whose rate it multiplies at: an unknown operator does its assumed multiply-adds as fast as a matrix product."""

ATTENTION = CLASS_INDEX["attention"]


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
    """Infinite for classes that multiply nothing; `rates` has what unknown operators are priced with."""
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
    scores_gbs: float = np.inf
    """Of attention; infinite where its scores cost nothing."""

    @property
    def stored(self) -> int:
        """Channels lie in memory in groups of this many."""
        return self.outputs if self.pads_memory else 1

    @property
    def rates(self) -> Floats:
        """10^9 multiply-adds per second of every class, as `COMPUTED_AS` has them."""
        return self.gmacs[COMPUTED_AS]

    @classmethod
    def of(cls, speeds: Speeds) -> SpeedArrays:
        """An unknown operator that has no record moves data as slowly as the slowest known one."""
        rows = [speeds.speed(name) for name in CLASSES]
        slowdown = np.array([row.slowdown if row else 1.0 for row in rows])
        if rows[OTHER] is None:
            slowdown[OTHER] = max(slowdown.max(), 1.0)
        memory, alignment, attention = speeds.memory, speeds.alignment, rows[ATTENTION]
        return cls(
            gmacs=np.array([row.gmacs if row and row.gmacs else np.inf for row in rows]),
            ramp_inputs=np.array([row.ramp_inputs if row else 0.0 for row in rows]),
            ramp_outputs=np.array([row.ramp_outputs if row else 0.0 for row in rows]),
            slowdown=slowdown,
            near_gbs=memory.gbs,
            far_gbs=memory.far_gbs or memory.gbs,
            cache_mb=memory.cache_mb or np.inf,
            outputs=alignment.outputs,
            inputs=alignment.inputs,
            pads_memory=alignment.pads_memory,
            scores_gbs=attention.scores_gbs if attention and attention.scores_gbs else np.inf,
        )


def unit_costs(columns: Columns, arrays: SpeedArrays, element_bytes: int) -> UnitCosts:
    """The model itself: what every operator costs on a unit of these speeds, with elements of `element_bytes`."""
    classes = columns.classes
    multiplies = (MULTIPLIES[classes] | (classes == OTHER)) & (columns.macs > 0)
    more_outputs, more_inputs = stairs(columns.outputs, arrays.outputs), stairs(columns.inputs, arrays.inputs)
    ramps = 1 + arrays.ramp_inputs[classes] / np.maximum(columns.inputs * more_inputs, 1.0)
    ramps *= 1 + arrays.ramp_outputs[classes] / np.maximum(columns.outputs * more_outputs, 1.0)
    padded = columns.macs * more_outputs * more_inputs
    compute_ms = np.where(multiplies, padded / (arrays.rates[classes] * 1e6) * ramps, 0.0)

    read = columns.read * stairs(columns.read_channels, arrays.stored)
    written = columns.written * stairs(columns.written_channels, arrays.stored)
    activation_mb, weights_mb = (read + written) * element_bytes / 1e6, columns.weights * element_bytes / 1e6
    all_weights_mb = columns.per_table(weights_mb)[columns.tables]
    beyond = _beyond(all_weights_mb, arrays.cache_mb)
    stream_ms = weights_mb * beyond / arrays.far_gbs
    moved_ms = _moved_ms(activation_mb, arrays) + weights_mb * (1 - beyond) / arrays.near_gbs
    # A row of channels is what movers copy at a time.
    memory_ms = moved_ms * arrays.slowdown[classes] * np.where(MULTIPLIES[classes], 1.0, 1 + arrays.ramp_outputs[classes] / columns.written_channels)
    # Each score is a product over the columns of queries and keys, and multiplies the columns of a value.
    scores = np.where(classes == ATTENTION, columns.macs / np.maximum(columns.read_channels + columns.written_channels, 1.0), 0.0)
    memory_ms = memory_ms + scores * element_bytes / (arrays.scores_gbs * 1e6)
    return UnitCosts(compute_ms, memory_ms, stream_ms, np.where(classes == OTHER, np.maximum(compute_ms, memory_ms) - moved_ms, 0.0))


def activation_ms(columns: Columns, arrays: SpeedArrays, element_bytes: int, classes: Integers) -> Floats:
    """Milliseconds of a pass over each operator's result by an activation of `classes`; without meaning where that is -1."""
    megabytes = 2 * columns.written * stairs(columns.written_channels, arrays.stored) * element_bytes / 1e6
    return _moved_ms(megabytes, arrays) * arrays.slowdown[classes] * (1 + arrays.ramp_outputs[classes] / columns.written_channels)


def rounded_up(channels: Floats, group: int) -> Floats:
    """Channels as a unit that works in groups of `group` processes them."""
    return channels * stairs(channels, group)


def stairs(channels: Floats, group: int | Integers) -> Floats:
    """What rounding up to a multiple of `group` multiplies the work by."""
    if isinstance(group, int) and group == 1:
        return np.ones_like(channels)
    safe = np.maximum(channels, 1.0)
    found: Floats = np.ceil(safe / group) * group / safe
    return found


def _moved_ms(megabytes: Floats, arrays: SpeedArrays) -> Floats:
    """Milliseconds to move data, each entry of which has to fit into the cache for itself."""
    near, further = 1.0 / arrays.near_gbs, 1.0 / arrays.far_gbs - 1.0 / arrays.near_gbs
    return megabytes * (near + further * _beyond(megabytes, arrays.cache_mb))


def _beyond(megabytes: Floats, cache_mb: float) -> Floats:
    """The share of data of this size that the cache does not hold."""
    share: Floats = np.maximum(0.0, 1.0 - cache_mb / np.maximum(megabytes, 1e-12)) if np.isfinite(cache_mb) else np.zeros_like(megabytes)
    return share
