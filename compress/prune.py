"""The prune stage: whole channels are removed, the least important per millisecond saved first.

Coupled layers come from torch-pruning's dependency graph (DepGraph, Fang et al. 2023, arXiv 2301.12900). A channel's importance is the first-order
Taylor estimate of the loss change, |sum of weight x gradient| over everything that the channel touches (Molchanov et al. 2019, arXiv 1906.10771).
Unpaired data have no truth but the original's output, from which the original itself has no loss; there, the change of the output along random signs
takes the place of the loss (Hutchinson's estimate of what a weight does to all of the output).
Channels go in blocks that keep every count a multiple of the device's alignment: a count between two steps costs as much as the upper one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch_pruning
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import example_inputs, record_edits
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.train import step_generator
from mcompress.errors import StageError
from mcompress.targets.latency import estimate, estimate_many
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import PruneConfig

IMPORTANCE_BATCH, IMPORTANCE_CROP = 8, 32
ROOTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Candidate:
    """A block of channels that may go: module, channel indices, and the loss that it costs."""

    module: str
    channels: tuple[int, ...]
    importance: float
    inputs_kept: dict[str, float]
    """Modules that read fewer channels without it -> the share that is left."""
    outputs_kept: dict[str, float]
    """Modules that write fewer channels without it -> the share that is left. A normalization and a depthwise convolution are in both."""

    @property
    def touches(self) -> frozenset[str]:
        """The modules that lose channels with it."""
        return frozenset(self.inputs_kept) | frozenset(self.outputs_kept)

    def narrowed(self, table: OperatorTable) -> OperatorTable:
        """The network's table without this block; what is between the modules, such as additions, is as narrow as what it reads."""
        rows: list[Operator] = []
        left: list[float] = []
        for row in table.operators:
            read, written = self.inputs_kept.get(row.name, 1.0), self.outputs_kept.get(row.name, 1.0)
            if row.name not in self.touches and row.macs == 0 and row.sources:
                together = sum(elements for _, elements in row.sources)
                read = written = sum(left[maker] * elements for maker, elements in row.sources) / max(together, 1)
            rows.append(_narrow(row, read, written))
            left.append(written)
        return replace(table, operators=tuple(rows))


def prune(config: PruneConfig, context: StageContext) -> StageOutput:
    """Remove channels until the goal is met; returns the pruned network, its spec with the edits, and what changed layer by layer."""
    model, alignment = context.model.eval(), config.round_to or context.unit.channel_alignment
    examples = example_inputs(context.spec)
    before = operator_table(model, *context.spec.input_shapes)
    before_ms = _latency_ms(before, context)
    widths_before = _widths(model)
    _accumulate_gradients(model, config, context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning warns of parameters that belong to no layer; they are simply not pruned
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=examples)
    prunable, fixed = _prunable_modules(graph, model, examples)
    wanted = sum(widths_before[name] for name in prunable)
    report, removed, table = context.progress("prune: removing channels"), 0, before
    fallbacks = [Fallback(where="stage prune", what=name, reason=reason) for name, reason in fixed.items()]
    candidates: dict[str, Candidate | None] = {}
    while not _met(config, removed, wanted, _latency_ms(table, context), before_ms):
        candidates.update({n: _cheapest_block(graph, model, n, alignment) for n in prunable if n not in candidates})
        able = [c for c in candidates.values() if c is not None]
        if not able:
            reason = f"every layer is down to {alignment} channels; {removed} of {wanted} channels are gone"
            fallbacks.append(Fallback(where="stage prune", what="goal not reached", reason=reason))
            break
        chosen = _cheapest(able, table, context)
        _group(graph, model, chosen.module, chosen.channels).prune()
        removed += len(chosen.channels)
        table = operator_table(model, *context.spec.input_shapes)
        report(removed, max(removed, wanted), f"{_latency_ms(table, context):.2f} ms")
        # Only groups that share a layer with the pruned one have changed.
        candidates = {n: c for n, c in candidates.items() if c is None or not c.touches & chosen.touches}
    model.zero_grad(set_to_none=True)
    edits = record_edits(graph.pruning_history())
    spec = context.spec.with_edits(edits)
    widths = _widths(model)
    layers: list[JsonValue] = [{"module": n, "before": w, "after": widths[n]} for n, w in widths_before.items() if widths[n] != w]
    details: dict[str, JsonValue] = {"layers": layers, "before": _facts(before, before_ms), "after": _facts(table, _latency_ms(table, context))}
    latency = estimate(table, context.device, context.unit.name, context.ships_as)
    return StageOutput(model, spec, None, (latency,), tuple(fallbacks), details)


