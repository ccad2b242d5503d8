"""The comparison as a comment on a pull request, in GitHub's Markdown: the verdict and what fails open, everything else folded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from mcompress.reports.gate.verdicts import Check, OperatorChange, Row, Verdict

MARKER = "<!-- mcompress check -->"
"""First line of the comment, so that a later run can find and replace it."""
SIGNS: dict[Verdict, str] = {
    "regression": ":x:",
    "re-baseline": ":warning:",
    "not decided": ":hourglass:",
    "better": ":green_circle:",
    "not comparable": ":grey_question:",
    "ok": "",
}
SHOWN_OPERATORS = 12
LONGEST = 60_000
"""GitHub takes comments of 65,536 characters."""
HEADER = ("file", "field", "baseline", "new", "change", "allowed", "verdict")


def markdown(check: Check) -> str:
    """The whole comment, ending with a line break."""
    title = f"### {SIGNS[check.verdict]} mcompress check: {check.verdict}".replace("###  ", "### ")
    parts = [MARKER, title, "", f"{_text(check.target)} on {_text(check.device)}: {check.summary}.", ""]
    told = [row for row in check.rows if row.verdict not in ("ok", "not comparable")]
    if told:
        parts += [*_rows(told), ""]
        parts += [*(f"- {_text(row.subject)}, {_text(row.field)}: {_text(row.note)}" for row in told if row.note), ""]
    for subject, changes in check.operators.items():
        gained = sum(change.gained_ms for change in changes)
        parts += _folded(f"Operators of {subject}: {gained:+.3f} ms estimated, {len(changes)} differ", _operators(changes))
    if check.notes:
        parts += _folded("What else is known", [f"- {_text(note)}" for note in check.notes])
    everything = _folded(f"All {len(check.rows)} fields", _rows(check.rows))
    if sum(map(len, (*parts, *everything))) < LONGEST:
        parts += everything
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"
    return text if len(text) <= LONGEST else text[:LONGEST] + "\n\n(cut: the comment would be too long)\n"


def markdown_error(message: str) -> str:
    """The comment for bundles that cannot be compared at all."""
    lines = [f"- {_text(line)}" for line in message.splitlines()]
    return "\n".join((MARKER, f"### {SIGNS['not comparable']} mcompress check: not comparable", "", *lines)) + "\n"


def _rows(rows: Sequence[Row]) -> list[str]:
    cells = (
        (row.subject, row.field, row.baseline, row.new, row.change, row.tolerance, f"{SIGNS[row.verdict]} {row.verdict}".strip()) for row in rows
    )
    return _table(HEADER, "llrrrrl", cells)


def _operators(changes: Sequence[OperatorChange]) -> list[str]:
    cells: list[tuple[str, ...]] = [
        (c.name, c.kind, c.what, f"{c.baseline_ms:.3f}", f"{c.new_ms:.3f}", f"{c.gained_ms:+.3f}", c.detail) for c in changes[:SHOWN_OPERATORS]
    ]
    if len(changes) > SHOWN_OPERATORS:
        rest = changes[SHOWN_OPERATORS:]
        cells.append((f"{len(rest)} more", "", "", "", "", f"{sum(c.gained_ms for c in rest):+.3f}", ""))
    return _table(("operator", "kind", "", "baseline, ms", "new, ms", "gained, ms", "what changed"), "lllrrrl", cells)


def _table(header: Sequence[str], alignment: str, rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(":--" if side == "l" else "--:" for side in alignment) + "|"]
    return [*lines, *("| " + " | ".join(map(_text, row)) + " |" for row in rows)]


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    """GitHub needs the empty line behind the summary to read Markdown inside."""
    return ["<details>", f"<summary>{_html(summary)}</summary>", "", *lines, "", "</details>", ""]


def _text(value: str) -> str:
    """One line that cannot break a table, and is not read as HTML, emphasis, a link or a mention."""
    return re.sub(r"([\\|`*_\[\]~#])", r"\\\1", _html(value))


def _html(value: str) -> str:
    """One line of text without control characters; the empty comment keeps `@name` from being a mention."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(value.split()))
    return html.escape(line, quote=False).replace("@", "@<!-- -->")
