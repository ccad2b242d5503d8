"""Is a file slower than its baseline? From samples that were taken alternately in one run, new and baseline, on one machine.

- The estimate is the median over rounds of log(new / baseline): the two of one round were taken within milliseconds of one another, so what
  changes slowly (clock frequency, temperature, a neighbour) cancels, and a median does not see the rounds that something interrupted.
- Its interval is a bootstrap over blocks of consecutive rounds, which keeps what is left of the dependence between neighbours.
- The noise floor comes from the same rounds: how far the estimate may lie from the truth, 99 % interval. Nothing smaller is ever reported.
- An alarm counts only if a second pass, a fresh process with the two files in the other order, raises it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import UsageError
from mcompress.targets.gate import LEAST_NOISE_PERCENT

RESAMPLES = 1000
BLOCKS = 30
LEAST_ROUNDS = 8
INTERVAL = (0.025, 0.975)
WIDER = 2.576 / 1.960
"""The 99 % interval of a normal distribution, divided by its 95 % interval."""
LEAST_NOISE = LEAST_NOISE_PERCENT / 100

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """One pass: latency of the new file divided by that of the baseline, with its bootstrap interval (95 %)."""

    ratio: float
    low: float
    high: float
    noise: float
    """Of the ratio, as a share: see `noise_of`."""
    baseline_ms: float
    new_ms: float
    rounds: int
    notes: tuple[str, ...] = ()
    """What disturbed the pass: throttling, a clock that jumped."""

    def alarms(self, percent: float) -> bool:
        """Slower by more than `percent` and by more than the noise, and certainly slower at all."""
        return self.ratio - 1 > self.threshold(percent) and self.low > 1

    def improves(self, percent: float) -> bool:
        """The same, faster."""
        return 1 - self.ratio > self.threshold(percent) and self.high < 1

    def threshold(self, percent: float) -> float:
        """The larger of what the user allows and the noise floor, as a share."""
        return max(percent / 100, self.noise)


@dataclass(frozen=True)
class Timing:
    """The passes over one file: one, or two where the first one raised an alarm."""

    passes: tuple[Ratio, ...]

    def slower(self, percent: float) -> bool:
        """Every pass says so, and there was a second one."""
        return len(self.passes) > 1 and all(one.alarms(percent) for one in self.passes)

    def faster(self, percent: float) -> bool:
        """Every pass says so."""
        return all(one.improves(percent) for one in self.passes)

    def decided(self, percent: float) -> bool:
        """Either it is known to be slower or faster, or the noise is not above what is allowed: more than that would have been seen."""
        return self.slower(percent) or self.faster(percent) or all(one.noise <= percent / 100 for one in self.passes)

    @property
    def ratio(self) -> float:
        """Geometric mean of the passes."""
        return math.exp(sum(math.log(one.ratio) for one in self.passes) / len(self.passes))


def noise_of(ratio: float, low: float, high: float) -> float:
    """Half the 99 % interval around a ratio whose 95 % interval is `low` to `high`, the longer half, as a share; at least `LEAST_NOISE`."""
    return max(LEAST_NOISE, math.expm1(WIDER * max(math.log(high / ratio), math.log(ratio / low))))


def ratio_of(baseline_ms: Sequence[float], new_ms: Sequence[float], *, queries_per_round: int = 1, seed: int = 0) -> Ratio:
    """From the samples of an alternating run, in order. A round's time is the median of its queries.

    Raises `UsageError` for fewer than `LEAST_ROUNDS` rounds, and for samples that are not positive.
    """
    old, now = (_rounds(samples, queries_per_round) for samples in (baseline_ms, new_ms))
    count = min(len(old), len(now))
    if count < LEAST_ROUNDS:
        raise UsageError(f"{count} rounds were timed; a comparison needs at least {LEAST_ROUNDS}: measure longer, or give --no-measure")
    old, now = old[:count], now[:count]
    if not (np.all(np.isfinite(old)) and np.all(np.isfinite(now)) and old.min() > 0 and now.min() > 0):
        raise UsageError(
            "a latency of 0 ms or less was measured, so the clock of this machine cannot be trusted; measure again, or give --no-measure"
        )
    generator = np.random.default_rng(seed)
    paired = np.log(now / old)
    ratio = float(np.exp(np.median(paired)))
    low, high = (float(end) for end in np.exp(np.quantile(_bootstrap(paired, generator), INTERVAL)))
    return Ratio(
        ratio=ratio,
        low=low,
        high=high,
        noise=noise_of(ratio, low, high),
        baseline_ms=float(np.median(old)),
        new_ms=float(np.median(now)),
        rounds=count,
    )


def _rounds(samples_ms: Sequence[float], queries_per_round: int) -> Floats:
    values = np.asarray(samples_ms, dtype=np.float64)
    count = len(values) // queries_per_round
    return np.asarray(np.median(values[: count * queries_per_round].reshape(count, queries_per_round), axis=1)) if count else np.zeros(0)


def _bootstrap(values: Floats, generator: np.random.Generator) -> Floats:
    """Medians of resampled blocks of consecutive values."""
    length = max(1, len(values) // BLOCKS)
    count = len(values) // length
    blocks = values[: count * length].reshape(count, length)
    chosen = generator.integers(0, count, (RESAMPLES, count))
    return np.asarray(np.median(blocks[chosen].reshape(RESAMPLES, count * length), axis=1))


def signed(ratio: float) -> str:
    """A ratio as a change in per cent."""
    return f"{(ratio - 1) * 100:+.2f} %"
