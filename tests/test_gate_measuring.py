"""The passes of a measurement and the time that they share, by a clock and a runtime that stand in for real ones; a real process that is ended."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcompress.errors import DeviceError, ExportError, MCompressError
from mcompress.export.profile import Job, Profile
from mcompress.reports.gate import measuring
from mcompress.reports.gate.measuring import LONGER, SECONDS, WITHIN_S, BoundedHost, OutOfTime, Pair, TimeBudget, Turns, time_files, time_pairs
from mcompress.reports.gate.timing import LEAST_ROUNDS, Timing
from mcompress.targets.connect import Host

PERCENT = 3.0
OLD, NEW = Path("old"), Path("new")
Timings = dict[str, Timing | MCompressError]


class StandIn:
    """A machine whose clock only measuring moves: `ms` per query, by name of the file; loading both takes `start_s`; `noise` is lognormal."""

    def __init__(self, *, old: float = 5.0, new: float = 5.0, noise: Callable[[int], float] = lambda _call: 0.0, start_s: float = 0.5) -> None:
        self.now_s = 0.0
        self.throttled: str | None = None
        self.clock_jumps = 0
        self.order: list[tuple[str, str]] = []
        self.rounds: list[int] = []
        self.ms, self._noise, self._start_s = {"old": old, "new": new}, noise, start_s
        self._random = np.random.default_rng(0)

    def clock(self) -> float:
        return self.now_s

    def warm_up_s(self, name: str, wanted_s: float) -> float:
        """As the measuring program does it."""
        each_s = self.ms[name] / 1e3
        return each_s if each_s >= 10 * wanted_s else each_s * max(3, math.ceil(wanted_s / each_s))

    def interleave(self, one: Path, other: Path, backend: str, rounds: int, turns: Turns, budget: TimeBudget) -> tuple[Profile, Profile]:
        noise = self._noise(len(self.order))
        self.order.append((one.name, other.name))
        self.rounds.append(rounds)
        self.now_s += self._start_s + sum(self.warm_up_s(path.name, turns.warm_up_s) for path in (one, other))
        self.now_s += rounds * (turns.queries + 1) * (self.ms[one.name] + self.ms[other.name]) / 1e3
        if budget.left_s < 0:
            self.now_s += budget.left_s  # it is ended there
            raise OutOfTime("the time ended during a measurement")
        first, second = (self._profile(path, backend, rounds * turns.queries, noise) for path in (one, other))
        return first, second

    def _profile(self, path: Path, backend: str, count: int, noise: float) -> Profile:
        ms = self.ms[path.name]
        samples = tuple((ms * self._random.lognormal(0, noise, count)).tolist())
        return Profile(Job(path, backend), "", ms, ms, ms, 0.0, count, 0.0, None, self.throttled, self.clock_jumps, (), (), samples)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timing]:
    """`time_files` on a stand-in, with `within_s` left."""

    def run(machine: StandIn, within_s: float = WITHIN_S, seconds: float = SECONDS) -> Timing:
        monkeypatch.setattr(measuring, "_interleave", machine.interleave)
        return time_files(OLD, NEW, "onnx", PERCENT, seconds=seconds, budget=TimeBudget(within_s, clock=machine.clock))

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


def test_what_disturbed_a_pass_is_said(timed: Callable[..., Timing]) -> None:
    machine = StandIn(new=6.0)
    assert [one.notes for one in timed(machine).passes] == [(), ()]
    machine.throttled, machine.clock_jumps = "cpu0 fell to 1.2 GHz", 2
    said = ("throttled: cpu0 fell to 1.2 GHz", "2 rounds left out, because the clock jumped in them")
    assert [one.notes for one in timed(machine).passes] == [said, said]


def test_it_is_measured_on_the_fastest_processor_where_they_are_unequal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Job] = []

    def interleave(_host: BoundedHost, a: Job, b: Job, *, rounds: int, queries_per_round: int) -> tuple[Profile, Profile]:
        assert (rounds, queries_per_round) == (8, 1)
        asked.extend((a, b))
        raise ExportError("not here")

    unequal = replace(Host().facts(), cores_khz=(1_800_000, 2_400_000))
    monkeypatch.setattr(Host, "facts", lambda _host: unequal)
    monkeypatch.setattr(measuring, "interleave", interleave)
    with pytest.raises(ExportError, match="not here"):
        measuring._interleave(tmp_path / "a", tmp_path / "b", "onnx", 8, Turns(1, 0.1, 0.1), TimeBudget(10))
    assert [job.cpus for job in asked] == [(1,), (1,)]


def test_where_the_noise_hides_what_is_allowed_it_is_measured_longer(timed: Callable[..., Timing]) -> None:
    machine = StandIn(noise=lambda call: 0.5 if call < 2 else 0.001)
    timing = timed(machine, 60.0)
    assert machine.rounds[2] == pytest.approx(LONGER * SECONDS / 0.020, rel=0.02)  # two queries of 5 ms of each file, of which one counts
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
    timed(shorter, 12.0)
    assert shorter.rounds[1] < shorter.rounds[2] < machine.rounds[2]


@pytest.fixture
def all_timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timings]:
    """`time_pairs` on a stand-in: so many equal files, of which the first `slower` are 6 % slower than their baselines."""

    def run(machine: StandIn, files: int, slower: int = 0) -> Timings:
        monkeypatch.setattr(measuring, "_interleave", machine.interleave)
        machine.ms["slower"] = 1.06 * machine.ms["old"]
        pairs = {f"{index}": Pair(OLD, Path("slower") if index < slower else NEW, "onnx") for index in range(files)}
        found = list(time_pairs(pairs, PERCENT, seconds=SECONDS, budget=TimeBudget(WITHIN_S, clock=machine.clock), told=lambda _line: None))
        assert len(found) == len(pairs)
        return dict(found)

    return run


@pytest.mark.parametrize("files", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("new", [5.0, 6.0, 400.0])
def test_a_comparison_keeps_its_time_whatever_the_number_of_files(all_timed: Callable[..., Timings], files: int, noise: float, new: float) -> None:
    machine = StandIn(new=new, noise=lambda _call: noise)
    found = all_timed(machine, files)
    undecided = 0
    for timing in found.values():
        if isinstance(timing, Timing):
            assert timing.passes[0].noise > 0.03 or timing.slower(PERCENT) == (new > 5)
        else:
            undecided += 1
            assert isinstance(timing, OutOfTime)
    assert machine.now_s <= WITHIN_S + 1e-9
    assert undecided < files or new == 400.0 or files == 20
    if files == 20 and new > 5:
        assert undecided


@pytest.mark.parametrize("slower", [0, 1, 2, 3])
def test_second_passes_come_last_and_have_the_time_that_equal_files_left(all_timed: Callable[..., Timings], slower: int) -> None:
    machine = StandIn(old=60.0, new=60.0, noise=lambda _call: 0.003, start_s=0.4)
    found = all_timed(machine, 3, slower)
    said = [found[f"{index}"] for index in range(3)]
    assert [isinstance(timing, Timing) and timing.slower(PERCENT) for timing in said] == [index < slower for index in range(3)]
    assert machine.order == [("old", "slower" if index < slower else "new") for index in range(3) for _ in range(2)] + [("slower", "old")] * slower


def test_what_cannot_be_run_takes_nothing_from_the_others(all_timed: Callable[..., Timings]) -> None:
    machine = StandIn()

    def breaks_once(*given: object) -> tuple[Profile, Profile]:
        if not machine.order:
            machine.order.append(("old", "new"))
            raise ExportError("the runtime cannot load it")
        return StandIn.interleave(machine, *given)  # type: ignore[arg-type]

    machine.interleave = breaks_once  # type: ignore[method-assign,assignment]
    first, second = all_timed(machine, 2).values()
    assert isinstance(first, ExportError)
    assert isinstance(second, Timing)


def test_what_does_not_fit_is_said_and_never_a_pass(timed: Callable[..., Timing]) -> None:
    slow = StandIn(old=1000.0, new=1000.0)
    with pytest.raises(OutOfTime, match=r"a pass takes 38\.0 s at least \(8 rounds of 4 s\), and has 10\.5 s; --seconds 13 gives this file enough"):
        timed(slow)
    assert len(slow.order) == 1
    assert slow.now_s < WITHIN_S
    hopeless = StandIn(old=9000.0, new=9000.0)
    with pytest.raises(OutOfTime, match="the time ended"):
        timed(hopeless)


@pytest.mark.parametrize("ms", [450.0, 700.0, 1000.0, 1500.0])
def test_the_seconds_that_are_named_are_enough(timed: Callable[..., Timing], ms: float) -> None:
    with pytest.raises(OutOfTime) as caught:
        timed(StandIn(old=ms, new=1.06 * ms))
    (said,) = re.findall(r"--seconds (\d+) gives", str(caught.value))
    longer = int(said) / SECONDS
    assert timed(StandIn(old=ms, new=1.06 * ms), longer * WITHIN_S, int(said)).slower(PERCENT)
    assert longer < 7


def slowest(all_timed: Callable[..., Timings], files: int, slower: int) -> float:
    """The longest inference, in steps of 10 ms, for which all of so many files, so many of them slower, have the right decision."""

    def decides(ms: float) -> bool:
        found = all_timed(StandIn(old=ms, new=ms, noise=lambda _call: 0.003, start_s=0.4), files, slower).values()
        return [isinstance(timing, Timing) and timing.decided(PERCENT) for timing in found] == [True] * files

    return next(float(ms) for ms in range(1000, 0, -10) if decides(float(ms)))


def test_the_limits_that_the_readme_states_are_the_limits(all_timed: Callable[..., Timings]) -> None:
    readme = (Path(__file__).parent.parent / "examples" / "github_actions" / "README.md").read_text(encoding="utf-8")
    (stated,) = re.findall(
        r"takes up to ([\d.]+) s, or three files of up to ([\d.]+) s .* decided up to ([\d.]+) s and ([\d.]+) s", " ".join(readme.split())
    )
    found = [slowest(all_timed, files, slower) for files, slower in ((1, 1), (3, 1), (1, 0), (3, 0))]
    for said_s, ms in zip(map(float, stated), found, strict=True):
        assert 1e3 * said_s <= ms <= 1.2 * 1e3 * said_s, (stated, found)


def test_only_one_pass_that_fits_decides_equality_and_confirms_no_alarm(timed: Callable[..., Timing]) -> None:
    assert not timed(StandIn(old=400.0, new=400.0)).slower(PERCENT)
    with pytest.raises(OutOfTime, match=r"a first pass says \+6\.00 %, and could not be confirmed: .*; --seconds \d+ gives this file enough"):
        timed(StandIn(old=400.0, new=424.0))


def test_a_slow_file_is_warmed_up_once_and_a_quick_one_for_a_while(timed: Callable[..., Timing]) -> None:
    for ms, expected in ((5.0, 2 * measuring.WARM_UP_S), (150.0, 0.3)):
        machine = StandIn(old=ms, new=ms)
        timed(machine)
        spent = 2 * 0.5 + sum(machine.rounds) * 2 * 2 * ms / 1e3  # loading, and per round and file one query and one that does not count
        probe = 2 * machine.warm_up_s("old", measuring.SLOW_WARM_UP_S)
        assert machine.now_s - spent - probe == pytest.approx(expected, abs=1e-9)


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
    with BoundedHost(TimeBudget(0.3)) as host, pytest.raises(OutOfTime):
        list(host.stream([sys.executable, "-c", program]))
    assert time.monotonic() - started < 5


def test_what_ends_in_time_is_read_to_its_end_and_fails_as_itself() -> None:
    with BoundedHost(TimeBudget(30.0)) as host:
        assert list(host.stream([sys.executable, "-c", "print(1); print(2)"])) == ["1", "2"]
        with pytest.raises(DeviceError, match="ended with code 3") as caught:
            list(host.stream([sys.executable, "-c", "raise SystemExit(3)"]))
    assert not isinstance(caught.value, OutOfTime)
