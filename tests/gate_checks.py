"""What the gate says of two bundles, without its command: each read as the command reads it."""

from __future__ import annotations

from pathlib import Path

from mcompress.export.bundle import read_manifest
from mcompress.export.comparison import Comparison, read_comparison
from mcompress.reports.gate.compare import compare
from mcompress.reports.gate.file_rows import NotTimed, Side
from mcompress.reports.gate.timing import Timing
from mcompress.reports.gate.verdicts import Check, Row


def side(folder: Path, constants: Comparison | None = None) -> Side:
    manifest, comparison = read_manifest(folder), read_comparison(folder)
    return Side(manifest, comparison, comparison.estimates_with((constants or comparison).constants))


def check(baseline: Path, new: Path, timing: Timing | NotTimed | None = None) -> Check:
    changed = side(new)
    return compare(side(baseline, changed.comparison), changed, {} if timing is None else {"onnx float": timing})


def row(found: Check, field: str) -> Row:
    (only,) = [row for row in found.rows if row.field == field]
    return only
