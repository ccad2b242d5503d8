"""The results of the talking-face benchmark: rows follow from the trainings, and the floors hold."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from mcompress.compress.models.wav2lip import QUARTER_WIDTH
from mcompress.targets.load import load_target
from mcompress.targets.stages import DistillConfig

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "benchmarks" / "results"
FOUND = json.loads((RESULTS / "talking_face.json").read_text(encoding="utf-8"))
PRECISION = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))["networks"]["wav2lip-cut"]["devices"]
STEPWISE, LONGER = "equal steps", "equal wall time"
BARE, HAND_MADE = "original without residual blocks", "hand-made cut"
DISTILLED, RIVALS, TUNED = "distilled", ("from scratch", "adversarial", "adversarial, squared errors"), "tuned"
BETTER = {"psnr_db": 1, "mouth_opening_error": -1, "mouth_width_error": -1, "lip_sync": 1}
"""Metric -> whether more (1) or less (-1) of it is better."""
WITHIN = 0.22
"""By how much processor times that are called equal differ at most."""
HARMLESS_DB = 0.02
"""All-INT8 that loses less than this of the metric leaves nothing to recover."""
ALL_ROWS = [*FOUND["training"]["rows"], *FOUND["cut"]["rows"]]


def row(way: str, at: str) -> dict[str, Any]:
    (found,) = [one for one in FOUND["training"]["rows"] if (one["way"], one["at"]) == (way, at)]
    return dict(found)


@pytest.mark.parametrize("one", ALL_ROWS, ids=[f"{one['network']} {one['way']} {one['at']}" for one in ALL_ROWS])
def test_rows_follow_from_the_trainings(one: dict[str, Any]) -> None:
    wanted = {name: one[name] for name in ("network", "way", "steps")} | {"rate": one["learning_rate"]}
    runs = [run for run in FOUND["trainings"] if {name: run["training"][name] for name in wanted} == wanted]
    runs.sort(key=lambda run: run["training"]["seed"])
    assert [run["training"]["seed"] for run in runs] == [0, 1, 2]
    for metric in BETTER:
        values = [run["worth"][metric] for run in runs]
        assert one[f"each_{metric}"] == values
        assert one[f"mean_{metric}"] == pytest.approx(statistics.mean(values), abs=1e-4)
        assert one[f"spread_{metric}"] == pytest.approx(statistics.stdev(values), abs=1e-4)
    if one["at"] == LONGER:
        assert one["seconds"] == pytest.approx(row(FOUND["training"]["slowest"], STEPWISE)["seconds"], rel=WITHIN)


def test_distillation_is_that_of_the_target() -> None:
    stages = load_target(ROOT / "targets" / "jetson-xavier-nx-talking-face.yaml").stages
    (distill,) = [stage for stage in stages if isinstance(stage, DistillConfig)]
    compared = DistillConfig(batch_size=FOUND["batch_size"], crop_size=distill.crop_size, steps=distill.steps, **FOUND["terms"])
    assert compared.model_dump(exclude={"learning_rate"}) == distill.model_dump(exclude={"learning_rate"})
    assert distill.learning_rate in FOUND["learning_rates"]


@pytest.mark.parametrize("way", [DISTILLED, *RIVALS, TUNED])
def test_each_way_has_the_better_of_the_learning_rates(way: str) -> None:
    tried = {
        run["training"]["rate"]: run["worth"]["psnr_db"]
        for run in FOUND["trainings"]
        if (run["training"]["network"], run["training"]["way"], run["training"]["seed"], run["training"]["steps"])
        == (BARE, way, 0, FOUND["training"]["steps"])
    }
    assert set(tried) == set(FOUND["learning_rates"])
    assert row(way, STEPWISE)["learning_rate"] == max(tried, key=lambda rate: tried[rate])


def test_the_student_is_what_the_target_prunes_the_original_to() -> None:
    student = FOUND["training"]["student"]
    assert (student["params"], student["macs"], student["edits"]) == (753_579, 73_100_160, 0)


@pytest.mark.parametrize("at", [STEPWISE, LONGER])
@pytest.mark.parametrize("way", RIVALS)
@pytest.mark.parametrize("metric", list(BETTER))
def test_distilled_without_adversary_is_at_least_as_good(metric: str, way: str, at: str) -> None:
    """Within the spread of three seeds."""
    distilled = row(DISTILLED, at if FOUND["training"]["slowest"] != DISTILLED else STEPWISE)
    rival = row(way, at if FOUND["training"]["slowest"] != way else STEPWISE)
    gain = BETTER[metric] * (distilled[f"mean_{metric}"] - rival[f"mean_{metric}"])
    assert gain >= -max(distilled[f"spread_{metric}"], rival[f"spread_{metric}"])


def test_the_cut_is_the_published_one_and_what_is_compared_with_it_costs_no_more() -> None:
    (cut,) = [one for one in FOUND["cut"]["networks"] if one["network"] == HAND_MADE]
    assert (cut["params"], cut["macs"]) == (1_258_143, 75_002_880)
    assert cut["args"]["face_widths"] == list(QUARTER_WIDTH["face_widths"])
    others = [one for one in FOUND["cut"]["networks"] if one is not cut]
    assert sorted((one["network"], one["seed"]) for one in others) == [(name, seed) for name in ("prune", "search") for seed in range(3)]
    for one in others:
        assert one["latency_ms"] <= cut["latency_ms"] + 1e-4
        assert one["macs"] <= cut["macs"]


@pytest.mark.parametrize("device", PRECISION, ids=[one["device"] for one in PRECISION])
@pytest.mark.parametrize("part", ["with recovery", "selection_alone"])
def test_choosing_precisions_brings_back_what_int8_throughout_loses(device: dict[str, Any], part: str) -> None:
    found = device if part == "with recovery" else device["selection_alone"]
    if found["all_int8_without_recovery"]["quality_lost"] < HARMLESS_DB:
        pytest.skip("all-INT8 does no harm here")
    recovering = found["recovering"]
    assert recovering["recovered_share"] >= 0.8
    assert recovering["recovered_share"] >= statistics.mean(recovering["random_recovered_shares"])


def test_all_int8_does_harm_somewhere() -> None:
    """Otherwise there would be nothing to bring back, and the floor would be empty."""
    assert max(one["all_int8_without_recovery"]["quality_lost"] for one in PRECISION) >= HARMLESS_DB


@pytest.mark.parametrize("ratio", FOUND["speed"]["ratios"], ids=[f"{one['backend']} {one['precision']}" for one in FOUND["speed"]["ratios"]])
def test_the_compressed_file_is_ten_times_as_fast_as_the_original(ratio: dict[str, Any]) -> None:
    """Both float, exported the same way; or the compressed one in mixed precisions."""
    of = {(one["network"], one["precision"]): one for one in FOUND["speed"]["files"] if one["backend"] == ratio["backend"]}
    slow, fast = of["original", "float"]["each_ms"], of["compressed", ratio["precision"]]["each_ms"]
    assert ratio["median"] == pytest.approx(statistics.median(one / other for one, other in zip(slow, fast, strict=True)), abs=1e-2)
    assert ratio["median"] >= 10


def test_it_keeps_up_with_speech_on_one_core() -> None:
    assert len(FOUND["speed"]["streams"]) == 4
    assert all(one["least"] >= 25 for one in FOUND["speed"]["streams"])
