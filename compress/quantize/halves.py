"""What a file that is FP16 throughout is compared with: the network with its constants in half precision, and with all of its tensors so.

Constants are rounded where Core ML's converter rounds them: parameters, and the scalars of arithmetic. It multiplies a scalar behind a convolution
into the weights before it rounds them, and keeps slopes of LeakyReLU in FP32; both were read back from saved packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.program import graph_of
from mcompress.compress.quantize.simulate import Simulated, half

aten = torch.ops.aten
SCALED = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
"""Operators whose scalar operands become constants of a file."""


def half_simulated(program: ExportedProgram) -> Callable[..., Tensor]:
    """The network of `export_program(...)` as `Simulated` computes it with every operator FP16."""
    module = graph_of(program)
    operators = (PlannedOperator(node.name, "", kinds.kind_of(node), "fp16", "the whole file is FP16") for node in kinds.operators(module.graph))
    simulated = Simulated(module, PrecisionPlan(tuple(operators), {}))
    return lambda *inputs: simulated(*inputs)


def half_constants(program: ExportedProgram) -> fx.GraphModule:
    """The network of `export_program(...)` with its constants rounded to half precision; everything is computed in FP32."""
    rounded = graph_of(program)
    state = rounded.state_dict()
    rounded.load_state_dict({name: half(value) for name, value in state.items()}, assign=True)
    for node in list(rounded.graph.nodes):
        scale = _scale_behind_weights(node)
        if scale is not None:
            _scale_first(rounded, node.args[0], scale, state)
        elif node.target in SCALED and kinds.is_float_tensor(node):
            node.args = tuple(float(np.float16(argument)) if isinstance(argument, float) else argument for argument in node.args)
    rounded.recompile()
    return rounded


def _scale_first(rounded: fx.GraphModule, node: fx.Node, scale: float, state: Mapping[str, Tensor]) -> None:
    """Give the operator `node` constants of its own, multiplied by `scale`, rounded, and divided again."""
    for source in [source for source in node.all_input_nodes if kinds.is_constant(source)]:
        name = f"{node.name}_{source.name}"
        rounded.register_buffer(name, half(state[str(source.target)] * scale) / scale)
        with rounded.graph.inserting_before(node):
            own = rounded.graph.get_attr(name)
        own.meta = dict(source.meta)
        node.replace_input_with(source, own)


def _scale_behind_weights(node: fx.Node) -> float | None:
    """What a node multiplies the result of a convolution or linear layer with, if that is a number and nothing else reads the result."""
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not isinstance(node.args[1], float | int) or node.args[1] == 0:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target not in kinds.WEIGHTED or len(source.users) != 1:
        return None
    return float(node.args[1]) if node.target == aten.mul.Tensor else 1 / float(node.args[1])
