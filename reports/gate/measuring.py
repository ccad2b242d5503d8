"""Times two files in turns on this machine, within what is left of the comparison's time: a probe, a pass, and a second pass after an alarm.

A comparison has one `TimeBudget` for all of its files. What cannot be decided within it is `OutOfTime`, which is no verdict on the file.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcompress.errors import DeviceError, ExportError, MCompressError, UsageError
from mcompress.export.profile import Job, Profile, Rules, interleave
from mcompress.reports.gate.timing import LEAST_ROUNDS, Ratio, Timing, ratio_of, signed
from mcompress.targets.connect import Host, pinned

SECONDS = 3.0
"""Of alternating queries per pass and file."""
WITHIN_S = 25.0
"""From the start of a comparison to the end of its last measurement, whatever the number of files: below 30 s with Python's start and the report."""
TURN_MS = 3.0
"""A file's queries in a round take at least this long, one query for most files: the shorter the turns, the more alike is what both files see."""
LONGER = 3
PROBE_ROUNDS = 3
MOST_ROUNDS = 5000
SPARE = 1.25
"""What a pass is expected to take is multiplied by this: the probe sees three rounds of a machine that may become slower."""
LEAST_SPARE = 1.1
"""For a pass of no more than `LEAST_ROUNDS`: where nothing shorter is possible, it is better tried than given up."""
WARM_UP_S = 0.3
SLOW_WARM_UP_S = 0.01
"""For the probe, and for files that take longer than ten times as long, which one query then warms up; three would be most of their time."""
SLOW_MS = 10 * SLOW_WARM_UP_S * 1e3
LEAST_SHARE = 0.1
"""Of a pass is taken to be queries, however long the probe says that its start takes."""


class OutOfTime(DeviceError):  # noqa: N818  (what it says)
    """The budget ended before there was a decision."""


class TimeBudget:
    """The time that a comparison, or one of its files, may still take."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` from now, by `clock`."""
        self._clock, self._until = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        """Negative once it is used up."""
        return self._until - self._clock()

    def without(self, seconds: float) -> TimeBudget:
        """What is left but for so many seconds, which are kept for something else."""
        return TimeBudget(self.left_s - seconds, clock=self._clock)

    def share(self, files: int) -> TimeBudget:
        """An equal part for the next of so many files; what it does not use is left to the others."""
        return TimeBudget(self.left_s / files, clock=self._clock)


class BoundedHost(Host):
    """This machine, which is no longer listened to when the budget ends: that ends the measuring process as well."""

    def __init__(self, budget: TimeBudget) -> None:
        """Make the private folder."""
        super().__init__()
        self._budget = budget

    def stream(self, argv: Sequence[str], *, silence_s: float = 0.0) -> Iterator[str]:
        """As `Connection.stream`; the budget takes the place of `silence_s`. Raises `OutOfTime`."""
        del silence_s
        lines = super().stream(argv, silence_s=max(0.0, self._budget.left_s))
        with contextlib.closing(lines):  # type: ignore[type-var]
            while self._budget.left_s > 0:
                try:
                    line = next(lines)
                except StopIteration:
                    return
                except DeviceError as error:
                    if self._budget.left_s > 0:
                        raise
                    raise OutOfTime("the time ended during a measurement") from error
                yield line
        raise OutOfTime("the time ended during a measurement")


@dataclass(frozen=True)
class Turns:
    """How a pass over two files is divided, and what its parts take."""

    queries: int
    """Of each file per round."""
    round_s: float
    start_s: float
    """Of the process: loading both files and warming up."""
    warm_up_s: float = WARM_UP_S
    """Of each file."""

    def rounds(self, seconds: float) -> int:
        """That fill `seconds` of queries."""
        return min(MOST_ROUNDS, max(LEAST_ROUNDS, math.ceil(seconds / self.round_s)))

    def fitting(self, seconds: float) -> int:
        """That a pass which must end within `seconds` can have; less than `LEAST_ROUNDS` if there is no time for it."""
        fitting = math.floor((seconds / SPARE - self.start_s) / self.round_s)
        return LEAST_ROUNDS if fitting < LEAST_ROUNDS and LEAST_SPARE * self.least_s <= seconds else fitting

    @property
    def least_s(self) -> float:
        """What the shortest possible pass takes."""
        return self.start_s + LEAST_ROUNDS * self.round_s

    def corrected(self, rounds: int, took_s: float) -> Turns:
        """By a pass of so many rounds; the few of the probe may have been interrupted."""
        return replace(self, round_s=max(took_s - self.start_s, LEAST_SHARE * took_s) / rounds)


