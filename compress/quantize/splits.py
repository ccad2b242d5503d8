"""Splits as slices: every part of a split becomes an operator of its own, which has one result, one precision, and an INT8 kernel everywhere."""

from __future__ import annotations

import operator

import torch
from torch import fx

aten = torch.ops.aten
SPLITTING = {
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split_with_sizes_copy.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.unsafe_chunk.default,
}
"""What gives consecutive parts along one axis."""


def spell_out_splits(graph: fx.Graph) -> None:
    """Rewrite every split whose parts are taken one by one, in place; the values are the same."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.getitem or node.args[0].target not in SPLITTING:
            continue
        split, index = node.args
        axis = _axis(split)
        sizes = [int(part.shape[axis]) for part in split.meta["val"]]
        start = sum(sizes[:index])
        with graph.inserting_before(node):
            part = graph.call_function(aten.slice.Tensor, (split.args[0], axis, start, start + sizes[index]))
        part.meta.update(node.meta)
        node.replace_all_uses_with(part)
        graph.erase_node(node)
        if not split.users:
            graph.erase_node(split)


def _axis(split: fx.Node) -> int:
    """Counted from the front."""
    found = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    axis: int = int(str(found)) % split.meta["val"][0].ndim
    return axis
