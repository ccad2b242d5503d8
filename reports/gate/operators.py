"""Which operators of a file are responsible: those of two bundles matched, and what each gained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from mcompress.export.comparison import OperatorRow
from mcompress.reports.gate.verdicts import OperatorChange

SMALLEST_SHARE = 1e-9  # of the file's latency; what is below is arithmetic noise


def operator_changes(baseline: Sequence[OperatorRow], new: Sequence[OperatorRow]) -> tuple[OperatorChange, ...]:
    """Every operator that was added, was removed or differs, the largest gain in time first.

    Operators of one name and kind are the same one. What lies between two of them is aligned by kind in execution order, so that a renamed network is
    not a new one.
    """
    least_ms = SMALLEST_SHARE * sum(row.latency_ms for row in (*baseline, *new))
    changes = [change for old, now in _pairs(baseline, new) if (change := _change(old, now, least_ms)) is not None]
    return tuple(sorted(changes, key=lambda change: -change.gained_ms))


def _pairs(baseline: Sequence[OperatorRow], new: Sequence[OperatorRow]) -> Iterator[tuple[OperatorRow | None, OperatorRow | None]]:
    named = {(row.name, row.kind): index for index, row in enumerate(baseline)}
    partner: dict[int, int] = {}
    for index, row in enumerate(new):
        found = named.pop((row.name, row.kind), None)
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


def _aligned(baseline: Sequence[OperatorRow], new: Sequence[OperatorRow]) -> Iterator[tuple[OperatorRow | None, OperatorRow | None]]:
    """Rows without a namesake, between two that have one."""
    matcher = SequenceMatcher(None, [row.kind for row in baseline], [row.kind for row in new], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(baseline[i1:i2], new[j1:j2], strict=True)
        else:
            yield from ((row, None) for row in baseline[i1:i2])
            yield from ((None, row) for row in new[j1:j2])


def _change(old: OperatorRow | None, now: OperatorRow | None, least_ms: float) -> OperatorChange | None:
    if old is None and now is not None:
        return OperatorChange(now.name, now.kind, "added", _described(now), 0.0, now.latency_ms)
    if now is None and old is not None:
        return OperatorChange(old.name, old.kind, "removed", _described(old), old.latency_ms, 0.0)
    if old is None or now is None:
        return None
    detail = ", ".join(_differences(old, now))
    if not detail and abs(now.latency_ms - old.latency_ms) <= least_ms:
        return None
    return OperatorChange(now.name, now.kind, "changed", detail or "the same, at another cost", old.latency_ms, now.latency_ms)


def _described(row: OperatorRow) -> str:
    return f"{row.precision} on {row.unit}, output {_shape(row.output_shape)}"


def _differences(old: OperatorRow, now: OperatorRow) -> Iterator[str]:
    if old.name != now.name:
        yield f"was {old.name}"
    if old.precision != now.precision:
        yield f"{old.precision} -> {now.precision}"
    if old.unit != now.unit:
        yield f"{old.unit} -> {now.unit}"
    for what, before, after in (("input", old.input_shape, now.input_shape), ("output", old.output_shape, now.output_shape)):
        if before != after:
            yield f"{what} {_shape(before)} -> {_shape(after)}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
