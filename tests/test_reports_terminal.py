"""The terminal table, and the words that it shares with the HTML report."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mcompress.record import Run
from mcompress.reports import wording
from mcompress.reports.terminal import render


@pytest.mark.parametrize("width", [80, 100, 120])
def test_terminal_table_fits_and_says_how(run_folder: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    run = Run.load(run_folder)
    render(run, console, folder=Path("runs/snapdragon865-f00df00d"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    flat = " ".join(text.split())
    for word in (
        "estimated",
        "host",
        "counted",
        "not measured",
        "not executed",
        "missed",
        "met",
        "unknown",
        "runs/snapdragon865-f00df00d/report.html",
    ):
        assert word in flat, word
    assert f"Fallbacks: {len(wording.all_fallbacks(run))}" in flat
    for export in run.exports:
        assert wording.size(export.bytes) in flat
    if width >= 100:
        for record in run.models.values():
            assert wording.count(record.params) in flat
            assert wording.quality("psnr_db", record.quality["psnr_db"]) in flat


def test_wording() -> None:
    assert [wording.number(v) for v in (0, 0.00123, 0.5, 1.234, 12.34, 123.4, 12345.6)] == ["0", "0.00123", "0.500", "1.23", "12.3", "123", "12,346"]
    assert [wording.size(v) for v in (12, 71_220, 3_390_000)] == ["12 B", "71.2 kB", "3.39 MB"]
    assert (wording.ratio(10, 2), wording.ratio(2, 10), wording.ratio(0, 1)) == ("5.00x", "5.00x larger", "not comparable")
