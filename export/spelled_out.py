"""Operators that a runtime lacks, or computes slowly, written as others that it has; each step says whose work it does.

Reflection padding becomes slices and concatenations: XNNPACK has no reflection, and LiteRT's own MIRROR_PAD looks up every element by itself (2.5 ms
instead of 0.3 ms for 16x128x128 on one x86 core). Instance norm becomes means, a difference, products and a reciprocal square root. All of them take
images as they lie in memory, and XNNPACK has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize and dequantize operators
from torch import Tensor, fx

from mcompress.compress.quantize.kinds import constant_of

aten = torch.ops.aten
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
SAME_SHAPE = {
    *(QUANTIZE, DEQUANTIZE),
    *(torch.ops.quantized_decomposed.quantize_per_channel.default, torch.ops.quantized_decomposed.dequantize_per_channel.default),
}
STANDS_FOR = "stands_for"
"""Key of a node's meta: names of the operators of the exported program whose work it does."""
MOST_JOINED = 5
"""Tensors that one concatenation of XNNPACK takes."""
IMAGE = 4
EPSILON = 1e-5


class Steps:
    """Writes the nodes that take the place of one node."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, *, pairs: bool) -> None:
        """With `pairs`, every step of an INT8 operator gets a quantize/dequantize pair of its own, at the operator's scale."""
        self.module, self._node, self._read = module, node, dict[fx.Node, fx.Node]()
        source = node.all_input_nodes[0]
        quantized = source.target == DEQUANTIZE and bool(node.users) and all(user.target == QUANTIZE for user in node.users)
        self._scale = source.args[1:] if pairs and quantized else ()
        self._made: set[fx.Node] = set()

    def call(self, target: Callable[..., object], *args: fx.node.Argument) -> fx.Node:
        """A step that computes `target` of these arguments."""
        graph = self.module.graph
        with graph.inserting_before(self._node):
            given = fx.node.map_arg(args, self._quantized)
            made = graph.call_function(target, given)
        made.meta[STANDS_FOR] = stands_for(self._node) or (self._node.name,)
        self._made.add(made)
        return made

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A constant tensor of this operator's own."""
        self.module.register_buffer(f"_{self._node.name}_{name}", value.detach().clone())
        with self.module.graph.inserting_before(self._node):
            return self.module.graph.get_attr(f"_{self._node.name}_{name}")

    def _quantized(self, node: fx.Node) -> fx.Node:
        if not self._scale or node not in self._made:
            return node
        if node not in self._read:
            stored = self.module.graph.call_function(QUANTIZE, (node, *self._scale))
            self._read[node] = self.module.graph.call_function(DEQUANTIZE, (stored, *self._scale))
        return self._read[node]


Spelling = Callable[[Steps, fx.Node], fx.Node | None]
"""Writes the steps and gives the one that has the result; None leaves the operator as it is."""


def spell_out(module: fx.GraphModule, spellings: Mapping[object, Spelling], *, pairs: bool) -> None:
    """Write every operator that has one of these spellings in its steps, in place; see `Steps` for `pairs`."""
    for node in list(module.graph.nodes):
        spelling = spellings.get(node.target) if node.op == "call_function" else None
        result = spelling(Steps(module, node, pairs=pairs), node) if spelling is not None else None
        if result is not None:
            result.meta["val"] = node.meta.get("val")
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def stands_for(node: fx.Node) -> tuple[str, ...]:
    """Names of the exported program's operators whose work the node does; none if nobody said so."""
    found: tuple[str, ...] = node.meta.get(STANDS_FOR, ())
    return found


def shape_of(node: object) -> tuple[int, ...]:
    """Shape of the node's value; quantize and dequantize nodes have no note of theirs and keep their input's. Empty if it is not known."""
    while isinstance(node, fx.Node):
        value = node.meta.get("val")
        if value is None and node.op == "get_attr" and node.graph.owning_module is not None:
            value = constant_of(node.graph.owning_module, node)
        if isinstance(value, Tensor):
            return tuple(int(size) for size in value.shape)
        node = node.args[0] if node.target in SAME_SHAPE else None
    return ()


