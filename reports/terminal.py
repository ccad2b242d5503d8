"""The table that ends a run in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mcompress.export.fidelity import FLOAT_STUDENT, REFERENCES, TEACHER
from mcompress.record import ExportRecord, ModelRecord, Run
from mcompress.reports import components, latency_budget, likeness, wording
from mcompress.reports.precision import plan_line
from mcompress.reports.terminal_drawing import along_table, drawing_lines, painters_table
from mcompress.reports.terminal_table import plain_table
from mcompress.targets.schema import How

NARROW = 120  # columns below which the second table breaks its cells where they can be broken
ORDER: tuple[How, ...] = ("device", "estimated", "host", "published")


def render(run: Run, console: Console, *, folder: Path | None = None) -> None:
    """Print what a run achieved, with how each number was obtained; `folder` adds where bundle and report lie.

    Plain ASCII rules and no colour where `console` is not a terminal.
    """
    parts: list[RenderableType] = [Text(), _title(run), _models(run, console)]
    if run.components:
        parts.append(along_table(run, console))
    if run.gallery is not None:
        parts += [painters_table(run.gallery, console), *drawing_lines(run.gallery), Text()]
    if run.exports:
        parts.append(_files(run, console))
    if likeness.compared(run):
        parts.append(_pictures(run, console))
    if run.budget:
        parts += [Text("Budget", style="bold"), _budget(run), Text()]
    parts += _remarks(run, folder)
    if folder is not None:
        parts += [Text(), Text(f"bundle  {folder / 'bundle'}", overflow="fold"), Text(f"report  {folder / 'report.html'}", overflow="fold")]
    console.print(Group(*parts))


def _title(run: Run) -> Text:
    text = Text(run.target.title or run.target.name, style="bold")
    if run.target.quick:
        text.append("  quick: tiny budgets, not a result", style="yellow")
    return text


def _models(run: Run, console: Console) -> Table:
    models = wording.models_of(run)
    table = plain_table(console)
    table.add_column(components.network_of(run, None))
    for name in models:
        table.add_column(name, justify="right")
    table.add_column("obtained", style="dim")
    records = list(models.values())
    notes: list[str] = []
    table.add_row("parameters", *(_against(r.params, records[0].params, wording.count(r.params)) for r in records), "counted")
    table.add_row("multiply-adds", *(_against(r.macs, records[0].macs, wording.count(r.macs)) for r in records), "counted")
    peaks = (_against(r.peak_activation_bytes, records[0].peak_activation_bytes, wording.size(r.peak_activation_bytes)) for r in records)
    table.add_row("peak memory", *peaks, "counted, fp32 activations")
    table.add_row("weights", *(_against(r.weight_bytes, records[0].weight_bytes, wording.size(r.weight_bytes)) for r in records), "counted")
    for metric in dict.fromkeys(name for record in records for name in record.quality):
        label = wording.metric(metric)[0]
        cells = (wording.quality(metric, r.quality[metric]) if metric in r.quality else "not measured" for r in records)
        files = [f"{name} by {source}" for name in models if (source := wording.quality_source(run, name)) != "PyTorch"]
        table.add_row(label, *cells, _noted("held-out data", notes, ", ".join(["computed by PyTorch", *files])))
        if metric in run.baseline.get("mean", {}):
            base = run.baseline["mean"][metric]
            gains = (wording.gain(r.quality[metric], base) if metric in r.quality else "" for r in records)
            table.add_row(f"  above {run.baseline_name}", *gains, f"{run.baseline_name} is {wording.quality(metric, base)}")
    for how in ORDER:
        found = [wording.measured(record.latency, how) for record in records]
        if any(found):
            where = list(dict.fromkeys(m.on for m in found if m))
            bands = list(dict.fromkeys(m.band for m in found if m and m.band))
            table.add_row("latency", *(wording.latency(m) if m else "-" for m in found), _noted(how, notes, "; ".join(where + bands)))
    if not any(record.latency for record in records):
        table.add_row("latency", *("-" for _ in records), "not measured")
    table.caption, table.caption_justify = Text("\n".join(notes), style="dim"), "left"
    return table


def _noted(text: str, notes: list[str], note: str) -> str:
    """`text` with the number of a note below the table, so that long provenance does not squeeze the numbers."""
    notes.append(f"{len(notes) + 1}) {text}: {note}")
    return escape(f"{text} {len(notes)})")


def _against(value: int, teacher: int, text: str) -> str:
    if not teacher or value == teacher:
        return text
    return f"{text}\n[dim]{wording.ratio(teacher, value)}{' less' if value < teacher else ''}[/]"


def _files(run: Run, console: Console) -> Table:
    table = plain_table(console)
    narrow = console.width < NARROW
    table.add_column("file", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("int8/16/32" if narrow else "int8/fp16/fp32", justify="right", no_wrap=True)
    table.add_column("parity", no_wrap=narrow)
    table.add_column("operators run on")
    table.add_column("host ms,\np50 / p90", justify="right")
    for export in run.exports:
        value, verdict = wording.parity(export.parity, short=narrow)
        style = {"passed": "green", "FAILED": "bold red"}.get(verdict, "yellow")
        counts = "/".join(str(export.precision_counts.get(p, 0)) for p in ("int8", "fp16", "fp32"))
        units = ", ".join(f"{n} {unit}" for unit, n in export.coverage.by_unit.items()) or "not known"
        gap = "\n" if narrow else " "
        mark = " [bold cyan]*[/]" if export.recommended else "" if export.shipped else " [yellow]-[/]"
        name = gap.join(filter(None, (export.backend, export.variant, components.network_of(run, export.component) or export.beside))) + mark
        table.add_row(name, wording.size(export.bytes), counts, f"[{style}]{verdict}[/]{gap}{escape(value)}", escape(units), _host(export))
    captions = ["* recommended for the target's device"] if any(export.recommended for export in run.exports) else []
    captions += ["- not in the bundle"] if not all(export.shipped for export in run.exports) else []
    if captions:
        table.caption, table.caption_justify = "; ".join(captions), "left"
    return table


def _pictures(run: Run, console: Console) -> Table:
    """The worst case over the held-out pictures, per file; the means and the pictures' names stand in the report."""
    table = plain_table(console)
    compared = likeness.compared(run)
    metrics = list(dict.fromkeys(metric for export in compared for metric in export.quality_worst if not wording.against_teacher(metric)))
    shown = [("psnr_db", FLOAT_STUDENT), ("psnr_db", TEACHER), ("ssim", FLOAT_STUDENT), ("largest_shift", FLOAT_STUDENT)]
    table.add_column("worst picture of", no_wrap=True)
    gap = "\n" if run.components and console.width < NARROW else " "  # several networks have several metrics, each a column
    for heading in (
        *(f"{wording.metric(m)[0].replace(' ', gap)},\ntruth" for m in metrics),
        *(f"{likeness.FIELDS[field]},\n{REFERENCES[who].removeprefix('the ')}" for field, who in shown),
    ):
        table.add_column(heading, justify="right")
    for export in compared:
        cells = [wording.quality(m, export.quality_worst[m].value) if m in export.quality_worst else "-" for m in metrics]
        for field, who in shown:
            worst = export.fidelity[who].worst.get(field) if who in export.fidelity else None
            cells.append(likeness.said(field, worst.value) if worst else "-")
        table.add_row(components.label(run, export, gap), *cells)
    table.caption = "computed by each file itself; steps are 8-bit steps; means, CIEDE2000 and which picture it is: in the report"
    table.caption_justify = "left"
    return table


