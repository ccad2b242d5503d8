"""The results of the planner's benchmark: what they conclude follows from what was measured, and the floors hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOUND = json.loads((Path(__file__).parent / "benchmarks" / "results" / "precision.json").read_text(encoding="utf-8"))
NETWORKS = ("MFAGAN", "IMDN", "RRDBNet-6")
HARMLESS_DB = 0.02
"""All-INT8 that loses less than this of the metric leaves nothing to recover."""
REPEATS_DB = 0.1
"""Plans of equal noise may differ by so much on other samples."""
ALIKE_DB = 60.0
"""Above this the noise is below that of rounding a picture to 8 bits: such outputs are equal."""

ROWS = [(name, device) for name in NETWORKS for device in FOUND["networks"][name]["devices"]]
IDS = [f"{name} {device['device']}" for name, device in ROWS]


@pytest.mark.parametrize(("name", "found"), ROWS, ids=IDS)
def test_the_planner_is_never_worse_at_equal_latency(name: str, found: dict[str, object]) -> None:
    points = found["points"]
    assert isinstance(points, list)
    assert len(points) >= 3
    for point in points:
        planner = point["planner"]
        assert planner["latency_ms"] <= point["limit_ms"] * (1 + 1e-6)
        if planner["gap"] is None:  # running both showed the greedy choice to be better, so it was taken
            assert planner["sqnr_db"] == point["greedy"]["sqnr_db"]
        else:
            assert planner["gap"] <= 1e-4
        for rival in (point["greedy"], *point["random"], found["all_int8"]):
            assert rival["latency_ms"] <= point["limit_ms"] * (1 + 1e-6)
            assert min(planner["sqnr_db"], ALIKE_DB) >= min(rival["sqnr_db"], ALIKE_DB) - REPEATS_DB


@pytest.mark.parametrize(("name", "found"), ROWS, ids=IDS)
def test_most_of_what_int8_loses_is_recovered_with_most_of_the_work_in_int8(name: str, found: dict[str, dict[str, float]]) -> None:
    assert found["all_int8_ms"] < found["all_float_ms"], "the device gains from INT8"  # type: ignore[operator]
    lost = found["all_int8_without_recovery"]["quality_lost"]
    if lost < HARMLESS_DB:
        pytest.skip(f"all-INT8 does no harm here: {lost:.4f} dB")
    recovering = found["recovering"]
    assert recovering is not None
    assert recovering["recovered_share"] == pytest.approx(1 - recovering["quality_lost"] / lost)
    assert recovering["recovered_share"] >= 0.8
    assert recovering["int8_macs"] >= 0.8


def test_planning_takes_seconds() -> None:
    seconds = FOUND["networks"]["MFAGAN"]["seconds"]
    solving = [point["planner"]["seconds"] for device in FOUND["networks"]["MFAGAN"]["devices"] for point in device["points"]]
    assert seconds["sensitivity"] + sum(solving) < 60
    many = FOUND["five_hundred_operators"]
    assert many["operators"] >= 500
    assert all(one["seconds"] < 10 and one["gap"] <= 1e-3 for one in many["solutions"])


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    few, many = FOUND["memory_mb"]["8"], FOUND["memory_mb"]["512"]
    assert many < few * 1.05
