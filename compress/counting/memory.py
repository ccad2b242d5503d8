"""How much activation memory exists while each fused operator runs."""

from __future__ import annotations

from collections.abc import Sequence

from mcompress.compress.counting.operations import Step
from mcompress.compress.counting.recorder import Trace


def live_elements(trace: Trace, groups: Sequence[Sequence[Step]]) -> list[int]:
    """Elements that exist while each group runs: a buffer lives from its first writer to its last reader."""
    read = {value for group in groups for value in group[0].reads} | trace.outputs
    born: dict[int, int] = {trace.buffer_of[v]: 0 for v in trace.inputs}
    last: dict[int, int] = dict.fromkeys(born, 0)
    for index, group in enumerate(groups):
        for value in group[0].reads:
            last[trace.buffer_of[value]] = index
        for position, value in enumerate(group[-1].writes):
            if position == 0 or value in read:
                born.setdefault(trace.buffer_of[value], index)
                last[trace.buffer_of[value]] = index
    for value in trace.outputs:
        last[trace.buffer_of[value]] = max(len(groups) - 1, 0)
    change = [0] * (len(groups) + 2)
    for buffer, first in born.items():
        change[first] += trace.elements_of[buffer]
        change[last[buffer] + 1] -= trace.elements_of[buffer]
    live, total = [], 0
    for step in change[: len(groups)]:
        total += step
        live.append(total)
    return live
