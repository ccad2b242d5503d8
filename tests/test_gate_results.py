"""The results of the gate's benchmark: what they conclude follows from what was measured, the floors hold, and README says what they say."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from mcompress.reports.gate.timing import Ratio, Timing, noise_of
from mcompress.targets.gate import Gate

FOUND = json.loads((Path(__file__).parent / "benchmarks" / "results" / "gate.json").read_text(encoding="utf-8"))
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS, SUMMARY = FOUND["comparisons"], FOUND["summary"]
PERCENT = Gate().measured_percent


def test_verdicts_are_those_of_todays_rule() -> None:
    assert FOUND["settings"]["measured_percent"] == PERCENT
    for row in ROWS:
        passes = []
        for ratio, (low, high), noise in zip(row["ratios"], row["intervals"], row["noise"], strict=True):
            assert noise == pytest.approx(noise_of(ratio, low, high), abs=1e-4)
            passes.append(Ratio(ratio, low, high, noise_of(ratio, low, high), row["baseline_ms"], ratio * row["baseline_ms"], row["rounds"]))
        timing = Timing(tuple(passes))
        assert (timing.slower(PERCENT), timing.decided(PERCENT)) == (row["alarm"], row["decided"])
        assert passes[0].alarms(PERCENT) == (len(passes) == 2), "a second pass follows an alarm, and nothing else"


def test_the_summary_counts_the_comparisons() -> None:
    for kind, alarms in (("equal", "alarms"), ("slower", "caught")):
        rows = [row for row in ROWS if row["kind"] == kind]
        undecided = sum(not row["decided"] for row in rows)
        assert SUMMARY[kind] == {"comparisons": len(rows), alarms: sum(row["alarm"] for row in rows), "undecided": undecided}
    assert SUMMARY["longest comparison, s"] == max(row["seconds"] for row in ROWS)
    medians = {
        backend: statistics.median(ratio for row in ROWS if (row["kind"], row["backend"]) == ("slower", backend) for ratio in row["ratios"])
        for backend in FOUND["calibration"]
    }
    assert SUMMARY["slowdown, median of the comparisons"] == pytest.approx(medians, abs=1e-5)
    every = [*medians.values(), *SUMMARY["slowdown, calibration"].values()]
    assert SUMMARY["slowdown, percent from and to"] == pytest.approx([100 * (min(every) - 1), 100 * (max(every) - 1)], abs=0.01)


def test_the_floors_hold() -> None:
    equal, slower = SUMMARY["equal"], SUMMARY["slower"]
    assert (equal["comparisons"], slower["comparisons"]) == (200, 100)
    assert equal["alarms"] <= 2
    assert slower["caught"] >= 95
    assert max(SUMMARY["slowdown, percent from and to"]) <= 5
    assert SUMMARY["longest comparison, s"] < 30


def test_readme_says_what_the_results_say() -> None:
    equal, slower = SUMMARY["equal"], SUMMARY["slower"]
    from_percent, to_percent = SUMMARY["slowdown, percent from and to"]
    (said,) = re.findall(r"does the gate cry wolf\? (.*?) \|", README)
    assert said == (
        f"{equal['comparisons']} comparisons of equal files: {equal['alarms']} alarms. {slower['comparisons']} of files {from_percent:.1f} to "
        f"{to_percent:.1f} % slower: {slower['caught']} caught. {math.ceil(SUMMARY['longest comparison, s'])} s at most"
    )
