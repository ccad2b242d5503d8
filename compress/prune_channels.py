"""Channels that can be removed from a network: which belong together, how important they are, and what the network saves without them.

Coupled layers come from torch-pruning's dependency graph (DepGraph, Fang et al. 2023, arXiv 2301.12900). A channel's importance is the first-order
Taylor estimate of the loss change, |weight x gradient| summed over everything that the channel touches (Molchanov et al. 2019, arXiv 1906.10771).
Channels go in steps that keep every count a multiple of the device's alignment: a count between two steps costs as much as the upper one.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch_pruning
from torch import Tensor, nn

from mcompress.compress.models.build import record_edits
from mcompress.compress.models.spec import PruningEdit
from mcompress.compress.stage import StageContext
from mcompress.errors import StageError
from mcompress.targets.latency import estimate, estimate_many
from mcompress.targets.operators import Operator, OperatorTable

ROOTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

Trials = dict[tuple[object, ...], str | None]
"""Form of a group of coupled layers (their kinds and shapes) -> why it cannot be pruned, or None where it can."""


@dataclass(frozen=True)
class Candidate:
    """Channels of one group that may go together: module, channel indices, and the loss that they cost."""

    module: str
    channels: tuple[int, ...]
    importance: float
    inputs_kept: dict[str, float]
    """Modules that read fewer channels without them -> the share that is left."""
    outputs_kept: dict[str, float]
    """Modules that write fewer channels without them -> the share that is left. A normalization and a depthwise convolution are in both."""

    @property
    def touches(self) -> frozenset[str]:
        """The modules that lose channels with them."""
        return frozenset(self.inputs_kept) | frozenset(self.outputs_kept)

    def narrowed(self, table: OperatorTable) -> OperatorTable:
        """The network's table without these channels; what is between the modules, such as additions, is as narrow as what it reads."""
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


class PrunableChannels:
    """The groups of coupled channels of a network in evaluation mode that carries gradients, and the next step of each."""

    def __init__(self, model: nn.Module, examples: tuple[Tensor, ...], alignment: int, tried: Trials | None = None) -> None:
        """`tried`: the forms that were tried on networks like this one, which are not tried again; new ones are added."""
        self._model, self._alignment = model, alignment
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning warns of parameters that belong to no layer; they are simply not pruned
            self._graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=examples)
        self.prunable: tuple[str, ...]
        self.fixed: dict[str, str]
        self.prunable, self.fixed = _prunable_modules(self._graph, model, examples, {} if tried is None else tried)
        """One module of each group, and the groups that cannot be pruned with the reason."""
        self._next: dict[str, Candidate | None] = {}

    def candidates(self) -> list[Candidate]:
        """The next step of every group that has one."""
        self._next |= {n: _next_step(self._graph, self._model, n, self._alignment) for n in self.prunable if n not in self._next}
        return [one for one in self._next.values() if one is not None]

    def share(self, name: str, ratio: float) -> Candidate | None:
        """The least important channels of a group, so many that about `ratio` of them are gone; None where that is less than a step."""
        return _next_step(self._graph, self._model, name, self._alignment, ratio)

    def remove(self, chosen: Candidate) -> None:
        """Take these channels out of the network, in place."""
        _group(self._graph, self._model, chosen.module, chosen.channels).prune()
        # Only groups that share a layer with the pruned one have changed.
        self._next = {n: c for n, c in self._next.items() if c is None or not c.touches & chosen.touches}

    def remove_all(self) -> None:
        """Take out of every group whatever can go, in place and without regard to importance: the narrowest form of the network."""
        for name in self.prunable:
            width = widths_of(self._model)[name]
            step = math.lcm(self._alignment, _norm_groups(_group(self._graph, self._model, name, (0,))))
            if width > step:
                group = _group(self._graph, self._model, name, tuple(range(width - step)))
                if self._graph.check_pruning_group(group):
                    group.prune()

    def edits(self) -> tuple[PruningEdit, ...]:
        """What was removed, in order."""
        return record_edits(self._graph.pruning_history())


def by_price(candidates: Sequence[Candidate], table: OperatorTable, context: StageContext) -> list[tuple[float, Candidate]]:
    """Importance lost per millisecond saved, and the candidate; the cheapest first, those that save nothing, at an infinite price, last.

    What a candidate saves is estimated on the whole network: weights that fit into the cache once another layer is narrower save time there, too.
    """
    tables = [table, *(one.narrowed(table) for one in candidates)]
    whole_ms, *without_ms = estimate_many(tables, context.device, context.unit.name, context.ships_as)
    saved_ms = [whole_ms - left for left in without_ms]
    priced = [(one.importance / saved if saved > 0 else float("inf"), one) for one, saved in zip(candidates, saved_ms, strict=True)]
    return sorted(priced, key=lambda found: (found[0], found[1].importance, found[1].module))


