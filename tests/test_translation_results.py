"""The results of the translation benchmark: rows follow from the trainings, the floors hold, and README says what they say."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

FOUND = json.loads((Path(__file__).parent / "benchmarks" / "results" / "translation.json").read_text(encoding="utf-8"))
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS, STEPS = FOUND["training"]["rows"], FOUND["training"]["steps"]
PIX2PIX, L1 = "labelled only, pix2pix", "labelled only, L1 alone"
PLAIN, SEMI_SUPERVISED = "plain distillation", "semi-supervised"
LONGER = "equal wall time"
PLAIN_FROM_ORIGINAL, WITH_ORIGINAL = "plain distillation, from the original", "semi-supervised, original too"


def row(way: str, labels: float, at: str = "equal steps") -> dict[str, Any]:
    (found,) = [one for one in ROWS if (one["way"], one["labels"], one["at"]) == (way, labels, at)]
    return dict(found)


def gain(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """By how much the mean is better, and the larger spread of the two, dB."""
    return one["mean_db"] - other["mean_db"], max(one["spread_db"], other["spread_db"])


def test_rows_follow_from_the_trainings() -> None:
    for one in ROWS:
        values = [
            run["db"]
            for run in sorted(FOUND["trainings"], key=lambda run: run["training"]["seed"])
            if (run["training"]["way"], run["training"]["fraction"], run["training"]["steps"]) == (one["way"], one["labels"], one["steps"])
        ]
        assert len(values) == FOUND["training"]["seeds"] == 3
        assert one["each_db"] == values
        assert one["mean_db"] == pytest.approx(statistics.mean(values), abs=1e-3)
        assert one["spread_db"] == pytest.approx(statistics.stdev(values), abs=1e-3)
        assert (one["steps"] == STEPS) == (one["at"] == "equal steps")


@pytest.mark.parametrize(("way", "at"), [(PIX2PIX, "equal steps"), (L1, "equal steps"), (PIX2PIX, LONGER), (L1, LONGER), (PLAIN, LONGER)])
def test_at_a_quarter_of_the_labels_it_wins_by_more_than_the_spread(way: str, at: str) -> None:
    better, spread = gain(row(SEMI_SUPERVISED, 0.25), row(way, 0.25, at))
    assert better > spread


def test_with_the_original_it_beats_plain_distillation_from_the_original_at_equal_steps_and_not_at_equal_wall_time() -> None:
    better, spread = gain(row(WITH_ORIGINAL, 0.25), row(PLAIN_FROM_ORIGINAL, 0.25))
    assert better > spread
    longer, _ = gain(row(PLAIN_FROM_ORIGINAL, 0.25, "equal wall time"), row(WITH_ORIGINAL, 0.25))
    assert longer > 0, "README says so"


def test_a_quarter_of_the_labels_is_enough() -> None:
    """Where the original teaches, against L1 with all labels; without it against pix2pix's own training."""
    assert row(WITH_ORIGINAL, 0.25)["mean_db"] >= row(L1, 1.0)["mean_db"]
    assert row(SEMI_SUPERVISED, 0.25)["mean_db"] >= row(PIX2PIX, 1.0)["mean_db"]


def test_readme_says_what_the_results_say() -> None:
    (said,) = re.findall(r"do few labels suffice\? (.*?) \|", README)

    def db(way: str, labels: float = 0.25, at: str = "equal steps") -> str:
        return f"{row(way, labels, at)['mean_db']:.2f}"

    spread = max(row(way, 0.25)["spread_db"] for way in (PIX2PIX, L1, PLAIN, SEMI_SUPERVISED, PLAIN_FROM_ORIGINAL, WITH_ORIGINAL))
    assert said == (
        f"Edges to objects, one student, a quarter of 96 pairs labelled, {STEPS} steps, three seeds, spread at most {spread:.2f} dB: "
        f"pix2pix's own training {db(PIX2PIX)}, L1 alone {db(L1)}, plain distillation {db(PLAIN)}, semi-supervised {db(SEMI_SUPERVISED)} dB; "
        f"where the original teaches, plain {db(PLAIN_FROM_ORIGINAL)}, semi-supervised {db(WITH_ORIGINAL)} dB. "
        f"All labels and no distillation: pix2pix {db(PIX2PIX, 1.0)}, L1 {db(L1, 1.0)} dB. "
        f"At equal wall time, a quarter labelled: pix2pix {db(PIX2PIX, at=LONGER)}, L1 {db(L1, at=LONGER)}, "
        f"plain {db(PLAIN, at=LONGER)}, plain from the original {db(PLAIN_FROM_ORIGINAL, at=LONGER)} dB"
    )
