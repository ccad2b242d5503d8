"""Plots of the report as SVG that takes the page's colours (light or dark) and is the same for the same numbers."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

# Placeholders that become CSS variables of the page; matplotlib only has to keep them apart.
INK, MUTED, LINE, ACCENT, SECOND, WARN, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606", "#070707"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", SECOND: "second", WARN: "warn", THIRD: "third"}
SERIES = (ACCENT, SECOND, THIRD, WARN, INK, MUTED)
STROKES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Of lines beyond as many as there are colours."""
STYLE = {
    "svg.hashsalt": "mcompress",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
}
MOST_OF_REJECTED = 1.3  # times the latencies of interest: how far to the right the axis goes for candidates that were not evaluated
FARTHEST_LIMIT = 3.0  # times the largest latency of a candidate: a limit beyond that would press them all together, and another limit was met first
WIDTH = 9.4  # inches; the viewBox that fits the page's column


@dataclass(frozen=True)
class Candidate:
    """One evaluated candidate of a search."""

    latency_ms: float
    quality: float
    picked: bool = False


def pareto(
    front: Sequence[Candidate],
    trials: Sequence[Candidate],
    rejected_ms: Sequence[float],
    *,
    limit_ms: float | None,
    quality_label: str,
    latency_label: str,
) -> str:
    """Quality against latency: every trial, the front, the pick, and where the rejected candidates lie, which have a latency but no quality."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 4.0)
        axes.scatter([t.latency_ms for t in trials], [t.quality for t in trials], s=22, color=MUTED, alpha=0.45, linewidths=0, label="evaluated")
        line = sorted((c.latency_ms, c.quality) for c in front)
        axes.plot(
            [x for x, _ in line],
            [y for _, y in line],
            color=ACCENT,
            linewidth=1.6,
            marker="o",
            markersize=5,
            label="Pareto front",
            drawstyle="steps-post",
        )
        for candidate in front:
            if candidate.picked:
                axes.scatter(
                    [candidate.latency_ms], [candidate.quality], s=190, facecolors="none", edgecolors=WARN, linewidths=2, zorder=5, label="picked"
                )
        low, high = axes.get_xlim()
        beyond = limit_ms is not None and limit_ms > FARTHEST_LIMIT * high
        if limit_ms is not None and not beyond:
            high = max(high, limit_ms * 1.12)
        if rejected_ms:
            # A few candidates far over the limit would press all others together.
            high = max(high, min(1.03 * max(rejected_ms), MOST_OF_REJECTED * high))
            _rug(axes, [ms for ms in rejected_ms if ms <= high], _rejected_label(rejected_ms, high))
        if limit_ms is not None and beyond:
            axes.plot([], [], color=WARN, linewidth=1.2, linestyle=(0, (4, 3)), label=f"latency limit ({limit_ms:g} ms, further right)")
        elif limit_ms is not None:
            axes.axvspan(limit_ms, high, facecolor="none", edgecolor=LINE, hatch="///", linewidth=0)
            axes.axvline(limit_ms, color=WARN, linewidth=1.2, linestyle=(0, (4, 3)), label="latency limit")
        axes.set_xlim(low, high)
        axes.set_xlabel(latency_label)
        axes.set_ylabel(quality_label)
        legend(figure)
        said = f"{len(trials)} candidates; {len(line)} on the Pareto front; {len(rejected_ms)} over budget and not evaluated"
        return as_svg(figure, f"Scatter plot of {quality_label} against {latency_label} for {said}.")


def _rejected_label(rejected_ms: Sequence[float], high: float) -> str:
    beyond = sum(ms > high for ms in rejected_ms)
    return f"over budget, not evaluated ({len(rejected_ms)}{f', {beyond} of them further right' if beyond else ''})"


def _rug(axes: Axes, latencies_ms: Sequence[float], label: str) -> None:
    """Ticks along the bottom, below every quality: one path, since there may be thousands."""
    top = 0.045  # of the axes' height
    axes.plot(
        [x for ms in latencies_ms for x in (ms, ms, float("nan"))],
        [y for _ in latencies_ms for y in (0.0, top, float("nan"))],
        transform=axes.get_xaxis_transform(),
        color=WARN,
        linewidth=0.9,
        alpha=0.7,
    )
    axes.plot([], [], "|", color=WARN, markersize=9, label=label)
    bottom, highest = axes.get_ylim()
    axes.set_ylim(bottom - 2 * top * (highest - bottom), highest)


def curves(curve: Sequence[tuple[int, Mapping[str, float]]], *, title: str) -> str:
    """Loss terms over training steps; a logarithmic axis if every value is positive."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 2.9)
        names = list(dict.fromkeys(name for _, values in curve for name in values))
        for index, name in enumerate(names):
            points = [(step, values[name]) for step, values in curve if name in values]
            colour, stroke = SERIES[index % len(SERIES)], STROKES[index // len(SERIES) % len(STROKES)]
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linestyle=stroke, linewidth=1.5, label=literal(name))
        if all(value > 0 for _, values in curve for value in values.values()):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_xlabel("step")
        axes.set_ylabel("loss term")
        legend(figure)
        last = curve[-1][0] if curve else 0
        return as_svg(figure, f"Training curves of {title}: {', '.join(names)} over {last} steps.")


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes, both transparent; within `mpl.rc_context(STYLE)`."""
    figure, (axes,) = new_panels(width, height, (1,))
    return figure, axes


def new_panels(width: float, height: float, ratios: Sequence[float], *, same_rows: bool = False) -> tuple[Figure, tuple[Axes, ...]]:
    """The same with panels side by side, as wide as `ratios` say; `same_rows` for panels that share the vertical axis."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    panels = tuple(figure.subplots(1, len(ratios), squeeze=False, sharey=same_rows, width_ratios=list(ratios))[0])
    for axes in panels:
        axes.patch.set_alpha(0)
    return figure, panels


def literal(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def legend(figure: Figure, handles: Sequence[Artist] | None = None) -> None:
    """Above the plot, where it covers nothing; of what the axes label, or of `handles`."""
    shown = list(handles) if handles is not None else [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(
        handles=shown, loc="outside upper left", ncols=max(4, len(shown)) if handles else 4, fontsize=9, columnspacing=1.6, handletextpad=0.6
    )


def as_svg(figure: Figure, description: str, titles: Mapping[str, str] | None = None) -> str:
    """Inline SVG: the page's colours, ids that no other plot has, a description for those who do not see it.

    `titles` says what a pointer over the artist with that gid is told.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    prefix = f"p{hashlib.sha256(description.encode()).hexdigest()[:6]}-"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}\1"', text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    end = text.index(">")
    root = re.sub(r'\s(xmlns(:xlink)?|version|width|height)="[^"]*"', "", text[:end])  # HTML knows the namespace; the page sets the size
    text = root + text[end:]
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{prefix}{gid}">', f'<g id="{prefix}{gid}"><title>{html.escape(title)}</title>', 1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
