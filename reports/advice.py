"""One sentence about what to do next, computed from where the milliseconds go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mcompress.record import LatencyBreakdown, OperatorCost, Run
from mcompress.reports import wording
from mcompress.reports.latency_budget import NOTABLE, KindRow, Part, breakdowns, in_ms, kind_rows, parts_of, summed
from mcompress.targets.operators import ACTIVATIONS

DOMINANT = 0.5
"""An operator above this share of its kind is named."""
UNKNOWN = "other"
NAMED = 3
MOSTLY = 0.9
"""A kind that waits for one thing at least for this share of its time is said to be bound by it, without the share."""


@dataclass(frozen=True)
class Lever:
    """Something that can be changed: what it would save, and how that is said."""

    saves_ms: float
    say: Callable[[], str]


def advice(run: Run) -> str:
    """What saves most, computed from the costs of the operators: halves of what a kind of operator does, and what can be left out altogether."""
    breakdown = list(breakdowns(run).values())[-1]
    total = breakdown.latency.value
    best = max(_levers(run, breakdown), key=lambda lever: lever.saves_ms)
    fixed = ""
    if breakdown.fixed_ms > best.saves_ms:
        fixed = (
            f"{wording.share(breakdown.fixed_ms, total)} of the time ({in_ms(breakdown.fixed_ms)}) is the fixed cost of one inference, which no "
            "change to the network saves. Of the rest: "
        )
    if best.saves_ms < NOTABLE * total:
        return f"{fixed}No single change to one kind of operator saves {100 * NOTABLE:.0f} % of the time. The nearest: {best.say()}"
    return fixed + best.say()


def _levers(run: Run, breakdown: LatencyBreakdown) -> Iterator[Lever]:
    total = breakdown.latency.value
    for kind, row in kind_rows(breakdown).items():
        costs = [cost for cost in breakdown.operators if cost.kind == kind]
        if kind == UNKNOWN:
            yield Lever(row.total_ms, _unknown(breakdown, costs, row.total_ms))
            continue
        half_bytes_ms = sum(_saved(cost.compute_ms, cost.memory_ms, 1.0, 0.5) for cost in costs)
        half_macs_ms = sum(_saved(cost.compute_ms, cost.memory_ms, 0.5, 1.0) for cost in costs)
        subject = f"{_named(costs, row)} {wording.share(row.total_ms, total)} of the time ({in_ms(row.total_ms)}),"
        yield Lever(half_bytes_ms, _saying(subject, "memory", "", row, half_bytes_ms, half_macs_ms))
        yield Lever(half_macs_ms, _saying(subject, "compute", _reached(run, costs), row, half_macs_ms, half_bytes_ms))
    parts = summed(map(parts_of, breakdown.operators))
    yield Lever(parts["dispatch"] / 2, lambda: _dispatch(breakdown, parts["dispatch"]))
    yield Lever(parts["boundary"], lambda: _boundaries(breakdown, parts["boundary"]))
    yield Lever(parts["stream"] / 2, lambda: _stream(breakdown, parts["stream"]))
    yield Lever(parts["apart"], lambda: _apart(breakdown, parts["apart"]))
    if any(cost.kind == UNKNOWN for cost in breakdown.operators):
        return  # nobody knows in which precisions they exist
    for precision, other_ms in breakdown.all_in_ms.items():
        yield Lever(total - other_ms, _precision(breakdown, precision, other_ms))


def _unknown(breakdown: LatencyBreakdown, costs: Sequence[OperatorCost], spent_ms: float) -> Callable[[], str]:
    def say() -> str:
        more = f" and {len(costs) - NAMED} more" if len(costs) > NAMED else ""
        names = ", ".join(f"'{cost.name}'" for cost in costs[:NAMED]) + more
        return (
            f"{wording.share(spent_ms, breakdown.latency.value)} of the time ({in_ms(spent_ms)}) is assumed for {_several(len(costs), 'operator')} "
            f"that the operator table does not know ({names}): measure them on the device (mcompress profile --operators), or replace them."
        )

    return say


def _saved(compute_ms: float, memory_ms: float, compute_left: float, memory_left: float) -> float:
    return max(compute_ms, memory_ms) - max(compute_left * compute_ms, memory_left * memory_ms)


def _saying(subject: str, part: Part, reached: str, row: KindRow, saves_ms: float, other_ms: float) -> Callable[[], str]:
    changes: dict[Part, str] = {"memory": "the bytes there (fewer channels or pixels)", "compute": "the multiply-adds there (fewer channels)"}
    others: dict[Part, str] = {"memory": "the multiply-adds", "compute": "the bytes"}

    def say() -> str:
        waits = row.parts.get(part, 0.0) / row.total_ms
        bound = f"{'' if waits >= MOSTLY else wording.share(waits, 1.0) + ' of it '}bound by {part}{reached}"
        other = f"half {others[part]} {in_ms(other_ms)}" if other_ms >= saves_ms / 20 else f"half {others[part]} next to nothing"
        return f"{subject} {bound}: half {changes[part]} would save {in_ms(saves_ms)}, {other}."

    return say


def _named(costs: Sequence[OperatorCost], row: KindRow) -> str:
    """The operators of a kind, and the one of them that dominates if there is one."""
    dearest = max(costs, key=lambda cost: cost.latency_ms)
    if len(costs) == 1:
        return f"The {wording.kind(row.kind)} '{dearest.name}' takes"
    one = f" ('{dearest.name}' more than half of it)" if dearest.latency_ms > DOMINANT * row.total_ms else ""
    return f"The {len(costs)} {wording.kind(row.kind, len(costs))}{one} take"


def _reached(run: Run, costs: Sequence[OperatorCost]) -> str:
    """How fast operators multiply, against the ceiling of the place where they spend most time."""
    dearest = max(costs, key=lambda cost: cost.latency_ms)
    ceiling = next((c for c in run.roofline if (c.unit, c.precision) == (dearest.unit, dearest.computed_in)), None)
    rate = ceiling.gmacs.get(dearest.kind) if ceiling else None
    spent_ms = sum(cost.latency_ms for cost in costs)
    if rate is None or not spent_ms:
        return ""
    return f" at {wording.number(sum(cost.macs for cost in costs) / spent_ms / 1e6)} of {wording.number(rate)} GMACs/s"


def _dispatch(breakdown: LatencyBreakdown, spent_ms: float) -> str:
    count = len(breakdown.operators)
    share = wording.share(spent_ms, breakdown.latency.value)
    return f"{share} of the time ({in_ms(spent_ms)}) is starting {_several(count, 'operator')}: half as many would save {in_ms(spent_ms / 2)}."


def _boundaries(breakdown: LatencyBreakdown, spent_ms: float) -> str:
    crossing = [cost for cost in breakdown.operators if cost.boundary_ms > 0]
    most = max(crossing, key=lambda cost: cost.boundary_ms).name
    same = "unit" if len({cost.unit for cost in breakdown.operators}) > 1 else "precision"
    return (
        f"{wording.share(spent_ms, breakdown.latency.value)} of the time ({in_ms(spent_ms)}) is conversions before "
        f"{_several(len(crossing), 'operator')}, most before '{most}': one {same} throughout would save it."
    )


def _stream(breakdown: LatencyBreakdown, spent_ms: float) -> str:
    most = max(breakdown.operators, key=lambda cost: cost.stream_ms).name
    return (
        f"{wording.share(spent_ms, breakdown.latency.value)} of the time ({in_ms(spent_ms)}) is fetching weights that the cache does not hold, "
        f"most of them in '{most}': half the weights would save {in_ms(spent_ms / 2)}."
    )


def _apart(breakdown: LatencyBreakdown, spent_ms: float) -> str:
    costs = [cost for cost in breakdown.operators if cost.apart_ms > 0]
    names = dict.fromkeys(name for cost in costs for name in cost.fused if name in ACTIVATIONS)
    return (
        f"{wording.share(spent_ms, breakdown.latency.value)} of the time ({in_ms(spent_ms)}) is {_several(len(costs), 'activation')} "
        f"({', '.join(names)}) that the runtime does not compute inside the operator before: ReLU, which it does, would save it."
    )


def _precision(breakdown: LatencyBreakdown, precision: str, other_ms: float) -> Callable[[], str]:
    total = breakdown.latency.value

    def say() -> str:
        others = [cost for cost in breakdown.operators if cost.precision != precision]
        return (
            f"{len(others)} of {len(breakdown.operators)} operators are not in {precision.upper()}: with all of them in it, an inference would take "
            f"{in_ms(other_ms)} instead of {in_ms(total)}, if quality allows."
        )

    return say


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
