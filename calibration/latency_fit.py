"""Constants of a unit, fitted to measured latencies: of whole networks, of a suite of small files, or of both together.

Both are the same problem: operator tables with a measured latency each. The unknowns are the logarithms of the constants in `Speeds`; what is
minimized is the sum of a robust loss of the log ratios of estimate to measurement, plus a pull towards a prior, so that a constant which the
measurements do not determine stays where the prior has it, and says so. Alignments are whole numbers and are chosen by trying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from mcompress.targets.columns import MULTIPLIES, Columns, Floats, Integers, columns_of
from mcompress.targets.latency import SpeedArrays, rounded_up, unit_costs
from mcompress.targets.operators import ACTIVATIONS, FUSES, Operator, OperatorTable
from mcompress.targets.speeds import (
    BYTES,
    CLASSES,
    KINDS,
    MULTIPLYING,
    STANDS_FOR,
    Alignment,
    MemorySpeed,
    OperatorSpeed,
    Overhead,
    PrecisionName,
    SpeedClass,
    Speeds,
)
from mcompress.targets.validation import Check

ROBUST_FROM = 0.1
"""Log ratios beyond this pull less than their square: one network that a runtime treats in a way of its own must not bend all constants."""
LEAST_SHARE = 0.02
"""A constant counts as fitted when halving it changes some estimate by at least this share."""

RELATIVE_RATE: dict[SpeedClass, float] = {
    "convolution": 1.0,
    "grouped_convolution": 0.5,
    "depthwise_convolution": 0.15,
    "large_depthwise_convolution": 0.05,
    "transposed_convolution": 0.5,
    "matmul": 0.7,
    "attention": 0.4,
}
"""Prior rate of a class relative to that of a large convolution."""
RELATIVE_SLOWDOWN: dict[SpeedClass, float] = {"shuffle": 2.0, "normalization": 2.0, "resize": 1.5, "activation": 1.5, "reduction": 1.5, "other": 4.0}
"""Prior slowdown of a class that moves memory; 1 for all others."""


@dataclass(frozen=True)
class Sample:
    """A table and its measured latency."""

    name: str
    table: OperatorTable
    measured_ms: float
    weight: float = 1.0
    """What it counts for, relative to the others."""


@dataclass(frozen=True)
class Prior:
    """Where a fit starts and what it is pulled to, with the spread (standard deviation of the logarithm) that it allows."""

    computed: PrecisionName
    gmacs: float
    gbs: float
    dispatch_us: float
    invoke_us: float
    outputs: tuple[int, ...] = (1, 4, 8, 16, 32)
    """Alignments of output channels to try."""
    inputs: tuple[int, ...] = (1, 4)
    pads_memory: tuple[bool, ...] = (False, True)
    classes: tuple[SpeedClass, ...] = KINDS
    """What gets a speed of its own; a finer class that is left out has that of its kind. Whole networks do not determine all of them."""
    ramps: bool = False
    """Whether ramps, and memory speeds of classes that multiply, are fitted; only a suite of single operators determines them."""
    cache_mb: float | None = None
    """Where to start looking for the size of the cache; None for a unit that is fitted without one."""
    far_gbs: float | None = None
    rate_spread: float = 0.5
    """Of the rates and slowdowns relative to one another."""
    level_spread: float = 1.5
    """Of everything else."""
    rates: Mapping[SpeedClass, float] = field(default_factory=lambda: RELATIVE_RATE)
    """Of a class relative to a large convolution; from the fit of a similar unit where there is one."""
    slowdowns: Mapping[SpeedClass, float] = field(default_factory=lambda: RELATIVE_SLOWDOWN)


@dataclass(frozen=True)
class Fit:
    """Fitted constants, as arrays with their overheads, and what they leave unexplained."""

    arrays: SpeedArrays
    dispatch_us: float
    invoke_us: float
    computed: PrecisionName
    loss: float
    determined: frozenset[SpeedClass]
    """Classes whose speed the measurements decide; the others follow the prior."""

    def estimate_ms(self, columns: Columns) -> Floats:
        """Milliseconds of each table."""
        return _estimate_ms(columns, self.arrays, self.dispatch_us, self.invoke_us, BYTES[self.computed])

    def speeds(self, *, fitted: str, assumed: str) -> Speeds:
        """As the device file holds it; `fitted` and `assumed` are keys of its sources."""
        arrays = self.arrays
        operators: dict[SpeedClass, OperatorSpeed] = {}
        for index, name in enumerate(CLASSES):
            if name in STANDS_FOR and name not in self.determined:
                continue
            source = fitted if name in self.determined else assumed
            operators[name] = OperatorSpeed(
                gmacs=_four(arrays.gmacs[index]) if name in MULTIPLYING else None,
                ramp_inputs=_four(arrays.ramp_inputs[index]),
                ramp_outputs=_four(arrays.ramp_outputs[index]),
                slowdown=_four(arrays.slowdown[index]),
                source=source,
            )
        far = np.isfinite(arrays.cache_mb)
        return Speeds(
            alignment=Alignment(outputs=arrays.outputs, inputs=arrays.inputs, pads_memory=arrays.pads_memory, source=fitted),
            memory=MemorySpeed(
                gbs=_four(arrays.near_gbs),
                cache_mb=_four(arrays.cache_mb) if far else None,
                far_gbs=_four(arrays.far_gbs) if far else None,
                source=fitted,
            ),
            overhead=Overhead(dispatch_us=_four(self.dispatch_us), invoke_us=_four(self.invoke_us), source=fitted),
            operators=operators,
        )


def fit(samples: Sequence[Sample], prior: Prior) -> Fit:
    """The best constants over all alignments of the prior. Raises `ValueError` for fewer than two samples."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} measurements cannot determine a unit; give at least 2")
    columns, measured = columns_of([sample.table for sample in samples]), np.log([sample.measured_ms for sample in samples])
    weights = np.sqrt([sample.weight for sample in samples])
    found = [_solve(columns, measured, weights, _Unknowns(prior, *shape)) for shape in _shapes(prior)]
    return min(found, key=lambda one: one.loss)


