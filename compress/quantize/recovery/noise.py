"""A model of quantization noise at the network's output, measured on the float network.

Rounding a tensor to steps of size d adds noise of power d^2 / 12 to every value. Noise of power 1 in channel c of a tensor arrives at the output with
power g_c = sum over the channel's positions of |d output / d value|^2, its gain; likewise for every weight. Gains come from backpropagating random
signs: for v of independent +-1, E[(v . J)_k^2] is the squared norm of column k of the Jacobian J (Hutchinson's estimator). A few backward passes give
the gains of all tensors and all weights together. A zero is always represented exactly, so positions where the value is zero add no noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.channels import CHANNEL_AXIS, epsilon_of, removes_scale
from mcompress.compress.tasks.task import Inputs
from mcompress.errors import StageError

PROBES = 2  # random sign patterns per input
GROUPS_ARGUMENT = 6  # position of `groups` in conv1d, conv2d and conv_transpose2d


@dataclass(frozen=True)
class NoiseModel:
    """Per tensor (by node name): the least and greatest value of every channel (C), and the gain of every channel (C). Per weighted operator: the
    gain of its weights, (O, I / groups, kernel). Gains are means over inputs. Per instance norm: of every channel (C) that it reads the least
    variance over inputs, as a multiple of its epsilon."""

    low: dict[str, Tensor]
    high: dict[str, Tensor]
    gain: dict[str, Tensor]
    weight_gain: dict[str, Tensor]
    least_variance: dict[str, Tensor]


def noise_sources(module: fx.GraphModule, plan: PrecisionPlan) -> list[fx.Node]:
    """Tensors that are rounded where they are made: results of INT8 weighted and arithmetic operators, behind a fused ReLU. Copies add no noise."""
    int8 = plan.int8_names()
    found = []
    for node in kinds.operators(module.graph):
        if node.name in int8 and kinds.group_of(node) in ("weighted", "arithmetic"):
            fused = kinds.fused_activation(node)
            found.append(fused if fused is not None and fused.name in int8 else node)
    return found


def measure_noise(module: fx.GraphModule, plan: PrecisionPlan, inputs: Iterable[Inputs], seed: int) -> NoiseModel:
    """Stream `inputs` through the float network, forwards and backwards. Raises `StageError` if there are none.

    Memory: the values of one input and statistics of the size of the channels and weights.
    """
    probe = _Probe(parameters.copied(module), noise_sources(module, plan), seed)
    for value in inputs:
        probe.add(*value)
    return probe.result()


class _Probe(fx.Interpreter):
    """Keeps the tensors of one input, then turns their gradients into statistics."""

    def __init__(self, module: fx.GraphModule, sources: list[fx.Node], seed: int) -> None:
        super().__init__(module.requires_grad_(True))
        self.extra_traceback = False
        names = {source.name for source in sources}
        self._sources = [node for node in module.graph.nodes if node.name in names]
        self._weighted = parameters.weighted_operators(module.graph)
        self._generator = torch.Generator().manual_seed(seed)
        self._values: dict[str, Tensor] = {}
        self._low: dict[str, Tensor] = {}
        self._high: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._weight_sums: dict[str, Tensor] = {}
        self._variances: dict[str, Tensor] = {}
        self._seen = 0

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > CHANNEL_AXIS and not kinds.is_constant(n):
            flat = value.detach().transpose(0, CHANNEL_AXIS).flatten(1)
            self._low[n.name] = torch.minimum(self._low.get(n.name, flat.amin(1)), flat.amin(1))
            self._high[n.name] = torch.maximum(self._high.get(n.name, flat.amax(1)), flat.amax(1))
            self._values[n.name] = value
            if removes_scale(n):
                self._note_variance(n, self._values[n.all_input_nodes[0].name])
        return value

    def _note_variance(self, n: fx.Node, read: Tensor) -> None:
        found = read.detach().flatten(2).var(2, correction=0).amin(0) / epsilon_of(n)
        self._variances[n.name] = torch.minimum(self._variances.get(n.name, found), found)

    def add(self, *inputs: Tensor) -> None:
        """One input, (N, C, H, W)."""
        self._values.clear()
        with torch.enable_grad():
            output = self.run(*(one.detach() for one in inputs))
        if not isinstance(output, Tensor):
            raise StageError(f"the network returns a {type(output).__name__}; quantization needs one tensor")
        tensors = [self._values[node.name] for node in self._sources]
        weights = [parameters.weight_of(self.module, node) for node in self._weighted]  # type: ignore[arg-type]  # it is the graph module given above
        for _ in range(PROBES):
            signs = torch.randint(0, 2, output.shape, generator=self._generator).to(output) * 2 - 1
            gradients = torch.autograd.grad(output, [*tensors, *weights], signs, retain_graph=True, allow_unused=True)
            for node, tensor, gradient in zip(self._sources, tensors, gradients[: len(tensors)], strict=True):
                power = torch.zeros_like(tensor) if gradient is None else gradient.square() * (tensor != 0)
                _add(self._sums, node.name, power.detach().transpose(0, CHANNEL_AXIS).flatten(1).sum(1))
            for node, weight, gradient in zip(self._weighted, weights, gradients[len(tensors) :], strict=True):
                power = torch.zeros_like(weight) if gradient is None else gradient.square()
                _add(self._weight_sums, node.name, by_output_and_input(power.detach(), node))
        self._values.clear()
        self._seen += 1

    def result(self) -> NoiseModel:
        if self._seen == 0:
            raise StageError("no calibration inputs were given; recovery needs at least one")
        share = 1.0 / (self._seen * PROBES)
        return NoiseModel(self._low, self._high, _times(self._sums, share), _times(self._weight_sums, share), self._variances)


def groups_of(node: fx.Node) -> int:
    """Groups of a weighted operator; 1 for linear layers."""
    found = node.args[GROUPS_ARGUMENT] if len(node.args) > GROUPS_ARGUMENT else 1
    return found if isinstance(found, int) else 1


def by_output_and_input(weight: Tensor, node: fx.Node) -> Tensor:
    """A weight, or anything of its shape, as (output channels, input channels per group, kernel positions)."""
    flat = weight.reshape(*weight.shape[:2], -1)
    if kinds.WEIGHTED[node.target] == 0:
        return flat
    groups = groups_of(node)
    inputs, outputs, kernel = flat.shape
    return flat.reshape(groups, inputs // groups, outputs, kernel).transpose(1, 2).reshape(groups * outputs, inputs // groups, kernel)


def like_weight(values: Tensor, weight: Tensor, node: fx.Node) -> Tensor:
    """The inverse for one value per (output channel, input channel per group): shaped so that it multiplies `weight`."""
    if kinds.WEIGHTED[node.target] != 0:
        groups = groups_of(node)
        outputs, inputs = values.shape
        values = values.reshape(groups, outputs // groups, inputs).transpose(1, 2).reshape(groups * inputs, outputs // groups)
    return values.reshape(*values.shape, *([1] * (weight.ndim - 2)))


def input_channels(weight: Tensor, node: fx.Node) -> Tensor:
    """Which input channel each entry of `by_output_and_input` reads: (output channels, input channels per group)."""
    outputs, inputs, _ = by_output_and_input(weight, node).shape
    groups = groups_of(node)
    group = torch.arange(outputs) // (outputs // groups)
    return group[:, None] * inputs + torch.arange(inputs)[None, :]


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _times(sums: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: value * factor for name, value in sums.items()}