def latency_ms(table: OperatorTable, context: StageContext) -> float:
    """The estimate that pruning goes by, of the whole network on the target's unit."""
    return estimate(table, context.device, context.unit.name, context.ships_as).value


def widths_of(model: nn.Module) -> dict[str, int]:
    """Output channels of every layer that has weights to prune."""
    return {name: int(module.weight.shape[0 if not isinstance(module, nn.ConvTranspose2d) else 1]) for name, module in _roots(model)}


def _roots(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.ConvTranspose2d | nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ROOTS)]


def _remover(graph: torch_pruning.DependencyGraph, module: nn.Module) -> Callable[..., nn.Module]:
    pruner = graph.get_pruner_of_module(module)
    return pruner.prune_out_channels  # type: ignore[no-any-return]


def _group(graph: torch_pruning.DependencyGraph, model: nn.Module, name: str, channels: tuple[int, ...]) -> torch_pruning.Group:
    module = model.get_submodule(name)
    return graph.get_pruning_group(module, _remover(graph, module), list(channels))


def _prunable_modules(
    graph: torch_pruning.DependencyGraph, model: nn.Module, examples: tuple[Tensor, ...], tried: Trials
) -> tuple[tuple[str, ...], dict[str, str]]:
    """One module per group of coupled layers, and the groups that cannot be pruned with the reason.

    One group of each form (the same kinds of layers, the same shapes) is tried on a copy: removing a channel must leave the output's shape alone
    and the network able to run.
    """
    with torch.no_grad():
        shape = model(*examples).shape
    names = {module: name for name, module in model.named_modules()}
    prunable, fixed = [], {}
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
        width, groups = widths_of(trial)[name], _norm_groups(_group(graph, trial, name, (0,)))
        _group(graph, trial, name, tuple(range(0, width, width // groups)) if groups > 1 else (0,)).prune()
        with torch.no_grad():
            changed = trial(*examples).shape
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:  # whatever a user's forward does with a missing channel
        return f"the network does not run without one of its channels ({error})"
    return None if changed == shape else f"removing a channel changes the output from {tuple(shape)} to {tuple(changed)}"


def _norm_groups(group: torch_pruning.Group) -> int:
    """Channels of these layers can only go so many at a time, one of each group of a group normalization."""
    return math.lcm(1, *(dep.target.module.num_groups for dep, _ in group if isinstance(dep.target.module, nn.GroupNorm)))


def _weakest(scores: Tensor, count: int, groups: int) -> tuple[int, ...]:
    """The channels of the lowest scores, as many of each of `groups` groups of neighbours, so that no channel changes its group."""
    size = len(scores) // groups
    order = torch.argsort(scores[: size * groups].view(groups, size), dim=1, stable=True)[:, : count // groups]
    return tuple(int(channel) for channel in (order + size * torch.arange(groups)[:, None]).flatten().sort().values)


def _next_step(graph: torch_pruning.DependencyGraph, model: nn.Module, name: str, alignment: int, ratio: float | None = None) -> Candidate | None:
    """The least important channels of a group, as many as reach the next multiple of the alignment, or the one nearest to `ratio` of them; None when
    none can go.
    """
    width, groups = widths_of(model)[name], _norm_groups(_group(graph, model, name, (0,)))
    unit = math.lcm(alignment, groups)
    step = width % unit or unit
    if ratio is not None:
        step = width - max(unit, unit * round((1.0 - ratio) * width / unit))
    if width - step < 1 or step < 1 or step % groups:
        return None
    group = _group(graph, model, name, tuple(range(width)))
    scores = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)(group)
    if scores is None:
        raise StageError(f"stage prune: no gradient reaches '{name}', so its channels cannot be ranked; is it used by the loss?")
    weakest = _weakest(scores, step, groups)
    if not graph.check_pruning_group(_group(graph, model, name, weakest)):
        return None  # a layer that takes only a part of these channels would have none left
    names = {module: name for name, module in model.named_modules()}
    touched = [(names[dep.target.module], dep.handler) for dep, _ in group if dep.target.module in names]
    left = 1.0 - step / width
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
