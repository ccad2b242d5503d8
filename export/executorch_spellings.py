"""Normalizations and attention in terms that ExecuTorch's XNNPACK delegate has, so that they do not cut a network in pieces.

Of a normalization the delegate has nothing, and what ExecuTorch makes of attention looks for rows without any pair, in kernels of its own. Means are
products with a vector of equal numbers here. They are computed in FP32 whatever the plan says, between casts: the square of a half number overflows
where the number is above 255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from mcompress.compress.quantize.kinds import constant_of
from mcompress.export.executorch_half import in_full
from mcompress.export.spelled_out import EPSILON, Spelling, Steps, shape_of

aten = torch.ops.aten
HEADS = 4
"""Axes of attention's operands: batch, heads, tokens, features."""
MASK, DROPOUT, CAUSAL = 3, 4, 5
"""Positions among attention's arguments."""


def group_norm(steps: Steps, node: fx.Node) -> fx.Node | None:
    """`group_norm(x, groups, weight, bias, eps)` of x (N, C, ...): every group's values are one row."""
    value, groups, shape = node.args[0], node.args[1], shape_of(node.args[0])
    if not isinstance(value, fx.Node) or not isinstance(groups, int) or len(shape) < 2:
        return None
    held = _held(steps, node, 2)
    if held is None:
        return None
    rows = steps.call(aten.reshape.default, value, [shape[0] * groups, math.prod(shape[1:]) // groups])
    normal = steps.call(aten.reshape.default, _normalized(steps, rows, math.prod(shape[1:]) // groups, _number(node, 4)), list(shape))
    return in_full(_scaled(steps, normal, held, (1, -1, *(1 for _ in shape[2:]))), node)


def layer_norm(steps: Steps, node: fx.Node) -> fx.Node | None:
    """`layer_norm(x, [features], weight, bias, eps)` over the last axis."""
    value, over, shape = node.args[0], node.args[1], shape_of(node.args[0])
    held = _held(steps, node, 2)
    if not isinstance(value, fx.Node) or not isinstance(over, list | tuple) or len(over) != 1 or not shape or held is None:
        return None
    return in_full(_scaled(steps, _normalized(steps, value, shape[-1], _number(node, 4)), held, (-1,)), node)


def attention(steps: Steps, node: fx.Node) -> fx.Node | None:
    """`scaled_dot_product_attention(q, k, v, mask)` of (batch, heads, tokens, features), the mask constant numbers or none."""
    query, key, value = (given if isinstance(given, fx.Node) else None for given in node.args[:3])
    shapes = [shape_of(given) for given in (query, key, value)]
    mask = _argument(node, MASK, "attn_mask", None)
    numbers = constant_of(steps.module, mask)
    if query is None or key is None or value is None or any(len(shape) != HEADS or shape[:2] != shapes[0][:2] for shape in shapes):
        return None
    if _argument(node, DROPOUT, "dropout_p", 0.0) or _argument(node, CAUSAL, "is_causal", False):
        return None
    if mask is not None and (numbers is None or not numbers.is_floating_point()):
        return None
    (batch, heads, tokens, features), others, made = shapes[0], shapes[1][2], shapes[2][3]
    scale = node.kwargs.get("scale")
    factor = float(scale) if isinstance(scale, int | float) else 1 / math.sqrt(features)
    asked = steps.call(aten.mul.Tensor, query, steps.constant("scale", torch.tensor([factor])))
    rows = steps.call(aten.reshape.default, asked, [batch * heads, tokens, features])
    columns = steps.call(aten.reshape.default, steps.call(aten.permute_copy.default, key, [0, 1, 3, 2]), [batch * heads, features, others])
    scores = steps.call(aten.bmm.default, rows, columns)
    if numbers is not None:
        scores = steps.call(aten.reshape.default, scores, [batch, heads, tokens, others])
        scores = steps.call(aten.add.Tensor, scores, steps.constant("mask", numbers.expand(1, 1, tokens, others)))
        scores = steps.call(aten.reshape.default, scores, [batch * heads, tokens, others])
    shares = steps.call(aten.softmax.int, scores, -1)
    result = steps.call(aten.bmm.default, shares, steps.call(aten.reshape.default, value, [batch * heads, others, made]))
    return steps.call(aten.reshape.default, result, [batch, heads, tokens, made])


def _normalized(steps: Steps, value: fx.Node, length: int, epsilon: float) -> fx.Node:
    """Rows of `length` values with mean 0 and variance 1."""
    share = steps.constant("share", torch.full((1, length), 1.0 / length))
    centred = steps.call(aten.sub.Tensor, value, steps.call(aten.linear.default, value, share))
    variance = steps.call(aten.linear.default, steps.call(aten.mul.Tensor, centred, centred), share)
    return steps.call(aten.mul.Tensor, centred, steps.call(aten.rsqrt.default, steps.call(aten.add.Tensor, variance, epsilon)))


def _scaled(steps: Steps, value: fx.Node, held: tuple[Tensor | None, Tensor | None], shape: tuple[int, ...]) -> fx.Node:
    weight, bias = held
    if weight is not None:
        value = steps.call(aten.mul.Tensor, value, steps.constant("weight", weight.reshape(shape)))
    return value if bias is None else steps.call(aten.add.Tensor, value, steps.constant("bias", bias.reshape(shape)))


def _held(steps: Steps, node: fx.Node, place: int) -> tuple[Tensor | None, Tensor | None] | None:
    """Weight and bias of a normalization, the first at `place`; None where one is computed at run time."""
    given = [node.args[at] if len(node.args) > at else None for at in (place, place + 1)]
    weight, bias = (constant_of(steps.module, one) for one in given)
    return (weight, bias) if [one is None for one in given] == [one is None for one in (weight, bias)] else None


def _number(node: fx.Node, place: int) -> float:
    return float(str(node.args[place])) if len(node.args) > place else EPSILON


def _argument(node: fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


SPELLINGS: Mapping[object, Spelling] = {
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.scaled_dot_product_attention.default: attention,
}
