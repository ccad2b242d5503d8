"""How often a file is executed for a runtime's profiler, and the means of what that says."""

from __future__ import annotations

import time
from typing import Callable, Dict, List

from .protocol import Operator
from .stopwatch import WARM_UP_RUNS

OPERATOR_RUNS, OPERATOR_SECONDS = 50, 2.0


def repeat(run: Callable[[], object]) -> None:
    """Enough runs for a profiler's averages, the first three of which are left out of them."""
    until = time.perf_counter() + OPERATOR_SECONDS
    for count in range(WARM_UP_RUNS + OPERATOR_RUNS):
        run()
        if count > WARM_UP_RUNS and time.perf_counter() > until:
            return


def averages(found: Dict[str, List[float]], kinds: Dict[str, str]) -> List[Operator]:
    """The mean of each operator's times, in milliseconds, without the warm-up."""
    rows: List[Operator] = []
    for name, times in found.items():
        counted = times[WARM_UP_RUNS:] or times
        rows.append({"name": name, "kind": kinds[name], "mean_ms": sum(counted) / len(counted)})
    return rows
