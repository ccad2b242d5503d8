"""Latencies of files that take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

LEAST_S = 0.02
"""Every one runs at least so long in each round."""


def times_ms(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Per callable the mean time of one call in each round, milliseconds; their order turns from round to round."""
    repeats = []
    for run in runs:
        for _ in range(3):
            run()
        started = time.perf_counter()
        run()
        repeats.append(max(1, round(LEAST_S / (time.perf_counter() - started))))
    times: list[list[float]] = [[] for _ in runs]
    for round_number in range(rounds):
        for offset in range(len(runs)):
            index = (round_number + offset) % len(runs)
            started = time.perf_counter()
            for _ in range(repeats[index]):
                runs[index]()
            times[index].append((time.perf_counter() - started) * 1000 / repeats[index])
    return times
