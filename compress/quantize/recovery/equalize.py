"""Equalization: activation channels are scaled so that one range per tensor fits all of its channels.

The idea is cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721), which makes the ranges of two neighbouring layers equal. Here the scales
of all classes of channels (`channels.py`) are chosen together, residual paths and concatenations included, and against the noise that counts, that
at the network's output (`noise.py`): the sum over tensors of step^2 / 12 x gain plus the same for weights, where a channel scaled by s has gain / s^2
and the step of a tensor follows from its widest channel. The minimum is found by gradient descent on log s. The float network computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX
from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.channels import KEPT, ChannelClasses, channel_classes, removes_scale
from mcompress.compress.quantize.recovery.noise import NoiseModel, by_output_and_input, input_channels, like_weight, noise_sources

ITERATIONS = 150
RATE = 0.1  # of log s per iteration
LARGEST = 5.0  # |log s|; a channel scaled by more than 150 is a dead one, and FP16 operators have to hold it too
NEGLIGIBLE = 1e-3
"""Of a channel's variance in front of an instance norm, its epsilon: what is larger changes the network when the channel is scaled."""
LEVELS = INT8_MAX - INT8_MIN
Part = TypeVar("Part")


def equalize(
    module: fx.GraphModule, plan: PrecisionPlan, noise: NoiseModel, feedback: Mapping[str, Tensor] | None = None
) -> tuple[fx.GraphModule, float]:
    """A copy of `module` with equalized channels, and the predicted noise power at the output relative to that of `module` (at most 1).

    `feedback` (`rounding.feedback_shares`) says that weights will be rounded with error feedback, which leaves less of their noise. Ranges have to be
    calibrated again. Without a channel that may be scaled the copy is unchanged.
    """
    classes = channel_classes(module)
    scales, share = PredictedNoise(module, plan, noise, classes, feedback or {}).minimise()
    return scale_channels(module, classes, scales), share


def scale_channels(module: fx.GraphModule, classes: ChannelClasses, scales: Tensor) -> fx.GraphModule:
    """A copy of `module` in which channels of class k are `scales[k]` times as large: (classes,), positive, 1 for class 0. The output is the same."""
    found = parameters.copied(module)
    with torch.no_grad():
        for node in classes.scalable:
            weight, bias = parameters.weight_of(found, node), parameters.bias_of(found, node)
            outputs, inputs = scales[torch.from_numpy(classes.of[node])], scales[_input_classes(weight, node, classes)]
            weight.mul_(like_weight(outputs[:, None] / inputs, weight, node))
            if bias is not None:
                bias.mul_(outputs)
    return found


def _input_classes(weight: Tensor, node: fx.Node, classes: ChannelClasses) -> Tensor:
    """Class of the input channel that each entry of `by_output_and_input` reads."""
    channels = input_channels(weight, node)
    if node not in classes.scalable:
        return torch.full_like(channels, KEPT)
    (source,) = kinds.activations(node)
    return torch.from_numpy(classes.of[source])[channels]


@dataclass(frozen=True)
class _Tensor:
    """One range: the extents of all channels that it covers, with their classes, and the gains of those that are rounded into it."""

    low: Tensor
    high: Tensor
    classes: Tensor
    gain: Tensor
    gain_classes: Tensor


@dataclass(frozen=True)
class _Weights:
    largest: Tensor  # (O, I): over the kernel
    gain: Tensor  # (O, I)
    inputs: Tensor  # (O, I): classes


