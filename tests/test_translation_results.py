"""The results of the translation benchmark: rows follow from the trainings, the floors hold, and README says what they say."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from comparing_trainings import Results, steps_in_time
from translation import Training, of, read

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "tests" / "benchmarks" / "results" / "translation.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
ORIGINAL = json.loads((ROOT / "compress" / "tasks" / "translation" / "teacher.json").read_text(encoding="utf-8"))["held_out_psnr_db"]
ORIGINAL_DB = statistics.mean(picture["teacher"] for picture in ORIGINAL.values())
ROWS, STEPS, SEARCHES = FOUND["training"]["rows"], FOUND["training"]["steps"], FOUND["searches"]
PIX2PIX, L1 = "labelled only, pix2pix", "labelled only, L1 alone"
PLAIN, SEMI_SUPERVISED = "plain distillation", "semi-supervised"
PLAIN_FROM_ORIGINAL, WITH_ORIGINAL = "plain distillation, from the original", "semi-supervised, original too"
FROM_ORIGINAL = "semi-supervised, original alone"
STEPWISE, LONGER = "equal steps", "equal wall time"
FRACTIONS = (0.1, 0.25, 0.5)
WITHIN = 0.22
"""By how much processor times that are called equal differ at most."""


def row(way: str, labels: float, at: str = STEPWISE) -> dict[str, Any]:
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
        assert (one["steps"] == STEPS) == (one["at"] == STEPWISE)
        if one["at"] == LONGER and one["labels"] < 1.0:
            rival = row(WITH_ORIGINAL if "original" in one["way"] else SEMI_SUPERVISED, one["labels"])
            assert one["seconds"] == pytest.approx(rival["seconds"], rel=WITHIN)


def test_a_benchmark_that_is_run_again_knows_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "translation.json"
    path.write_text(json.dumps(FOUND, indent=1) + "\n", encoding="utf-8")
    results = Results(path, read, {}, again=False, depends_on={name: FOUND[name] for name in ("torch", "threads", "data")})
    wanted = [Training(SEMI_SUPERVISED, 0.25, seed, STEPS) for seed in range(3)]
    assert not list(results.complete(wanted, _never, 1))
    assert [one.db for one in of(results, SEMI_SUPERVISED, 0.25, STEPS)] == row(SEMI_SUPERVISED, 0.25)["each_db"]
    results.save()
    assert json.loads(path.read_text(encoding="utf-8")) == FOUND


def test_results_of_other_data_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "translation.json"
    path.write_text(json.dumps(FOUND), encoding="utf-8")
    results = Results(path, read, {"searches": []}, again=False, depends_on={"torch": FOUND["torch"], "data": "others"})
    assert not results.done
    assert results.document == {"trainings": [], "searches": [], "torch": FOUND["torch"], "data": "others"}
    assert json.loads(path.with_suffix(".old").read_text(encoding="utf-8")) == FOUND


def _never(training: object) -> Any:
    raise AssertionError(f"{training} was run again")


@pytest.mark.parametrize(
    ("own_s", "rival_s", "tried", "steps"),
    [(10.0, 20.0, (), 1200), (10.0, 20.2, (), 1200), (10.0, 20.0, (1150,), 1150), (10.0, 20.0, (1000,), 1200), (10.0, 0.1, (), 6)],
)
def test_equal_time_is_counted_in_steps_that_were_taken_before_where_they_are_near(
    own_s: float, rival_s: float, tried: tuple[int, ...], steps: int
) -> None:
    assert steps_in_time(600, own_s, rival_s, tried) == steps


@pytest.mark.parametrize(("way", "at"), [(PIX2PIX, STEPWISE), (L1, STEPWISE), (PIX2PIX, LONGER), (L1, LONGER), (PLAIN, LONGER)])
def test_at_a_quarter_of_the_labels_it_wins_by_more_than_the_spread(way: str, at: str) -> None:
    better, spread = gain(row(SEMI_SUPERVISED, 0.25), row(way, 0.25, at))
    assert better > spread


@pytest.mark.parametrize("way", [PIX2PIX, L1, PLAIN])
def test_at_a_tenth_of_the_labels_it_wins_by_more_than_the_spread(way: str) -> None:
    better, spread = gain(row(SEMI_SUPERVISED, 0.1), row(way, 0.1))
    assert better > spread


@pytest.mark.parametrize("at", [STEPWISE, LONGER])
def test_from_the_original_it_beats_plain_distillation_from_the_original_by_more_than_the_spread(at: str) -> None:
    better, spread = gain(row(FROM_ORIGINAL, 0.25, at), row(PLAIN_FROM_ORIGINAL, 0.25, at))
    assert better > spread


def test_at_a_quarter_of_the_labels_it_is_level_with_plain_distillation_at_equal_steps_as_readme_says() -> None:
    better, spread = gain(row(SEMI_SUPERVISED, 0.25), row(PLAIN, 0.25))
    assert 0 < better < spread


def test_where_the_original_teaches_a_quarter_of_the_labels_is_as_good_as_all_of_them_without_distillation() -> None:
    """The original has seen all labels. From a quarter of them alone pix2pix's own training with all of them is reached, and L1 is not."""
    assert row(FROM_ORIGINAL, 0.25)["mean_db"] >= row(WITH_ORIGINAL, 0.25)["mean_db"] >= row(L1, 1.0)["mean_db"]
    assert row(PIX2PIX, 1.0)["mean_db"] <= row(SEMI_SUPERVISED, 0.25)["mean_db"] < row(L1, 1.0)["mean_db"]


