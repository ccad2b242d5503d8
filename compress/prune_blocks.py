"""The first half of a prune stage that may remove whole residual blocks: the block goes that costs the least loss per millisecond saved.

On a device where every layer has a fixed cost, narrower layers save next to nothing and only fewer layers help. What a block costs is measured, not
estimated from gradients: the loss of the network without it, on the same batches, minus the loss with it. What it saves is the estimate of the
network with it minus that without it. Both are taken anew after every removal.

Blocks go while they are cheaper than channels: for the cheapest block, as many channels are removed from a copy as save the same milliseconds, or
reach the goal, and the loss of the copy is measured in the same way. A single step of channels would be no measure: some cost nothing, and save
nothing. Where channels alone cannot reach the goal, there is nothing to compare, and the block goes.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from math import ceil

from pydantic import JsonValue
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.blocks import moved_up, removable_blocks, without_block
from mcompress.compress.models.build import example_inputs
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.prune_channels import PrunableChannels, Trials, by_price, latency_ms
from mcompress.compress.prune_loss import PruningLoss
from mcompress.compress.stage import StageContext
from mcompress.targets.latency import estimate_many
from mcompress.targets.operators import OperatorTable

AT_ONCE = 4
"""Of the next steps of all groups of channels, the cheapest quarter is removed from the copy at once."""


@dataclass(frozen=True)
class RemovedBlock:
    """A block that went: its name in the network that the stage was given, and what its removal did at that time."""

    block: str
    loss_increase: float
    """Of the mean absolute error of the output, weighted as the task does; negative where the network was better without the block."""
    saved_ms: float

    @property
    def price(self) -> float:
        """Loss per millisecond; infinite for a block that saves nothing."""
        return max(self.loss_increase, 0.0) / self.saved_ms if self.saved_ms > 0 else float("inf")

    def as_json(self) -> dict[str, JsonValue]:
        """For the report."""
        return asdict(self)


@dataclass(frozen=True)
class Shortened:
    """What is left, and which blocks went, in this order."""

    spec: ModelSpec
    network: nn.Module
    removed: tuple[RemovedBlock, ...]
    of: int
    """Blocks that the network had."""


def remove_blocks(context: StageContext, loss: PruningLoss, goal_ms: float, alignment: int) -> Shortened:
    """Remove residual blocks until the goal is met or channels are cheaper; `alignment` is that of the channels.

    Weights are shared with `context.model`. Raises `PlanError` like `removable_blocks`.
    """
    spec, network = context.spec, context.model
    called = {name: name for name in removable_blocks(spec, network)}  # as it is called now -> as it was at first, and is in the table
    table, count, removed, channels = operator_table(network, *spec.input_shapes), len(called), [], _Channels(context, loss, goal_ms, alignment)
    report, first_ms = context.progress("prune: removing residual blocks"), latency_ms(table, context)
    while called:
        tables = [table, *(without_rows(table, at_first) for at_first in called.values())]
        now_ms, *left_ms = estimate_many(tables, context.device, context.unit.name, context.ships_as).tolist()
        if now_ms <= goal_ms:
            break
        now = loss.of(network)
        tried = {
            name: RemovedBlock(at_first, loss.of(without_block(spec, network, name)[1]) - now, now_ms - left)
            for (name, at_first), left in zip(called.items(), left_ms, strict=True)
        }
        name = min(called, key=lambda one: (tried[one].price, tried[one].loss_increase, one))
        chosen = tried[name]
        if chosen.saved_ms <= 0:
            break
        if chosen.price > 0 and chosen.price > channels.price(spec, network, now_ms, chosen.saved_ms):
            break
        spec, network = without_block(spec, network, name)
        table = without_rows(table, called[name])
        called = {moved: at_first for one, at_first in called.items() if (moved := moved_up(one, name)) is not None}
        removed.append(chosen)
        report(len(removed), count, f"{first_ms:.2f} -> {now_ms - chosen.saved_ms:.2f} ms")
    return Shortened(spec, network, tuple(removed), count)


def without_rows(table: OperatorTable, block: str) -> OperatorTable:
    """The table without a residual block's rows: what read its sum reads its input. Parameters and the plan of memory stay those of the whole."""
    inside = [index for index, row in enumerate(table.operators) if row.name.startswith(f"{block}.")]
    entered_at = [maker for maker, _ in table.operators[inside[0]].sources or ()]
    kept = [index for index in range(len(table.operators)) if index not in inside]
    place = {index: [new] for new, index in enumerate(kept)}
    place |= {index: [place[maker][0] for maker in entered_at] for index in inside}
    rows = []
    for index in kept:
        row = table.operators[index]
        sources = None if row.sources is None else tuple((new, elements) for maker, elements in row.sources for new in place[maker])
        rows.append(replace(row, sources=sources))
    return replace(table, operators=tuple(rows))


class _Channels:
    """What the same milliseconds cost in channels."""

    def __init__(self, context: StageContext, loss: PruningLoss, goal_ms: float, alignment: int) -> None:
        self._context, self._loss, self._goal_ms, self._alignment = context, loss, goal_ms, alignment
        self._tried: Trials = {}

    def price(self, spec: ModelSpec, network: nn.Module, whole_ms: float, saved_ms: float) -> float:
        """Loss per millisecond of saving `saved_ms`, or what is missing to the goal; infinite where channels alone cannot reach the goal."""
        context, examples = self._context, example_inputs(spec)
        narrowest = copy.deepcopy(network).requires_grad_(True)
        PrunableChannels(narrowest, examples, self._alignment, self._tried).remove_all()
        if latency_ms(operator_table(narrowest, *spec.input_shapes), context) > self._goal_ms:
            return float("inf")
        needed_ms, narrowed = min(saved_ms, whole_ms - self._goal_ms), copy.deepcopy(network)
        self._loss.add_gradients(narrowed)
        channels = PrunableChannels(narrowed, examples, self._alignment, self._tried)
        table = operator_table(narrowed, *spec.input_shapes)
        while whole_ms - (now_ms := latency_ms(table, context)) < needed_ms:
            steps = channels.candidates()
            if not steps:  # a layer that would have lost all its channels kept some
                return float("inf")
            for _, one in by_price(steps, table, context)[: ceil(len(steps) / AT_ONCE)]:
                channels.remove(one)
            table = operator_table(narrowed, *spec.input_shapes)
        return max(self._loss.of(narrowed) - self._loss.of(network), 0.0) / (whole_ms - now_ms)
