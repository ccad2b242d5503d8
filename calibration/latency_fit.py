"""Constants of a unit, fitted to measured latencies: of whole networks, of a suite of small files, or of both together.

Both are the same problem: operator tables with a measured latency each. The unknowns are the logarithms of the constants in `Speeds`; what is
minimized is the sum of a robust loss of the log ratios of estimate to measurement, plus a pull towards a prior, so that a constant which the
measurements do not determine stays where the prior has it, and says so. Alignments are whole numbers and are chosen by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from mcompress.calibration.device_file import four_digits
from mcompress.targets.columns import MULTIPLIES, Columns, Floats, Integers, apart, columns_of
from mcompress.targets.operators import OperatorTable, Runtime
from mcompress.targets.roofline import COMPUTED_AS, SpeedArrays, UnitCosts, activation_ms, rounded_up, unit_costs
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
    family: str = ""
    """Samples of one family are left out together; one that names none is alone in its own."""


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
    fuses: Runtime | None = None
    """The runtime (`targets.operators.FUSES`) that the unit is measured with; what it does not fuse is priced as the estimator does."""


@dataclass(frozen=True)
class Fit:
    """Fitted constants, as arrays with their overheads, and what they leave unexplained."""

    arrays: SpeedArrays
    dispatch_us: float
    invoke_us: float
    prior: Prior
    """What the fit started from."""
    loss: float
    determined: frozenset[SpeedClass]
    """Classes whose speed the measurements decide; the others follow the prior."""

    def estimate_ms(self, tables: Sequence[OperatorTable]) -> Floats:
        """Milliseconds of each table."""
        size = BYTES[self.prior.computed]
        return _estimate_ms(_Rows.of(tables, self.prior), self.arrays, self.dispatch_us, self.invoke_us, size)

    def speeds(self, *, fitted: str, assumed: str) -> Speeds:
        """As the device file holds it; `fitted` and `assumed` are keys of its sources. A finer class that has no number of its own is not listed."""
        arrays = self.arrays
        operators: dict[SpeedClass, OperatorSpeed] = {}
        for index, name in enumerate(CLASSES):
            if name in STANDS_FOR and not self._own(name):
                continue
            source = fitted if name in self.determined else assumed
            operators[name] = OperatorSpeed(
                gmacs=four_digits(arrays.gmacs[index]) if name in MULTIPLYING else None,
                ramp_inputs=four_digits(arrays.ramp_inputs[index]),
                ramp_outputs=four_digits(arrays.ramp_outputs[index]),
                slowdown=four_digits(arrays.slowdown[index]),
                source=source,
            )
        far = np.isfinite(arrays.cache_mb)
        chosen = fitted if len(list(_shapes(self.prior))) > 1 else assumed
        return Speeds(
            alignment=Alignment(outputs=arrays.outputs, inputs=arrays.inputs, pads_memory=arrays.pads_memory, source=chosen),
            memory=MemorySpeed(
                gbs=four_digits(arrays.near_gbs),
                cache_mb=four_digits(arrays.cache_mb) if far else None,
                far_gbs=four_digits(arrays.far_gbs) if far else None,
                source=fitted,
            ),
            overhead=Overhead(dispatch_us=four_digits(self.dispatch_us), invoke_us=four_digits(self.invoke_us), source=fitted),
            operators=operators,
        )

    @classmethod
    def of(cls, speeds: Speeds, prior: Prior) -> Fit:
        """Known constants as a fit that nothing was fitted to."""
        return cls(SpeedArrays.of(speeds), speeds.overhead.dispatch_us, speeds.overhead.invoke_us, prior, 0.0, frozenset())

    @property
    def narrowed(self) -> Prior:
        """The prior, with the alignment that was found as the only one."""
        arrays = self.arrays
        return replace(self.prior, outputs=(arrays.outputs,), inputs=(arrays.inputs,), pads_memory=(arrays.pads_memory,))

    def _own(self, name: SpeedClass) -> bool:
        """Whether a finer class has a number of its own, and does not follow the class that stands for it."""
        prior = self.prior
        return name in prior.classes and (name in self.determined or name in prior.rates or name in prior.slowdowns)


def fit(samples: Sequence[Sample], prior: Prior) -> Fit:
    """The best constants over all alignments of the prior. Raises `ValueError` for no samples."""
    if not samples:
        raise ValueError("without measurements there is nothing to fit; give at least one")
    rows, measured = _Rows.of([sample.table for sample in samples], prior), np.log([sample.measured_ms for sample in samples])
    weights = np.sqrt([sample.weight for sample in samples])
    found = [_solve(rows, measured, weights, _Unknowns(prior, *shape)) for shape in _shapes(prior)]
    return min(found, key=lambda one: one.loss)


@dataclass(frozen=True)
class HeldOut:
    """Estimates of samples with constants fitted without them."""

    checks: tuple[Check, ...]
    families: int
    """How many were left out, one after the other."""

    @property
    def how(self) -> str:
        """For `Validation.how`; what the fits started from is for the caller to add."""
        if self.families > 1:
            return "leave-one-family-out"
        return "leave-one-out within one family of networks, so that nothing is known of others"


def leave_families_out(samples: Sequence[Sample], again: Callable[[Sequence[Sample]], Fit]) -> HeldOut:
    """Each sample estimated with constants that `again` fits to those of other families; to the others, where all are of one family.

    Raises `ValueError` for fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} measurements cannot be left out of one another; give at least 2")
    families = list(dict.fromkeys(sample.family or sample.name for sample in samples))
    names = [sample.name if len(families) == 1 else sample.family or sample.name for sample in samples]
    checks: dict[int, Check] = {}
    for left_out in dict.fromkeys(names):
        held = again([sample for sample, name in zip(samples, names, strict=True) if name != left_out])
        for index, (sample, name) in enumerate(zip(samples, names, strict=True)):
            if name == left_out:
                estimated = float(held.estimate_ms([sample.table])[0])
                checks[index] = Check(network=sample.name, measured_ms=sample.measured_ms, estimated_ms=estimated)
    return HeldOut(tuple(checks[index] for index in range(len(samples))), len(families))


