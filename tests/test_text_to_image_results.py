"""The results of the text-to-image benchmarks: summaries follow from the trainings, and the floors hold."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent / "benchmarks" / "results"
STEPS, EVOLVING = (json.loads((RESULTS / f"text_to_image_{part}.json").read_text(encoding="utf-8")) for part in ("steps", "evolving"))
FIGURES = {"attribute_accuracy": "percent", "whole_captions": "percent", "scene_distance": "distance", "psnr_db": "db"}
TEACHER, UNDISTILLED = "original, 32 steps", "original, 8 steps"
VANILLA, MIX, HALF = "vanilla", "mix", "half guided"
BY_VALUE, AT_RANDOM, BY_SIZE = "by value", "at random", "by size"
EQUAL_LATENCY = 0.06
"""By how much latencies that are called equal differ at most: whole blocks go."""


def mean(row: dict[str, Any], figure: str) -> float:
    return float(row[figure][f"mean_{FIGURES[figure]}"])


@pytest.mark.parametrize("found", [STEPS, EVOLVING], ids=["steps", "evolving"])
def test_summaries_follow_from_the_trainings(found: dict[str, Any]) -> None:
    for way, row in found["ways"].items():
        runs = sorted((run for run in found["trainings"] if run["training"]["way"] == way), key=lambda run: run["training"]["seed"])
        assert [run["training"]["seed"] for run in runs] == [0, 1, 2]
        assert {run["training"]["steps"] for run in runs} == {found["steps"]}
        for figure in FIGURES:
            each = [statistics.mean(run["worth"][figure]) for run in runs]
            assert mean(row, figure) == pytest.approx(statistics.mean(each), abs=1e-3)


@pytest.mark.parametrize("found", [STEPS, EVOLVING], ids=["steps", "evolving"])
def test_all_are_held_against_the_same_original(found: dict[str, Any]) -> None:
    assert found["teacher"] == STEPS["teacher"]
    assert found["references"][TEACHER] == STEPS["references"][TEACHER]
    assert found["guidance"] == STEPS["guidance"]
    assert (found["teacher_steps"], found["student_steps"]) == (32, 8)


def spread(row: dict[str, Any], figure: str) -> float:
    return float(row[figure][f"spread_{FIGURES[figure]}"])


@pytest.mark.parametrize("figure", ["attribute_accuracy", "whole_captions"])
def test_distilled_8_steps_beat_undistilled_ones_and_come_within_the_spread_of_32(figure: str) -> None:
    undistilled, original, distilled = STEPS["references"][UNDISTILLED], STEPS["references"][TEACHER], STEPS["ways"][HALF]
    assert mean(distilled, figure) > mean(undistilled, figure) + spread(undistilled, figure)
    assert mean(distilled, figure) >= mean(original, figure) - spread(original, figure)


def test_the_distribution_of_distilled_8_steps_is_nearer_too() -> None:
    figure = "scene_distance"
    undistilled, original, distilled = STEPS["references"][UNDISTILLED], STEPS["references"][TEACHER], STEPS["ways"][HALF]
    assert mean(distilled, figure) < mean(undistilled, figure)
    assert mean(distilled, figure) <= mean(original, figure) + spread(original, figure)


def test_the_guidance_aware_mix_makes_captions_right_at_little_cost_in_distance() -> None:
    vanilla, mix = STEPS["ways"][VANILLA], STEPS["ways"][MIX]
    assert mean(mix, "attribute_accuracy") > mean(vanilla, "attribute_accuracy") + spread(vanilla, "attribute_accuracy")
    assert mean(mix, "scene_distance") <= mean(vanilla, "scene_distance") + spread(vanilla, "scene_distance")


@pytest.mark.parametrize("other", [AT_RANDOM, BY_SIZE])
@pytest.mark.parametrize(("figure", "better"), [("attribute_accuracy", 1), ("whole_captions", 1), ("psnr_db", 1), ("scene_distance", -1)])
def test_evolving_by_value_beats_every_other_order_at_equal_latency(other: str, figure: str, better: int) -> None:
    ours, theirs = EVOLVING["ways"][BY_VALUE], EVOLVING["ways"][other]
    assert better * mean(ours, figure) > better * mean(theirs, figure)
    for one, another in zip(ours["latency_ms"], theirs["latency_ms"], strict=True):
        assert one == pytest.approx(another, rel=EQUAL_LATENCY)
        assert max(one, another) <= EVOLVING["latency_ratio"] * EVOLVING["references"]["original_latency_ms"]


def test_by_value_no_seed_loses_as_much_as_the_best_seed_of_another_order() -> None:
    worst = min(EVOLVING["ways"][BY_VALUE]["attribute_accuracy"]["each_percent"])
    assert worst > max(value for other in (AT_RANDOM, BY_SIZE) for value in EVOLVING["ways"][other]["attribute_accuracy"]["each_percent"])
