"""Operators written as others (`export/spelled_out.py`, `export/tflite_upsampling.py`) compute the same; what has no such form is left as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.export.spelled_out import MOST_JOINED, NORMS, REFLECTIONS, spell_out, stands_for
from mcompress.export.tflite_upsampling import CUT, activate_before_cutting

aten = torch.ops.aten
SHAPE = (1, 3, 12, 10)


class Apply(nn.Module):
    """A function of the input and of two vectors, one number per channel."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.scale, self.shift = nn.Parameter(torch.tensor([0.5, 1.5, -2.0])), nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale, self.shift)


def spelled(network: nn.Module) -> tuple[fx.GraphModule, Counter[object]]:
    """The network in its steps, which compute what it computes, and how often each operator is among them."""
    torch.manual_seed(0)
    value = torch.randn(SHAPE)
    module = graph_of(export_program(network.eval(), value))
    exact = module(value)
    names = {node.name for node in module.graph.nodes if node.op == "call_function"}
    spell_out(module, {**REFLECTIONS, **NORMS, **CUT}, pairs=False)
    activate_before_cutting(module)
    assert torch.allclose(module(value), exact, atol=1e-5)
    assert all(set(stands_for(node)) <= names for node in module.graph.nodes)
    return module, Counter(node.target for node in module.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (3, 3, 3, 3), (2, 0, 0, 1), (7, 6, 9, 11), (0, 4, 0, 0)])
def test_reflection_is_rows_and_columns_in_reverse_order(sides: tuple[int, ...]) -> None:
    module, found = spelled(Apply(lambda x, *_: F.pad(x, sides, mode="reflect")))
    assert set(found) == {aten.slice.Tensor, aten.cat.default}
    assert found[aten.slice.Tensor] == sum(sides)
    joined = [node.args[0] for node in module.graph.nodes if node.target == aten.cat.default]
    assert all(isinstance(given, Sequence) and 2 <= len(given) <= MOST_JOINED for given in joined)


@pytest.mark.parametrize("mode", ["replicate", "constant"])
def test_other_padding_is_left(mode: str) -> None:
    _, found = spelled(Apply(lambda x, *_: F.pad(x, (1, 2, 1, 2), mode=mode)))
    assert list(found.values()) == [1]


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, *_: F.instance_norm(x),
        lambda x, scale, _: F.instance_norm(x, weight=scale),
        lambda x, scale, shift: F.instance_norm(x, weight=scale, bias=shift, eps=0.5),
    ],
)
def test_instance_norm_is_means_and_products(norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    _, found = spelled(Apply(norm))
    assert aten.instance_norm.default not in found
    assert found[aten.mean.dim] == 2
    assert found[aten.rsqrt.default] == 1


def test_an_instance_norm_whose_weight_is_computed_is_left() -> None:
    for norm in (
        lambda x, scale, _: F.instance_norm(x, weight=scale * x.mean((0, 2, 3))),
        lambda x, scale, shift: F.instance_norm(x, weight=scale, bias=shift * x.mean((0, 2, 3))),
    ):
        _, found = spelled(Apply(norm))
        assert found[aten.instance_norm.default] == 1


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, True),
        ({"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2), "output_padding": (1, 0)}, True),
        ({"kernel_size": 4, "stride": 2, "padding": 1}, False),
        ({"kernel_size": 2, "stride": 2}, False),
        ({"kernel_size": 3, "stride": 1, "padding": 1}, False),
    ],
)
def test_a_transposed_convolution_without_a_form_of_its_own_is_cut(sizes: dict[str, int], *, cut: bool) -> None:
    torch.manual_seed(1)
    module, found = spelled(nn.Sequential(nn.ConvTranspose2d(3, 4, **sizes), nn.ReLU()))
    assert found[aten.conv_transpose2d.input] == 1
    assert (found[aten.slice.Tensor] == 2) is cut
    (convolution,) = [node for node in module.graph.nodes if node.target == aten.conv_transpose2d.input]
    assert [user.target for user in convolution.users] == [aten.relu.default], "the ReLU can be merged into the convolution"