def leave_networks_out(samples: Sequence[Sample], again: Callable[[Sequence[Sample]], Fit]) -> HeldOut:
    """As `leave_families_out`, one network at a time: others of its family stay, so that this says nothing of a new architecture."""
    return leave_families_out([replace(sample, family=sample.name) for sample in samples], again)


@dataclass(frozen=True)
class _Rows:
    """Tables as arrays, with the passes that the runtime makes besides them."""

    columns: Columns
    passes: Integers
    """Class of the activation that each operator leaves to a pass of its own; -1 where it leaves none."""

    @classmethod
    def of(cls, tables: Sequence[OperatorTable], prior: Prior) -> _Rows:
        columns = columns_of(tables)
        return cls(columns, np.full(len(columns.classes), -1) if prior.fuses is None else apart(tables, prior.fuses, prior.computed))

    def passes_ms(self, arrays: SpeedArrays, size: int) -> Floats:
        """Milliseconds of the passes, without their dispatch."""
        found: Floats = np.where(self.passes >= 0, activation_ms(self.columns, arrays, size, self.passes), 0.0)
        return found

    @property
    def dispatched(self) -> Floats:
        """Operators and passes of each table."""
        return self.columns.per_table(np.where(self.passes >= 0, 2.0, 1.0))


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
        self.speed_of = np.array(_indices([name if name in classes else STANDS_FOR.get(name, name) for name in CLASSES]))
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
        found = SpeedArrays(
            gmacs=_filled(np.inf, self.rates, level * rates)[self.speed_of],
            ramp_inputs=_filled(0.0, self.ramped_inputs, ramp_inputs),
            ramp_outputs=_filled(0.0, self.ramped_outputs, ramp_outputs),
            slowdown=_filled(1.0, self.slowed, slow)[self.speed_of],
            near_gbs=near_gbs,
            far_gbs=min(far_gbs, near_gbs),
            cache_mb=cache_mb,
            outputs=self.outputs,
            inputs=self.inputs,
            pads_memory=self.pads_memory,
        )
        return found, dispatch_us, invoke_us

    def gradient(self, rows: _Rows, x: Floats, size: int) -> Floats:
        """What a unit of each unknown, a logarithm, adds to the milliseconds of each table: tables x unknowns."""
        columns, (arrays, dispatch_us, invoke_us) = rows.columns, self.arrays(x)
        costs = unit_costs(columns, arrays, size)
        computing = costs.compute_ms > costs.memory_ms
        compute, memory = np.where(computing, costs.compute_ms, 0.0), np.where(computing, 0.0, costs.memory_ms)
        own = columns.classes
        on_inputs = arrays.ramp_inputs[own] / np.maximum(rounded_up(columns.inputs, arrays.inputs), 1.0)
        on_outputs = arrays.ramp_outputs[own] / np.maximum(rounded_up(columns.outputs, arrays.outputs), 1.0)
        on_written = np.where(MULTIPLIES[own], 0.0, arrays.ramp_outputs[own] / columns.written_channels)
        of_compute, of_memory = _by_class(columns, self.speed_of[COMPUTED_AS[own]], compute), _by_class(columns, self.speed_of[own], memory)
        of_inputs = _by_class(columns, own, compute * on_inputs / (1 + on_inputs))
        of_outputs = _by_class(columns, own, compute * on_outputs / (1 + on_outputs) + memory * on_written / (1 + on_written))
        passes_ms, of_passes = rows.passes_ms(arrays, size), np.maximum(rows.passes, 0)
        on_passes = arrays.ramp_outputs[of_passes] / columns.written_channels
        of_memory += _by_class(columns, self.speed_of[of_passes], passes_ms)
        of_outputs += _by_class(columns, of_passes, passes_ms * on_passes / (1 + on_passes))
        levels = [-of_compute.sum(1), -of_memory.sum(1), rows.dispatched * dispatch_us / 1e3, np.full(len(columns.starts), invoke_us / 1e3)]
        if self.prior.cache_mb is not None:
            # How much of the data lies beyond the cache bends in too many places to be written down.
            here = _whole_ms(rows, costs, passes_ms, dispatch_us, invoke_us)
            near, cache, far = (self._slope(rows, x, size, index, here) for index in (1, 4, 5))
            levels = [levels[0], near, *levels[2:], cache, far]
        parts = [-of_compute[:, self.rates], of_memory[:, self.slowed], of_inputs[:, self.ramped_inputs], of_outputs[:, self.ramped_outputs]]
        return np.concatenate([np.stack(levels, 1), *parts], axis=1)

    def _slope(self, rows: _Rows, x: Floats, size: int, index: int, here: Floats) -> Floats:
        moved = x + STEP * (np.arange(len(x)) == index)
        return (_estimate_ms(rows, *self.arrays(moved), size) - here) / STEP


