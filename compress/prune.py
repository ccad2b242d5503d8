"""The prune stage: what costs the least loss per millisecond saved goes first; whole residual blocks where it may, then channels.

How channels are grouped and ranked says `mcompress.compress.prune_channels`, how blocks are `mcompress.compress.prune_blocks`, and what the loss is
`mcompress.compress.prune_loss`.
"""

from __future__ import annotations

from pydantic import JsonValue

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import example_inputs
from mcompress.compress.prune_blocks import Shortened, remove_blocks
from mcompress.compress.prune_channels import PrunableChannels, by_price, latency_ms, widths_of
from mcompress.compress.prune_loss import PruningLoss
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.targets.latency import estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import PruneConfig


def prune(config: PruneConfig, context: StageContext) -> StageOutput:
    """Remove blocks and channels until the goal is met.

    Returns the pruned network, its specification (arguments without the blocks, then the edits), and what changed block by block and layer by layer.
    Raises `PlanError` where blocks are to go and it is not known which can, or the network was pruned before.
    """
    model, alignment = context.model.eval(), config.round_to or context.unit.channel_alignment
    before = operator_table(model, *context.spec.input_shapes)
    before_ms = latency_ms(before, context)
    loss = PruningLoss(config, context)
    shortened = Shortened(context.spec, model, (), 0)
    fallbacks = []
    if config.blocks:
        shortened = remove_blocks(context, loss, (config.latency_ratio or 1.0) * before_ms, alignment)
        if not shortened.of:
            reason = f"the network '{context.spec.network}' has no residual blocks left with these arguments; only channels were removed"
            fallbacks.append(Fallback(where="stage prune", what="blocks", reason=reason))
    model, spec = shortened.network, shortened.spec
    widths_before = widths_of(model)
    loss.add_gradients(model)
    channels = PrunableChannels(model, example_inputs(spec), alignment)
    wanted = sum(widths_before[name] for name in channels.prunable)
    report, removed, table = context.progress("prune: removing channels"), 0, operator_table(model, *spec.input_shapes)
    fallbacks += [Fallback(where="stage prune", what=name, reason=reason) for name, reason in channels.fixed.items()]
    if config.uniform and config.ratio is not None:
        for name in channels.prunable:
            chosen = channels.share(name, config.ratio)
            gone = 0 if chosen is None else len(chosen.channels)
            if chosen is not None:
                channels.remove(chosen)
                removed += gone
            if gone != round(config.ratio * widths_before[name]):
                reason = f"{gone} of {widths_before[name]} channels are gone, not the share {config.ratio:g}: they go in whole groups of {alignment}"
                fallbacks.append(Fallback(where="stage prune", what=name, reason=reason))
        table = operator_table(model, *spec.input_shapes)
    while not config.uniform and not _met(config, removed, wanted, latency_ms(table, context), before_ms):
        able = channels.candidates()
        if not able:
            reason = f"every layer is down to {alignment} channels; {removed} of {wanted} channels are gone"
            fallbacks.append(Fallback(where="stage prune", what="goal not reached", reason=reason))
            break
        _, chosen = by_price(able, table, context)[0]
        channels.remove(chosen)
        removed += len(chosen.channels)
        table = operator_table(model, *spec.input_shapes)
        report(removed, max(removed, wanted), f"{latency_ms(table, context):.2f} ms")
    model.zero_grad(set_to_none=True)
    widths = widths_of(model)
    layers: list[JsonValue] = [{"module": n, "before": w, "after": widths[n]} for n, w in widths_before.items() if widths[n] != w]
    details: dict[str, JsonValue] = {"layers": layers, "before": _facts(before, before_ms), "after": _facts(table, latency_ms(table, context))}
    if config.blocks:
        details |= {"blocks": [one.as_json() for one in shortened.removed], "blocks_before": shortened.of}
    latency = estimate(table, context.device, context.unit.name, context.ships_as)
    return StageOutput(model, spec.with_edits(channels.edits()), None, (latency,), tuple(fallbacks), details)


def _facts(table: OperatorTable, ms: float) -> JsonValue:
    return {"params": table.params, "macs": table.macs, "latency_ms": ms, "peak_activation_elements": table.peak_activation_elements}


def _met(config: PruneConfig, removed: int, wanted: int, now_ms: float, before_ms: float) -> bool:
    if config.ratio is not None:
        return removed >= config.ratio * wanted
    return config.latency_ratio is not None and now_ms <= config.latency_ratio * before_ms
