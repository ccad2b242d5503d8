"""Text to image in the terminal: the networks that go along with the U-Net, who drew how well, and what a picture takes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mcompress.record import GalleryRecord, ModelRecord, PainterRecord, Run
from mcompress.reports import components, wording
from mcompress.reports.drawing import measured, said
from mcompress.reports.drawing_latency import summary
from mcompress.reports.terminal_table import plain_table

SHORT = {"attribute accuracy": "attribute\naccuracy", "whole captions right": "captions\nright", "scene distance": "scene\ndistance"}
"""Measurement -> head of its column."""


def along_table(run: Run, console: Console) -> Table:
    """One call of each network beside the U-Net: its original, and below it what became of it."""
    table = plain_table(console)
    table.add_column("one call of", no_wrap=True)
    for head in ("parameters", "multiply-adds", "weights", "latency", "quality"):
        table.add_column(head, justify="right")
    on = dict[str, None]()
    for name, models in components.along(run).items():
        for which, model in models.items():
            latency = model.latency[0] if model.latency else None
            on |= {f"latency {wording.HOW[latency.how]} for {latency.on}": None} if latency else {}
            cells = (
                wording.count(model.params),
                wording.count(model.macs),
                wording.size(model.weight_bytes),
                wording.latency(latency) if latency else "-",
            )
            title = components.title(name) if which == components.ORIGINAL else f"  {which}"
            table.add_row(title, *cells, _quality(model))
    table.caption, table.caption_justify = Text("\n".join(on), style="dim"), "left"
    return table


def _quality(model: ModelRecord) -> str:
    return ", ".join(f"{wording.metric(name)[0]} {wording.quality(name, value)}" for name, value in model.quality.items()) or "not measured"


def painters_table(found: GalleryRecord, console: Console) -> Table:
    """Who drew, in how many steps, and what the pictures are worth."""
    table = plain_table(console)
    names = list(dict.fromkeys(one.what for painter in found.painters for one in painter.measurements))
    table.add_column("pictures by", no_wrap=True)
    table.add_column("steps", justify="right")
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right")
    table.add_column("worst PSNR\nto PyTorch", justify="right")
    for painter in found.painters:
        cells = (said(one) if (one := measured(painter, name)) is not None else "not judged" for name in names)
        table.add_row(escape(painter.name), str(painter.steps), *cells, _like_pytorch(painter))
    table.caption, table.caption_justify = f"of {len(found.captions)} held-out captions, each drawn from the same noise by all", "left"
    return table


def _like_pytorch(painter: PainterRecord) -> str:
    if painter.least_psnr_db is None:
        return ""
    seen = wording.quality("psnr_db", painter.least_psnr_db)
    if painter.passed is None:
        return seen
    style, verdict = ("green", "passed") if painter.passed else ("bold red", "FAILED")
    return f"{seen}\n[{style}]{verdict}[/], >= {painter.limit_db:g} dB"


def drawing_lines(found: GalleryRecord) -> Iterator[Text]:
    """What a picture takes, before and after."""
    for line in summary(found):
        yield Text(line)
