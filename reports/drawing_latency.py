"""Where the time of a whole picture goes, by network and by step: for the report and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mcompress.record import ATTENTION_BY_HEADS, CallsRecord, GalleryRecord
from mcompress.reports import components, wording
from mcompress.reports.cells import Cell
from mcompress.reports.components import COMPRESSED, ORIGINAL, OWN
from mcompress.reports.drawing_plot import latency_bars
from mcompress.targets.schema import Measurement

MODELS = (ORIGINAL, ATTENTION_BY_HEADS, COMPRESSED)


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds of a whole picture that a network, or one step, takes: a cell for the original, one for the original with its attention laid out
    otherwise, where it is, and one for the compressed networks.
    """

    name: str
    cells: tuple[Cell, ...]
    faster: Cell
    """How many times from the first to the last, and where that has two causes, each."""
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
        rows.append(_latency_row(models, components.title(name), ones, [None] * len(models)))
        if name == OWN and all(steps[model] for model in models):
            rows.append(_latency_row(models, "one step", ones, [steps[model] for model in models], part=True))
    totals = [found.picture_ms(model) for model in models]
    obtained = {(one.each.how, one.each.on, one.each.band): one for model in models for one in found.latency[model]}
    whole = [Cell(f"{wording.number(ms)} ms") for ms in totals]
    return PictureLatency(
        models=models,
        rows=tuple(rows),
        whole=LatencyRow("whole picture", tuple(whole), _faster(models, totals), part=False),
        obtained=tuple(wording.provenance(one.each) for one in obtained.values()),
        plot=Markup(latency_bars(found, models, {model: steps[model] or 0 for model in models})),
    )


def steps_of(found: GalleryRecord, model: str) -> int | None:
    """In how many steps the original or the compressed networks draw."""
    painter = found.named(ORIGINAL if model == ATTENTION_BY_HEADS else model)
    return None if painter is None else painter.steps


def _latency_row(
    models: Sequence[str], name: str, ones: Sequence[CallsRecord | None], steps: Sequence[int | None], *, part: bool = False
) -> LatencyRow:
    """All calls of a network, or with `steps` those of one step."""
    cells, values = list[Cell](), list[float]()
    for one, count in zip(ones, steps, strict=True):
        if one is None:
            cells.append(Cell("none"))
            continue
        calls = one.calls / (count or 1)
        values.append(calls * one.each.value)
        cells.append(Cell(f"{wording.number(values[-1])} ms", _calls(calls, one.each, count), wording.provenance(one.each)))
    return LatencyRow(name, tuple(cells), _faster(models, values) if len(values) == len(ones) else Cell(), part)


def _calls(calls: float, each: Measurement, steps: int | None) -> str:
    """`64 calls of 12.6 ms`, or `32 steps of 2 calls of 12.6 ms`."""
    many = f"{calls:g} call{'s' if calls != 1 else ''} of {wording.number(each.value)} ms"
    return many if steps is None else f"{steps} step{'s' if steps > 1 else ''} of {many}"


def _faster(models: Sequence[str], values: Sequence[float]) -> Cell:
    if len(values) < 2 or min(values) <= 0:
        return Cell()
    times = "\N{MULTIPLICATION SIGN}"
    return Cell(f"{wording.number(values[0] / values[-1])}{times}", causes(dict(zip(models, values, strict=True)), times))


def causes(ms: Mapping[str, float], times: str) -> str:
    """`1.20x by attention by heads, 7.60x by compression`: what makes a picture faster, of which the products are the whole; empty where it has one
    cause. `ms`: of each model; `times`: the sign behind a factor.
    """
    if set(ms) != set(MODELS) or min(ms.values()) <= 0 or ms[ATTENTION_BY_HEADS] == ms[ORIGINAL]:
        return ""
    layout, rest = ms[ORIGINAL] / ms[ATTENTION_BY_HEADS], ms[ATTENTION_BY_HEADS] / ms[COMPRESSED]
    return f"{wording.number(layout)}{times} by attention by heads, {wording.number(rest)}{times} by compression"


def summary(found: GalleryRecord) -> Iterator[str]:
    """For the terminal: what a whole picture takes, before and after."""
    models = [model for model in MODELS if found.latency.get(model)]
    if not {ORIGINAL, COMPRESSED} <= set(models):
        return
    ms = {model: found.picture_ms(model) for model in models}
    before, after = ms[ORIGINAL], ms[COMPRESSED]
    each, less = found.latency[COMPRESSED][0].each, " less" if after < before else ""
    each_part = f": {said}" if (said := causes(ms, "x")) else ""
    gained = f"{wording.number(before)} ms -> {wording.number(after)} ms ({wording.ratio(before, after)}{less}{each_part})"
    yield f"One picture: {gained}, {wording.HOW[each.how]} for {each.on}"
    for model in models:
        parts = (f"{components.title(one.component)} {one.calls} x {wording.number(one.each.value)} ms" for one in found.latency[model])
        yield f"  {model}: {', '.join(parts)}"