def _latency_ms(table: OperatorTable, context: StageContext) -> float:
    return estimate(table, context.device, context.unit.name, context.ships_as).value


def _facts(table: OperatorTable, latency_ms: float) -> JsonValue:
    return {"params": table.params, "macs": table.macs, "latency_ms": latency_ms, "peak_activation_elements": table.peak_activation_elements}


def _met(config: PruneConfig, removed: int, wanted: int, now_ms: float, before_ms: float) -> bool:
    if config.ratio is not None:
        return removed >= config.ratio * wanted
    return config.latency_ratio is not None and now_ms <= config.latency_ratio * before_ms


def _accumulate_gradients(model: nn.Module, config: PruneConfig, context: StageContext) -> None:
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    crop = max(min(IMPORTANCE_CROP, context.task.largest_crop()), context.task.smallest_crop())
    for index in range(config.importance_batches):
        generator = step_generator(context.seed, index)
        if context.task.paired:
            inputs, truth = context.task.training_batch(IMPORTANCE_BATCH, crop, generator)
            torch.autograd.backward(functional.l1_loss(model(*inputs), truth))
        else:
            output = model(*context.task.unlabelled_batch(IMPORTANCE_BATCH, crop, generator))
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
            torch.autograd.backward((output * signs).mean())


def _widths(model: nn.Module) -> dict[str, int]:
    return {name: int(module.weight.shape[0 if not isinstance(module, nn.ConvTranspose2d) else 1]) for name, module in _roots(model)}


def _roots(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.ConvTranspose2d | nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ROOTS)]


def _remover(graph: torch_pruning.DependencyGraph, module: nn.Module) -> Callable[..., nn.Module]:
    pruner = graph.get_pruner_of_module(module)
    return pruner.prune_out_channels  # type: ignore[no-any-return]


def _group(graph: torch_pruning.DependencyGraph, model: nn.Module, name: str, channels: tuple[int, ...]) -> torch_pruning.Group:
    module = model.get_submodule(name)
    return graph.get_pruning_group(module, _remover(graph, module), list(channels))


