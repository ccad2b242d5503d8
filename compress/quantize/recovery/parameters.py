"""The constants of a graph module, by the node that reads them; and copies of graph modules."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.errors import StageError


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with parameters of its own and the same node names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies the description of its inputs by a name that it has deprecated
        return copy.deepcopy(module)


def weight_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The weight of a weighted operator."""
    found = kinds.constant_of(module, node.args[1])
    if found is None:
        raise StageError(f"the weights of '{node.name}' are computed at run time; recovery needs constants")
    return found


def bias_of(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The bias of a weighted operator, or None if it has none."""
    return kinds.constant_of(module, node.args[2]) if len(node.args) > 2 else None


def shared_constants(graph: fx.Graph) -> set[str]:
    """Targets of constants that more than one operator reads: they cannot be changed for one of them."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        if kinds.is_constant(node):
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    return {target for target, count in readers.items() if count > 1}


def owns_constants(node: fx.Node, shared: set[str]) -> bool:
    """Whether no other operator reads the weight or the bias of this one; `shared` from `shared_constants`."""
    return not any(kinds.is_constant(source) and str(source.target) in shared for source in node.all_input_nodes)


def weighted_operators(graph: fx.Graph) -> list[fx.Node]:
    """Convolutions and linear layers with constant weights, in execution order."""
    return [node for node in kinds.operators(graph) if node.target in kinds.WEIGHTED and kinds.is_constant(node.args[1])]  # type: ignore[arg-type]


def per_channel(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """`values` (C) shaped so that they multiply `like` along `axis`."""
    return values.reshape([-1 if dimension == axis else 1 for dimension in range(like.ndim)])


def float_output(module: fx.GraphModule, *inputs: Tensor) -> Tensor:
    """The float network's output. Raises `StageError` when it is not one tensor."""
    with torch.no_grad():
        output = module(*inputs)
    if not isinstance(output, Tensor):
        raise StageError(f"the network returns a {type(output).__name__}; quantization needs one tensor")
    return output
