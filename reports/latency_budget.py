"""Where the milliseconds go: the estimated latency of a run's models by what it is spent on, by kind of operator and by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mcompress.record import LatencyBreakdown, OperatorCost, Run
from mcompress.reports import plots, wording
from mcompress.targets.schema import Measurement

Part = Literal["compute", "memory", "dispatch", "boundary", "stream", "apart", "fixed"]
PARTS: tuple[Part, ...] = get_args(Part)
PART_NAMES: Mapping[Part, tuple[str, str]] = {
    "compute": ("multiplying", "operators that wait for multiply-adds"),
    "memory": ("moving memory", "operators that wait for memory"),
    "dispatch": ("starting operators", "dispatch"),
    "boundary": ("boundaries", "conversions between precisions and units"),
    "stream": ("fetching weights", "weights that the cache does not hold, fetched anew in every inference"),
    "apart": ("activations apart", "activations that the runtime computes in a pass of their own"),
    "fixed": ("fixed cost", "of one inference, whatever the network"),
}
BOUNDS: Mapping[Part, str] = {
    "compute": "compute",
    "memory": "memory",
    "dispatch": "dispatch",
    "boundary": "boundary",
    "stream": "weights",
    "apart": "activation apart",
}
MODELS = ("teacher", "compressed")
SHOWN = 15
"""Operators in the table; the others are behind a click."""
SMALL = 0.01
"""Kinds of operators below this share of both models are one bar."""
REST = "others"
NOTABLE = 0.05
"""Shares of the time below this are within any estimate's error: no savings are promised, and a fixed cost is not mentioned."""
Costs = dict[Part, float]


@dataclass(frozen=True)
class PartRow:
    """What milliseconds are spent on: per model its time and its share in percent."""

    part: Part
    name: str
    note: str
    times_ms: tuple[float, ...]
    percents: tuple[float, ...]


