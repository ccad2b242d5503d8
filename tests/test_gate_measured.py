"""The row of measured latency: what is slower, what noise leaves undecided, and where a decision is required."""

from __future__ import annotations

from pathlib import Path

from gate_bundles import a_comparison, gate_bundle
from gate_checks import check, row

from mcompress.reports.gate.file_rows import NotTimed
from mcompress.reports.gate.timing import Ratio, Timing
from mcompress.reports.gate.verdicts import Row


def ratio(value: float, noise: float = 0.01) -> Ratio:
    return Ratio(value, value - 0.003, value + 0.003, noise, 10.0, 10.0 * value, 100)


def test_measured_rows(baseline: Path) -> None:
    def measured(*passes: Ratio) -> Row:
        return row(check(baseline, baseline, Timing(passes)), "measured latency")

    assert measured(ratio(1.0)).verdict == "ok"
    slow = measured(ratio(1.06), ratio(1.06))
    assert (slow.verdict, slow.change, slow.tolerance, slow.baseline, slow.new) == ("regression", "+6.00 %", "+3 %", "10 ms", "10.6 ms")
    unsure = measured(ratio(1.06), ratio(1.0))
    assert unsure.verdict == "ok"
    assert unsure.note.endswith("the first pass raised an alarm, the second did not confirm it")
    assert measured(ratio(0.9)).verdict == "better"
    identical = row(check(baseline, baseline, NotTimed("the files are identical", "ok")), "measured latency")
    assert (identical.verdict, identical.note) == ("ok", "not measured: the files are identical")
    assert row(check(baseline, baseline, NotTimed("no runtime", "not comparable")), "measured latency").verdict == "not comparable"


def test_noise_above_the_tolerance_is_no_pass(baseline: Path) -> None:
    found = check(baseline, baseline, Timing((ratio(1.06, noise=0.1),)))
    noisy = row(found, "measured latency")
    assert (noisy.verdict, noisy.change, noisy.tolerance) == ("not decided", "+6.00 %", "+3 %")
    assert noisy.note.startswith("noise 10 % is above the tolerance 3 %; interleaved, 100 rounds a pass, 95 % interval ")
    assert (found.verdict, found.failing, found.must_decide) == ("not decided", (), False)
    assert row(check(baseline, baseline, Timing((ratio(1.0, noise=0.031),))), "measured latency").verdict == "not decided"
    assert row(check(baseline, baseline, Timing((ratio(1.0, noise=0.03),))), "measured latency").verdict == "ok"


def test_what_is_larger_than_the_noise_is_decided_whatever_the_noise(baseline: Path) -> None:
    slow = row(check(baseline, baseline, Timing((ratio(1.2, noise=0.1), ratio(1.2, noise=0.1)))), "measured latency")
    assert (slow.verdict, slow.note.partition(";")[0]) == ("regression", "more than the noise, 10 %")
    assert row(check(baseline, baseline, Timing((ratio(0.8, noise=0.1),))), "measured latency").verdict == "better"


def test_a_decision_can_be_required(baseline: Path, tmp_path: Path) -> None:
    required = gate_bundle(tmp_path, a_comparison(gate={"measured_required": True}))
    for timing in (Timing((ratio(1.0, noise=0.1),)), NotTimed("the time ended during a measurement", "not decided")):
        found = check(baseline, required, timing)
        assert [(row.field, row.verdict) for row in found.failing] == [("measured latency", "not decided")]
    assert not check(baseline, required, NotTimed("coreml files are not timed on this machine", "not comparable")).failing