@pytest.mark.parametrize("at", [STEPWISE, LONGER])
def test_with_half_of_the_labels_plain_distillation_is_better_as_readme_says(at: str) -> None:
    assert row(PLAIN, 0.5, at)["mean_db"] > row(SEMI_SUPERVISED, 0.5)["mean_db"]


def test_the_search_pays() -> None:
    """Its picks beat random networks of their latency on the mean, in either way of training, in less than a fifth of the time of training all."""
    assert len(SEARCHES) == 3
    for way in ("labelled_db", "taught_db"):
        assert _picked(way) > _random(way)
    assert all(one["search_seconds"] < 0.2 * one["seconds_of_training_each_candidate"] for one in SEARCHES)


def _picked(way: str) -> float:
    return statistics.mean(one["pick"][way] for one in SEARCHES)


def _random(way: str) -> float:
    return statistics.mean(other[way] for one in SEARCHES for other in one["randoms"])


def said() -> tuple[str, str, str]:
    """README's three rows, from the results."""

    def db(way: str, labels: float = 0.25, at: str = STEPWISE) -> str:
        return f"{row(way, labels, at)['mean_db']:.2f}"

    def each(way: str, at: str = STEPWISE) -> str:
        return ", ".join(db(way, labels, at) for labels in FRACTIONS)

    spread, within = max(one["spread_db"] for one in ROWS), f"{100 * WITHIN:.0f} %"
    wins = {way: sum(one["pick"][way] > other[way] for one in SEARCHES for other in one["randoms"]) for way in ("taught_db", "labelled_db")}
    shares = [100 * one["search_seconds"] / one["seconds_of_training_each_candidate"] for one in SEARCHES]
    return (
        f"do few labels suffice? Edges to objects, one student, 96 pairs, a tenth, a quarter and a half of them labelled, {STEPS} steps, three "
        f"seeds, spread at most {spread:.2f} dB: pix2pix's own training {each(PIX2PIX)}, L1 alone {each(L1)}, plain distillation {each(PLAIN)}, "
        f"semi-supervised {each(SEMI_SUPERVISED)} dB. In the processor time of the latter, within {within}: L1 {each(L1, LONGER)}, plain "
        f"{each(PLAIN, LONGER)} dB. So with a tenth it wins, with a quarter it is level with plain distillation at equal steps and wins at equal "
        f"time, with a half plain distillation is better. All labels and no distillation: pix2pix "
        f"{db(PIX2PIX, 1.0)}, which it reaches with a quarter, and L1 {db(L1, 1.0)}, longer {db(L1, 1.0, LONGER)} dB, which it does not",
        f"and with an original that knows all labels? A quarter labelled, the original's own training not counted: plain distillation from it "
        f"{db(PLAIN_FROM_ORIGINAL)}, semi-supervised with it and learning teachers {db(WITH_ORIGINAL)}, from it alone on all inputs, twice the "
        f"pictures a step, {db(FROM_ORIGINAL)} dB; in the processor time of the second, plain {db(PLAIN_FROM_ORIGINAL, at=LONGER)}, from it alone "
        f"{db(FROM_ORIGINAL, at=LONGER)} dB; the original itself {ORIGINAL_DB:.2f} dB",
        f"does that search pay? Picks against two random networks each of the same estimated latency, {STEPS} steps, three seeds: "
        f"{_picked('taught_db'):.2f} against {_random('taught_db'):.2f} dB taught by the original (better than {wins['taught_db']} of 6), "
        f"{_picked('labelled_db'):.2f} against {_random('labelled_db'):.2f} dB from the labels alone ({wins['labelled_db']} of 6, which is no "
        f"difference). It took at most {max(shares):.1f} % of the time of training each candidate",
    )


def test_readme_says_what_the_results_say() -> None:
    for sentence in said():
        question = re.escape(sentence.split("?")[0])
        (found,) = re.findall(rf"\| ({question}\? .*?) \|", README)
        assert found == sentence
