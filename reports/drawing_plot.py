"""Stacked bars of what a whole picture takes: every network, and the U-Net's steps one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mcompress.record import CallsRecord, GalleryRecord
from mcompress.reports import components, plots, wording
from mcompress.reports.components import OWN
from mcompress.reports.latency_budget import Look

LOOKS: Mapping[str, Look] = {
    OWN: Look(plots.ACCENT),
    "text_encoder": Look(plots.THIRD, "||||"),
    "decoder": Look(plots.SECOND, "////"),
}
OTHER = Look(plots.MUTED, "....")
HEIGHT = 0.56
NARROWEST = 0.06
"""A part below this share of a bar is not written into it; the table says it."""


def latency_bars(found: GalleryRecord, models: Sequence[str], steps: Mapping[str, int]) -> str:
    """Milliseconds on one scale on the left; on the right, shares of each model's own picture, with the U-Net's steps set apart.

    `steps`: of each model, 0 where they are not known.
    """
    totals = {model: found.picture_ms(model) for model in models}
    names = tuple(dict.fromkeys(one.component for model in models for one in found.latency[model]))
    titles: dict[str, str] = {}
    with mpl.rc_context(plots.STYLE):
        figure, (left, right) = plots.new_panels(plots.WIDTH, 1.25 + 0.55 * len(models), (1, 1), same_rows=True)
        for row, model in enumerate(models):
            start = 0.0
            for one in found.latency[model]:
                ms = one.calls * one.each.value
                gid = f"calls-{model}-{one.component}"
                _bar(left, row, start, ms, one.component, gid)
                titles[gid] = (
                    f"{model}, {components.title(one.component)}: {wording.number(ms)} ms, {wording.share(ms, totals[model])} of the picture"
                )
                _shares(right, row, start, ms, one, totals[model], steps[model])
                start += ms
            left.text(start + 0.02 * max(totals.values()), row, f"{wording.number(start)} ms", va="center", fontsize=9)
        left.set_xlim(0, 1.2 * max(totals.values()) or 1.0)
        left.set_xlabel("ms of one picture", fontsize=9)
        right.set_xlim(0, 100)
        right.set_xlabel("% of its own picture; the U-Net step by step", fontsize=9)
        left.set_yticks(range(len(models)), [model.replace(", ", ",\n") for model in models])
        left.set_ylim(len(models) - 0.5, -0.5)
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        plots.legend(figure, [_patch(name) for name in names])
        whole = ", ".join(f"{model} {wording.number(ms)} ms" for model, ms in totals.items())
        return plots.as_svg(figure, f"Bar chart: milliseconds of one picture by {', '.join(map(components.title, names))}; {whole}.", titles)


def _bar(axes: Axes, row: int, start: float, ms: float, name: str, gid: str) -> None:
    look = LOOKS.get(name, OTHER)
    (bar,) = axes.barh([row], [ms], left=start, height=HEIGHT, facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)
    bar.set_gid(gid)


def _shares(axes: Axes, row: int, start: float, ms: float, one: CallsRecord, total: float, steps: int) -> None:
    """The network's share, as one block, or of the U-Net one for each step."""
    if total <= 0:
        return
    look, scale = LOOKS.get(one.component, OTHER), 100 / total
    count = steps if one.component == OWN and steps else 1
    for step in range(count):
        axes.barh(
            [row], [scale * ms / count], left=scale * (start + step * ms / count), height=HEIGHT, facecolor=look.face,
            edgecolor=plots.LINE if count > 1 else look.colour, hatch=look.hatch, linewidth=0.6 if count > 1 else 0.8,
        )  # fmt: skip
    if ms >= NARROWEST * total:
        middle = scale * (start + ms / 2)
        axes.text(middle, row + HEIGHT / 2 + 0.04, wording.share(ms, total), va="top", ha="center", fontsize=8.5)


def _patch(name: str) -> Patch:
    look = LOOKS.get(name, OTHER)
    return Patch(label=components.title(name), facecolor=look.face, edgecolor=look.colour, hatch=look.hatch, linewidth=0.8)
