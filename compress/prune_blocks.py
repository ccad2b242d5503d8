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
from dataclasses import asdict, dataclass
from math import ceil

from pydantic import JsonValue
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.blocks import moved_up, removable_blocks, without_block
from mcompress.compress.models.build import example_inputs
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.prune_channels import PrunableChannels, by_price, latency_ms
from mcompress.compress.prune_loss import PruningLoss
from mcompress.compress.stage import StageContext

AT_ONCE = 4
"""Of the next steps of all groups of channels, the cheapest quarter is removed from the copy at once."""


@dataclass(frozen=True)
class RemovedBlock:
    """A block that went: its name in the network that the stage was given, and what its removal did at that time."""

    block: str
    loss_increase: float
    """Mean absolute error of the output; negative where the network was better without the block."""
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
    called = {name: name for name in removable_blocks(spec, network)}  # as it is called now -> as it was at first
    count, removed = len(called), []
    report, first_ms = context.progress("prune: removing residual blocks"), _ms(spec, network, context)
    while called and (now_ms := _ms(spec, network, context)) > goal_ms:
        now = loss.of(network)
        tried: dict[str, RemovedBlock] = {}
        times_ms: dict[str, float] = {}  # blocks of one stage leave the same network behind, but for its weights
        for name, at_first in called.items():
            shorter, left = without_block(spec, network, name)
            if shorter.to_json() not in times_ms:
                times_ms[shorter.to_json()] = _ms(shorter, left, context)
            tried[name] = RemovedBlock(at_first, loss.of(left) - now, now_ms - times_ms[shorter.to_json()])
        name = min(called, key=lambda one: (tried[one].price, tried[one].loss_increase, one))
        chosen = tried[name]
        if chosen.saved_ms <= 0:
            break
        if chosen.price > 0 and chosen.price > _price_in_channels(spec, network, context, loss, chosen.saved_ms, goal_ms, alignment):
            break
        spec, network = without_block(spec, network, name)
        called = {moved: at_first for one, at_first in called.items() if (moved := moved_up(one, name)) is not None}
        removed.append(chosen)
        report(len(removed), count, f"{first_ms:.2f} -> {now_ms - chosen.saved_ms:.2f} ms")
    return Shortened(spec, network, tuple(removed), count)


def _ms(spec: ModelSpec, network: nn.Module, context: StageContext) -> float:
    return latency_ms(operator_table(network, *spec.input_shapes), context)


def _price_in_channels(
    spec: ModelSpec, network: nn.Module, context: StageContext, loss: PruningLoss, saved_ms: float, goal_ms: float, alignment: int
) -> float:
    """Loss per millisecond of saving `saved_ms`, or what is missing to the goal, by channels; infinite where they cannot reach the goal at all."""
    examples, whole_ms = example_inputs(spec), _ms(spec, network, context)
    needed_ms = min(saved_ms, whole_ms - goal_ms)
    narrowed = copy.deepcopy(network)
    loss.add_gradients(narrowed)
    channels = PrunableChannels(narrowed, examples, alignment)
    narrowest = copy.deepcopy(network).requires_grad_(True)
    PrunableChannels(narrowest, examples, alignment, like=channels).remove_all()
    if _ms(spec, narrowest, context) > goal_ms:
        return float("inf")
    table = operator_table(narrowed, *spec.input_shapes)
    while whole_ms - (now_ms := latency_ms(table, context)) < needed_ms:
        steps = channels.candidates()
        if not steps:  # a layer that would have lost all its channels kept some
            return float("inf")
        for _, one in by_price(steps, table, context)[: ceil(len(steps) / AT_ONCE)]:
            channels.remove(one)
        table = operator_table(narrowed, *spec.input_shapes)
    return max(loss.of(narrowed) - loss.of(network), 0.0) / (whole_ms - now_ms)