def reflection(steps: Steps, node: fx.Node) -> fx.Node | None:
    """`pad(x, [left, right, top, bottom], "reflect")`: single rows in reverse order on both sides, then single columns."""
    value, amounts, shape = node.args[0], node.args[1], shape_of(node.args[0])
    reflects = node.target == aten.reflection_pad2d.default or (len(node.args) > 2 and node.args[2] == "reflect")
    if not (reflects and shape and isinstance(value, fx.Node) and isinstance(amounts, Sequence)):
        return None
    sizes = [int(str(amount)) for amount in amounts]
    if min(sizes) < 0 or not any(sizes):
        return None
    for axis in range(len(shape) - len(sizes) // 2, len(shape)):
        place, length = 2 * (len(shape) - 1 - axis), shape[axis]
        before, after = sizes[place], sizes[place + 1]
        low = [steps.call(aten.slice.Tensor, value, axis, at, at + 1) for at in range(before, 0, -1)]
        high = [steps.call(aten.slice.Tensor, value, axis, at, at + 1) for at in range(length - 2, length - 2 - after, -1)]
        value = _joined(steps, [*_joined_ends(steps, low, axis), value, *_joined_ends(steps, high, axis)], axis)
    return value


def instance_norm(steps: Steps, node: fx.Node) -> fx.Node | None:
    """(x - mean) * rsqrt(variance + epsilon) of an image's channels, times a weight and plus a bias where it has constants for them."""
    value, weight, bias = node.args[:3]
    if len(shape_of(value)) != IMAGE or not isinstance(value, fx.Node) or not node.args[5]:
        return None  # with stored statistics it is a batch norm
    if any(given is not None and constant_of(steps.module, given) is None for given in (weight, bias)):
        return None  # computed at run time
    epsilon = float(str(node.args[7])) if len(node.args) > 7 else EPSILON
    mean = steps.call(aten.mean.dim, value, [-1, -2], True)
    centred = steps.call(aten.sub.Tensor, value, mean)
    variance = steps.call(aten.mean.dim, steps.call(aten.mul.Tensor, centred, centred), [-1, -2], True)
    factor = steps.call(aten.rsqrt.default, steps.call(aten.add.Tensor, variance, epsilon))
    scale, shift = (_per_channel(steps, name, given) for name, given in (("weight", weight), ("bias", bias)))
    if scale is not None:
        factor = steps.call(aten.mul.Tensor, factor, scale)
    result = steps.call(aten.mul.Tensor, centred, factor)
    return result if shift is None else steps.call(aten.add.Tensor, result, shift)


def _joined_ends(steps: Steps, parts: Sequence[fx.Node], axis: int) -> list[fx.Node]:
    return [_joined(steps, parts, axis)] if parts else []


def _joined(steps: Steps, parts: Sequence[fx.Node], axis: int) -> fx.Node:
    """One tensor, in as many concatenations as it takes."""
    while len(parts) > MOST_JOINED:
        parts = [_joined(steps, parts[start : start + MOST_JOINED], axis) for start in range(0, len(parts), MOST_JOINED)]
    return parts[0] if len(parts) == 1 else steps.call(aten.cat.default, list(parts), axis)


def _per_channel(steps: Steps, name: str, given: object) -> fx.Node | None:
    """A constant with a value per channel, in the shape that multiplies an image."""
    held = constant_of(steps.module, given)
    return steps.constant(name, held.reshape(1, -1, 1, 1)) if held is not None else None


REFLECTIONS: Mapping[object, Spelling] = {aten.pad.default: reflection, aten.reflection_pad2d.default: reflection}
NORMS: Mapping[object, Spelling] = {aten.instance_norm.default: instance_norm}
