"""The comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mcompress.reports.gate.verdicts import Check, OperatorChange, Verdict

PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
STYLES: dict[Verdict, str] = {
    "regression": "bold red",
    "re-baseline": "bold yellow",
    "not decided": "bold yellow",
    "better": "green",
    "not comparable": "dim",
    "ok": "",
}
SHOWN_OPERATORS = 8


def render(check: Check, console: Console) -> None:
    """Print every row, the operators responsible, and what must be known to read them. Plain ASCII where `console` is not a terminal."""
    parts: list[RenderableType] = [_text(f"{check.target} on {check.device}", style="bold"), Text(), _rows(check, console)]
    for subject, changes in check.operators.items():
        parts += [_text(f"Operators of {subject}, estimated", style="bold"), _operators(changes, console)]
    parts += [Padding(_text(f"{row.field} of {row.subject}: {row.note}"), (0, 0, 0, 2)) for row in check.rows if row.note and row.verdict != "ok"]
    parts += [Padding(_text(note), (0, 0, 0, 2)) for note in check.notes]
    parts += [Text(), Text.assemble("verdict  ", (check.verdict, STYLES[check.verdict]), (f"  ({check.summary})", ""))]
    console.print(Group(*parts))


def _table(console: Console) -> Table:
    return Table(box=SIMPLE_HEAD if console.is_terminal else PLAIN, header_style="bold", pad_edge=False, collapse_padding=True)


def _text(text: str, style: str = "") -> Text:
    """Not read as markup; what a bundle says cannot steer the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text), style=style)


def _rows(check: Check, console: Console) -> Table:
    table = _table(console)
    table.add_column("field", overflow="fold")
    for name in ("baseline", "new", "change", "tolerance"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    subject = ""
    for row in check.rows:
        if row.subject != subject:
            subject = row.subject
            table.add_row(_text(subject, style="bold"))
        cells = (_text(f"  {row.field}"), *map(_text, (row.baseline, row.new, row.change, row.tolerance)))
        table.add_row(*cells, Text(row.verdict, style=STYLES[row.verdict]))
    return table


def _operators(changes: Sequence[OperatorChange], console: Console) -> Table:
    table = _table(console)
    table.add_column("operator", overflow="fold")
    table.add_column("", no_wrap=True)
    for name in ("baseline, ms", "new, ms", "gained, ms"):
        table.add_column(name, justify="right")
    table.add_column("what changed", overflow="fold")
    for change in changes[:SHOWN_OPERATORS]:
        figures = (f"{change.baseline_ms:.3f}", f"{change.new_ms:.3f}", f"{change.gained_ms:+.3f}")
        table.add_row(_text(f"{change.name} ({change.kind})"), change.what, *figures, _text(change.detail))
    rest = changes[SHOWN_OPERATORS:]
    if rest:
        table.add_row(f"{len(rest)} more", "", "", "", f"{sum(change.gained_ms for change in rest):+.3f}", "")
    return table