def as_run(table: OperatorTable, fuses: str | None) -> OperatorTable:
    """The table with a row of its own for each activation that the runtime `fuses` (a key of `FUSES`) does not compute inside the operator before it.

    `estimate` counts these passes by itself for a unit that names its runtime; a fit sees only rows. None leaves the table as it is.
    """
    if fuses is None:
        return table
    rows: list[Operator] = []
    for operator in table.operators:
        name = next((name for name in operator.fused if name in ACTIVATIONS and name not in FUSES[fuses]), None)
        rows.append(replace(operator, fused=tuple(one for one in operator.fused if one != name)))
        if name is not None:
            elements, shape = operator.elements_written, operator.output_shape
            rows.append(
                Operator(
                    name=f"{operator.name}.{name}", kind="activation", operation=name, fused=(), input_shape=shape, output_shape=shape, groups=1,
                    kernel=(), stride=1, macs=0, macs_output_convention=0, elements_read=elements, elements_written=elements, weight_elements=0,
                    live_elements=operator.live_elements,
                )
            )  # fmt: skip
    return replace(table, operators=tuple(rows))


def leave_one_out(samples: Sequence[Sample], prior: Prior, chosen: Fit) -> tuple[Check, ...]:
    """Each sample estimated with constants fitted to all others, at the alignments of `chosen`. Samples of one name are left out together."""
    narrowed = replace(prior, outputs=(chosen.arrays.outputs,), inputs=(chosen.arrays.inputs,), pads_memory=(chosen.arrays.pads_memory,))
    checks = []
    for sample in samples:
        held_out = fit([other for other in samples if other.name != sample.name], narrowed)
        estimated = float(held_out.estimate_ms(columns_of([sample.table]))[0])
        checks.append(Check(network=sample.name, measured_ms=sample.measured_ms, estimated_ms=estimated))
    return tuple(checks)


