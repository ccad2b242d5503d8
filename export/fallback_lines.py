"""What happened otherwise than planned, a line for each reason, as the model card lists it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcompress.export.manifest import Manifest
from mcompress.record import Run

NAMED = 3
"""Operators that a line names; where there is but one more, that one too."""


def fallback_lines(run: Run, manifest: Manifest) -> Iterator[str]:
    """`where: operators: reason`, in the order of the record; places where the same operators have the same reason share a line.

    The record holds what became of a file's operators twice, with the file and among all that happened in the run: it is told once.
    """
    found = [(f"export {file.path}", each.operator, each.reason) for file in manifest.files for each in file.coverage.fallbacks]
    found += [(each.where, each.what, each.reason) for each in run.fallbacks]
    grouped: dict[tuple[str, str], dict[str, None]] = {}
    for where, what, reason in found:
        grouped.setdefault((where, reason), {})[what] = None
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (where, reason), names in grouped.items():
        alike.setdefault((reason, tuple(names)), []).append(where)
    for (reason, those), places in alike.items():
        yield " ".join(f"{', '.join(places)}: {_these(those)}: {reason}".split())
    shipped = {f"export {file.path}" for file in manifest.files}
    if any(_left_out(those) and not shipped.isdisjoint(places) for (_, those), places in alike.items()):
        yield "Where not all operators are named, `coverage` in `manifest.json` names those of each file."


def _these(names: Sequence[str]) -> str:
    more = _left_out(names)
    return f"{', '.join(names[:NAMED])} and {more:,} more ({len(names):,} in all)" if more else ", ".join(names)


def _left_out(names: Sequence[str]) -> int:
    return len(names) - NAMED if len(names) > NAMED + 1 else 0
