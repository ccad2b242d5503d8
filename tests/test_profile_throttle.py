"""What a device's sensors and the order and spread of its times say about a measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stand_in_machine import sensors

from mcompress.export.agent import sensors as agent_sensors
from mcompress.export.profile import statistics
from mcompress.export.profile_throttle import UNSTABLE_CV, Reading, cautions, drift, limited, throttled, unstable, unsteady


def reading(root: Path) -> Reading:
    return Reading.model_validate(agent_sensors.read_sensors(root))


def test_the_readings_of_both_sides_have_the_same_fields(tmp_path: Path) -> None:
    assert set(agent_sensors.Reading.__annotations__) == set(Reading.model_fields)
    assert reading(tmp_path) == Reading()


def test_throttling_that_the_device_says_is_said(tmp_path: Path) -> None:
    cool = reading(sensors(tmp_path))
    assert throttled([cool, cool], [1.0] * 100) is None
    for changed, said in (
        ({"count": 8}, "counted 5 throttling events"),
        ({"limit": 1_200_000}, "clock limit of cpu0 fell from 2.00 to 1.20 GHz"),
        ({"state": 2}, "cooling device cooling_device0 cpufreq-cpu0 went to state 2"),
        ({"temp": 86_000}, "reached 86 degrees, its limit is 85"),
    ):
        after = reading(sensors(tmp_path, **changed))  # type: ignore[arg-type]
        assert said in (throttled([cool, after], [1.0] * 100) or ""), changed
        if "count" not in changed:  # seen in the middle, and gone at the end
            assert said in (throttled([cool, after, cool], [1.0] * 100) or ""), changed


def test_a_clock_that_is_limited_all_along_is_a_caution_and_no_throttling(tmp_path: Path) -> None:
    low = reading(sensors(tmp_path, limit=1_200_000))
    assert throttled([low, low], [1.0] * 100) is None
    assert cautions([1.0] * 100, 100, 0.0, 0.0, "", [low]) == ["the clock limit of cpu0 is 1.20 of 2.00 GHz"]
    assert limited(reading(sensors(tmp_path, limit=1_900_000))) is None  # 0.95
    assert limited(reading(sensors(tmp_path, limit=1_899_999))) == "the clock limit of cpu0 is 1.90 of 2.00 GHz"
    unequal = Reading(limit_khz={"cpu0": 1_000, "cpu4": 1_400_000, "cpu5": 2_100_000}, top_khz={"cpu4": 2_800_000, "cpu5": 2_800_000})
    assert limited(unequal) == "the clock limit of cpu4 is 1.40 of 2.80 GHz"
    assert limited(unequal, (5, 0)) == "the clock limit of cpu5 is 2.10 of 2.80 GHz"
    assert limited(unequal, (0, 7)) is None


def test_a_falling_clock_and_the_firmware_are_said() -> None:
    clocks = [600_000, 2_000_000, 2_000_000, 1_990_000, 1_500_000, 1_490_000, 1_480_000, 600_000]
    said = throttled([Reading(clock_khz={"cpu4": clock, "cpu0": 300_000}) for clock in clocks], [1.0] * 100)
    assert said is not None
    assert "fell from 2.00 to 1.49 GHz" in said
    assert throttled([Reading(firmware=0), Reading(firmware=0x20002)], [1.0]) == "the firmware says: clock capped"
    assert throttled([Reading(firmware=0x50000), Reading(firmware=0x50000)], [1.0]) is None  # since boot, not now


def test_drift_is_heat_only_when_it_lasts_and_never_chance() -> None:
    random = np.random.default_rng(0)
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(10.0, 1.0, 1000)
        assert throttled([], tuple(noise)) is None
    slowing = 10 * np.linspace(1.0, 1.4, 1000) + random.normal(0, 0.3, 1000)
    assert "slower than the first" in (throttled([], tuple(slowing)) or "")
    assert throttled([], tuple(slowing / 100)) is None  # 0.1 s in all: not heat
    assert "another load began" in (unsteady(tuple(slowing / 100)) or "")
    assert "still settling" in (unsteady(tuple(slowing[::-1])) or "")
    assert drift([5.0] * 100) == (1.0, 0.0)
    assert drift([1.0] * 3) == (1.0, 0.0)


def test_the_rank_sum_is_mann_and_whitneys() -> None:
    """U counts the pairs of which the later query is slower, half of the ties; its mean is n^2 / 2, its variance n^2 (2 n + 1) / 12."""
    values = np.random.default_rng(1).integers(0, 300, 400).astype(float)
    first, last = values[:100], values[-100:]
    slower, ties = (last[:, None] > first).sum(), (last[:, None] == first).sum()
    assert ties > 10
    z = (slower + ties / 2 - 100**2 / 2) / np.sqrt(100**2 * 201 / 12)
    assert drift(tuple(values)) == (pytest.approx(np.median(last) / np.median(first)), pytest.approx(z))
    assert drift(tuple(values[::-1]))[1] == pytest.approx(-z)


def test_statistics_are_the_formulas() -> None:
    p50, p90, mean, cv = statistics([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (p50, mean) == (3.0, 22.0)
    assert p90 == pytest.approx(4 + 0.6 * 96)
    assert cv == pytest.approx(np.std([1, 2, 3, 4, 100], ddof=1) / 22)
    assert statistics([2.0]) == (2.0, 2.0, 2.0, 0.0)


def test_times_that_vary_much_are_called_unstable_with_the_threshold_and_what_to_do() -> None:
    assert unstable(UNSTABLE_CV) is None
    said = unstable(0.92)
    assert said is not None
    assert said.startswith("UNSTABLE: the coefficient of variation is 92 %, above 20 %; ")
    assert "--cpus" in said
    assert cautions([1.0] * 100, 100, 0.0, 0.0, "") == []
    assert cautions([], 100, 0.92, 0.0, "") == [said]
    for count, queries in ((1, "1 query"), (9, "9 queries")):
        few = f"only {queries} in the time that there was; at least 10 are wanted, and the spread of fewer says little"
        assert cautions([1.0] * count, count, 0.0, 0.0, "") == cautions([], count, 0.0, 0.0, "") == [few]
    assert cautions([1.0] * 10, 10, 0.0, 0.0, "") == []
    assert cautions([], 100, 0.0, 31.0, "") == ["rested for 31 s before, because the device was hot"]
    assert cautions([], 100, 0.0, 60.0, "cpu-thermal is at 90 degrees") == ["measured hot, after resting for 60 s: cpu-thermal is at 90 degrees"]