class _Unknowns:
    """The vector of a fit: what it means, where it starts, how far it may go."""

    def __init__(self, prior: Prior, outputs: int, inputs: int, pads_memory: bool) -> None:
        self.prior, self.outputs, self.inputs, self.pads_memory = prior, outputs, inputs, pads_memory
        classes = prior.classes
        rates = [name for name in classes if name in MULTIPLYING]
        slowed = list(classes) if prior.ramps else [name for name in classes if name not in MULTIPLYING]
        self.rates, self.slowed = _indices(rates), _indices(slowed)
        self.ramped_inputs, self.ramped_outputs = (self.rates, _indices(classes)) if prior.ramps else ([], [])
        levels = [prior.gmacs, prior.gbs, prior.dispatch_us, prior.invoke_us]
        levels += [] if prior.cache_mb is None else [prior.cache_mb, prior.far_gbs or prior.gbs / 4]
        relative = [_of_class(prior.rates, name) for name in rates] + [_of_class(prior.slowdowns, name) for name in slowed]
        ramps = [RAMP_START] * (len(self.ramped_inputs) + len(self.ramped_outputs))
        self.sizes = np.cumsum([len(levels), len(self.rates), len(self.slowed), len(self.ramped_inputs)])
        self.start = np.log([*levels, *relative, *ramps])
        follows = [name for name in STANDS_FOR if name not in classes]
        self.finer, self.coarse = _indices(follows), _indices([STANDS_FOR[name] for name in follows])
        self.speed_of = np.arange(len(CLASSES))
        self.speed_of[self.finer] = self.coarse
        self.spread = np.repeat([prior.level_spread, prior.rate_spread, RAMP_SPREAD], [len(levels), len(relative), len(ramps)])

    def starts(self) -> tuple[Floats, Floats]:
        """Where the prior is, and with slow arithmetic: nothing tells a rate from a higher one as long as the memory is what takes the time."""
        slow = self.start.copy()
        slow[self.sizes[0] : self.sizes[1]] -= np.log(SLOW)
        return self.start, slow

    def arrays(self, x: Floats) -> tuple[SpeedArrays, float, float]:
        levels, rates, slow, ramp_inputs, ramp_outputs = np.split(np.exp(x), self.sizes)
        level, near_gbs, dispatch_us, invoke_us, *far = levels.tolist()
        cache_mb, far_gbs = far or (np.inf, near_gbs)
        gmacs = _filled(np.inf, self.rates, level * rates)
        slowdown = _filled(1.0, self.slowed, slow)
        gmacs[self.finer], slowdown[self.finer] = gmacs[self.coarse], slowdown[self.coarse]
        found = SpeedArrays(
            gmacs=gmacs,
            ramp_inputs=_filled(0.0, self.ramped_inputs, ramp_inputs),
            ramp_outputs=_filled(0.0, self.ramped_outputs, ramp_outputs),
            slowdown=slowdown,
            near_gbs=near_gbs,
            far_gbs=min(far_gbs, near_gbs),
            cache_mb=cache_mb,
            outputs=self.outputs,
            inputs=self.inputs,
            pads_memory=self.pads_memory,
        )
        return found, dispatch_us, invoke_us

    def gradient(self, columns: Columns, x: Floats, size: int) -> Floats:
        """What a unit of each unknown, a logarithm, adds to the milliseconds of each table: tables x unknowns."""
        arrays, dispatch_us, invoke_us = self.arrays(x)
        costs = unit_costs(columns, arrays, size)
        computing = costs.compute_ms > costs.memory_ms
        compute, memory = np.where(computing, costs.compute_ms, 0.0), np.where(computing, 0.0, costs.memory_ms)
        own = columns.classes
        on_inputs = arrays.ramp_inputs[own] / np.maximum(rounded_up(columns.inputs, arrays.inputs), 1.0)
        on_outputs = arrays.ramp_outputs[own] / np.maximum(rounded_up(columns.outputs, arrays.outputs), 1.0)
        on_written = np.where(MULTIPLIES[own], 0.0, arrays.ramp_outputs[own] / columns.written_channels)
        of_compute, of_memory = _by_class(columns, self.speed_of[own], compute), _by_class(columns, self.speed_of[own], memory)
        of_inputs = _by_class(columns, own, compute * on_inputs / (1 + on_inputs))
        of_outputs = _by_class(columns, own, compute * on_outputs / (1 + on_outputs) + memory * on_written / (1 + on_written))
        operators = np.diff(np.append(columns.starts, len(own)))
        levels = [-of_compute.sum(1), -of_memory.sum(1), operators * dispatch_us / 1e3, np.full(len(operators), invoke_us / 1e3)]
        if self.prior.cache_mb is not None:
            # How much of the data lies beyond the cache bends in too many places to be written down.
            levels = [levels[0], self._slope(columns, x, size, 1), *levels[2:], *(self._slope(columns, x, size, index) for index in (4, 5))]
        parts = [-of_compute[:, self.rates], of_memory[:, self.slowed], of_inputs[:, self.ramped_inputs], of_outputs[:, self.ramped_outputs]]
        return np.concatenate([np.stack(levels, 1), *parts], axis=1)

    def _slope(self, columns: Columns, x: Floats, size: int, index: int) -> Floats:
        moved = x + STEP * (np.arange(len(x)) == index)
        return (_estimate_ms(columns, *self.arrays(moved), size) - _estimate_ms(columns, *self.arrays(x), size)) / STEP


