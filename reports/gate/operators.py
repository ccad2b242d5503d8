"""Which operators of a file are responsible: those of two bundles matched, and what each gained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from mcompress.export.comparison import EstimatedOperator
from mcompress.reports.gate.verdicts import OperatorChange

Pair = tuple[EstimatedOperator | None, EstimatedOperator | None]
SMALLEST_SHARE = 1e-9  # of the file's latency; what is below is arithmetic noise


def operator_changes(baseline: Sequence[EstimatedOperator], new: Sequence[EstimatedOperator]) -> tuple[OperatorChange, ...]:
    """Every operator that was added, was removed or differs, the largest gain in time first.

    Operators of one name and kind are the same one. What lies between two of them is aligned by kind in execution order, so that a renamed network is
    not a new one.
    """
    least_ms = SMALLEST_SHARE * sum(row.cost.latency_ms for row in (*baseline, *new))
    changes = [change for old, now in _pairs(baseline, new) if (change := _change(old, now, least_ms)) is not None]
    return tuple(sorted(changes, key=lambda change: -change.gained_ms))


def _pairs(baseline: Sequence[EstimatedOperator], new: Sequence[EstimatedOperator]) -> Iterator[Pair]:
    named = {_identity(row): index for index, row in enumerate(baseline)}
    partner: dict[int, int] = {}
    for index, row in enumerate(new):
        found = named.pop(_identity(row), None)
        if found is not None:
            partner[index] = found
    yield from ((baseline[there], new[here]) for here, there in partner.items())
    taken = set(partner.values())
    left_old = [index for index in range(len(baseline)) if index not in taken]
    here_from = there_from = 0
    for here, there in (*sorted(partner.items()), (len(new), len(baseline))):
        if there < there_from:
            continue  # moved to another place: its neighbours say nothing about each other
        yield from _aligned([baseline[i] for i in left_old if there_from <= i < there], [new[i] for i in range(here_from, here) if i not in partner])
        here_from, there_from = here, there


def _aligned(baseline: Sequence[EstimatedOperator], new: Sequence[EstimatedOperator]) -> Iterator[Pair]:
    """Rows without a namesake, between two that have one."""
    matcher = SequenceMatcher(None, [row.operator.kind for row in baseline], [row.operator.kind for row in new], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(baseline[i1:i2], new[j1:j2], strict=True)
        else:
            yield from ((row, None) for row in baseline[i1:i2])
            yield from ((None, row) for row in new[j1:j2])


def _identity(row: EstimatedOperator) -> tuple[str, str]:
    return row.operator.name, row.operator.kind


def _change(old: EstimatedOperator | None, now: EstimatedOperator | None, least_ms: float) -> OperatorChange | None:
    if old is None and now is not None:
        return OperatorChange(*_identity(now), "added", _described(now), 0.0, now.cost.latency_ms)
    if now is None and old is not None:
        return OperatorChange(*_identity(old), "removed", _described(old), old.cost.latency_ms, 0.0)
    if old is None or now is None:
        return None
    detail = ", ".join(_differences(old, now))
    if not detail and abs(now.cost.latency_ms - old.cost.latency_ms) <= least_ms:
        return None
    return OperatorChange(*_identity(now), "changed", detail or "the same, at another cost", old.cost.latency_ms, now.cost.latency_ms)


def _described(row: EstimatedOperator) -> str:
    return f"{row.cost.precision} on {row.cost.unit}, output {_shape(row.operator.output_shape)}"


def _differences(old: EstimatedOperator, now: EstimatedOperator) -> Iterator[str]:
    before, after = old.operator, now.operator
    if before.name != after.name:
        yield f"was {before.name}"
    if old.cost.precision != now.cost.precision:
        yield f"{old.cost.precision} -> {now.cost.precision}"
    if old.cost.unit != now.cost.unit:
        yield f"{old.cost.unit} -> {now.cost.unit}"
    for what, was, is_ in (("input", before.input_shape, after.input_shape), ("output", before.output_shape, after.output_shape)):
        if was != is_:
            yield f"{what} {_shape(was)} -> {_shape(is_)}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