@dataclass(frozen=True)
class Pair:
    """A file and its baseline."""

    baseline: Path
    new: Path
    backend: str


@dataclass(frozen=True)
class First:
    """A pair after its first pass, and what its second one would take."""

    pair: Pair
    ratio: Ratio
    turns: Turns
    rounds: int
    enough: int
    """So many --seconds give both passes the time that they need."""

    @property
    def needs_s(self) -> float:
        """For the shortest second pass; a longer one takes what the others leave."""
        return SPARE * self.turns.least_s


def time_pairs(
    pairs: Mapping[str, Pair], percent: float, *, seconds: float, budget: TimeBudget, told: Callable[[str], None]
) -> Iterator[tuple[str, Timing | MCompressError]]:
    """Measure several pairs within one budget: the first passes of all, each in an equal share of the time, then a second one for each alarm.

    `percent` and `seconds` as for `time_files`; `told` gets a line before each pass. Why a pair has no timing is given, not raised, for `OutOfTime`,
    `DeviceError`, `ExportError` and `UsageError`. Every pair is given once, in any order.
    """
    alarms: dict[str, First] = {}
    for index, (name, pair) in enumerate(pairs.items()):
        told(f"measuring {name}: baseline and new in turns")
        share = budget.without(sum(first.needs_s for first in alarms.values())).share(len(pairs) - index)
        try:
            first = _first(pair, percent, seconds, share)
        except (DeviceError, ExportError, UsageError) as error:
            yield name, error
            continue
        if first.ratio.alarms(percent):
            alarms[name] = first
        else:
            yield name, Timing((first.ratio,))
    for index, (name, first) in enumerate(alarms.items()):
        told(f"measuring {name} once more, in the other order: a first pass says {signed(first.ratio.ratio)}")
        try:
            yield name, _confirmed(first, budget.share(len(alarms) - index))
        except (DeviceError, ExportError, UsageError) as error:
            yield name, error


def time_files(baseline: Path, new: Path, backend: str, percent: float, *, seconds: float = SECONDS, budget: TimeBudget | None = None) -> Timing:
    """Measure two files on this machine; a second pass, in the other order, follows an alarm. `seconds` of queries per pass.

    Where the noise hides what `percent` allows, the pass is repeated for up to `LONGER` times as long. `budget` None is a whole comparison's.
    Files for which only one pass fits are measured as well: that decides whether they are equal, not whether they are slower.

    Raises `OutOfTime` when the budget ends without a decision, `DeviceError` or `ExportError` when a file cannot be executed here.
    """
    budget = budget or TimeBudget(WITHIN_S)
    first = _first(Pair(baseline, new, backend), percent, seconds, budget)
    return _confirmed(first, budget) if first.ratio.alarms(percent) else Timing((first.ratio,))


def _first(pair: Pair, percent: float, seconds: float, budget: TimeBudget) -> First:
    """The probe and the first pass, or its longer repetition."""
    whole_s = budget.left_s
    turns = _probe(pair, budget)
    # What both passes and the probe need, in time for a comparison that is as many times as long.
    enough = math.ceil(max(seconds, SECONDS) * (whole_s - budget.left_s + 2 * SPARE * turns.least_s) / whole_s)
    before_s = budget.left_s
    half = turns.fitting(before_s / 2)
    rounds = min(turns.rounds(seconds), half) if half >= LEAST_ROUNDS else _fitted(turns, LEAST_ROUNDS, before_s, enough)
    ratio = _pass(pair, rounds, turns, budget, swapped=False)
    if ratio.noise > percent / 100:
        turns = turns.corrected(rounds, before_s - budget.left_s)
        # What looks equal will hardly need a second pass; only what looks slower must leave time for it.
        more = min(LONGER * turns.rounds(seconds), turns.fitting(budget.left_s if ratio.ratio - 1 <= percent / 100 else budget.left_s / 2))
        if more > rounds:
            rounds, ratio = more, _pass(pair, more, turns, budget, swapped=False)
    return First(pair, ratio, turns, rounds, enough)


