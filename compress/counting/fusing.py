"""Which recorded operators a runtime executes as one: an activation, a bias or a folded normalization runs inside what produces its input."""

from __future__ import annotations

from collections.abc import Mapping

from mcompress.compress.counting.operations import WEIGHTED, Step
from mcompress.compress.counting.recorder import Trace
from mcompress.targets.operators import Kind

_TAKES_ACTIVATION: frozenset[Kind] = WEIGHTED | {"normalization", "elementwise"}


def fused(trace: Trace) -> list[list[Step]]:
    """The steps in groups: the first of a group computes, the others run on its result before it is written."""
    readers: dict[int, int] = {}
    for step in trace.steps:
        for value in step.reads:
            readers[value] = readers.get(value, 0) + 1
    group_of: dict[int, list[Step]] = {}
    groups: list[list[Step]] = []
    for step in trace.steps:
        group = _producer(step, group_of, readers, trace)
        if group is None:
            group = []
            groups.append(group)
        group.append(step)
        for value in step.writes:
            group_of[value] = group
    return groups


def _producer(step: Step, group_of: Mapping[int, list[Step]], readers: Mapping[int, int], trace: Trace) -> list[Step] | None:
    """The group that `step` can run inside, if any."""
    if len(step.reads) != 1 or not (step.kind == "activation" or step.foldable):
        return None
    value, elements = next(iter(step.reads.items()))
    group = group_of.get(value)
    if group is None or value != next(iter(group[-1].writes)) or readers[value] != 1 or value in trace.outputs:
        return None
    if elements != group[-1].writes[value]:
        return None
    has_activation = any(earlier.kind == "activation" for earlier in group)
    if step.foldable:
        return group if group[0].kind in WEIGHTED and not has_activation else None
    return group if group[0].kind in _TAKES_ACTIVATION and not has_activation else None
