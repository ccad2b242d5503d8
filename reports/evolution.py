"""How a diffusion UNet evolved: its blocks before and after, what each action did to quality and latency, and what blocks were worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mcompress.record import Run
from mcompress.reports import plots, wording
from mcompress.reports.details import StageBlocks, StageDetails, ValuedBlock
from mcompress.reports.evolution_plot import draw

KINDS = ("attention", "residual")
MEASURES: Mapping[str, str] = {
    "denoising": "mean squared error of the predicted noise or velocity",
    "guided": "mean squared distance of the guided prediction to the original's",
}


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
    removed_as: str
    """Of fixed removals, whose they are; there are no actions then."""
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
    """The first evolution of a run, or fixed removals; None for a run without either."""
    name, found = next(((name, one) for name, one in details.items() if one.actions is not None or one.removed_as), ("", None))
    if found is None:
        return None
    rows = tuple(_stages(found.block_map))
    limit = next((line.limit for line in run.budget if line.what == "latency_ms"), None)
    first = found.actions[0] if found.actions else None
    gone = {block.block for block in first.blocks} if first is not None and first.what == "removed" else set[str]()
    return Evolution(
        name=name,
        removed_as=found.removed_as,
        measure=MEASURES.get(found.measure, found.measure or "error of the prediction"),
        stages=rows,
        total=tuple(_total([row.counts[place] for row in rows]) for place in range(len(KINDS))),
        figures=tuple(_figures(found)),
        actions=tuple(_actions(found)),
        scores=tuple((one, one.block in gone) for one in found.scores),
        plot=Markup(draw(found, limit)) if found.actions else Markup(),
        training=Markup(plots.curves(curve, title=f"{name}, robust training")) if (curve := _curve(found)) else Markup(),
    )


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
        ("params", "Parameters", wording.count),
        ("macs", "Multiply-adds", wording.count),
        ("size_mb", "Weights, MB", wording.number),
        ("error", "Error of the prediction", _error),
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
    errors = [*(action.error_before for action in actions[1:]), found.after.get("error")][: len(actions)]
    for number, (action, error) in enumerate(zip(actions, errors, strict=True), start=1):
        change = action.latency_after_ms - action.latency_before_ms
        yield ActionRow(
            number,
            action.what,
            action.blocks,
            (_error(action.error_before), "not recorded" if error is None else _error(error)),
            (wording.number(action.latency_before_ms), wording.number(action.latency_after_ms)),
            f"{change:+.3g}".replace("-", "\N{MINUS SIGN}"),
        )


def _error(value: float) -> str:
    """Four digits: an action changes the error by little."""
    return f"{value:.4g}"


def _curve(found: StageDetails) -> list[tuple[int, dict[str, float]]]:
    """The trainings behind one another, each of which begins with step 1."""
    behind, curve = 0, list[tuple[int, dict[str, float]]]()
    for training in sorted(found.trainings, key=lambda one: one.phase):
        curve += [(behind + step, terms) for step, terms in training.curve]
        behind = curve[-1][0] if curve else 0
    return curve
