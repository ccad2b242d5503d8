"""The greedy choice of precisions: what most tools do, and what the planner's plan has to be at least as good as when both are run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import Precision
from mcompress.compress.quantize.planner import Solution
from mcompress.compress.quantize.sensitivity import Sensitivity


def greedy(problem: Problem, sensitivity: Sensitivity, latency_ms: float) -> Solution | None:
    """From INT8 throughout, make one operator float after the other, the most sensitive first, as long as the latency allows.

    None if INT8 throughout is slower than that already. `gap` is infinite: nothing is proven.
    """
    chosen, plain = list(problem.uniform("int8")), problem.uniform("fp16")
    if problem.latency_ms(chosen) > latency_ms:
        return None
    alone = [sensitivity.alone.get(decision.nodes[0], {}).get("int8", 0.0) for decision in problem.decisions]
    for position in sorted(range(len(chosen)), key=lambda position: -alone[position]):
        changed = [*chosen[:position], plain[position], *chosen[position + 1 :]]
        if problem.latency_ms(changed) <= latency_ms:
            chosen = changed
    return assigned(problem, expressible(problem, chosen))


def expressible(problem: Problem, chosen: Sequence[Precision]) -> list[Precision]:
    """The assignment as a file can say it: what the operator table has in one row has one precision, and what has no weights and lies between INT8
    operators on all sides is INT8."""
    found = list(chosen)
    again = True
    while again:
        for position, decision in enumerate(problem.decisions):
            if decision.follows is not None and found[decision.follows] in decision.allowed:
                found[position] = found[decision.follows]
        again = False
        for position, decision in enumerate(problem.decisions):
            enclosed = decision.between and decision.follows is None and all(found[other] == "int8" for other in decision.between)
            if enclosed and found[position] != "int8" and "int8" in decision.allowed:
                found[position], again = "int8", True
    return found


def assigned(problem: Problem, chosen: Sequence[Precision]) -> Solution:
    """An assignment for which no program was solved, with what it costs."""
    return Solution(tuple(chosen), problem.latency_ms(chosen), problem.noise_of(chosen), math.inf, 0.0)
