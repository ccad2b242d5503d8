"""Times two files in turns on this machine, within what is left of the comparison's time: a probe, a pass, and a second pass after an alarm.

A comparison has one `Budget` for all of its files. What cannot be decided within it is `OutOfTime`, which is no verdict on the file.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcompress.errors import DeviceError
from mcompress.export.profile import Job, Profile, Rules, interleave
from mcompress.reports.gate.timing import LEAST_ROUNDS, Ratio, Timing, ratio_of, signed
from mcompress.targets.connect import Host

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
LEAST_SHARE = 0.1
"""Of a pass is taken to be queries, however long the probe says that its start takes."""
WARM_UP = Rules(min_queries=1, min_seconds=0.0, max_seconds=1.0, warm_up_s=0.3, cool_down_s=0.0)


class OutOfTime(DeviceError):  # noqa: N818  (what it says)
    """The budget ended before there was a decision."""


class Budget:
    """The time that a comparison, or one of its files, may still take."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` from now, by `clock`."""
        self._clock, self._until = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        """Negative once it is used up."""
        return self._until - self._clock()

    def share(self, files: int) -> Budget:
        """An equal part for the next of so many files; what it does not use is left to the others."""
        return Budget(self.left_s / files, clock=self._clock)


class BoundedHost(Host):
    """This machine, which is no longer listened to when the budget ends: that ends the measuring process as well."""

    def __init__(self, budget: Budget) -> None:
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

    def rounds(self, seconds: float) -> int:
        """That fill `seconds` of queries."""
        return min(MOST_ROUNDS, max(LEAST_ROUNDS, math.ceil(seconds / self.round_s)))

    def fitting(self, seconds: float) -> int:
        """That a pass which must end within `seconds` can have; 0 or less if it cannot even start."""
        return math.floor((seconds / SPARE - self.start_s) / self.round_s)

    def corrected(self, rounds: int, took_s: float) -> Turns:
        """By a pass of so many rounds; the few of the probe may have been interrupted."""
        return replace(self, round_s=max(took_s - self.start_s, LEAST_SHARE * took_s) / rounds)


def time_files(baseline: Path, new: Path, backend: str, percent: float, *, seconds: float = SECONDS, budget: Budget | None = None) -> Timing:
    """Measure two files on this machine; a second pass, in the other order, follows an alarm. `seconds` of queries per pass.

    Where the noise hides what `percent` allows, the pass is repeated for up to `LONGER` times as long. `budget` None is a whole comparison's.
    Raises `OutOfTime` when the budget ends without a decision, `DeviceError` or `ExportError` when a file cannot be executed here.
    """
    budget = budget or Budget(WITHIN_S)
    turns = _probe(baseline, new, backend, budget)
    rounds, before_s = _fitted(turns, turns.rounds(seconds), budget.left_s / 2), budget.left_s
    first = _pass(baseline, new, backend, rounds, turns.queries, budget, swapped=False)
    if first.noise > percent / 100:
        turns = turns.corrected(rounds, before_s - budget.left_s)
        more = min(LONGER * turns.rounds(seconds), turns.fitting(budget.left_s / 2))
        if more > rounds:
            rounds = more
            first = _pass(baseline, new, backend, rounds, turns.queries, budget, swapped=False)
    if not first.alarms(percent):
        return Timing((first,))
    try:
        rounds = _fitted(turns, rounds, budget.left_s)
        return Timing((first, _pass(baseline, new, backend, rounds, turns.queries, budget, swapped=True)))
    except OutOfTime as error:
        raise OutOfTime(f"a first pass says {signed(first.ratio)}, and could not be confirmed: {error}") from error


def _fitted(turns: Turns, rounds: int, seconds: float) -> int:
    """As many of `rounds` as end within `seconds`."""
    fitting = turns.fitting(seconds)
    if fitting < LEAST_ROUNDS:
        raise OutOfTime(
            f"a pass takes {SPARE * (turns.start_s + LEAST_ROUNDS * turns.round_s):.1f} s at least, and has {max(0.0, seconds):.1f} s; "
            "more --seconds give every part of the comparison more time"
        )
    return min(rounds, fitting)


def _probe(baseline: Path, new: Path, backend: str, budget: Budget) -> Turns:
    before_s = budget.left_s
    probed = _interleave(baseline, new, backend, PROBE_ROUNDS, 1, budget)
    took_s = before_s - budget.left_s
    queries = max(1, math.ceil(TURN_MS / max(min(side.samples_ms) for side in probed)))
    both_s = sum(statistics.mean(side.samples_ms) for side in probed) / 1e3
    # The first query of each file in a round does not count.
    return Turns(queries, round_s=both_s * (queries + 1), start_s=max(0.0, took_s - 2 * PROBE_ROUNDS * both_s))


def _pass(baseline: Path, new: Path, backend: str, rounds: int, queries: int, budget: Budget, *, swapped: bool) -> Ratio:
    one, other = (new, baseline) if swapped else (baseline, new)
    first, second = _interleave(one, other, backend, rounds, queries, budget)
    old, now = (second, first) if swapped else (first, second)
    return ratio_of(old.samples_ms, now.samples_ms, queries_per_round=queries)


def _interleave(one: Path, other: Path, backend: str, rounds: int, queries: int, budget: Budget) -> tuple[Profile, Profile]:
    with BoundedHost(budget) as host:
        jobs = [Job(path, backend, rules=WARM_UP) for path in (one, other)]
        return interleave(host, jobs[0], jobs[1], rounds=rounds, queries_per_round=queries)
