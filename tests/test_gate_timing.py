"""The statistics of the measured tier: known ratios come out, noise of every kind raises no alarm, real slowdowns do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcompress.errors import UsageError
from mcompress.reports.gate.timing import LEAST_NOISE, Ratio, Timing, noise_of, ratio_of

ROUNDS, PERCENT = 200, 3.0


def machine(kind: str, seed: int) -> np.ndarray:
    """What one machine does to 2 x ROUNDS consecutive queries: factors on the time of a query."""
    noise = np.random.default_rng(seed)
    count = 2 * ROUNDS
    steady = noise.normal(1, 0.01, count)
    if kind == "drift":  # a clock that slows down by a third over the run
        return steady * np.linspace(1, 1.33, count)
    if kind == "heavy tails":  # somebody else gets the processor now and then
        return steady * (1 + noise.pareto(1.5, count) * 0.05)
    if kind == "bimodal, slow":  # two clock frequencies, changed every half second
        return steady * np.repeat(noise.choice((1.0, 1.25), count // 40), 40)
    if kind == "bimodal, quick":  # each query by itself on one of two kinds of core
        return steady * noise.choice((1.0, 1.25), count, p=(0.7, 0.3))
    if kind == "bursts":  # three quarters of the time alone, else half the speed
        return steady * np.repeat(noise.choice((1.0, 2.0), count // 16, p=(0.75, 0.25)), 16)
    return steady


KINDS = ("quiet", "drift", "heavy tails", "bimodal, slow", "bimodal, quick", "bursts")


def samples(kind: str, seed: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Baseline and new, alternating on one machine; the new file takes `ratio` times as long."""
    factors = 5.0 * machine(kind, seed)
    return factors[0::2], factors[1::2] * ratio


def timing(kind: str, seed: int, ratio: float) -> Timing:
    first = ratio_of(*samples(kind, 2 * seed, ratio))
    return Timing((first, ratio_of(*samples(kind, 2 * seed + 1, ratio)))) if first.alarms(PERCENT) else Timing((first,))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_files_raise_no_alarm(kind: str) -> None:
    alarms = sum(timing(kind, seed, 1.0).slower(PERCENT) for seed in range(100))
    assert alarms <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bimodal, quick"])
def test_five_per_cent_is_caught(kind: str) -> None:
    caught = sum(timing(kind, seed, 1.05).slower(PERCENT) for seed in range(100))
    assert caught >= 95


def test_twenty_per_cent_is_caught_where_every_query_is_a_lottery() -> None:
    assert sum(timing("bimodal, quick", seed, 1.2).slower(PERCENT) for seed in range(100)) >= 95


def test_an_exact_ratio_is_found_exactly() -> None:
    factors = np.linspace(4.0, 6.0, 50)
    found = ratio_of(factors, factors * 1.07)
    assert found.ratio == pytest.approx(1.07)
    assert (found.low, found.high) == (pytest.approx(1.07), pytest.approx(1.07))
    assert found.rounds == 50


@given(st.floats(0.5, 2.0), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_swapping_the_sides_inverts_the_ratio(ratio: float, seed: int) -> None:
    old, now = samples("quiet", seed, ratio)
    there, back = ratio_of(old, now), ratio_of(now, old)
    assert there.ratio * back.ratio == pytest.approx(1.0)
    assert there.low <= there.ratio <= there.high


def test_the_noise_floor_grows_with_the_noise_and_has_a_least_value() -> None:
    assert ratio_of(np.full(40, 5.0), np.full(40, 5.0)).noise == LEAST_NOISE
    wild = np.random.default_rng(0).lognormal(0, 0.3, 40) * 5
    found = ratio_of(wild, np.random.default_rng(1).lognormal(0, 0.3, 40) * 5)
    assert found.noise > 0.05
    assert found.threshold(PERCENT) == found.noise
    assert found.threshold(50.0) == 0.5


@given(st.floats(0.5, 2.0), st.floats(0, 0.2), st.floats(0, 0.2))
def test_the_noise_is_the_interval_and_does_not_depend_on_the_ratio(ratio: float, below: float, above: float) -> None:
    noise = noise_of(ratio, ratio * math.exp(-below), ratio * math.exp(above))
    assert noise == pytest.approx(max(LEAST_NOISE, math.exp(2.576 / 1.96 * max(below, above)) - 1))


@pytest.mark.parametrize("kind", ["quiet", "drift"])
def test_the_noise_covers_how_far_the_estimate_is_off(kind: str) -> None:
    off = [abs(found.ratio / 1.05 - 1) / found.noise for found in (ratio_of(*samples(kind, seed, 1.05)) for seed in range(100))]
    assert sum(share > 1 for share in off) <= 3


def test_eight_rounds_of_a_slow_file_are_judged_by_their_own_scatter() -> None:
    """What neighbouring rounds say of each other is another thing: here the clock slows down by 3 % from round to round."""
    drift = 5.0 * 1.03 ** np.arange(8)
    found = ratio_of(drift, drift * 1.06)
    assert (found.noise, found.alarms(PERCENT)) == (LEAST_NOISE, True)
    wild = drift * np.tile([0.9, 1.1], 4)
    assert ratio_of(drift, wild).noise > 0.05


def test_a_round_is_the_median_of_its_queries() -> None:
    old = np.tile([5.0, 5.0, 500.0], 20)
    now = np.tile([6.0, 6.0, 0.1], 20)
    found = ratio_of(old, now, queries_per_round=3)
    assert (found.baseline_ms, found.new_ms, found.ratio) == (5.0, 6.0, pytest.approx(1.2))


def test_too_few_or_impossible_samples_are_refused() -> None:
    with pytest.raises(UsageError, match=r"5 rounds were timed; a comparison needs at least 8"):
        ratio_of([1.0] * 5, [1.0] * 200)
    with pytest.raises(UsageError, match="clock of this machine cannot be trusted"):
        ratio_of([1.0] * 20, [0.0] * 20)


def a_ratio(ratio: float, *, width: float = 0.002, noise: float = LEAST_NOISE) -> Ratio:
    return Ratio(ratio, ratio - width, ratio + width, noise, 5.0, 5.0 * ratio, 100)


def test_an_alarm_needs_a_second_pass_that_agrees() -> None:
    slow, fine = a_ratio(1.06), a_ratio(1.01)
    assert not Timing((slow,)).slower(PERCENT)
    assert not Timing((slow, fine)).slower(PERCENT)
    assert Timing((slow, slow)).slower(PERCENT)
    assert Timing((slow, a_ratio(1.04))).ratio == pytest.approx(math.sqrt(1.06 * 1.04))


def test_an_alarm_is_above_the_users_limit_and_above_the_noise() -> None:
    assert a_ratio(1.031).alarms(PERCENT)
    assert not a_ratio(1.029).alarms(PERCENT)
    assert not a_ratio(1.06, noise=0.08).alarms(PERCENT)
    assert not a_ratio(1.06, width=0.07).alarms(PERCENT)
    assert a_ratio(0.95).improves(PERCENT)
    assert not a_ratio(0.98).improves(PERCENT)
