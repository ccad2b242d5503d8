"""Plots of the precision plan: every plan that was run, and what each operator costs when it alone is INT8."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes

from mcompress.reports import plots
from mcompress.reports.details import OperatorPrecision, StageDetails, TriedPlan

DASHED = (0, (4, 3))
DOTTED = (0, (1, 2))


def front(plan: StageDetails, *, metric: str, unit: str) -> str:
    """Every plan that was run: what it loses, and its output's SQNR as measured and as predicted, against its estimated latency."""
    ordered = sorted(plan.precision_front, key=lambda one: one.latency_ms)
    uniform = {name: sum(ms) for name, of_units in plan.planned_ms.items() if (ms := [v for v in of_units.values() if v is not None])}
    with mpl.rc_context(plots.STYLE):
        figure, (lost, noise) = plots.new_panels(plots.WIDTH, 3.9, (1, 1))
        for axes in (lost, noise):
            axes.margins(0.08, 0.12)  # the ring around the plan needs room
        floor = plan.within if plan.goal == "latency" else None
        _line(lost, [(one.latency_ms, one.quality_lost) for one in ordered], "measured", plots.ACCENT)
        _line(noise, [(one.latency_ms, one.sqnr_db) for one in ordered], "", plots.ACCENT)
        _predicted(noise, ordered)
        if floor is not None:
            _floor(lost, floor, below=False, label="not allowed by the target")
        if plan.least_sqnr_db:
            _floor(noise, plan.least_sqnr_db, below=True, label="not allowed by the target" if floor is None else "")
        taken = next((one for one in ordered if one.taken), None)
        if taken is not None:
            _ring(lost, taken.latency_ms, taken.quality_lost, "the plan")
            _ring(noise, taken.latency_ms, taken.sqnr_db, "")
        summed = ", summed over the units" if len(plan.planned_units) > 1 else ""
        for axes in (lost, noise):
            named = axes is lost  # the other panel has the same, and one legend is enough
            for name, words, colour in (("all int8", "all INT8", plots.SECOND), ("all float", "all float", plots.THIRD)):
                if name in uniform:
                    axes.axvline(uniform[name], color=colour, linewidth=1.3, linestyle=DOTTED, label=words if named else None)
            if plan.goal == "quality" and plan.latency_limit_ms is not None:
                axes.axvline(plan.latency_limit_ms, color=plots.WARN, linewidth=1.2, linestyle=DASHED, label="latency limit" if named else None)
            axes.set_xlabel(f"estimated latency, ms{summed}")
        lost.set_ylabel(f"{plots.literal(metric)} lost{', ' + unit if unit else ''} (lower is better)")
        noise.set_ylabel("output SQNR, dB (higher is better)")
        plots.legend(figure)
        said = f"{len(ordered)} precision plans, {metric} lost and output SQNR against estimated latency"
        return plots.as_svg(figure, f"Two plots of {said}; the plan that was taken is marked.")


def sensitivity(operators: Sequence[OperatorPrecision], *, output_db: float | None) -> str:
    """The output's SQNR when each operator alone is INT8: short bars are sensitive. `output_db` is what the whole plan leaves."""
    known = [(operator, operator.sqnr_db) for operator in operators if operator.sqnr_db is not None]
    looks = {"int8": (plots.ACCENT, "INT8"), "fp16": (plots.SECOND, "kept in FP16"), "fp32": (plots.WARN, "kept in FP32")}
    with mpl.rc_context(plots.STYLE):
        figure, axes = plots.new_figure(plots.WIDTH, 0.9 + 0.22 * len(known))
        for precision, (colour, label) in looks.items():
            chosen = [(row, value) for row, (operator, value) in enumerate(known) if operator.precision == precision]
            if chosen:
                axes.barh([row for row, _ in chosen], [value for _, value in chosen], height=0.68, color=colour, label=label)
        if output_db is not None:
            axes.axvline(output_db, color=plots.INK, linewidth=1, linestyle=DASHED, label="the whole plan")
        axes.set_yticks(range(len(known)), [plots.literal(operator.name) for operator, _ in known], fontsize=8)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("SQNR of the output when this operator alone is INT8, dB")
        plots.legend(figure)
        return plots.as_svg(figure, f"Bar chart: output SQNR of each of {len(known)} operators when it alone is quantized.")


def _line(axes: Axes, points: Sequence[tuple[float, float | None]], label: str, colour: str) -> None:
    known = [(x, y) for x, y in points if y is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], color=colour, linewidth=1.4, marker="o", markersize=5, label=label or None)


def _predicted(axes: Axes, ordered: Sequence[TriedPlan]) -> None:
    known = [(one.latency_ms, one.predicted_sqnr_db) for one in ordered if one.predicted_sqnr_db is not None]
    axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=plots.MUTED,
        linewidth=1,
        linestyle=DASHED,
        marker="o",
        markersize=4,
        markerfacecolor="none",
        label="predicted by the planner",
    )


def _floor(axes: Axes, value: float, *, below: bool, label: str) -> None:
    """What the target does not allow is hatched; the line is shown although every plan may be far from it."""
    low, high = axes.get_ylim()
    low, high = min(low, value), max(high, value)
    room = 0.08 * max(high - low, 1e-9)
    low, high = low - room, high + room
    axes.axhspan(*((low, value) if below else (value, high)), facecolor="none", edgecolor=plots.LINE, hatch="///", linewidth=0, label=label or None)
    axes.axhline(value, color=plots.WARN, linewidth=1.2, linestyle=DASHED)
    axes.set_ylim(low, high)


def _ring(axes: Axes, x: float, y: float | None, label: str) -> None:
    if y is not None:
        axes.scatter([x], [y], s=190, facecolors="none", edgecolors=plots.WARN, linewidths=2, zorder=5, label=label or None)
