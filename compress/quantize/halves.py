"""What a file that is FP16 throughout is compared with: the network with its constants in half precision, and with all of its tensors so.

Constants are rounded where Core ML's converter rounds them: parameters, and the scalars of arithmetic. It multiplies a scalar behind a convolution
into the weights before it rounds them, and keeps slopes of LeakyReLU in FP32; both were read back from saved packages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.simulate import Simulated, half

aten = torch.ops.aten
SCALED = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
"""Operators whose scalar operands become constants of a file."""


def half_simulated(module: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """The network as `Simulated` computes it with every operator FP16. `module` is from `graph_of(export_program(...))` and must not change."""
    operators = (PlannedOperator(node.name, "", kinds.kind_of(node), "fp16", "the whole file is FP16") for node in kinds.operators(module.graph))
    simulated = Simulated(module, PrecisionPlan(tuple(operators), {}))
    return lambda value: simulated(value)


def half_constants(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the network whose constants are rounded to half precision; everything is computed in FP32."""
    rounded = copy.deepcopy(module)
    factors = _factors(rounded.graph)
    for name, value in (*rounded.named_parameters(), *rounded.named_buffers()):
        factor = factors.get(name, 1.0)
        value.data = half(value.data * factor) / factor if value.is_floating_point() else value.data
    for node in rounded.graph.nodes:
        if node.target in SCALED and kinds.is_float_tensor(node) and _scale_behind_weights(node) is None:
            node.args = tuple(float(np.float16(argument)) if isinstance(argument, float) else argument for argument in node.args)
    rounded.recompile()
    return rounded


def _factors(graph: fx.Graph) -> dict[str, float]:
    """Parameter -> the scalar behind its convolution or linear layer; left out where it has several readers."""
    found: dict[str, float] = {}
    for node in graph.nodes:
        scale = _scale_behind_weights(node)
        if scale is not None:
            found |= dict.fromkeys(_parameters(node.args[0]), scale)
    read = [name for node in graph.nodes if node.op == "call_function" for name in _parameters(node)]
    return {name: scale for name, scale in found.items() if read.count(name) == 1}


def _parameters(node: fx.Node) -> Iterator[str]:
    return (str(source.target) for source in node.all_input_nodes if kinds.is_constant(source))


def _scale_behind_weights(node: fx.Node) -> float | None:
    """What a node multiplies the result of a convolution or linear layer with, if that is a number and nothing else reads the result."""
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not isinstance(node.args[1], float | int) or node.args[1] == 0:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target not in kinds.WEIGHTED or len(source.users) != 1:
        return None
    return float(node.args[1]) if node.target == aten.mul.Tensor else 1 / float(node.args[1])