def _indices(names: Sequence[SpeedClass]) -> list[int]:
    return [CLASSES.index(name) for name in names]


def _filled(elsewhere: float, at: Sequence[int], values: Floats) -> Floats:
    found = np.full(len(CLASSES), elsewhere)
    found[list(at)] = values
    return found


RAMP_START, RAMP_SPREAD = 2.0, 2.0
STEP = 1e-4
SLOW = 4.0


def _solve(columns: Columns, measured: Floats, weights: Floats, unknowns: _Unknowns) -> Fit:
    size = BYTES[unknowns.prior.computed]

    def residuals(x: Floats) -> Floats:
        ratio = np.log(_estimate_ms(columns, *unknowns.arrays(x), size)) - measured
        return np.concatenate([weights * _robust(ratio), ROBUST_FROM * (x - unknowns.start) / unknowns.spread])

    def jacobian(x: Floats) -> Floats:
        estimated = _estimate_ms(columns, *unknowns.arrays(x), size)
        ratio = np.log(estimated) - measured
        near_zero = np.abs(ratio) < 1e-6
        slope = ratio / np.sqrt(1 + (ratio / ROBUST_FROM) ** 2) / np.where(near_zero, 1.0, _robust(ratio))
        of_ratio = unknowns.gradient(columns, x, size) * (weights * np.where(near_zero, 1.0, slope) / estimated)[:, None]
        return np.vstack([of_ratio, np.diag(ROBUST_FROM / unknowns.spread)])

    solved = [least_squares(residuals, start, jac=jacobian, method="trf", max_nfev=60) for start in unknowns.starts()]
    found = min(solved, key=lambda one: float(one.cost))
    arrays, dispatch_us, invoke_us = unknowns.arrays(found.x)
    determined = frozenset(_determined(columns, arrays, dispatch_us, invoke_us, size))
    return Fit(arrays, dispatch_us, invoke_us, unknowns.prior.computed, float(2 * found.cost), determined)


def _robust(ratio: Floats) -> Floats:
    """Its square is the pseudo-Huber loss of a log ratio."""
    found: Floats = np.sign(ratio) * ROBUST_FROM * np.sqrt(2 * (np.sqrt(1 + (ratio / ROBUST_FROM) ** 2) - 1))
    return found


def _by_class(columns: Columns, classes: Integers, values: Floats) -> Floats:
    """Sums of an operator-wise array: tables x classes."""
    tables, count = len(columns.starts), len(CLASSES)
    found: Floats = np.bincount(columns.tables * count + classes, values, tables * count).reshape(tables, count).astype(np.float64)
    return found


def _determined(columns: Columns, arrays: SpeedArrays, dispatch_us: float, invoke_us: float, size: int) -> Iterator[SpeedClass]:
    whole = _estimate_ms(columns, arrays, dispatch_us, invoke_us, size)
    present = set(columns.classes.tolist())
    for index, name in enumerate(CLASSES):
        if name in STANDS_FOR and index not in present:
            continue
        slower = replace(arrays, gmacs=_scaled(arrays.gmacs, index, 0.5), slowdown=_scaled(arrays.slowdown, index, 2.0))
        if np.any(_estimate_ms(columns, slower, dispatch_us, invoke_us, size) > (1 + LEAST_SHARE) * whole):
            yield name


def _scaled(values: Floats, index: int, factor: float) -> Floats:
    scaled = values.copy()
    scaled[index] *= factor
    return scaled


def _estimate_ms(columns: Columns, arrays: SpeedArrays, dispatch_us: float, invoke_us: float, size: int) -> Floats:
    costs = unit_costs(columns, arrays, size)
    return columns.per_table(np.maximum(costs.compute_ms, costs.memory_ms) + costs.stream_ms + dispatch_us / 1e3) + invoke_us / 1e3


def _shapes(prior: Prior) -> Iterator[tuple[int, int, bool]]:
    for outputs, inputs, pads in product(prior.outputs, prior.inputs, prior.pads_memory):
        if inputs <= outputs and not (pads and outputs == 1):
            yield outputs, inputs, pads


def _of_class(values: Mapping[SpeedClass, float], name: SpeedClass) -> float:
    return values.get(name, values.get(STANDS_FOR.get(name, name), 1.0))


def _four(value: float) -> float:
    return float(f"{value:.4g}")