def _indices(names: Sequence[SpeedClass]) -> list[int]:
    return [CLASSES.index(name) for name in names]


def _filled(elsewhere: float, at: Sequence[int], values: Floats) -> Floats:
    found = np.full(len(CLASSES), elsewhere)
    found[list(at)] = values
    return found


RAMP_START, RAMP_SPREAD = 2.0, 2.0
STEP = 1e-4
SLOW = 4.0


def _solve(rows: _Rows, measured: Floats, weights: Floats, unknowns: _Unknowns) -> Fit:
    size = BYTES[unknowns.prior.computed]

    def residuals(x: Floats) -> Floats:
        ratio = np.log(_estimate_ms(rows, *unknowns.arrays(x), size)) - measured
        return np.concatenate([weights * _robust(ratio), ROBUST_FROM * (x - unknowns.start) / unknowns.spread])

    def jacobian(x: Floats) -> Floats:
        estimated = _estimate_ms(rows, *unknowns.arrays(x), size)
        ratio = np.log(estimated) - measured
        near_zero = np.abs(ratio) < 1e-6
        slope = ratio / np.sqrt(1 + (ratio / ROBUST_FROM) ** 2) / np.where(near_zero, 1.0, _robust(ratio))
        of_ratio = unknowns.gradient(rows, x, size) * (weights * np.where(near_zero, 1.0, slope) / estimated)[:, None]
        return np.vstack([of_ratio, np.diag(ROBUST_FROM / unknowns.spread)])

    solved = [least_squares(residuals, start, jac=jacobian, method="trf", max_nfev=60) for start in unknowns.starts()]
    found = min(solved, key=lambda one: float(one.cost))
    arrays, dispatch_us, invoke_us = unknowns.arrays(found.x)
    determined = frozenset(_determined(rows, unknowns, found.x, size))
    return Fit(arrays, dispatch_us, invoke_us, unknowns.prior, float(2 * found.cost), determined)


def _robust(ratio: Floats) -> Floats:
    """Its square is the pseudo-Huber loss of a log ratio."""
    found: Floats = np.sign(ratio) * ROBUST_FROM * np.sqrt(2 * (np.sqrt(1 + (ratio / ROBUST_FROM) ** 2) - 1))
    return found


def _by_class(columns: Columns, classes: Integers, values: Floats) -> Floats:
    """Sums of an operator-wise array: tables x classes."""
    tables, count = len(columns.starts), len(CLASSES)
    found: Floats = np.bincount(columns.tables * count + classes, values, tables * count).reshape(tables, count).astype(np.float64)
    return found


def _determined(rows: _Rows, unknowns: _Unknowns, x: Floats, size: int) -> Iterator[SpeedClass]:
    """Classes whose number, with all that follow it, moves an estimate."""
    arrays, dispatch_us, invoke_us = unknowns.arrays(x)
    whole = _estimate_ms(rows, arrays, dispatch_us, invoke_us, size)
    for index, name in enumerate(CLASSES):
        own = unknowns.speed_of == index
        slower = replace(arrays, gmacs=arrays.gmacs / np.where(own, 2.0, 1.0), slowdown=arrays.slowdown * np.where(own, 2.0, 1.0))
        if np.any(_estimate_ms(rows, slower, dispatch_us, invoke_us, size) > (1 + LEAST_SHARE) * whole):
            yield name


def _estimate_ms(rows: _Rows, arrays: SpeedArrays, dispatch_us: float, invoke_us: float, size: int) -> Floats:
    return _whole_ms(rows, unit_costs(rows.columns, arrays, size), rows.passes_ms(arrays, size), dispatch_us, invoke_us)


def _whole_ms(rows: _Rows, costs: UnitCosts, passes_ms: Floats, dispatch_us: float, invoke_us: float) -> Floats:
    each = np.maximum(costs.compute_ms, costs.memory_ms) + costs.stream_ms + passes_ms
    return rows.columns.per_table(each) + rows.dispatched * dispatch_us / 1e3 + invoke_us / 1e3


def _shapes(prior: Prior) -> Iterator[tuple[int, int, bool]]:
    for outputs, inputs, pads in product(prior.outputs, prior.inputs, prior.pads_memory):
        if inputs <= outputs and not (pads and outputs == 1):
            yield outputs, inputs, pads


def _of_class(values: Mapping[SpeedClass, float], name: SpeedClass) -> float:
    return values.get(name, values.get(STANDS_FOR.get(name, name), 1.0))
