"""Splits of every kind become slices that give the same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mcompress.compress.quantize.program import export_program, graph_of

SPLITS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "split": lambda x: torch.split(x, 4, 1),
    "split, sizes": lambda x: torch.split(x, [1, 5], -3),
    "split_with_sizes_copy": lambda x: torch.split_with_sizes_copy(x, [2, 4], 1),
    "chunk": lambda x: x.chunk(4, dim=-3),
    "tensor_split": lambda x: torch.tensor_split(x, 4, 1),
    "tensor_split, indices": lambda x: torch.tensor_split(x, (1, 3), -3),
    "unsafe_split": lambda x: torch.unsafe_split(x, 4, 1),
    "unsafe_split_with_sizes": lambda x: torch.unsafe_split_with_sizes(x, [2, 4], -3),
    "unsafe_chunk": lambda x: torch.unsafe_chunk(x, 3, 1),
}


class Weighted(nn.Module):
    """Parts of a tensor, each times a number of its own; the first is not used."""

    def __init__(self, split: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part * float(index) for index, part in enumerate(self.split(x), start=1)][1:], 1)


@pytest.mark.parametrize("kind", SPLITS)
def test_parts_are_slices(kind: str) -> None:
    model, value = Weighted(SPLITS[kind]).eval(), torch.rand(2, 6, 3, 5)
    graph = graph_of(export_program(model, value))
    assert torch.equal(graph(value), model(value))
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert {str(node.target) for node in calls} == {"aten.slice.Tensor", "aten.mul.Tensor", "aten.cat.default"}
    assert {node.args[1] for node in calls if node.target == torch.ops.aten.slice.Tensor} == {1}
