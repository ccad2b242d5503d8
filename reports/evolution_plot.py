"""The way of a UNet through its evolution as a plot: error against latency, and what each action removed or doubled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mcompress.reports import plots, wording
from mcompress.reports.details import EvolvingAction, StageDetails
from mcompress.reports.latency_budget import Look

PARTS: Mapping[str, str] = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up", "attentions": "attention", "resnets": "residual"}
LOOKS: Mapping[str, Look] = {
    "removed": Look(plots.ACCENT),
    "doubled": Look(plots.SECOND, "////"),
    "taken back": Look(plots.MUTED, "...."),
}
NAMED = 3
"""So many blocks of an action are named in the plot; the table names all."""
FEWEST_ROWS, ROW_INCHES = 5, 0.3
NEAR = 0.06
"""Of the width and height of all points: closer ones cover each other."""


def short(block: str) -> str:
    """`down_blocks.0.attentions.1` as `down 0 attention 1`; behind what stands there twice follows which of the two."""
    return " ".join(PARTS.get(part, part) for part in block.split("."))


def draw(found: StageDetails, limit_ms: float | None) -> str:
    """Error against latency from action to action, and beside it what each action removed or doubled and the milliseconds that it took away."""
    actions = found.actions or ()
    titles: dict[str, str] = {}
    with mpl.rc_context(plots.STYLE):
        figure, (path, bars) = plots.new_panels(plots.WIDTH, 1.5 + ROW_INCHES * max(FEWEST_ROWS, len(actions)), (5, 3))
        _path(path, found, actions, limit_ms)
        _bars(bars, actions, titles)
        seen = [what for what in LOOKS if any(action.what == what for action in actions)]
        limits = (
            [path.axvline(limit_ms, color=plots.WARN, linewidth=1.2, linestyle=(0, (4, 3)), label="latency limit")] if limit_ms is not None else []
        )
        plots.legend(figure, [*map(_patch, seen), *limits])
        before, after = found.before.get("latency_ms"), found.after.get("latency_ms")
        ends = f" from {wording.number(before)} to {wording.number(after)} ms" if before is not None and after is not None else ""
        return plots.as_svg(figure, f"Error of the prediction against estimated latency over {len(actions)} actions on blocks{ends}.", titles)


def _path(axes: Axes, found: StageDetails, actions: Sequence[EvolvingAction], limit_ms: float | None) -> None:
    points = [(action.latency_before_ms, action.error_before) for action in actions]
    if "error" in found.after:
        points.append((actions[-1].latency_after_ms, found.after["error"]))
    axes.plot([x for x, _ in points], [y for _, y in points], color=plots.MUTED, linewidth=1.2, zorder=1)
    axes.scatter([points[0][0]], [points[0][1]], s=60, facecolors="none", edgecolors=plots.INK, linewidths=1.4, zorder=3)
    for (x, y), action in zip(points[1:], actions, strict=False):
        axes.scatter([x], [y], s=150, color=LOOKS[action.what].colour, linewidths=0, zorder=3)
    for (x, y), numbers in _together(points[1:]):
        axes.annotate(", ".join(map(str, numbers)), (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)
    low, high = axes.get_xlim()
    if limit_ms is not None:
        low, high = min(low, limit_ms - 0.05 * (high - low)), max(high, limit_ms + 0.05 * (high - low))
    axes.set_xlim(low, high)
    axes.margins(y=0.14)
    axes.set_xlabel("estimated latency of one call, ms")
    axes.set_ylabel("error of the prediction")


def _together(points: Sequence[tuple[float, float]]) -> list[tuple[tuple[float, float], list[int]]]:
    """Points with their numbers, from 1; those that lie on one another share a label."""
    wide, high = (max(values) - min(values) for values in zip(*points, strict=True)) if points else (0.0, 0.0)
    found = list[tuple[tuple[float, float], list[int]]]()
    for number, (x, y) in enumerate(points, start=1):
        near = next((one for one in found if abs(one[0][0] - x) <= NEAR * wide and abs(one[0][1] - y) <= NEAR * high), None)
        if near is None:
            found.append(((x, y), [number]))
        else:
            near[1].append(number)
    return found


def _bars(axes: Axes, actions: Sequence[EvolvingAction], titles: dict[str, str]) -> None:
    for row, action in enumerate(actions):
        look, ms = LOOKS[action.what], action.latency_after_ms - action.latency_before_ms
        (bar,) = axes.barh([row], [ms], height=0.6, facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)
        bar.set_gid(f"action-{row}")
        titles[f"action-{row}"] = f"{row + 1}: {action.what} {', '.join(short(one.block) for one in action.blocks)}, {ms:+.3g} ms"
    axes.set_yticks(range(len(actions)), [plots.literal(f"{row + 1}  {_named(action)}") for row, action in enumerate(actions)], fontsize=8.5)
    axes.set_ylim(max(len(actions), FEWEST_ROWS) - 0.5, -0.5)
    axes.axvline(0, color=plots.LINE, linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("ms added", fontsize=9)


def _named(action: EvolvingAction) -> str:
    names = [short(one.block) for one in action.blocks]
    shown = names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return ", ".join(shown)


def _patch(what: str) -> Patch:
    look = LOOKS[what]
    return Patch(label=what, facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)
