"""Attention of diffusers' networks one head at a time, in pieces of the queries, as the Neural Engine runs it well.

Apple's own conversion of Stable Diffusion has attention in this form (github.com/apple/ml-stable-diffusion, `split_einsum` and, in pieces of 512
queries, `split_einsum_v2`; the reasons: machinelearning.apple.com/research/neural-engine-transformers): the matrix of scores of all heads of 4,096
places with each other has 134 million entries, one of 512 queries of one head 2 million, which stays on the chip. The weights are the same ones.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.errors import UsageError

Layout = Literal["whole", "heads"]
"""`whole`: one operator for all heads and queries; `heads`: a product, a softmax and a product for each head and piece of the queries."""
LAYOUTS: tuple[Layout, ...] = ("whole", "heads")
PIECES_BEYOND, PIECE = 1024, 512
"""More queries than `PIECES_BEYOND` are computed in pieces of `PIECE`."""
_PLAIN = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj", "add_q_proj")
"""What attention of diffusers may have besides products, and that of Stable Diffusion has not."""


class HeadByHead:
    """A processor of diffusers' `Attention`: no matrix of scores is larger than `PIECE` or `PIECES_BEYOND` queries by the keys of one head.

    While a network is trained, all heads are computed at once: the numbers are the same but for rounding, and that is faster there.
    """

    def __call__(self, attention: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **given: object) -> Tensor:
        """`hidden_states` (N, L, C), attending to `encoder_hidden_states` (N, K, D) or themselves -> (N, L, C). Raises `UsageError` for a mask."""
        if given.get("attention_mask") is not None:
            raise UsageError("attention: heads takes no mask of attention; use attention: whole")
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        given_to = (("to_q", hidden_states), ("to_k", states), ("to_v", states))
        query, key, value = (cast("Tensor", attention.get_submodule(name)(of)) for name, of in given_to)
        heads = cast("int", attention.heads)
        attended = _at_once(query, key, value, heads) if attention.training else _split(query, key, value, heads)
        projection, dropout = cast("nn.ModuleList", attention.to_out)
        return cast("Tensor", dropout(projection(attended)))


def split_attention(network: nn.Module) -> None:
    """Let every attention layer of `network` be computed head by head. Raises `UsageError` for a layer with more than products in it."""
    processor = HeadByHead()
    for name, layer in network.named_modules():
        if hasattr(layer, "set_processor") and hasattr(layer, "to_q"):
            more = [part for part in _PLAIN if getattr(layer, part, None)]
            if more or layer.residual_connection or layer.rescale_output_factor != 1:
                has = ", ".join(more) or "a residual of its own"
                raise UsageError(f"attention: heads cannot compute {name}, which has {has}; use attention: whole")
            layer.set_processor(processor)


def attention_of(value: object) -> Layout:
    """The layout that an argument names. Raises `UsageError` for another value."""
    for layout in LAYOUTS:
        if value == layout:
            return layout
    raise UsageError(f"attention: {value!r} is no layout; allowed: {', '.join(LAYOUTS)}")


def _at_once(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(N, L, C), (N, K, C), (N, K, C) -> (N, L, C)."""
    queries, keys, values = (one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (query, key, value))
    return functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def _split(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """The same, each matrix of scores alone."""
    width = query.shape[2] // heads
    query = query * width**-0.5  # before the products, which then stay within half precision
    samples = []
    for given in zip(query, key, value, strict=True):  # plain matrices: products of them are never taken for one attention with all of its scores
        parts = zip(*(torch.split(one, width, 1) for one in given), strict=True)
        samples.append(torch.cat([_head(*part) for part in parts], 1))
    return torch.stack(samples) if len(samples) > 1 else samples[0].unsqueeze(0)


def _head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(L, W), (K, W), (K, W) -> (L, W)."""
    turned = key.transpose(0, 1)
    parts = torch.split(query, PIECE) if query.shape[0] > PIECES_BEYOND else (query,)
    pieces = [(piece @ turned).softmax(1) @ value for piece in parts]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
