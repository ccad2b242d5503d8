"""Where the time of a whole picture goes, by network and by step: for the report and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mcompress.record import CallsRecord, GalleryRecord
from mcompress.reports import components, wording
from mcompress.reports.cells import Cell
from mcompress.reports.components import COMPRESSED, ORIGINAL, OWN
from mcompress.reports.drawing_plot import latency_bars
from mcompress.targets.schema import Measurement

MODELS = (ORIGINAL, COMPRESSED)


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds of a whole picture that a network, or one step, takes: a cell for the original and one for the compressed networks."""

    name: str
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
        rows.append(_latency_row(components.title(name), ones, [None] * len(models)))
        if name == OWN and all(steps[model] for model in models):
            rows.append(_latency_row("one step", ones, [steps[model] for model in models], part=True))
    totals = [found.picture_ms(model) for model in models]
    obtained = {(one.each.how, one.each.on, one.each.band): one for model in models for one in found.latency[model]}
    return PictureLatency(
        models=models,
        rows=tuple(rows),
        whole=LatencyRow("whole picture", tuple(Cell(f"{wording.number(ms)} ms") for ms in totals), _faster(totals), part=False),
        obtained=tuple(wording.provenance(one.each) for one in obtained.values()),
        plot=Markup(latency_bars(found, models, {model: steps[model] or 0 for model in models})),
    )


def steps_of(found: GalleryRecord, model: str) -> int | None:
    """In how many steps the original or the compressed networks draw."""
    painter = found.named(model)
    return None if painter is None else painter.steps


def _latency_row(name: str, ones: Sequence[CallsRecord | None], steps: Sequence[int | None], *, part: bool = False) -> LatencyRow:
    """All calls of a network, or with `steps` those of one step."""
    cells, values = list[Cell](), list[float]()
    for one, count in zip(ones, steps, strict=True):
        if one is None:
            cells.append(Cell("none"))
            continue
        calls = one.calls / (count or 1)
        values.append(calls * one.each.value)
        cells.append(Cell(f"{wording.number(values[-1])} ms", _calls(calls, one.each, count), wording.provenance(one.each)))
    return LatencyRow(name, tuple(cells), _faster(values) if len(values) == len(ones) else "", part)


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
