"""Timing queries until the rules are met, without those during which the clocks disagreed or the machine stood still."""

from __future__ import annotations

import time
from typing import Callable, List, NamedTuple, Tuple

from .protocol import Rules

LEAST_QUERIES = 10
WARM_UP_RUNS = 3
JUMP_NS = 50_000_000
"""The clocks may disagree by so much about one query: it is more than a busy system takes between reading one and reading the other."""
STALL_NS, STALL_CPU_SHARE, STALL_TIMES = 1_000_000_000, 0.05, 20
"""A query that took this long, this many times the median and hardly any processor time: the machine stood still."""


class Clocks(NamedTuple):
    """The three clocks that a query is timed with, in nanoseconds: monotonic, wall, processor time of the process."""

    monotonic: Callable[[], int] = time.perf_counter_ns
    wall: Callable[[], int] = time.time_ns
    processor: Callable[[], int] = time.process_time_ns


class Stopwatch:
    """Times queries, and drops those during which the clocks disagreed or the machine stood still."""

    def __init__(self, clocks: Clocks) -> None:
        """Start watching the clocks now."""
        self._clocks = clocks
        self.samples_ns: List[int] = []
        self.jumps: List[str] = []
        self._monotonic, self._wall, self._processor = clocks.monotonic(), clocks.wall(), clocks.processor()

    def query(self, run: Callable[[], object]) -> bool:
        """Run once; True if the sample counts."""
        clocks = self._clocks
        started = clocks.monotonic()
        run()
        took = clocks.monotonic() - started
        monotonic, wall, processor = clocks.monotonic(), clocks.wall(), clocks.processor()
        by_monotonic, by_wall, by_processor = monotonic - self._monotonic, wall - self._wall, processor - self._processor
        self._monotonic, self._wall, self._processor = monotonic, wall, processor
        problem = self._problem(took, by_monotonic, by_wall, by_processor)
        if problem:
            self.jumps.append(problem)
            return False
        self.samples_ns.append(took)
        return True

    def _problem(self, took: int, by_monotonic: int, by_wall: int, by_processor: int) -> str:
        if took < 0:
            return "the monotonic clock went back by %.3f s" % (-took / 1e9)
        apart = by_wall - by_monotonic
        if abs(apart) > JUMP_NS + abs(by_monotonic) // 1000:
            return "the wall clock jumped by %+.3f s against the monotonic clock: set by somebody, or the machine slept" % (apart / 1e9)
        typical = sorted(self.samples_ns)[len(self.samples_ns) // 2] if took > STALL_NS and self.samples_ns else took
        if took > STALL_NS and took > STALL_TIMES * typical and by_processor < STALL_CPU_SHARE * took:
            return "one query took %.1f s and no processor time: the machine stood still" % (took / 1e9)
        return ""


def measure(run: Callable[[], object], rules: Rules, clocks: Clocks) -> Stopwatch:
    """Warm up, then time queries until the rules are met."""
    warm_up(run, rules["warm_up_s"], clocks)
    watch = Stopwatch(clocks)
    started = clocks.monotonic()
    attempts = 0
    while True:
        watch.query(run)
        attempts += 1
        passed_s = (clocks.monotonic() - started) / 1e9
        counted = len(watch.samples_ns)
        if counted >= LEAST_QUERIES and (counted >= rules["min_queries"] or passed_s >= rules["min_seconds"]):
            return watch
        if passed_s >= rules["max_seconds"] or passed_s < 0 or attempts >= 10 * max(rules["min_queries"], LEAST_QUERIES):
            return watch


def warm_up(run: Callable[[], object], seconds: float, clocks: Clocks) -> None:
    """At least `seconds` and three runs, but one is enough for a file that takes longer than ten times `seconds`."""
    started = clocks.monotonic()
    runs = 0
    while True:
        run()
        runs += 1
        passed_s = (clocks.monotonic() - started) / 1e9
        if passed_s < 0 or (passed_s >= seconds and (runs >= WARM_UP_RUNS or passed_s >= 10 * seconds)):
            return


def alternate(a: Callable[[], object], b: Callable[[], object], rounds: int, queries: int, clocks: Clocks) -> Tuple[List[int], List[int], List[str]]:
    """Times of A and B in turns; a round with a dropped query is left out for both, so that both have whole rounds only. Nanoseconds."""
    times: Tuple[List[int], List[int]] = ([], [])
    jumps: List[str] = []
    for _ in range(rounds):
        watches = []
        for run in (a, b):
            run()  # the other file has emptied the caches
            watch = Stopwatch(clocks)
            for _query in range(queries):
                watch.query(run)
            watches.append(watch)
        dropped = [problem for watch in watches for problem in watch.jumps]
        if dropped:
            jumps += dropped
            continue
        for kept, watch in zip(times, watches):
            kept += watch.samples_ns
    return times[0], times[1], jumps