class PredictedNoise:
    """Noise power at the output as a function of log s of every class."""

    def __init__(
        self, module: fx.GraphModule, plan: PrecisionPlan, noise: NoiseModel, classes: ChannelClasses, feedback: Mapping[str, Tensor]
    ) -> None:
        """Gather extents and gains by range; see the module's docstring."""
        self._count, self._symmetric = classes.count, plan.activations == "symmetric"
        tensors = _tensors(module, plan, noise, classes)
        self._limits = _limits(module, noise, classes)
        int8 = plan.int8_names()
        every: list[_Weights] = []
        for node in parameters.weighted_operators(module.graph):
            if node.name in int8:
                weight = parameters.weight_of(module, node).detach()
                gain = noise.weight_gain[node.name] * feedback.get(node.name, torch.ones(()))
                largest = by_output_and_input(weight, node).abs().amax(2)
                every.append(_Weights(largest, gain.sum(2), _input_classes(weight, node, classes)))
        # What no scale acts on is the same for all of them: in networks with attention or group norms that is nearly everything.
        fixed_tensors, self._tensors = _parted(tensors, lambda one: bool((one.classes == KEPT).all() and (one.gain_classes == KEPT).all()))
        fixed_weights, self._weights = _parted(every, lambda one: bool((one.inputs == KEPT).all()))
        with torch.no_grad():
            self._fixed = self._power(torch.zeros(self._count), fixed_tensors, fixed_weights)

    def of(self, logs: Tensor) -> Tensor:
        """The noise power; differentiable."""
        return self._fixed + self._power(logs, self._tensors, self._weights)

    def _power(self, logs: Tensor, tensors: Sequence[_Tensor], every: Sequence[_Weights]) -> Tensor:
        power = logs.new_zeros(())
        for tensor in tensors:
            scale = logs[tensor.classes].exp()
            above, below = (tensor.high * scale).amax().clamp_min(0), -(tensor.low * scale).amin().clamp_max(0)
            step = torch.maximum(above, below) / INT8_MAX if self._symmetric else (above + below) / LEVELS
            power = power + step.square() / 12 * (tensor.gain * (-2 * logs[tensor.gain_classes]).exp()).sum()
        for weights in every:
            scale = logs[weights.inputs].exp()
            steps = (weights.largest / scale).amax(1) / WEIGHT_MAX
            power = power + (steps.square() / 12 * (weights.gain * scale.square()).sum(1)).sum()
        return power

    def minimise(self) -> tuple[Tensor, float]:
        """The best scales found (class 0: exactly 1) and the noise power relative to no scaling."""
        free = torch.ones(self._count, dtype=torch.bool)
        free[KEPT] = False
        logs = torch.zeros(self._count, requires_grad=True)
        with torch.no_grad():
            start = float(self.of(logs))
        best, least = torch.zeros(self._count), start
        if not bool(free.any()) or start == 0.0 or not (self._tensors or self._weights):
            return best.exp(), 1.0
        optimizer = torch.optim.Adam([logs], lr=RATE)
        for step in range(ITERATIONS):
            optimizer.zero_grad()
            with torch.enable_grad():
                power = self.of(logs)
                (power / start).log().backward()  # type: ignore[no-untyped-call]
            if float(power.detach()) < least:
                best, least = logs.detach().clone(), float(power.detach())
            assert logs.grad is not None  # noqa: S101  (the noise depends on every class that is quantized)
            logs.grad[KEPT] = 0.0
            optimizer.param_groups[0]["lr"] = RATE * (1.0 - step / ITERATIONS)
            optimizer.step()
            with torch.no_grad():
                logs.clamp_(*self._limits)
        return best.exp(), least / start


def _parted(some: Sequence[Part], belongs: Callable[[Part], bool]) -> tuple[list[Part], list[Part]]:
    """Those that belong, and the others."""
    return [one for one in some if belongs(one)], [one for one in some if not belongs(one)]


def _limits(module: fx.GraphModule, noise: NoiseModel, classes: ChannelClasses) -> tuple[Tensor, Tensor]:
    """Least and greatest log s of every class. In front of an instance norm a channel is not made so small that epsilon counts, and keeps its scale
    where it counts already."""
    low, high = torch.full((classes.count,), -LARGEST), torch.full((classes.count,), LARGEST)
    for node in module.graph.nodes:
        if removes_scale(node) and (source := node.all_input_nodes[0]) in classes.of:
            read = torch.from_numpy(classes.of[source])
            least = 0.5 * (1 / (NEGLIGIBLE * noise.least_variance[node.name].clamp_min(1e-30))).log()
            low.scatter_reduce_(0, read, least, "amax")
            high[read[least >= 0]] = 0.0
    return low.clamp_max(0.0), high


def _tensors(module: fx.GraphModule, plan: PrecisionPlan, noise: NoiseModel, classes: ChannelClasses) -> list[_Tensor]:
    representatives = kinds.scale_groups(module.graph)
    sources = {node.name for node in noise_sources(module, plan)}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node, representative in representatives.items():
        if node.name in plan.ranges and node.name in noise.low and kinds.borrowed_range(node) is None:
            members.setdefault(representative, []).append(node)
    found = []
    for group in members.values():
        rounded = [node for node in group if node.name in sources]
        if rounded:
            found.append(
                _Tensor(
                    torch.cat([noise.low[node.name] for node in group]),
                    torch.cat([noise.high[node.name] for node in group]),
                    torch.cat([_classes(node, classes, noise) for node in group]),
                    torch.cat([noise.gain[node.name] for node in rounded]),
                    torch.cat([_classes(node, classes, noise) for node in rounded]),
                )
            )
    return found


def _classes(node: fx.Node, classes: ChannelClasses, noise: NoiseModel) -> Tensor:
    if node in classes.of:
        return torch.from_numpy(classes.of[node])
    return torch.full((len(noise.low[node.name]),), KEPT, dtype=torch.int64)
