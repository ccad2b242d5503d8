"""Text to image in the report: the grid of pictures, what everybody's pictures are worth, and where the time of a whole picture goes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mcompress.record import GALLERY, CallsRecord, GalleryRecord, PainterRecord, Run
from mcompress.reports import components, wording
from mcompress.reports.components import COMPRESSED, ORIGINAL, OWN
from mcompress.reports.drawing_plot import latency_bars
from mcompress.reports.pictures import read_picture
from mcompress.targets.schema import Measurement

MODELS = (ORIGINAL, COMPRESSED)
NOT_DRAWN = f"{GALLERY} is no longer in the run's folder; run the target again to have it made"


@dataclass(frozen=True)
class Grid:
    """The picture of captions and painters, as it lies in the run's folder."""

    uri: str
    width: int
    height: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A number in words, what stands below it, and how it was obtained; empty where there is none."""

    value: str = ""
    note: str = ""
    source: str = ""


@dataclass(frozen=True)
class PainterRow:
    """Who drew, how, what the pictures are worth, and how like those of the compressed networks in PyTorch they are."""

    name: str
    note: str
    """Which files drew together: of a mixed file that is not shipped the float one stands in."""
    files: str
    """Their names."""
    steps: int
    guidance: str
    cells: tuple[Cell, ...]
    likeness: Cell
    passed: bool | None


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds of a whole picture that a network, or one step, takes: a cell for the original and one for the compressed networks."""

    name: str
    note: str
    cells: tuple[Cell, ...]
    faster: str
    part: bool
    """Whether it is a part of the row above it, so that it is not added up."""


@dataclass(frozen=True)
class PictureLatency:
    """Where the time of a picture goes."""

    models: tuple[str, ...]
    rows: tuple[LatencyRow, ...]
    whole: LatencyRow
    obtained: tuple[str, ...]
    """Of each network's latency, how it was obtained."""
    plot: Markup


@dataclass(frozen=True)
class Drawing:
    """The section."""

    gallery: GalleryRecord
    grid: Grid | None
    no_grid: str
    columns: tuple[str, ...]
    painters: tuple[PainterRow, ...]
    sources: tuple[str, ...]
    """What measurements are, where they say it."""
    latency: PictureLatency | None


def drawing_part(run: Run, folder: Path) -> Drawing | None:
    """For the run in `folder`. None for a run that drew nothing."""
    found = run.gallery
    if found is None:
        return None
    grid = _grid(found, folder / GALLERY)
    columns = tuple(dict.fromkeys(one.what for painter in found.painters for one in painter.measurements))
    sources = dict.fromkeys(
        f"{one.what[:1].upper()}{one.what[1:]}: {one.source}" for painter in found.painters for one in painter.measurements if one.source
    )
    return Drawing(
        gallery=found,
        grid=grid,
        no_grid="" if grid else NOT_DRAWN,
        columns=columns,
        painters=tuple(_row(run, found, painter, columns) for painter in found.painters),
        sources=tuple(sources),
        latency=picture_latency(found),
    )


def said(measurement: Measurement) -> str:
    """`97.9 %`; numbers without a unit with three digits."""
    if measurement.unit == "%":
        return f"{measurement.value:.1f} %"
    return f"{wording.number(measurement.value)} {measurement.unit}".strip()


def measured(painter: PainterRecord, what: str) -> Measurement | None:
    """What a painter's pictures are worth in this."""
    return next((one for one in painter.measurements if one.what == what), None)


def like_pytorch(painter: PainterRecord) -> Cell:
    """How like those of the compressed networks in PyTorch its pictures are: the worst of them, against the limit, and the mean."""
    if painter.least_psnr_db is None:
        return Cell()
    limit = "no limit" if painter.limit_db is None else f"limit {painter.limit_db:g} dB"
    mean = "" if painter.psnr_db is None else f"; mean {wording.quality('psnr_db', painter.psnr_db)}"
    return Cell(wording.quality("psnr_db", painter.least_psnr_db), f"{limit}{mean}")


def picture_latency(found: GalleryRecord) -> PictureLatency | None:
    """What a picture takes by network and by step; None where nothing is known of it."""
    models = tuple(model for model in MODELS if found.latency.get(model))
    if not models:
        return None
    calls = {model: {one.component: one for one in found.latency[model]} for model in models}
    names = tuple(dict.fromkeys(name for model in models for name in calls[model]))
    steps = {model: steps_of(found, model) for model in models}
    rows = list[LatencyRow]()
    for name in names:
        ones = [calls[model].get(name) for model in models]
        rows.append(_latency_row(components.title(name), "", ones, [None] * len(models)))
        if name == OWN and all(steps[model] for model in models):
            rows.append(_latency_row("one step", "", ones, [steps[model] for model in models], part=True))
    totals = [found.picture_ms(model) for model in models]
    obtained = {(one.each.how, one.each.on, one.each.band): one for model in models for one in found.latency[model]}
    return PictureLatency(
        models=models,
        rows=tuple(rows),
        whole=LatencyRow("whole picture", "", tuple(Cell(f"{wording.number(ms)} ms") for ms in totals), _faster(totals), part=False),
        obtained=tuple(wording.provenance(one.each) for one in obtained.values()),
        plot=Markup(latency_bars(found, models, {model: steps[model] or 0 for model in models})),
    )


