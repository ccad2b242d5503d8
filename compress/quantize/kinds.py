"""Which operators of an exported program can be INT8, and which tensors must then have one scale.

Operators fall into four groups:

- weighted: convolutions and linear layers with constant weights; INT8 per output channel, INT32 accumulation.
- arithmetic: add, subtract, multiply, LeakyReLU; they requantize.
- moving: they copy values (pixel shuffle, nearest resize, concatenation, reshape, max pooling, reflection padding). All their INT8 inputs and outputs
  have one scale, because that is what integer kernels of all runtimes expect, and because a copy then adds no error.
- clamping: ReLU, ReLU6, clamp. Behind a weighted or arithmetic operator that nothing else reads, ReLU is fused: there is no rounding between the
  two. Others have one scale for input and output; when nothing else reads the input that is the output's scale, which clips exactly where the
  operator does.

Everything else stays float.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, fx

from mcompress.errors import StageError

Group = Literal["weighted", "arithmetic", "moving", "clamping"]

aten = torch.ops.aten

WEIGHTED: dict[object, int] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv2d.padding: 0,
    aten.conv_transpose2d.input: 1,
    aten.linear.default: 0,
}
"""Operator -> axis of the output channels in its weights."""
ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.leaky_relu.default}
MOVING = {
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.cat.default,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.max_pool2d.default,
    aten.pad.default,
    aten.clone.default,
    aten.contiguous.default,
}
IMAGE_SIDES = 4
"""Numbers that padding on all sides of an image has: left, right, top, bottom."""
CLAMPING = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}
IDENTITY = {aten.dropout.default, aten.alias.default, aten.detach.default}
"""They do nothing at inference; the program is cleaned of them before anything else."""


def operators(graph: fx.Graph) -> list[fx.Node]:
    """The call nodes that compute a floating-point tensor, in execution order."""
    return [node for node in graph.nodes if node.op == "call_function" and is_float_tensor(node)]


def is_float_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def kind_of(node: fx.Node) -> str:
    """Short name of the operator: `conv2d`, `add`, `pixel_shuffle`."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.target))


def group_of(node: fx.Node) -> Group | None:
    """The operator's group, or None if it has to stay float."""
    return None if why_float(node) else group_of_target(node)


def group_of_target(node: fx.Node) -> Group | None:
    """The group by operator alone, whatever its inputs are."""
    if node.target in WEIGHTED:
        return "weighted"
    if node.target in ARITHMETIC:
        return "arithmetic"
    if node.target in MOVING:
        return "moving"
    return "clamping" if node.target in CLAMPING else None


def why_float(node: fx.Node) -> str | None:
    """Why this operator cannot be INT8; None if it can be."""
    group = group_of_target(node)
    if group is None:
        return f"{kind_of(node)} has no INT8 kernel that all runtimes share; it is computed in float"
    if group == "weighted":
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or not is_constant(weight):
            return "its weights are computed at run time; only constant weights are quantized per channel"
        if len(node.args) > 2 and isinstance(node.args[2], fx.Node) and not is_constant(node.args[2]):
            return "its bias is computed at run time"
    if any(not is_float_tensor(source) for source in node.all_input_nodes):
        return "one of its inputs is not a floating-point tensor"
    if node.target == aten.pad.default and not is_reflection(node):
        return "only padding of images by reflection has an INT8 kernel that all runtimes share"
    if group == "arithmetic" and not activations(node):
        return "both of its inputs are constants"
    if node.kwargs.get("alpha", 1) != 1:
        return "it scales its second input (alpha), which integer kernels do not"
    if group == "arithmetic" and any(is_constant(source) and value_size(source) > 1 for source in node.all_input_nodes):
        return "one of its inputs is a constant tensor with more than one value"
    return None


def is_reflection(node: fx.Node) -> bool:
    """Whether this `pad` mirrors the lines and columns of images (N, C, H, W) at their borders."""
    sides, mode = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.meta.get("val")
    return mode == "reflect" and isinstance(sides, list | tuple) and len(sides) == IMAGE_SIDES and isinstance(value, torch.Tensor) and value.ndim == 4


def value_size(node: fx.Node) -> int:
    """Elements of the node's value."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0


def is_constant(node: fx.Node) -> bool:
    """Whether the node is a parameter or buffer."""
    return node.op == "get_attr"


def constant_of(module: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor behind a `get_attr` node; None for anything else."""
    if not isinstance(node, fx.Node) or not is_constant(node):
        return None
    found: object = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise StageError(f"'{node.target}' is not a tensor")
    return found


def activations(node: fx.Node) -> list[fx.Node]:
    """The inputs that are activations: the first of a weighted operator, every non-constant of the others."""
    if node.target in WEIGHTED:
        source = node.args[0]
        return [source] if isinstance(source, fx.Node) else []
    return [source for source in node.all_input_nodes if not is_constant(source)]


def fused_activation(node: fx.Node) -> fx.Node | None:
    """The ReLU that runs inside this operator; nothing else may read the operator's output."""
    if group_of_target(node) not in ("weighted", "arithmetic") or node.target == aten.leaky_relu.default or len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.target == aten.relu.default else None


def is_fused(node: fx.Node) -> bool:
    """Whether this ReLU runs inside the operator in front of it (if that operator is INT8)."""
    sources = node.all_input_nodes
    return node.target == aten.relu.default and len(sources) == 1 and group_of(sources[0]) is not None and fused_activation(sources[0]) is node


def borrowed_range(node: fx.Node) -> fx.Node | None:
    """The clamping operator whose output range this tensor takes, because it is the only reader and clips the rest anyway."""
    if len(node.users) != 1 or node.op == "placeholder":
        return None
    (user,) = node.users
    return user if user.target in CLAMPING and group_of(user) is not None else None


def scale_groups(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Tensor -> the representative of all tensors that must have its scale."""
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while parent.setdefault(node, node) is not node:
            node = parent[node]
        return node

    for node in operators(graph):
        find(node)
        if group_of(node) in ("moving", "clamping") and not is_fused(node):
            for source in activations(node):
                parent[find(source)] = find(node)
    return {node: find(node) for node in list(parent)}


def module_of(node: fx.Node) -> str:
    """Path of the innermost module that the operator came from; empty for the network itself."""
    stack: Iterable[object] = (node.meta.get("nn_module_stack") or {}).values()
    paths = [str(entry[0]) for entry in stack if isinstance(entry, tuple) and entry]
    path = paths[-1] if paths else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")
