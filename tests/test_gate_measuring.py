"""The passes of a measurement and the time that they share, by a clock and a runtime that stand in for real ones; a real process that is ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcompress.errors import DeviceError
from mcompress.export.profile import Job, Profile
from mcompress.reports.gate import measuring
from mcompress.reports.gate.measuring import LONGER, SECONDS, WITHIN_S, BoundedHost, Budget, OutOfTime, time_files
from mcompress.reports.gate.timing import LEAST_ROUNDS, Timing

PERCENT = 3.0
OLD, NEW = Path("old"), Path("new")


class StandIn:
    """A machine whose clock only measuring moves: `ms` per query, by name of the file; starting a process takes `start_s`; `noise` is lognormal."""

    def __init__(self, *, old: float = 5.0, new: float = 5.0, noise: Callable[[int], float] = lambda _call: 0.0, start_s: float = 0.5) -> None:
        self.now_s = 0.0
        self.order: list[tuple[str, str]] = []
        self.rounds: list[int] = []
        self.ms, self._noise, self._start_s = {"old": old, "new": new}, noise, start_s
        self._random = np.random.default_rng(0)

    def clock(self) -> float:
        return self.now_s

    def interleave(self, one: Path, other: Path, backend: str, rounds: int, queries: int, budget: Budget) -> tuple[Profile, Profile]:
        noise = self._noise(len(self.order))
        self.order.append((one.name, other.name))
        self.rounds.append(rounds)
        self.now_s += self._start_s + rounds * (queries + 1) * (self.ms[one.name] + self.ms[other.name]) / 1e3
        if budget.left_s < 0:
            self.now_s += budget.left_s  # it is ended there
            raise OutOfTime("the time ended during a measurement")
        first, second = (self._profile(path, backend, rounds * queries, noise) for path in (one, other))
        return first, second

    def _profile(self, path: Path, backend: str, count: int, noise: float) -> Profile:
        ms = self.ms[path.name]
        samples = tuple((ms * self._random.lognormal(0, noise, count)).tolist())
        return Profile(Job(path, backend), "", ms, ms, ms, 0.0, count, 0.0, None, None, 0, (), (), samples)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timing]:
    """`time_files` on a stand-in, with `within_s` left."""

    def run(machine: StandIn, within_s: float = WITHIN_S, seconds: float = SECONDS) -> Timing:
        monkeypatch.setattr(measuring, "_interleave", machine.interleave)
        return time_files(OLD, NEW, "onnx", PERCENT, seconds=seconds, budget=Budget(within_s, clock=machine.clock))

    return run


def test_an_alarm_is_measured_a_second_time_in_the_other_order(timed: Callable[..., Timing]) -> None:
    machine = StandIn(new=6.0)
    timing = timed(machine)
    assert machine.order == [("old", "new"), ("old", "new"), ("new", "old")]  # the probe, the first pass, the second
    assert machine.rounds[1] == machine.rounds[2]
    assert timing.slower(PERCENT)
    assert timing.ratio == pytest.approx(1.2)
    equal = StandIn()
    assert not timed(equal).slower(PERCENT)
    assert len(equal.order) == 2


def test_where_the_noise_hides_what_is_allowed_it_is_measured_longer(timed: Callable[..., Timing]) -> None:
    machine = StandIn(noise=lambda call: 0.5 if call < 2 else 0.001)
    timing = timed(machine, 60.0)
    assert machine.rounds[2] == LONGER * SECONDS / 0.020  # two queries of 5 ms of each file, of which one counts
    assert timing.decided(PERCENT)
    assert len(timing.passes) == 1
    hasty = StandIn(old=50.0, new=50.0, noise=lambda call: 0.5 if call < 2 else 0.001)  # was interrupted while it was probed
    probe = hasty.interleave

    def then_quick(*given: object) -> tuple[Profile, Profile]:
        found = probe(*given)  # type: ignore[arg-type]
        hasty.ms.update(old=5.0, new=5.0)
        return found

    hasty.interleave = then_quick  # type: ignore[method-assign,assignment]
    timed(hasty)
    assert hasty.rounds[1] < 30
    assert hasty.rounds[2] > 150
    shorter = StandIn(noise=lambda call: 0.5 if call < 2 else 0.001)
    timed(shorter, 20.0)
    assert shorter.rounds[1] < shorter.rounds[2] < machine.rounds[2]


@pytest.mark.parametrize("files", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("new", [5.0, 6.0, 400.0])
def test_a_comparison_keeps_its_time_whatever_the_number_of_files(timed: Callable[..., Timing], files: int, noise: float, new: float) -> None:
    machine = StandIn(new=new, noise=lambda _call: noise)
    budget = Budget(WITHIN_S, clock=machine.clock)
    undecided = 0
    for index in range(files):
        share = budget.share(files - index)
        assert share.left_s == pytest.approx(max(0.0, budget.left_s) / (files - index), abs=1e-9)
        try:
            timing = timed(machine, share.left_s)
        except OutOfTime:
            undecided += 1
        else:
            assert timing.passes[0].noise > 0.03 or timing.slower(PERCENT) == (new > 5)
    assert machine.now_s <= WITHIN_S + 1e-9
    assert undecided < files or new == 400.0 or files == 20
    if files == 20 and new > 5:
        assert undecided


def test_what_does_not_fit_is_said_and_never_a_pass(timed: Callable[..., Timing]) -> None:
    slow = StandIn(old=1000.0, new=1000.0)
    with pytest.raises(OutOfTime, match=r"a pass takes 40\.6 s at least, and has 6\.\d s; more --seconds"):
        timed(slow)
    assert len(slow.order) == 1
    assert slow.now_s < WITHIN_S
    hopeless = StandIn(old=9000.0, new=9000.0)
    with pytest.raises(OutOfTime, match="the time ended"):
        timed(hopeless)


def test_an_alarm_that_cannot_be_confirmed_in_time_is_no_verdict(timed: Callable[..., Timing]) -> None:
    machine = StandIn(new=6.0)

    def slower_at_last(*given: object) -> tuple[Profile, Profile]:
        if len(machine.order) == 2:
            machine.now_s += 5.0  # something else ran meanwhile
        return StandIn.interleave(machine, *given)  # type: ignore[arg-type]

    machine.interleave = slower_at_last  # type: ignore[method-assign,assignment]
    with pytest.raises(OutOfTime, match=r"a first pass says \+20\.00 %, and could not be confirmed: the time ended"):
        timed(machine, 8.0)


@given(st.floats(1, 60), st.floats(0.001, 2), st.floats(0, 3))
def test_the_rounds_that_fit_do_fit(left_s: float, round_s: float, start_s: float) -> None:
    turns = measuring.Turns(1, round_s, start_s)
    fitting = turns.fitting(left_s)
    if fitting >= LEAST_ROUNDS:
        assert start_s + fitting * round_s <= left_s
    assert LEAST_ROUNDS <= turns.rounds(SECONDS) <= measuring.MOST_ROUNDS


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "import time\nwhile True: print('alive', flush=True); time.sleep(0.02)"])
def test_a_process_that_does_not_end_is_ended_with_the_budget(program: str) -> None:
    started = time.monotonic()
    with BoundedHost(Budget(0.3)) as host, pytest.raises(OutOfTime):
        list(host.stream([sys.executable, "-c", program]))
    assert time.monotonic() - started < 5


def test_what_ends_in_time_is_read_to_its_end_and_fails_as_itself() -> None:
    with BoundedHost(Budget(30.0)) as host:
        assert list(host.stream([sys.executable, "-c", "print(1); print(2)"])) == ["1", "2"]
        with pytest.raises(DeviceError, match="ended with code 3") as caught:
            list(host.stream([sys.executable, "-c", "raise SystemExit(3)"]))
    assert not isinstance(caught.value, OutOfTime)
