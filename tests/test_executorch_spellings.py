"""Normalizations and attention in the delegate's terms compute the same; means and squares stay in FP32; what has no such form is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.export.executorch_half import CAST, HALF, compute_in_half
from mcompress.export.executorch_spellings import SPELLINGS
from mcompress.export.spelled_out import STANDS_FOR, spell_out

aten = torch.ops.aten
Function = Callable[["Apply", Tensor], Tensor]


class Apply(nn.Module):
    """A function of the module and its input."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.scale, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def spelled(function: Function, value: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    module = graph_of(export_program(Apply(function).eval(), value))
    exact = module(value)
    for node in module.graph.nodes:
        node.meta[STANDS_FOR] = (node.name,) if node.op == "call_function" else ()
    spell_out(module, SPELLINGS, pairs=False)
    torch.testing.assert_close(module(value), exact, atol=2e-5, rtol=1e-5)
    return module


def targets(module: fx.GraphModule) -> set[object]:
    return {node.target for node in module.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: F.group_norm(x, 4, m.scale, m.shift, 1e-6), (1, 8, 6, 5)),
        (lambda m, x: F.group_norm(x, 2, m.scale), (2, 8, 7)),
        (lambda m, x: F.group_norm(x, 8), (1, 8, 3, 3)),
        (lambda m, x: F.layer_norm(x, [8], m.scale, m.shift, 0.5), (1, 5, 8)),
        (lambda _, x: F.layer_norm(x, [8]), (2, 3, 4, 8)),
    ],
)
def test_normalizations_are_products_with_equal_numbers(function: Function, shape: tuple[int, ...]) -> None:
    module = spelled(function, 3 * torch.randn(shape) + 1)
    assert not targets(module) & set(SPELLINGS)
    compute_in_half(module, lambda _: "fp16")
    assert not [node for node in module.graph.nodes if node.meta.get(HALF)], "squares of half numbers overflow"
    assert CAST not in targets(module)


def heads(x: Tensor) -> Tensor:
    return x.reshape(1, 6, 2, 4).transpose(1, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: F.scaled_dot_product_attention(heads(x), heads(2 * x), heads(x - 1)),
        lambda _, x: F.scaled_dot_product_attention(heads(x), heads(x)[:, :, :3], heads(x)[:, :, 1:4], scale=0.3),
        lambda _, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=torch.arange(6)[None] <= torch.arange(6)[:, None]),
    ],
)
def test_attention_is_two_products_and_a_softmax(function: Function) -> None:
    module = spelled(function, torch.randn(1, 6, 8))
    assert not targets(module) & set(SPELLINGS)
    assert {aten.bmm.default, aten.softmax.int} <= targets(module)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda m, x: F.layer_norm(x, [8], m.scale * x.mean()), aten.layer_norm.default),
        (lambda m, x: F.group_norm(x, 2, m.scale[:6] * x.mean()), aten.group_norm.default),
        (lambda _, x: F.layer_norm(x, [6, 8]), aten.layer_norm.default),
        (lambda _, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True), aten.scaled_dot_product_attention.default),
        (lambda _, x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), x[:, :, :6]), aten.scaled_dot_product_attention.default),
        (lambda _, x: F.scaled_dot_product_attention(x, x, x), aten.scaled_dot_product_attention.default),
    ],
)
def test_what_is_computed_at_run_time_or_has_another_form_is_left(function: Function, left: object) -> None:
    assert left in targets(spelled(function, torch.randn(1, 6, 8)))
