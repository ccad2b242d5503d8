"""The roofline of a run's target: multiply-adds per byte against the speed that operators reach, below what the unit reaches at most.

After Williams et al., "Roofline: an insightful visual performance model for multicore architectures" (2009), with the device's effective ceilings,
one per class of operators, instead of marketing peaks. Operators that multiply nothing have no place on it; what they move per second is beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.ticker import FuncFormatter, LogLocator

from mcompress.record import Ceiling, LatencyBreakdown, OperatorCost, Run
from mcompress.reports import plots, wording
from mcompress.reports.latency_budget import breakdowns, described

SAME = 0.02  # decades; operators closer than this in both directions are one dot
LABELS = 0.37  # of the horizontal axis: room for the labels to the right of all dots
NEAR = 0.055  # of the axis; ceilings closer than this have one label
LARGEST = 900.0  # points squared: the dot of an operator that takes all of the time
SMALLEST = 14.0
FEW = 300.0  # an axis that spans less than this factor has ticks between the powers of ten
PLACES: tuple[tuple[str, str | tuple[int, tuple[int, int]]], ...] = ((plots.INK, "-"), (plots.MUTED, (0, (4, 3))))
"""Colour and line of the ceilings of a place, a unit and a precision."""
MOST_PLACES = len(PLACES)
"""With ceilings in the plot; the table behind it lists all."""


@dataclass(frozen=True)
class Dot:
    """Operators of one model that do the same at the same speed: multiply-adds per byte, 10^9 multiply-adds and bytes per second, time in ms."""

    model: str
    kind: str
    intensity: float
    gmacs: float
    gbs: float
    latency_ms: float
    share: float
    """Of the model's time, 0 to 1."""
    what: str


@dataclass(frozen=True)
class Roofline:
    """All that the report shows of it."""

    ceilings: tuple[Ceiling, ...]
    multiplying: tuple[Dot, ...]
    moving: tuple[Dot, ...]
    """Operators that multiply nothing."""


def roofline(run: Run) -> Roofline | None:
    """The dots and ceilings of a run, or None for one whose record does not hold them."""
    found = breakdowns(run)
    if not found or not run.roofline:
        return None
    dots = [dot for name, breakdown in found.items() for dot in dots_of(name, breakdown)]
    multiplying, moving = ([dot for dot in dots if (dot.gmacs > 0) == wanted] for wanted in (True, False))
    return Roofline(_by_use(run.roofline, list(found.values())[-1]), tuple(multiplying), tuple(moving))


def dots_of(model: str, breakdown: LatencyBreakdown) -> tuple[Dot, ...]:
    """One dot per operator, or per group of operators that coincide: its time is theirs together."""
    groups: dict[tuple[str, str, int, int], list[OperatorCost]] = {}
    for cost in breakdown.operators:
        if cost.bytes > 0 and cost.latency_ms > 0:
            place = (cost.kind, cost.unit, _step(cost.macs / cost.bytes), _step((cost.macs or cost.bytes) / cost.latency_ms))
            groups.setdefault(place, []).append(cost)
    total = breakdown.latency.value or 1.0
    dots = [_dot(model, costs, total) for costs in groups.values()]
    return tuple(sorted(dots, key=lambda dot: -dot.latency_ms))


def _dot(model: str, costs: Sequence[OperatorCost], total_ms: float) -> Dot:
    spent_ms, macs, moved = (sum(values) for values in zip(*((cost.latency_ms, cost.macs, cost.bytes) for cost in costs), strict=True))
    first = costs[0]
    what = described(first)
    names = f"{first.name}: {what}" if len(costs) == 1 else f"{len(costs)} operators, the first {first.name}: {what}"
    speed = f"{wording.number(macs / spent_ms / 1e6)} GMACs/s at {wording.number(macs / moved)} multiply-adds per byte, " if macs else ""
    said = (
        f"{model}, {names}; {speed}{wording.number(moved / spent_ms / 1e6)} GB/s, {wording.number(spent_ms)} ms, "
        f"{wording.share(spent_ms, total_ms)} of the time, {first.computed_in} on {first.unit}"
    )
    return Dot(model, first.kind, macs / moved, macs / spent_ms / 1e6, moved / spent_ms / 1e6, spent_ms, spent_ms / total_ms, said)