@dataclass(frozen=True)
class KindRow:
    """One kind of operator in one model."""

    kind: str
    label: str
    count: int
    parts: Costs

    @property
    def total_ms(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class OperatorRow:
    """One operator with its share of the model's time in percent, and what most of its time is spent on."""

    cost: OperatorCost
    percent: float
    of_largest: float
    """In percent of the most expensive operator: the length of its bar."""
    bound: str
    what: str


@dataclass(frozen=True)
class LatencyBudget:
    """All that the report shows of it."""

    breakdowns: dict[str, LatencyBreakdown]
    parts: tuple[PartRow, ...]
    operators: tuple[OperatorRow, ...]
    """Of the last model, the most expensive first."""

    @property
    def model(self) -> str:
        """The model whose operators are listed."""
        return list(self.breakdowns)[-1]

    @property
    def last(self) -> LatencyBreakdown:
        """Its breakdown."""
        return self.breakdowns[self.model]


def latency_budget(run: Run) -> LatencyBudget | None:
    """Where the milliseconds go, or None for a run whose record does not hold it."""
    found = breakdowns(run)
    if not found:
        return None
    return LatencyBudget(found, part_rows(found), operator_rows(list(found.values())[-1]))


def breakdowns(run: Run) -> dict[str, LatencyBreakdown]:
    """Model -> its breakdown, the teacher before what became of it; without the models whose record has none."""
    models = ((name, run.models[name].breakdown) for name in MODELS if name in run.models)
    return {name: breakdown for name, breakdown in models if breakdown is not None and breakdown.operators}


def measured(run: Run) -> dict[str, Measurement]:
    """Model -> the latency that its headline states where it is not the estimate which is taken apart: on this machine, a measurement."""
    first = ((name, run.models[name].latency[0]) for name in breakdowns(run) if run.models[name].latency)
    return {name: latency for name, latency in first if latency.how != "estimated"}


def parts_of(operator: OperatorCost) -> Costs:
    """What an operator's milliseconds are spent on; they add up to its latency. Compute hides memory traffic, or the other way round."""
    waits: Part = "compute" if operator.compute_ms >= operator.memory_ms else "memory"
    times: Costs = {waits: max(operator.compute_ms, operator.memory_ms)}
    fixed: Costs = {"dispatch": operator.dispatch_ms, "boundary": operator.boundary_ms, "stream": operator.stream_ms, "apart": operator.apart_ms}
    return times | fixed


def part_rows(found: Mapping[str, LatencyBreakdown]) -> tuple[PartRow, ...]:
    """The sums over all operators, and the fixed cost; what no model spends anything on is left out."""
    sums = [summed(map(parts_of, breakdown.operators)) | {"fixed": breakdown.fixed_ms} for breakdown in found.values()]
    totals = [breakdown.latency.value or 1.0 for breakdown in found.values()]
    rows = []
    for part in PARTS:
        times = tuple(times.get(part, 0.0) for times in sums)
        if any(times):
            rows.append(PartRow(part, *PART_NAMES[part], times, tuple(100 * ms / total for ms, total in zip(times, totals, strict=True))))
    return tuple(rows)


def kind_rows(breakdown: LatencyBreakdown) -> dict[str, KindRow]:
    """Kind -> its operators together, the most expensive kind first; the fixed cost is not in it."""
    kinds: dict[str, list[OperatorCost]] = {}
    for operator in breakdown.operators:
        kinds.setdefault(operator.kind, []).append(operator)
    rows = [KindRow(kind, wording.kind(kind, 2), len(costs), summed(map(parts_of, costs))) for kind, costs in kinds.items()]
    return {row.kind: row for row in sorted(rows, key=lambda row: -row.total_ms)}


def operator_rows(breakdown: LatencyBreakdown) -> tuple[OperatorRow, ...]:
    """Operators by cost."""
    total = breakdown.latency.value or 1.0
    longest_ms = max((cost.latency_ms for cost in breakdown.operators), default=0.0) or 1.0
    rows = [
        OperatorRow(cost, 100 * cost.latency_ms / total, 100 * cost.latency_ms / longest_ms, BOUNDS[largest(parts_of(cost))], described(cost))
        for cost in breakdown.operators
    ]
    return tuple(sorted(rows, key=lambda row: -row.cost.latency_ms))


def described(cost: OperatorCost) -> str:
    """Kind, shapes, and what runs inside: `convolution + relu, 3x64x64 to 16x64x64`."""
    inside = "".join(f" + {name}" for name in cost.fused)
    return f"{wording.kind(cost.kind)}{inside}, {_shape(cost.input_shape)} to {_shape(cost.output_shape)}"


def summary(run: Run) -> str | None:
    """One line for the terminal: the three kinds of operators that cost most, what they wait for, and the fixed cost."""
    found = breakdowns(run)
    if not found:
        return None
    breakdown = list(found.values())[-1]
    total = breakdown.latency.value
    said = [
        f"{wording.share(row.total_ms, total)} {wording.kind(row.kind, row.count)} ({BOUNDS[largest(row.parts)]})"
        for row in list(kind_rows(breakdown).values())[:3]
    ]
    if breakdown.fixed_ms >= NOTABLE * total:
        said.append(f"{wording.share(breakdown.fixed_ms, total)} fixed")
    return f"{', '.join(said)}; {wording.latency(breakdown.latency)} estimated on {breakdown.latency.on}"


@dataclass(frozen=True)
class Look:
    """Hatched where print without colour could not tell a part from what stands beside it."""

    colour: str
    hatch: str | None = None

    @property
    def face(self) -> str:
        """Of a hatched bar, the paper."""
        return "none" if self.hatch else self.colour


LOOKS: Mapping[Part, Look] = {
    "compute": Look(plots.ACCENT),
    "memory": Look(plots.SECOND, "////"),
    "dispatch": Look(plots.THIRD, "||||"),
    "boundary": Look(plots.WARN, "xxxx"),
    "stream": Look(plots.MUTED, "\\\\\\\\"),
    "apart": Look(plots.MUTED, "...."),
    "fixed": Look(plots.INK),
}


def bars(found: Mapping[str, LatencyBreakdown]) -> str:
    """Milliseconds per kind of operator, stacked by what they are spent on: one panel per model, each with a scale of its own."""
    rows = [_bars_of(breakdown) for breakdown in found.values()]
    kinds = _shown_kinds(found)
    labels = [*(wording.kind(kind, 2) if kind != REST else "other kinds" for kind in kinds), PART_NAMES["fixed"][0]]
    titles: dict[str, str] = {}
    with mpl.rc_context(plots.STYLE):
        figure, panels = plots.new_panels(plots.WIDTH, 1.3 + 0.36 * len(labels), (1,) * len(found), same_rows=True)
        for axes, name, kind_of in zip(panels, found, rows, strict=True):
            folded = [kind_of[kind] for kind in kind_of if kind not in kinds]
            shown = [kind_of.get(kind, {}) if kind != REST else summed(folded) for kind in kinds]
            _panel(axes, name, found[name], [*shown, {"fixed": found[name].fixed_ms}], labels, titles)
        panels[0].set_yticks(range(len(labels)), [plots.literal(label) for label in labels])
        panels[0].set_ylim(len(labels) - 0.45, -0.55)
        seen = [part for part in PARTS if part == "fixed" or any(parts.get(part, 0.0) > 0 for costs in rows for parts in costs.values())]
        plots.legend(figure, [_patch(part) for part in seen])
        models = " against ".join(f"{name} {wording.latency(breakdown.latency)}" for name, breakdown in found.items())
        return plots.as_svg(figure, f"Bar chart: estimated milliseconds of each kind of operator, {models}, each on a scale of its own.", titles)


def _bars_of(breakdown: LatencyBreakdown) -> dict[str, Costs]:
    return {kind: row.parts for kind, row in kind_rows(breakdown).items()}


def _shown_kinds(found: Mapping[str, LatencyBreakdown]) -> list[str]:
    """Kinds with a bar of their own, the most expensive of the last model first; the others are one bar."""
    rows = [(kind_rows(breakdown), breakdown.latency.value) for breakdown in reversed(list(found.values()))]
    kinds = list(dict.fromkeys(kind for by_kind, _ in rows for kind in by_kind))
    large = [kind for kind in kinds if any(kind in by_kind and by_kind[kind].total_ms >= SMALL * total for by_kind, total in rows)]
    return kinds if len(kinds) - len(large) < 2 else [*large, REST]


def _panel(axes: Axes, name: str, breakdown: LatencyBreakdown, rows: Sequence[Costs], labels: Sequence[str], titles: dict[str, str]) -> None:
    total, widest = breakdown.latency.value, max((sum(parts.values()) for parts in rows), default=0.0)
    for row, (parts, label) in enumerate(zip(rows, labels, strict=True)):
        left = 0.0
        for part in PARTS:
            ms = parts.get(part, 0.0)
            if ms <= 0:
                continue
            look = LOOKS[part]
            (bar,) = axes.barh([row], [ms], left=left, height=0.62, facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)
            bar.set_gid(f"bar-{name}-{row}-{part}")
            titles[f"bar-{name}-{row}-{part}"] = f"{name}, {label}: {in_ms(ms)} {PART_NAMES[part][0]}, {wording.share(ms, total)} of the model's time"
            left += ms
        if left > 0:
            axes.text(left + 0.02 * widest, row, f"{in_ms(left)}, {wording.share(left, total)}", va="center", fontsize=8.5)
    axes.set_xlim(0, 1.42 * widest or 1.0)
    axes.set_title(plots.literal(f"{name}: {wording.latency(breakdown.latency)}"), loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("ms, estimated", fontsize=9)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _patch(part: Part) -> Patch:
    look = LOOKS[part]
    return Patch(label=PART_NAMES[part][0], facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)


def summed(several: Iterable[Costs]) -> Costs:
    """Part by part."""
    sums: Costs = dict.fromkeys(PARTS, 0.0)
    for parts in several:
        for part, ms in parts.items():
            sums[part] += ms
    return sums


def largest(parts: Costs) -> Part:
    """What most is spent on."""
    return max(parts, key=lambda part: parts[part])


def in_ms(value: float) -> str:
    """12.3 ms."""
    return f"{wording.number(value)} ms"


def _shape(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape[1:] if len(shape) > 1 and shape[0] == 1 else shape))
