"""How much activation memory exists while each operator runs, and where a runtime puts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.compress.counting.steps import Step, Trace
from mcompress.targets.operators import Kind

ALIGNMENT_BYTES = 64
"""Of every tensor in TFLite's arena (kDefaultTensorAlignment)."""
_IN_PLACE: frozenset[Kind] = frozenset(("elementwise", "activation"))


@dataclass(frozen=True)
class Lifetime:
    """A buffer: its size in bytes, and the first and last row at which it exists."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """Where each buffer lies in the arena, and the arena's size, bytes."""

    offsets: tuple[int, ...]
    arena_bytes: int


def live_elements(trace: Trace, groups: Sequence[Sequence[Step]]) -> list[int]:
    """Elements that exist while each group runs: a buffer lives from its first writer to its last reader, scratch memory for one row."""
    spans = _spans(trace, groups)
    change = [0] * (len(groups) + 2)
    for buffer, (first, last) in spans.items():
        change[first] += trace.elements_of[buffer]
        change[last + 1] -= trace.elements_of[buffer]
    live, total = [], 0
    for step, group in zip(change, groups, strict=False):  # what changes behind the last row is nobody's
        total += step
        live.append(total + group[0].scratch_elements)
    return live


def plan_memory(trace: Trace, groups: Sequence[Sequence[Step]], bytes_per_element: int) -> Plan:
    """The arena of TFLite's planner for this order of execution, all tensors of one type; the input and the outputs lie in it too.

    An elementwise row writes over an operand of its size that nothing reads afterwards and that is no input of the network, as LiteRT's kernels do.
    """
    spans = _spans(trace, groups)
    for value in trace.inputs:
        # LiteRT keeps what the caller wrote: inputs exist until the end.
        spans[trace.buffer_of[value]] = 0, max(len(groups) - 1, 0)
    into = _written_over(trace, groups, spans)
    merged: dict[int, tuple[int, int]] = {}
    for buffer, (first, last) in spans.items():
        home = buffer
        while home in into:
            home = into[home]
        one = merged.get(home, (first, last))
        merged[home] = min(first, one[0]), max(last, one[1])
    lifetimes = [Lifetime(trace.elements_of[buffer] * bytes_per_element, first, last) for buffer, (first, last) in merged.items()]
    for row, group in enumerate(groups):
        # Two buffers: a runtime that writes attention out has one operator's result, and then the next one's.
        lifetimes += [Lifetime(group[0].scratch_elements // 2 * bytes_per_element, row, row)] * (2 if group[0].scratch_elements else 0)
    return place(lifetimes)


def place(lifetimes: Sequence[Lifetime]) -> Plan:
    """Greedy by size, the algorithm of TFLite's arena (Pisarchyk & Lee, arXiv 2001.03288, section 5.2).

    From the largest buffer to the smallest, each goes into the smallest gap between those placed that exist at the same time, or behind them.
    """
    if not lifetimes:
        return Plan((), 0)
    sizes = np.array([-(-one.size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for one in lifetimes], dtype=np.int64)
    first, last = np.array([one.first for one in lifetimes]), np.array([one.last for one in lifetimes])
    offsets = np.zeros(len(sizes), dtype=np.int64)
    placed = np.empty(0, dtype=np.int64)
    for one in np.lexsort((first, -sizes)):
        beside = placed[(first[placed] <= last[one]) & (last[placed] >= first[one])]
        offsets[one] = _offset(offsets[beside], sizes[beside], int(sizes[one]))
        # Kept in the order of their offsets, so that gaps are found in one pass.
        placed = np.insert(placed, int(np.searchsorted(offsets[placed], offsets[one])), one)
    return Plan(tuple(int(offset) for offset in offsets), int((offsets + sizes).max()))


def _offset(offsets: np.ndarray[tuple[int], np.dtype[np.int64]], sizes: np.ndarray[tuple[int], np.dtype[np.int64]], size: int) -> int:
    """The start of the smallest gap of at least `size` between neighbours, which come in the order of their offsets; their end if there is none."""
    if not len(offsets):
        return 0
    ends = np.maximum.accumulate(offsets + sizes)
    starts = np.concatenate(([0], ends[:-1]))
    gaps = offsets - starts
    fits = np.flatnonzero(gaps >= size)
    return int(starts[fits[np.argmin(gaps[fits])]]) if len(fits) else int(ends[-1])


def _spans(trace: Trace, groups: Sequence[Sequence[Step]]) -> dict[int, tuple[int, int]]:
    """Buffer -> first and last row at which it exists."""
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
    return {buffer: (first, last[buffer]) for buffer, first in born.items()}


def _written_over(trace: Trace, groups: Sequence[Sequence[Step]], spans: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Buffer -> the buffer in whose memory it is written."""
    kept = {trace.buffer_of[value] for value in trace.inputs}
    into: dict[int, int] = {}
    for index, group in enumerate(groups):
        if group[0].kind not in _IN_PLACE:
            continue
        result = trace.buffer_of[next(iter(group[-1].writes))]
        for value in group[0].reads:
            source = trace.buffer_of[value]
            fits = trace.elements_of[source] == trace.elements_of[result] and source != result
            if fits and source not in kept and spans[source][1] == index and spans[result][0] == index:
                into[result] = source
                break
    return into
