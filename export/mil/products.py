"""Matrix products: linear layers, einsum, attention. Sums are in fp32."""

from __future__ import annotations

import math

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.reductions import soft
from mcompress.export.mil.types import Array, FloatArray

SCORE_FLOATS = 1 << 22
"""Elements of the attention scores made at a time: 16 MiB."""


def linear(arguments: Arguments) -> Array:
    """x W^T + b."""
    result = arguments.floats("x") @ arguments.floats("weight").T
    bias = arguments.floats_if_given("bias")
    return result if bias is None else result + bias


def matmul(arguments: Arguments) -> Array:
    """The product over the last two axes, the others broadcast."""
    x, y = arguments.array("x"), arguments.array("y")
    if arguments.flag("transpose_x", default=False) and x.ndim > 1:
        x = np.swapaxes(x, -1, -2)
    if arguments.flag("transpose_y", default=False) and y.ndim > 1:
        y = np.swapaxes(y, -1, -2)
    return np.asarray(np.matmul(x, y))


def einsum(arguments: Arguments) -> Array:
    """Any equation that numpy takes."""
    return np.asarray(np.einsum(arguments.text("equation"), *(value.astype(np.float32) for value in arguments.several("values")), optimize=True))


def scaled_dot_product_attention(arguments: Arguments) -> Array:
    """softmax(Q K^T / sqrt(E) + mask) V, some rows of Q at a time. The scores are not rounded to half between the steps."""
    query, key, value = (arguments.floats(name) for name in ("query", "key", "value"))
    mask = arguments.stored("attn_mask") if arguments.has("attn_mask") else None
    if mask is not None:
        added = np.where(mask, np.float32(0), np.float32(-np.inf)) if mask.dtype == np.bool_ else mask.astype(np.float32)
        mask = np.broadcast_to(added, (*added.shape[:-2], query.shape[-2], key.shape[-2])) if added.ndim > 1 else added[None]
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    out: FloatArray = np.empty((*batch, query.shape[-2], value.shape[-1]), np.float32)
    rows = max(1, SCORE_FLOATS // max(1, math.prod(batch) * key.shape[-2]))
    turned = np.swapaxes(key, -1, -2)
    for first in range(0, query.shape[-2], rows):
        scores = np.asarray((query[..., first : first + rows, :] / np.float32(math.sqrt(query.shape[-1]))) @ turned, dtype=np.float32)
        if mask is not None:
            scores = scores + (mask if mask.shape[-2] == 1 else mask[..., first : first + rows, :])
        out[..., first : first + rows, :] = soft(scores, -1) @ value
    return out


OPERATORS: dict[str, Operator] = {
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
