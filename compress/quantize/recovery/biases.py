"""Bias correction: the mean error of every output channel of an INT8 operator is taken out by its bias.

Rounded weights and clipped activations shift the mean of a channel (Nagel et al. 2019, arXiv 1906.04721). The float and the quantized network are run
side by side, operator by operator over all inputs at once, so that every correction sees the ones in front of it and one pass is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.channels import CHANNEL_AXIS
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs
from mcompress.errors import StageError


def correct_biases(module: fx.GraphModule, plan: PrecisionPlan, reference: fx.GraphModule, inputs: Sequence[Inputs]) -> fx.GraphModule:
    """A copy of `module` with corrected biases; `reference` is the float network with the same operators and the same channel scales.

    Memory: the live activations of all `inputs`, twice. Operators without a bias stay as they are. Raises `StageError` without inputs.
    """
    if not inputs:
        raise StageError("no calibration inputs were given; recovery needs at least one")
    found = parameters.copied(module)
    shared = parameters.shared_constants(found.graph)
    int8 = plan.int8_names()
    biases = {
        node.name: bias
        for node in parameters.weighted_operators(found.graph)
        if node.name in int8 and (bias := parameters.bias_of(found, node)) is not None and str(node.args[2].target) not in shared  # type: ignore[union-attr]
    }
    exact = [_Stepwise(fx.Interpreter(reference), value) for value in inputs]
    rounded = [_Stepwise(Simulated(found, plan), value) for value in inputs]
    with torch.no_grad():
        for float_node, node in zip(reference.graph.nodes, found.graph.nodes, strict=True):
            for one in exact:
                one.step(float_node)
            for one in rounded:
                one.step(node)
            if node.name in biases:
                errors = [_mean_error(node, a.value(float_node), b.value(node)) for a, b in zip(exact, rounded, strict=True)]
                biases[node.name].add_(torch.stack(errors).mean(0).to(biases[node.name]))
                for one in rounded:
                    one.step(node)
            for one, last in [*((one, float_node) for one in exact), *((one, node) for one in rounded)]:
                one.forget(last)
    return found


class _Stepwise:
    """An interpreter that is moved from node to node by hand."""

    def __init__(self, interpreter: fx.Interpreter, inputs: Inputs) -> None:
        self._interpreter = interpreter
        interpreter.env, interpreter.args_iter = {}, iter(inputs)

    def step(self, node: fx.Node) -> None:
        self._interpreter.env[node] = self._interpreter.run_node(node)

    def value(self, node: fx.Node) -> Tensor:
        found: Tensor = self._interpreter.env[node]
        return found

    def forget(self, node: fx.Node) -> None:
        for done in self._interpreter.user_to_last_uses.get(node, []):
            del self._interpreter.env[done]


def _mean_error(node: fx.Node, exact: Tensor, rounded: Tensor) -> Tensor:
    axis = exact.ndim - 1 if node.target is torch.ops.aten.linear.default else CHANNEL_AXIS
    return (exact - rounded).double().transpose(0, axis).flatten(1).mean(1)