def _host(export: ExportRecord) -> str:
    host = wording.measured(export.latency, "host")
    if host is None:
        return "not measured"
    p50 = host.value if host.p50 is None else host.p50
    return wording.number(p50) + (f" / {wording.number(host.p90)}" if host.p90 is not None else "")


def _budget(run: Run) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for line in run.budget:
        value = "unknown" if line.value is None else wording.number(line.value)
        text = Text(f"{components.budget_name(run, line.what)}: {value}, limit {wording.number(line.limit)}")
        text.append(f"  ({wording.obtained(line)})", style="dim")
        grid.add_row(Text("met" if line.met else "missed", style="green" if line.met else "bold red"), text)
    return Padding(grid, (0, 0, 0, 2))


def _remarks(run: Run, folder: Path | None) -> list[RenderableType]:
    found = len(wording.all_fallbacks(run))
    spent = latency_budget.summary(run)
    own = components.network_of(run, None)
    remarks: list[RenderableType] = [Text(f"Where the time{f' of one call of the {own}' if own else ''} goes: {spent}")] if spent else []
    remarks += [
        Text(f"First wrong operator of {wording.file_name(export)}: {export.divergence.sentence()}", style="bold red")
        for export in run.exports
        if export.divergence is not None
    ]
    if run.data is not None:
        remarks.append(Text(f"Data: {wording.labels(run.data)}"))
    planned = plan_line(run, folder) if folder is not None else ""
    if planned:
        remarks.append(Text(f"Precision plan: {planned}"))
    withheld = [wording.file_name(export) for export in run.exports if not export.shipped]
    if withheld:
        remarks.append(Text(f"Not in the bundle: {', '.join(withheld)}; the reason is among the fallbacks", style="yellow"))
    remarks += [Text(f"Fallbacks: {found}" + (", each with its reason in the report" if found else ""), style="yellow" if found else "")]
    if run.not_measured:
        remarks.append(Text("Not measured:"))
        remarks += [Padding(Text(text), (0, 0, 0, 2)) for text in run.not_measured]
    failed = [model for model in wording.models_of(run).values() if not _has_quality(model)]
    if failed:
        remarks.append(Text("Quality was not measured for every model.", style="yellow"))
    return remarks


def _has_quality(record: ModelRecord) -> bool:
    return bool(record.quality)
