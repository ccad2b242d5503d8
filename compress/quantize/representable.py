"""Ranges that integer kernels can compute with.

A kernel brings its sums to the scale of its result by one factor, and XNNPACK, which all mobile runtimes use, takes factors only within limits
(`xnn_define_convolution_2d`, `xnn_define_add` and their like: below 2^8, and for additions at least 2^-10, for products 2^-16; for LeakyReLU from
2^-8 to 2^7, times its slope too). A tensor that is nearly constant, such as the result of dead channels, has a scale so small that the factor leaves
them: LiteRT's delegate then fails, or takes the process with it. Such a scale is made larger, which costs nothing: what lies below the other
operand's rounding is lost in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX, weight_scales
from mcompress.compress.quantize.plan import ActivationRange

LARGEST_FACTOR = 2.0**7
LEAST_ADDED = 2.0**-9
LEAST_MULTIPLIED = 2.0**-15
LEAST_LEAKY, LARGEST_LEAKY = 2.0**-7, 2.0**6
"""Each half or twice the kernels' own limit, so that no rounding of a scale crosses it."""
LARGEST_BIAS = 2.0**30
PASSES = 4
"""One scale that grows may make another one too small; chains of them are short."""

aten = torch.ops.aten


def representable(module: fx.GraphModule, ranges: Mapping[str, ActivationRange]) -> dict[str, ActivationRange]:
    """`ranges` with scales that are large enough for every operator that could be INT8; all others as they are."""
    found = dict(ranges)
    groups = kinds.scale_groups(module.graph)
    members: dict[fx.Node, list[str]] = {}
    for node, representative in groups.items():
        members.setdefault(representative, []).append(node.name)
    for _ in range(PASSES):
        needed = [(node, scale) for node, scale in _needed(module, found) if scale > found[node.name].scale]
        if not needed:
            break
        for node, scale in needed:
            for name in members.get(groups.get(node, node), [node.name]):
                if name in found and found[name].scale < scale:
                    found[name] = ActivationRange(scale, found[name].zero_point)
    return found


def _needed(module: fx.GraphModule, ranges: Mapping[str, ActivationRange]) -> Iterator[tuple[fx.Node, float]]:
    """Tensor -> the least scale that an operator which reads or makes it can work with."""
    for node in kinds.operators(module.graph):
        group, end = kinds.group_of(node), kinds.fused_activation(node) or node
        sources = [source for source in kinds.activations(node) if source.name in ranges]
        if group not in ("weighted", "arithmetic") or end.name not in ranges or not sources:
            continue
        scales, out = [ranges[source.name].scale for source in sources], ranges[end.name].scale
        if group == "weighted":
            weight = kinds.constant_of(module, node.args[1])
            largest = float(weight_scales(weight, kinds.WEIGHTED[node.target]).max()) if weight is not None else 1.0
            yield end, scales[0] * largest / LARGEST_FACTOR
            # A bias is an INT32 at the scale of the products. An input that is nearly constant gives it steps too fine to reach its value.
            bias = kinds.constant_of(module, node.args[2]) if len(node.args) > 2 else None
            if weight is not None and bias is not None:
                per_channel = weight_scales(weight, kinds.WEIGHTED[node.target])
                of_groups = per_channel.repeat(bias.numel() // per_channel.numel())  # a grouped transposed convolution has them once for all groups
                steps = float((bias.detach().abs() / of_groups).max())
                yield sources[0], min(steps / LARGEST_BIAS, out / (2 * WEIGHT_MAX * largest))
        elif node.target == aten.mul.Tensor:
            squared = len(node.all_input_nodes) == 1 and not _scalars(node)
            other = scales[1] if len(scales) > 1 else scales[0] if squared else _scale_of_constant(module, node)
            yield end, scales[0] * other / LARGEST_FACTOR
            for source in sources:
                yield source, out * LEAST_MULTIPLIED / max(other if source is sources[0] else scales[0], 1e-30)
        elif node.target == aten.leaky_relu.default:
            slope = abs(float(node.args[1])) if len(node.args) > 1 and isinstance(node.args[1], int | float) else 0.0
            yield end, scales[0] * max(slope, 1.0) / LARGEST_LEAKY
            # A slope that is too small itself is left to the backends, which compute it in float: a scale that makes up for it would be too coarse.
            yield sources[0], out * LEAST_LEAKY
        else:
            for source, scale in zip(sources, scales, strict=True):
                yield end, scale / LARGEST_FACTOR
                yield source, out * LEAST_ADDED


def _scalars(node: fx.Node) -> list[float]:
    return [abs(float(value)) for value in node.args if isinstance(value, int | float)]


def _scale_of_constant(module: fx.GraphModule, node: fx.Node) -> float:
    """Of the operand that is not an activation; it is the integer 127."""
    values = _scalars(node)
    for source in node.all_input_nodes:
        constant = kinds.constant_of(module, source)
        if constant is not None:
            values.append(float(constant.abs().max()))
    return max(values, default=1.0) / WEIGHT_MAX
