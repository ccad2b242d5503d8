"""When a query counts, and when a measurement is finished: a stand-in machine whose clocks jump as no real one does on request."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in_machine import MS, FakeMachine, rules

from mcompress.export.agent import protocol
from mcompress.export.agent.stopwatch import Stopwatch, alternate, measure
from mcompress.export.profile import FailedJob, Job, Profile, Rules
from mcompress.export.profile_agent import Line, Result, profile_of
from mcompress.export.profile_throttle import Reading


def test_a_quiet_clock_drops_nothing() -> None:
    machine = FakeMachine()
    watch = measure(lambda: machine.work(5 * MS), rules(), machine.clocks)
    assert watch.samples_ns == [5 * MS] * 20
    assert watch.jumps == []


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        (lambda machine: machine.work(5 * MS, wall_ns=3600 * 1000 * MS), "wall clock jumped by +3599"),
        (lambda machine: machine.work(5 * MS, wall_ns=-1000 * MS), "wall clock jumped by -1.0"),
        (lambda machine: machine.work(-20 * MS), "went back by 0.020 s"),
        (lambda machine: machine.work(30_000 * MS, processor_ns=5 * MS), "30.0 s and no processor time: the machine stood still"),
    ],
)
def test_a_clock_that_jumps_is_noticed_and_its_query_dropped(strange: Callable[[FakeMachine], None], said: str) -> None:
    machine, calls = FakeMachine(), itertools.count()
    watch = Stopwatch(machine.clocks)
    for _ in range(30):
        watch.query(lambda: strange(machine) if next(calls) == 12 else machine.work(5 * MS))
    assert watch.samples_ns == [5 * MS] * 29
    assert len(watch.jumps) == 1
    assert said in watch.jumps[0]


def test_a_slow_query_that_computes_is_kept() -> None:
    machine, calls = FakeMachine(), itertools.count()
    watch = Stopwatch(machine.clocks)
    for _ in range(10):
        watch.query(lambda: machine.work(2000 * MS if next(calls) == 5 else 5 * MS))
    assert len(watch.samples_ns) == 10
    assert max(watch.samples_ns) == 2000 * MS


def test_a_clock_that_never_stops_jumping_ends() -> None:
    machine = FakeMachine()
    watch = measure(lambda: machine.work(MS, wall_ns=10**12), rules(max_seconds=1.0), machine.clocks)
    assert watch.samples_ns == []
    assert len(watch.jumps) >= 20


def test_the_rules_are_queries_or_seconds_whichever_comes_first_but_ten_at_least() -> None:
    def count(each_ns: int, asked: protocol.Rules) -> int:
        machine = FakeMachine()
        return len(measure(lambda: machine.work(each_ns), asked, machine.clocks).samples_ns)

    assert count(MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 1024
    assert count(1000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 60
    assert count(20_000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 10
    assert count(100_000 * MS, rules(min_queries=1024, min_seconds=60.0, max_seconds=600.0)) == 6
    single = Rules.SINGLE_STREAM
    assert (single.min_queries, single.min_seconds) == (1024, 60.0)


def test_turns_keep_whole_rounds_of_both() -> None:
    machine, calls = FakeMachine(), itertools.count()
    order: list[str] = []

    def a() -> None:
        order.append("a")
        machine.work(2 * MS, wall_ns=10**12 if next(calls) == 5 else None)

    def b() -> None:
        order.append("b")
        machine.work(3 * MS)

    first, second, jumps = alternate(a, b, 4, 3, machine.clocks)
    assert "".join(order) == "aaaabbbb" * 4  # one that does not count, then three
    assert (first, second) == ([2 * MS] * 9, [3 * MS] * 9)
    assert len(jumps) == 1


def test_a_clock_limit_before_the_measurement_is_in_the_profile(tmp_path: Path) -> None:
    result = Result(runtime="r", load_ms=1.0, samples_ms=(1.0,) * 20, clock_jumps=0, peak_memory_mb=None, warnings=())
    low = Reading(limit_khz={"cpu0": 1_200_000, "cpu1": 2_800_000}, top_khz={"cpu0": 2_800_000, "cpu1": 2_800_000})
    line = Line(event="result", readings=(low, low))
    for cpus, warnings in ((None, ("the clock limit of cpu0 is 1.20 of 2.80 GHz",)), ((1,), ())):
        found = profile_of(Job(tmp_path, "onnx", cpus=cpus), result, line)
        assert isinstance(found, Profile)
        assert (found.throttled, found.warnings) == (None, warnings)


def test_a_clock_that_spoiled_every_query_fails_the_file_with_its_reason(tmp_path: Path) -> None:
    result = Result(runtime="r", load_ms=1.0, samples_ms=(), clock_jumps=7, peak_memory_mb=None, warnings=("the wall clock jumped",))
    found = profile_of(Job(tmp_path, "onnx"), result, Line(event="result"))
    assert isinstance(found, FailedJob)
    assert found.reason == "no query counted: the wall clock jumped"