def _prunable_modules(graph: torch_pruning.DependencyGraph, model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """One module per group of coupled layers, and the groups that cannot be pruned with the reason.

    One group of each form (the same kinds of layers, the same shapes) is tried on a copy: removing a channel must leave the output's shape alone
    and the network able to run.
    """
    with torch.no_grad():
        shape = model(*examples).shape
    names = {module: name for name, module in model.named_modules()}
    prunable, fixed = [], {}
    tried: dict[tuple[object, ...], str | None] = {}
    for group in graph.get_all_groups(root_module_types=list(ROOTS)):
        name = names[group[0].dep.target.module]
        if _reaches_output(graph, group):
            continue  # the channels of the output are not ours to remove
        form = tuple((type(dep.target.module), dep.handler.__name__, _shape(dep.target.module)) for dep, _ in group)
        if form not in tried:
            tried[form] = _trial(model, name, examples, shape)
        reason = tried[form]
        if reason is None:
            prunable.append(name)
        else:
            fixed[name] = reason
    return tuple(prunable), fixed


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else None


def _reaches_output(graph: torch_pruning.DependencyGraph, group: torch_pruning.Group) -> bool:
    """Whether the group's channels are those of the network's output, behind additions and pixel shuffles as well."""
    # A layer at the end that only reads the channels (prune_in_channels) has others of its own; what is no layer has one and the same.
    return any(not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group)


def _trial(model: nn.Module, name: str, examples: tuple[Tensor, ...], shape: torch.Size) -> str | None:
    """Why a group cannot be pruned, or None. Channels are coupled in the same way whatever their values, so one trial speaks for all."""
    trial = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(trial, example_inputs=examples)
    try:
        _group(graph, trial, name, (0,)).prune()
        with torch.no_grad():
            changed = trial(*examples).shape
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:  # whatever a user's forward does with a missing channel
        return f"the network does not run without one of its channels ({error})"
    return None if changed == shape else f"removing a channel changes the output from {tuple(shape)} to {tuple(changed)}"


def _cheapest(able: list[Candidate], table: OperatorTable, context: StageContext) -> Candidate:
    """The block with the least importance lost per millisecond saved; blocks that save nothing come last.

    What a block saves is estimated on the whole network: weights that fit into the cache once another layer is narrower save time there, too.
    """
    whole_ms, *without_ms = estimate_many([table, *(one.narrowed(table) for one in able)], context.device, context.unit.name, context.ships_as)
    saved_ms = {one.module: whole_ms - left for one, left in zip(able, without_ms, strict=True)}
    prices = {one.module: one.importance / saved_ms[one.module] if saved_ms[one.module] > 0 else float("inf") for one in able}
    return min(able, key=lambda one: (prices[one.module], one.importance, one.module))


def _cheapest_block(graph: torch_pruning.DependencyGraph, model: nn.Module, name: str, alignment: int) -> Candidate | None:
    """The least important channels of a group, as many as reach the next multiple of the alignment; None when none can go."""
    width = _widths(model)[name]
    block = width % alignment or alignment
    if width - block < 1:
        return None
    group = _group(graph, model, name, tuple(range(width)))
    scores = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)(group)
    if scores is None:
        raise StageError(f"stage prune: no gradient reaches '{name}', so its channels cannot be ranked; is it used by the loss?")
    weakest = tuple(int(i) for i in torch.argsort(scores, stable=True)[:block].sort().values)
    if not graph.check_pruning_group(_group(graph, model, name, weakest)):
        return None  # a layer that takes only a part of these channels would have none left
    names = {module: name for name, module in model.named_modules()}
    touched = [(names[dep.target.module], dep.handler) for dep, _ in group if dep.target.module in names]
    left = 1.0 - block / width
    inputs_kept = {layer: left for layer, handler in touched if graph.is_in_channel_pruning_fn(handler)}
    outputs_kept = {layer: left for layer, handler in touched if graph.is_out_channel_pruning_fn(handler)}
    return Candidate(name, weakest, float(scores[list(weakest)].sum()), inputs_kept, outputs_kept)


def _narrow(row: Operator, read: float, written: float) -> Operator:
    """A row with these shares of the channels that it reads and writes."""
    if read == written == 1.0:
        return row
    # What computes every channel from itself loses its work once, not on both sides.
    work = written if row.kind == "depthwise_convolution" or row.macs == 0 else read * written

    def channels(shape: tuple[int, ...], share: float) -> tuple[int, ...]:
        axis = row.channel_axis % len(shape) if shape else 0
        return tuple(max(1, round(size * share)) if index == axis and len(shape) > 1 else size for index, size in enumerate(shape))

    return replace(
        row,
        input_shape=channels(row.input_shape, read),
        output_shape=channels(row.output_shape, written),
        groups=max(1, round(row.groups * written)) if row.kind == "depthwise_convolution" else row.groups,
        macs=round(row.macs * work),
        macs_output_convention=round(row.macs_output_convention * work),
        elements_read=round(row.elements_read * read),
        elements_written=round(row.elements_written * written),
        weight_elements=round(row.weight_elements * work),
        weights_read=None if row.weights_read is None else round(row.weights_read * work),
        sources=None if row.sources is None else tuple((maker, round(elements * read)) for maker, elements in row.sources),
    )
