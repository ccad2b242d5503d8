"""Was the device slowed down while it was measured, and how far can its times be trusted? What its sensors say, and what the times themselves say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from mcompress.export.agent.stopwatch import LEAST_QUERIES

SLOWER = 1.05
"""The last quarter of the queries must be slower than the first by more than 5 % to be worth a word; the noise of a phone's repeated runs is below
that in 84 % of cases."""
SURE_Z = 4.0
"""Standard deviations of the rank sum: once in 30,000 measurements by chance if queries were independent. They are not, hence 4 and not 2."""
LEAST_SAMPLES = 20
LEAST_S = 5.0
"""Heat takes seconds; what slows down within less is another load."""
UNSTABLE_CV = 0.2
"""A measurement whose coefficient of variation is above this is called unstable. Of 72 whole networks, measured on a shared two-core machine, one in
70 was; of 3,000 tiny files, one in 14."""
CLOCK_DROP = 0.9
CLOCK_LIMITED = 0.95
"""A clock limit below this share of the highest clock is worth a word: times at it are not those of the device at its best."""
FIRMWARE_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
"""Raspberry Pi, `get_throttled`; bits 16 to 19 are the same since boot."""


class Reading(BaseModel):
    """One look at the device's sensors, as `agent.sensors.Reading` says it; what the device does not have is left out of the dictionaries."""

    model_config = ConfigDict(frozen=True)

    clock_khz: dict[str, int] = {}
    limit_khz: dict[str, int] = {}
    top_khz: dict[str, int] = {}
    throttle_count: dict[str, int] = {}
    cooling: dict[str, int] = {}
    zones_mc: dict[str, int] = {}
    trips_mc: dict[str, int] = {}
    firmware: int | None = None


def throttled(readings: Sequence[Reading], samples_ms: Sequence[float]) -> str | None:
    """Why the device was, or seems to have been, slowed down between the first reading (before) and the last (after); None if nothing says so."""
    reasons = _by_sensors(readings)
    slower = slowdown(samples_ms)
    if slower and sum(samples_ms) >= LEAST_S * 1e3:
        reasons.append(f"{slower}: heat, or another load")
    return "; ".join(reasons) or None


def cautions(
    samples_ms: Sequence[float],
    count: int,
    cv: float,
    rested_s: float,
    hot: str,
    before: Sequence[Reading] = (),
    cpus: Sequence[int] | None = None,
) -> list[str]:
    """What the reader of a measurement of `count` queries should know: that they are few, their order, their spread, and that the device was rested.

    `rested_s` seconds were waited for a device that is still `hot`, or no longer. `samples_ms` may be empty, where a device says figures only.
    `before` is the reading before the measurement, if any; `cpus` are the processors that it was pinned to.
    """
    said = [f"measured hot, after resting for {rested_s:.0f} s: {hot}"] if hot else []
    if rested_s and not hot:
        said.append(f"rested for {rested_s:.0f} s before, because the device was hot")
    if count < LEAST_QUERIES:
        queries = "1 query" if count == 1 else f"{count} queries"
        said.append(f"only {queries} in the time that there was; at least {LEAST_QUERIES} are wanted, and the spread of fewer says little")
    said += [limit for reading in before[:1] if (limit := limited(reading, cpus))]
    return said + [text for text in (unsteady(samples_ms), unstable(cv)) if text is not None]


def limited(reading: Reading, cpus: Sequence[int] | None = None) -> str | None:
    """Which of the processors (None: of all) may not reach its highest clock, and by how much at most; None if all may."""
    names = reading.limit_khz if cpus is None else [f"cpu{number}" for number in cpus]
    shares = {name: reading.limit_khz[name] / reading.top_khz[name] for name in names if reading.limit_khz.get(name) and reading.top_khz.get(name)}
    lowest = min(shares, key=lambda name: (shares[name], len(name), name), default="")
    if not lowest or shares[lowest] >= CLOCK_LIMITED:
        return None
    return f"the clock limit of {lowest} is {reading.limit_khz[lowest] / 1e6:.2f} of {reading.top_khz[lowest] / 1e6:.2f} GHz"