def _step(value: float) -> int:
    return round(math.log10(value) / SAME) if value > 0 else -(10**6)


def _by_use(ceilings: Sequence[Ceiling], breakdown: LatencyBreakdown) -> tuple[Ceiling, ...]:
    """The place where the last model spends most time first."""
    spent: dict[tuple[str, str], float] = {}
    for cost in breakdown.operators:
        spent[cost.unit, cost.computed_in] = spent.get((cost.unit, cost.computed_in), 0.0) + cost.latency_ms
    return tuple(sorted(ceilings, key=lambda ceiling: -spent.get((ceiling.unit, ceiling.precision), 0.0)))


def draw(found: Roofline) -> str:
    """The plot: hollow dots before, filled ones after, the area of a dot is its share of its model's time."""
    models = list(dict.fromkeys(dot.model for dot in (*found.multiplying, *found.moving)))
    titles: dict[str, str] = {}
    with mpl.rc_context(plots.STYLE):
        kinds = list(dict.fromkeys(dot.kind for dot in sorted(found.moving, key=lambda dot: (dot.model != models[-1], -dot.share))))
        if kinds:
            figure, (axes, beside) = plots.new_panels(plots.WIDTH, 4.9, (max(2.0, 3.4 - 0.12 * len(kinds)), 1))
            _moving(beside, found, kinds, models, titles)
        else:
            figure, axes = plots.new_figure(plots.WIDTH, 4.6)
        if found.multiplying:
            _roof(axes, found, models, titles)
        else:
            axes.set_axis_off()
        for model in models:
            _scatter(axes, [], [], 30.0, after=model == models[-1]).set_label(_model_label(model, models))
        plots.legend(figure)
        where = ", ".join(f"{c.title} {c.precision} {wording.number(c.gbs)} GB/s" for c in found.ceilings[:MOST_PLACES])
        said = f"{len(found.multiplying)} dots of operators that multiply, {len(found.moving)} of operators that only move memory"
        return plots.as_svg(figure, f"Roofline of {where}: multiply-adds per byte against multiply-adds per second for {said}.", titles)


