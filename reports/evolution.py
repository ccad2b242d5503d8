"""How a diffusion UNet evolved: its blocks before and after, what each action did to quality and latency, and what blocks were worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mcompress.record import Run
from mcompress.reports import plots, wording
from mcompress.reports.details import EvolvingAction, StageBlocks, StageDetails, ValuedBlock
from mcompress.reports.latency_budget import Look

KINDS = ("attention", "residual")
PARTS: Mapping[str, str] = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up", "attentions": "attention", "resnets": "residual"}
MEASURES: Mapping[str, str] = {
    "denoising": "mean squared error of the predicted noise or velocity",
    "guided": "mean squared distance of the guided prediction to the original's",
}
LOOKS: Mapping[str, Look] = {
    "removed": Look(plots.ACCENT),
    "doubled": Look(plots.SECOND, "////"),
    "taken back": Look(plots.MUTED, "...."),
}
NAMED = 3
"""So many blocks of an action are named in the plot; the table names all."""
FEWEST_ROWS, ROW_INCHES = 5, 0.3


@dataclass(frozen=True)
class BlockCount:
    """Blocks of one kind at one stage."""

    before: int
    after: int

    @property
    def marks(self) -> tuple[str, ...]:
        """One for each block: those that stayed, are gone, and came."""
        kept = min(self.before, self.after)
        return (*("kept",) * kept, *("gone",) * (self.before - kept), *("new",) * (self.after - kept))


@dataclass(frozen=True)
class StageRow:
    """One stage of the network: its size, and its attention and residual blocks; None where there never were any."""

    stage: str
    side: str
    channels: str
    counts: tuple[BlockCount | None, ...]


@dataclass(frozen=True)
class ActionRow:
    """One action, in words."""

    number: int
    what: str
    blocks: tuple[ValuedBlock, ...]
    error: tuple[str, str]
    """Before, and after the training behind it."""
    latency: tuple[str, str]
    change: str
    """Of the latency, with its sign."""


@dataclass(frozen=True)
class Evolution:
    """The part of the section about how the network was found."""

    name: str
    measure: str
    stages: tuple[StageRow, ...]
    total: tuple[BlockCount | None, ...]
    figures: tuple[tuple[str, str, str, str], ...]
    """(what, before, after, ratio) of the whole network."""
    actions: tuple[ActionRow, ...]
    scores: tuple[tuple[ValuedBlock, bool], ...]
    """Blocks as they were valued first, and whether the first action removed them."""
    plot: Markup
    training: Markup


def evolution_part(run: Run, details: Mapping[str, StageDetails]) -> Evolution | None:
    """The first evolution of a run; None for a run without one."""
    name, found = next(((name, one) for name, one in details.items() if one.actions is not None), ("", None))
    if found is None or found.actions is None:
        return None
    rows = tuple(_stages(found.block_map))
    limit = next((line.limit for line in run.budget if line.what == "latency_ms"), None)
    first = found.actions[0] if found.actions else None
    gone = {block.block for block in first.blocks} if first is not None and first.what == "removed" else set[str]()
    return Evolution(
        name=name,
        measure=MEASURES.get(found.measure, found.measure or "error of the prediction"),
        stages=rows,
        total=tuple(_total([row.counts[place] for row in rows]) for place in range(len(KINDS))),
        figures=tuple(_figures(found)),
        actions=tuple(_actions(found)),
        scores=tuple((one, one.block in gone) for one in found.scores),
        plot=Markup(draw(found, limit)) if found.actions else Markup(),
        training=Markup(plots.curves(curve, title=f"{name}, robust training")) if (curve := _curve(found)) else Markup(),
    )


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
    for number, ((x, y), action) in enumerate(zip(points[1:], actions, strict=False), start=1):
        axes.scatter([x], [y], s=150, color=LOOKS[action.what].colour, linewidths=0, zorder=3)
        axes.annotate(str(number), (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)
    low, high = axes.get_xlim()
    if limit_ms is not None:
        low, high = min(low, limit_ms - 0.05 * (high - low)), max(high, limit_ms + 0.05 * (high - low))
    axes.set_xlim(low, high)
    axes.margins(y=0.14)
    axes.set_xlabel("estimated latency of one call, ms")
    axes.set_ylabel("error of the prediction")


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


def _stages(blocks: Sequence[StageBlocks]) -> Iterator[StageRow]:
    for stage in dict.fromkeys(one.stage for one in blocks):
        here = {one.kind: one for one in blocks if one.stage == stage}
        sides, channels = (list(dict.fromkeys(values)) for values in ([one.side for one in here.values()], [one.channels for one in here.values()]))
        yield StageRow(
            stage,
            ", ".join(f"{side}\N{MULTIPLICATION SIGN}{side}" for side in sides),
            ", ".join(map(str, channels)),
            tuple(BlockCount(here[kind].before, here[kind].after) if kind in here else None for kind in KINDS),
        )


def _total(counts: Sequence[BlockCount | None]) -> BlockCount | None:
    known = [count for count in counts if count is not None]
    return BlockCount(sum(one.before for one in known), sum(one.after for one in known)) if known else None


def _figures(found: StageDetails) -> Iterator[tuple[str, str, str, str]]:
    kinds = (
        ("latency_ms", "Latency of one call, ms (estimated)", wording.number),
        ("macs", "Multiply-adds", wording.count),
        ("size_mb", "Weights, MB", wording.number),
        ("error", "Error of the prediction", wording.number),
    )
    for key, what, text in kinds:
        if key in found.before and key in found.after:
            before, after = found.before[key], found.after[key]
            if key == "error":
                ratio = f"{after - before:+.3g}".replace("-", "\N{MINUS SIGN}")
            else:
                ratio = wording.ratio(before, after) + (" less" if after < before else "") if after != before else "the same"
            yield what, text(before), text(after), ratio


def _actions(found: StageDetails) -> Iterator[ActionRow]:
    actions = found.actions or ()
    errors = [action.error_before for action in actions[1:]] + [found.after.get("error")]
    for number, (action, error) in enumerate(zip(actions, errors, strict=True), start=1):
        change = action.latency_after_ms - action.latency_before_ms
        yield ActionRow(
            number,
            action.what,
            action.blocks,
            (wording.number(action.error_before), "not recorded" if error is None else wording.number(error)),
            (wording.number(action.latency_before_ms), wording.number(action.latency_after_ms)),
            f"{change:+.3g}".replace("-", "\N{MINUS SIGN}"),
        )


def _curve(found: StageDetails) -> list[tuple[int, dict[str, float]]]:
    """The trainings behind one another, each of which begins with step 1."""
    behind, curve = 0, list[tuple[int, dict[str, float]]]()
    for training in sorted(found.trainings, key=lambda one: one.phase):
        curve += [(behind + step, terms) for step, terms in training.curve]
        behind = curve[-1][0] if curve else 0
    return curve
