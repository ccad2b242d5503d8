"""What an exported graph need not hold: it is left out, the values stay, and what has to stay in the graph does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mcompress.compress.cost import operator_table
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.tidying import HIDDEN

aten = torch.ops.aten


class Apply(nn.Module):
    """A function of the module and its input."""

    def __init__(self, function: Callable[[Apply, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.layer, self.table = nn.Linear(4, 4), nn.Embedding(6, 4)
        self.register_buffer("places", torch.arange(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def exported(function: Callable[[Apply, Tensor], Tensor], value: Tensor) -> fx.GraphModule:
    """The graph, which computes what the network computes; exported again it is the same."""
    torch.manual_seed(0)
    network = Apply(function).eval()
    found = graph_of(export_program(network, value))
    with torch.no_grad():
        torch.testing.assert_close(found(value), network(value))
    again = graph_of(export_program(found, value))
    assert [(node.name, node.target) for node in calls(again)] == [(node.name, node.target) for node in calls(found)]
    return found


def calls(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def targets(module: fx.GraphModule) -> list[object]:
    return [node.target for node in calls(module)]


ROWS = torch.rand(1, 3, 4)


@pytest.mark.parametrize(
    "idle",
    [
        lambda _, x: x / 1.0,
        lambda _, x: 1 * x + 0,
        lambda _, x: (x - 0).to(torch.float32),
        lambda _, x: x.expand(1, 3, 4).reshape(1, -1, 4),
    ],
)
def test_what_changes_nothing_is_left_out(idle: Callable[[Apply, Tensor], Tensor]) -> None:
    assert targets(exported(lambda m, x: m.layer(idle(m, x)), ROWS)) == [aten.linear.default]


@pytest.mark.parametrize(
    ("busy", "target"),
    [
        (lambda _, x: x / 2.0, aten.div.Tensor),
        (lambda _, x: x - 1, aten.sub.Tensor),
        (lambda _, x: x * torch.ones(2, 1, 1), aten.mul.Tensor),
        (lambda _, x: x.expand(2, 3, 4), aten.expand.default),
        (lambda _, x: x.to(torch.int64).to(torch.float32), aten.to.dtype),
    ],
)
def test_what_changes_something_stays(busy: Callable[[Apply, Tensor], Tensor], target: object) -> None:
    assert target in targets(exported(lambda m, x: m.layer(busy(m, x)), ROWS))


def test_what_is_computed_of_nothing_becomes_a_constant() -> None:
    found = exported(lambda m, x: m.layer(x * torch.exp(torch.arange(4) * -0.5)) + m.table(m.places), ROWS)
    assert targets(found) == [aten.mul.Tensor, aten.linear.default, aten.add.Tensor]
    read = {str(node.target) for node in found.graph.nodes if node.op == "get_attr"}
    assert {name for name, _ in (*found.named_buffers(), *found.named_parameters())} == read, "what nothing reads any more is gone"


def test_parameters_and_noise_are_no_constants() -> None:
    found = exported(lambda m, x: F.linear(x, m.layer.weight / m.layer.weight.norm()), ROWS)
    assert aten.div.Tensor in targets(found), "weights that are trained stay weights"
    torch.manual_seed(0)
    noise = graph_of(export_program(Apply(lambda m, x: m.layer(x + torch.rand(1, 3, 4))).eval(), ROWS))
    assert aten.rand.default in targets(noise)


@pytest.mark.parametrize("kept", [False, True])
def test_a_constant_mask_is_added_unless_a_row_has_no_pair(*, kept: bool) -> None:
    def attend(m: Apply, x: Tensor) -> Tensor:
        order = torch.arange(3)
        mask = order[None] <= order[:, None] - (1 if kept else 0)
        return F.scaled_dot_product_attention(x, m.layer(x), x, attn_mask=mask)

    found = exported(attend, ROWS)
    (attention,) = [node for node in calls(found) if node.target == aten.scaled_dot_product_attention.default]
    mask = found.get_buffer(str(attention.args[3].target))  # type: ignore[union-attr]  # a constant
    assert (mask.dtype == torch.bool) is kept
    if not kept:
        assert torch.equal(mask, torch.full((3, 3), HIDDEN).triu(1))


def test_idle_and_unread_operators_cost_nothing() -> None:
    def plain(m: Apply, x: Tensor) -> Tensor:
        return m.layer(x)

    def wasteful(m: Apply, x: Tensor) -> Tensor:
        made = m.layer(x * 1.0) / 1.0
        made.argmax(-1)
        return made

    expected, found = (operator_table(Apply(function), (1, 3, 4)) for function in (plain, wasteful))
    assert found.operators == expected.operators


def test_what_is_written_into_a_buffer_that_is_read_counts() -> None:
    def parts(m: Apply, x: Tensor) -> Tensor:
        made = torch.zeros(1, 6, 4)
        made[:, :3] = m.layer(x)
        made[:, 3:] = x
        return made

    assert [row.kind for row in operator_table(Apply(parts), (1, 3, 4)).operators].count("matmul") == 1