def _roof(axes: Axes, found: Roofline, models: Sequence[str], titles: dict[str, str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = _limits([dot.intensity for dot in found.multiplying] + [max(c.gmacs.values()) / c.gbs for c in found.ceilings[:1] if c.gmacs], 2.2)
    tops = [rate for ceiling in found.ceilings[:MOST_PLACES] for rate in ceiling.gmacs.values()]
    right = left * (right / left) ** (1.0 / (1.0 - LABELS))
    low, high = _limits([dot.gmacs for dot in found.multiplying] + tops, 1.7)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    for index, ceiling in enumerate(found.ceilings[:MOST_PLACES]):
        _ceiling(axes, ceiling, index, several=len(found.ceilings) > 1)
    _dots(axes, [(dot, dot.intensity, dot.gmacs) for dot in found.multiplying], models, titles, "roof")
    axes.set_xlabel("multiply-adds per byte")
    axes.set_ylabel("10⁹ multiply-adds per second, reached")
    _plain(axes)


def _ceiling(axes: Axes, ceiling: Ceiling, index: int, *, several: bool) -> None:
    """The slope of the bandwidth and a level per class, from the slope to the right; what is used less is dashed."""
    left, right = axes.get_xlim()
    bottom, high = axes.get_ylim()
    colour, style = PLACES[index]
    top = max(ceiling.gmacs.values(), default=high)
    where = f" ({ceiling.unit} {ceiling.precision})" if several else ""
    slopes = [(ceiling.gbs, "")] + ([(ceiling.far_gbs, f" beyond {wording.number(ceiling.cache_mb or 0)} MB")] if ceiling.far_gbs else [])
    for gbs, note in slopes:
        end = min(top / gbs, right)
        axes.plot([left, end], [left * gbs, end * gbs], color=colour, linestyle=style, linewidth=1.4)
        at = max(left, bottom / gbs)
        place = at * (end / at) ** 0.12
        label = plots.literal(f"{wording.number(gbs)} GB/s{note}{where}")
        axes.text(
            place, place * gbs * 1.06, label, rotation=math.degrees(math.atan(gbs)), rotation_mode="anchor",
            transform_rotates_text=True, fontsize=8.5, color=colour, va="bottom",
        )  # fmt: skip
    for rates in _levels(ceiling.gmacs, (high / bottom) ** NEAR):
        for _, rate in rates:
            axes.plot([min(rate / ceiling.gbs, right), right], [rate, rate], color=colour, linestyle=style, linewidth=1.1)
        label = _label(rates)
        axes.text(right, rates[-1][1] * 1.04, plots.literal(label + (where if index else "")), ha="right", va="bottom", fontsize=8.5, color=colour)


def _label(rates: Sequence[tuple[str, float]]) -> str:
    """`convolutions, 1×1 convolutions 198`: the speed once for those that have the same."""
    kinds: dict[str, list[str]] = {}
    for kind, rate in rates:
        kinds.setdefault(wording.number(rate), []).append(wording.kind(kind, 2))
    return ", ".join(f"{', '.join(names)} {rate}" for rate, names in kinds.items())


def _levels(gmacs: Mapping[str, float], near: float) -> list[list[tuple[str, float]]]:
    """Classes by speed; those less than a factor `near` apart are together, since their labels would lie on each other."""
    levels: list[list[tuple[str, float]]] = []
    for kind, rate in sorted(gmacs.items(), key=lambda item: item[1]):
        if levels and rate < near * levels[-1][-1][1]:
            levels[-1].append((kind, rate))
        else:
            levels.append([(kind, rate)])
    return levels


def _moving(axes: Axes, found: Roofline, kinds: Sequence[str], models: Sequence[str], titles: dict[str, str]) -> None:
    """Bytes per second of what multiplies nothing, with the most that its class reaches."""
    axes.set_yscale("log")
    ceilings = found.ceilings[:MOST_PLACES]
    limits = [[ceiling.moved_gbs.get(kind, ceiling.gbs) for kind in kinds] for ceiling in ceilings]
    axes.set_ylim(*_limits([dot.gbs for dot in found.moving] + [gbs for row in limits for gbs in row], 1.7))
    axes.set_xlim(-0.6, len(kinds) - 0.4)
    for row, (colour, style) in zip(limits, PLACES, strict=False):
        for place, gbs in enumerate(row):
            axes.plot([place - 0.42, place + 0.42], [gbs, gbs], color=colour, linestyle=style, linewidth=1.2)
    shift = {model: 0.26 * (index - (len(models) - 1) / 2) for index, model in enumerate(models)}
    _dots(axes, [(dot, kinds.index(dot.kind) + shift[dot.model], dot.gbs) for dot in found.moving], models, titles, "moving")
    axes.set_xticks(range(len(kinds)), [plots.literal(wording.kind(kind, 2)) for kind in kinds], rotation=35, ha="right", fontsize=8.5)
    axes.set_ylabel("10⁹ bytes per second, reached")
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _dots(axes: Axes, dots: Iterable[tuple[Dot, float, float]], models: Sequence[str], titles: dict[str, str], panel: str) -> None:
    for index, (dot, x, y) in enumerate(dots):
        gid = f"{panel}-{index}"
        drawn = _scatter(axes, [x], [y], SMALLEST + LARGEST * dot.share, after=dot.model == models[-1])
        drawn.set_gid(gid)
        drawn.set_zorder(3 + models.index(dot.model))
        titles[gid] = dot.what


def _scatter(axes: Axes, x: Sequence[float], y: Sequence[float], area: float, *, after: bool) -> PathCollection:
    if after:
        return axes.scatter(x, y, s=area, facecolors=plots.ACCENT, edgecolors=plots.ACCENT, alpha=0.75, linewidths=1.0)
    return axes.scatter(x, y, s=area, facecolors="none", edgecolors=plots.SECOND, linewidths=1.3)


def _model_label(model: str, models: Sequence[str]) -> str:
    return f"{model}, {'after' if model == models[-1] else 'before'}" if len(models) > 1 else model


def _limits(values: Sequence[float], room: float) -> tuple[float, float]:
    return min(values) / room, max(values) * room


def _plain(axes: Axes) -> None:
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < FEW * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
