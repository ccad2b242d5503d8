"""The network as the converter gets it: every operator is a module of its own, so that the file's tensors are named after the plan's operators.

litert-torch names a tensor after the modules around the operator that makes it, and after several of them where it merges operators. A network whose
every operator is a module `at_NAME` therefore leaves NAME in the file. Quantize and dequantize nodes take the name of the value between them: in a
mixed file, the value that stands behind every INT8 operator is known exactly.

Weights are left in float: the INT8 rewriter (`tflite_integer`) quantizes them in the file, operator by operator, as planned.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.program import shared_tensors
from mcompress.export.spelled_out import stands_for
from mcompress.export.tflite_names import MARK

_PER_TENSOR = torch.ops.quantized_decomposed.quantize_per_tensor.default
_BACK_PER_TENSOR = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_BACK_PER_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default


class Step(nn.Module):
    """One operator."""

    def __init__(self, target: fx.node.Target) -> None:
        """Call `target`."""
        super().__init__()
        self._target = target

    def forward(self, *inputs: object, **named: object) -> object:
        """What the operator gives."""
        return self._target(*inputs, **named)  # type: ignore[operator]  # the target of a call_function node


def as_steps(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose operators are modules, named after the operators; constants are as they were before quantization.

    Large weights are not copied, but tensors with infinities are: the converter replaces those in place by the largest numbers.
    """
    copied = copy.deepcopy(module, {key: value for key, value in shared_tensors(module).items() if not bool(value.isinf().any())})
    _with_float_constants(copied)
    for index, node in enumerate(list(copied.graph.nodes)):
        if node.op != "call_function":
            continue
        holder = nn.Module()
        holder.add_module(f"{MARK}{_value(node)}", Step(node.target))
        copied.add_module(f"step_{index}", holder)
        node.op, node.target = "call_module", f"step_{index}.{MARK}{_value(node)}"
    copied.graph.lint()
    copied.recompile()
    return copied.eval()


def _value(node: fx.Node) -> str:
    """The operator, or the input of the network, whose result the node gives: quantizing does not make it another value."""
    while node.target in (_PER_TENSOR, _BACK_PER_TENSOR) or _is_step_of_quantization(node):
        node = node.all_input_nodes[0]
    return (stands_for(node) or (node.name,))[-1]


def _is_step_of_quantization(node: fx.Node) -> bool:
    if node.op != "call_module" or node.graph.owning_module is None:
        return False
    step = node.graph.owning_module.get_submodule(str(node.target))
    return isinstance(step, Step) and step._target in (_PER_TENSOR, _BACK_PER_TENSOR)


def _with_float_constants(module: fx.GraphModule) -> None:
    """Take the quantize/dequantize pairs off weights; one constant value becomes a plain number, so that it has no layout."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in (_BACK_PER_TENSOR, _BACK_PER_CHANNEL):
            continue
        quantize = node.args[0]
        source = quantize.args[0] if isinstance(quantize, fx.Node) and quantize.op == "call_function" else None
        if not isinstance(source, fx.Node) or not kinds.is_constant(source):
            continue
        held = _constant(module, str(source.target))
        if node.target is _BACK_PER_TENSOR and held.numel() == 1:
            for user in list(node.users):
                user.args = tuple(float(held) if given is node else given for given in user.args)
        else:
            node.replace_all_uses_with(source)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _constant(module: fx.GraphModule, target: str) -> torch.Tensor:
    found: object = module
    for part in target.split("."):
        found = getattr(found, part)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"'{target}' is not a tensor")
    return found