def _confirmed(first: First, budget: TimeBudget) -> Timing:
    """With a second pass in the other order."""
    try:
        rounds = _fitted(first.turns, first.rounds, budget.left_s, first.enough)
        return Timing((first.ratio, _pass(first.pair, rounds, first.turns, budget, swapped=True)))
    except OutOfTime as error:
        raise OutOfTime(f"a first pass says {signed(first.ratio.ratio)}, and could not be confirmed: {error}") from error


def _fitted(turns: Turns, rounds: int, seconds: float, enough: int) -> int:
    """As many of `rounds` as end within `seconds`; `enough` is the --seconds that would give a pass the time that it needs."""
    fitting = turns.fitting(seconds)
    if fitting < LEAST_ROUNDS:
        raise OutOfTime(
            f"a pass takes {LEAST_SPARE * turns.least_s:.1f} s at least ({LEAST_ROUNDS} rounds of {turns.round_s:.2g} s), and has "
            f"{max(0.0, seconds):.1f} s; --seconds {enough} gives this file enough"
        )
    return min(rounds, fitting)


def _probe(pair: Pair, budget: TimeBudget) -> Turns:
    before_s = budget.left_s
    probed = _interleave(pair.baseline, pair.new, pair.backend, PROBE_ROUNDS, Turns(1, 0.0, 0.0, SLOW_WARM_UP_S), budget)
    took_s = before_s - budget.left_s
    least_ms = [min(side.samples_ms) for side in probed]
    queries = max(1, math.ceil(TURN_MS / max(least_ms)))
    both_s = sum(statistics.median(side.samples_ms) for side in probed) / 1e3
    warm_up_s = SLOW_WARM_UP_S if min(least_ms) > SLOW_MS else WARM_UP_S
    # The first query of each file in a round does not count.
    start_s = max(0.0, took_s - 2 * PROBE_ROUNDS * both_s) + 2 * (warm_up_s - SLOW_WARM_UP_S)
    return Turns(queries, both_s * (queries + 1), start_s, warm_up_s)


def _pass(pair: Pair, rounds: int, turns: Turns, budget: TimeBudget, *, swapped: bool) -> Ratio:
    one, other = (pair.new, pair.baseline) if swapped else (pair.baseline, pair.new)
    first, second = _interleave(one, other, pair.backend, rounds, turns, budget)
    old, now = (second, first) if swapped else (first, second)
    return replace(ratio_of(old.samples_ms, now.samples_ms, queries_per_round=turns.queries), notes=_disturbances(old, now))


def _disturbances(*sides: Profile) -> tuple[str, ...]:
    """Both files are in one process, so that what disturbed one disturbed both: said once."""
    throttled = [f"throttled: {side.throttled}" for side in sides if side.throttled]
    jumps = max(side.clock_jumps for side in sides)
    return (*throttled[:1], *([f"{jumps} rounds left out, because the clock jumped in them"] if jumps else ()))


def _interleave(one: Path, other: Path, backend: str, rounds: int, turns: Turns, budget: TimeBudget) -> tuple[Profile, Profile]:
    rules = Rules(min_queries=1, min_seconds=0.0, max_seconds=1.0, warm_up_s=turns.warm_up_s, cool_down_s=0.0)
    with BoundedHost(budget) as host:
        cpus = pinned(host.facts(), host.name, 1, None).cpus
        jobs = [Job(path, backend, cpus=cpus, rules=rules) for path in (one, other)]
        return interleave(host, jobs[0], jobs[1], rounds=rounds, queries_per_round=turns.queries)