def unstable(cv: float) -> str | None:
    """What to do about times that vary by more than `UNSTABLE_CV`; None for others."""
    if cv <= UNSTABLE_CV:
        return None
    return (
        f"UNSTABLE: the coefficient of variation is {100 * cv:.0f} %, above {100 * UNSTABLE_CV:.0f} %; end what else runs there, pin processors "
        "(--cpus), measure longer (without --quick), and compare the medians of several measurements"
    )


def unsteady(samples_ms: Sequence[float]) -> str | None:
    """What is odd about the order of the times, where it is too short to be heat; None if nothing is."""
    slower = slowdown(samples_ms)
    if slower and sum(samples_ms) < LEAST_S * 1e3:
        return f"{slower}: another load began"
    ratio, z = drift(samples_ms)
    if ratio < 1 / SLOWER and z < -SURE_Z:
        return "the last quarter of the queries is faster than the first: the device was still settling, or another load ended"
    return None


def slowdown(samples_ms: Sequence[float]) -> str | None:
    """By how much the last quarter of the queries is slower than the first; None if it is not by more than 5 %, or may be by chance."""
    ratio, z = drift(samples_ms)
    if ratio <= SLOWER or z < SURE_Z:
        return None
    quarter = len(samples_ms) // 4
    first, last = float(np.median(samples_ms[:quarter])), float(np.median(samples_ms[-quarter:]))
    return f"the last quarter of the queries is {100 * (ratio - 1):.0f} % slower than the first ({first:.4g} -> {last:.4g} ms)"


def drift(samples_ms: Sequence[float]) -> tuple[float, float]:
    """(median of the last quarter / median of the first, z of Mann and Whitney's rank sum; positive: the end is slower). (1, 0) below 20 samples."""
    if len(samples_ms) < LEAST_SAMPLES:
        return 1.0, 0.0
    quarter = len(samples_ms) // 4
    first, last = np.asarray(samples_ms[:quarter]), np.asarray(samples_ms[-quarter:])
    both = np.concatenate([first, last])
    ordered, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    del ordered
    expected, spread = quarter * (2 * quarter + 1) / 2, math.sqrt(quarter * quarter * (2 * quarter + 1) / 12)
    return float(np.median(last) / np.median(first)), float((ranks[quarter:].sum() - expected) / spread)


def _by_sensors(readings: Sequence[Reading]) -> list[str]:
    if len(readings) < 2:
        return []
    before, after, during = readings[0], readings[-1], readings[1:]
    reasons = []
    counted = sum(after.throttle_count.get(name, start) - start for name, start in before.throttle_count.items())
    if counted > 0:
        reasons.append(f"the processor counted {counted} throttling events")
    for name, start in before.limit_khz.items():
        lowest = min(reading.limit_khz.get(name, start) for reading in during)
        if lowest < start:
            reasons.append(f"the clock limit of {name} fell from {start / 1e6:.2f} to {lowest / 1e6:.2f} GHz")
            break
    for name, state in before.cooling.items():
        highest = max(reading.cooling.get(name, state) for reading in during)
        if highest > max(state, 0):
            reasons.append(f"the cooling device {name} went to state {highest}")
            break
    for name, trip in before.trips_mc.items():
        hottest = max(reading.zones_mc.get(name, 0) for reading in during)
        if 0 < trip <= hottest:
            reasons.append(f"{name} reached {hottest / 1e3:.0f} degrees, its limit is {trip / 1e3:.0f}")
            break
    bits = after.firmware or 0
    named = [word for bit, word in FIRMWARE_BITS.items() if bits >> bit & 1 or bits >> (bit + 16) & 1 & ~((before.firmware or 0) >> (bit + 16))]
    if named:
        reasons.append(f"the firmware says: {', '.join(named)}")
    reasons += _by_clock(readings)
    return reasons


def _by_clock(readings: Sequence[Reading]) -> list[str]:
    """The fastest core's clock late in the measurement against early in it. An idle core is slow whatever the heat: first and last do not count."""
    fastest = [max(reading.clock_khz.values()) for reading in readings[1:-1] if reading.clock_khz]
    if len(fastest) < 4:
        return []
    half = len(fastest) // 2
    early, late = float(np.median(fastest[:half])), float(np.median(fastest[half:]))
    if late >= CLOCK_DROP * early:
        return []
    return [f"the fastest core's clock fell from {early / 1e6:.2f} to {late / 1e6:.2f} GHz"]