def steps_of(found: GalleryRecord, model: str) -> int | None:
    """In how many steps the original or the compressed networks draw."""
    painter = found.named(model)
    return None if painter is None else painter.steps


def _grid(found: GalleryRecord, path: Path) -> Grid | None:
    pixels = read_picture(path) if found.shown else None
    if pixels is None:
        return None
    painters = [found.named(name) for name in found.shown]
    columns = tuple(_titled(painter) if painter else name for painter, name in zip(painters, found.shown, strict=True))
    height, width = pixels.shape[:2]
    return Grid(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}", width, height, columns)


def _titled(painter: PainterRecord) -> str:
    return painter.name if "step" in painter.name else f"{painter.name} ({painter.steps} step{'s' if painter.steps > 1 else ''})"


def _row(run: Run, found: GalleryRecord, painter: PainterRecord, columns: Sequence[str]) -> PainterRow:
    files = {export.file: export for export in run.exports}
    known = [files[name] for name in painter.files if name in files]
    note = ", ".join(f"{components.network_of(run, file.component)} {file.variant}" for file in known) or f"the {painter.kind} networks in PyTorch"
    return PainterRow(
        name=painter.name,
        note=note,
        files=", ".join(name.rsplit("/", 1)[-1] for name in painter.files),
        steps=painter.steps,
        guidance=f"{painter.guidance:g}" if painter.guidance != 1 else "none",
        cells=tuple(_cell(found, painter, what) for what in columns),
        likeness=like_pytorch(painter),
        passed=painter.passed,
    )


def _cell(found: GalleryRecord, painter: PainterRecord, what: str) -> Cell:
    """With the difference to the original, which is the first that is called so."""
    one, original = measured(painter, what), found.named(ORIGINAL)
    if one is None:
        return Cell("not judged")
    before = None if original is None or painter is original else measured(original, what)
    note = "" if before is None else f"{_signed(one.value - before.value, one.unit)} to the original"
    return Cell(said(one), note, f"{wording.provenance(one)}{': ' + one.source if one.source else ''}")


def _signed(difference: float, unit: str) -> str:
    shown = f"{abs(difference):.1f}" if unit == "%" else wording.number(abs(difference))
    sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else "\N{PLUS-MINUS SIGN}"
    return f"{sign}{shown}"


def _latency_row(name: str, note: str, ones: Sequence[CallsRecord | None], steps: Sequence[int | None], *, part: bool = False) -> LatencyRow:
    """All calls of a network, or with `steps` those of one step."""
    cells, values = list[Cell](), list[float]()
    for one, count in zip(ones, steps, strict=True):
        if one is None:
            cells.append(Cell("none"))
            continue
        calls = one.calls / (count or 1)
        values.append(calls * one.each.value)
        cells.append(Cell(f"{wording.number(values[-1])} ms", _calls(calls, one.each, count), wording.provenance(one.each)))
    return LatencyRow(name, note, tuple(cells), _faster(values) if len(values) == len(ones) else "", part)


def _calls(calls: float, each: Measurement, steps: int | None) -> str:
    """`64 calls of 12.6 ms`, or `32 steps of 2 calls of 12.6 ms`."""
    many = f"{calls:g} call{'s' if calls != 1 else ''} of {wording.number(each.value)} ms"
    return many if steps is None else f"{steps} step{'s' if steps > 1 else ''} of {many}"


def _faster(values: Sequence[float]) -> str:
    if len(values) < len(MODELS) or min(values) <= 0:
        return ""
    before, after = values[0], values[-1]
    return f"{wording.number(before / after)}\N{MULTIPLICATION SIGN}"


def summary(found: GalleryRecord) -> Iterator[str]:
    """For the terminal: what a whole picture takes, before and after."""
    if not all(found.latency.get(model) for model in MODELS):
        return
    before, after = (found.picture_ms(model) for model in MODELS)
    each, less = found.latency[COMPRESSED][0].each, " less" if after < before else ""
    gained = f"{wording.number(before)} ms -> {wording.number(after)} ms ({wording.ratio(before, after)}{less})"
    yield f"One picture: {gained}, {wording.HOW[each.how]} for {each.on}"
    for model in MODELS:
        parts = (f"{components.title(one.component)} {one.calls} x {wording.number(one.each.value)} ms" for one in found.latency[model])
        yield f"  {model}: {', '.join(parts)}"
