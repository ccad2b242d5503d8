"""Operators that only move values, in terms that ExecuTorch's XNNPACK delegate has.

ExecuTorch's own decomposition of a pixel shuffle leaves three fp32 moves inside an INT8 network, and for a nearest-neighbour resize the delegate has
nothing, which would cut the network in pieces. Both are rewritten as reshape, transpose and multiplication by ones (with broadcasting): bit for bit
the same values. Between quantize and dequantize, every step gets its own pair at the same scale, so that it runs on INT8.

XNNPACK's convolutions write NHWC, and a reshape wants NCHW: ExecuTorch would transpose the tensor first, and for a pixel shuffle XNNPACK would then
have to gather single bytes. `PIXELS` takes the tensor as it lies in memory, so that whole runs of bytes are moved, and `IMAGE` is the way back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from mcompress.export.executorch_half import LIBRARY
from mcompress.export.spelled_out import DEQUANTIZE, QUANTIZE, STANDS_FOR, shape_of

aten = torch.ops.aten
RESHAPING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
}
LIBRARY.define("pixels(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("image(Tensor x, int channels) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("pixels", lambda x: _pixels(x), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("image", lambda x, channels: _image(x, channels), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
PIXELS = torch.ops.mcompress.pixels.default
"""(N, C, H, W) -> (N, 1, H, W * C): the rows of an image, all channels of a pixel side by side."""
IMAGE = torch.ops.mcompress.image.default
"""(N, 1, H, W * C) -> (N, C, H, W): the way back."""
ONE = 127
"""The integer that stands for 1.0 in a quantized tensor of ones."""

Step = Callable[[fx.Node], fx.Node]


def keep_moves_in_delegate(module: fx.GraphModule) -> None:
    """Rewrite every pixel shuffle, pixel unshuffle, change of shape and nearest-neighbour resize by a whole factor, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = node.args[0] if node.args else None
        if node.target == aten.cat.default and isinstance(source, list | tuple) and len(source) == 1:
            source = source[0]
        if not isinstance(source, fx.Node):
            continue
        quantized = source.target == DEQUANTIZE and bool(node.users) and all(user.target == QUANTIZE for user in node.users)
        steps = _steps(module, node, quantized=quantized)
        if not steps:
            continue
        with graph.inserting_before(node):
            value = source
            for number, step in enumerate(steps):
                if number and quantized:
                    value = graph.call_function(DEQUANTIZE, (graph.call_function(QUANTIZE, (value, *source.args[1:])), *source.args[1:]))
                value = step(value)
                value.meta[STANDS_FOR] = node.meta.get(STANDS_FOR, ())
        value.meta["val"] = node.meta.get("val")  # its shape, for a move that reads it
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _steps(module: fx.GraphModule, node: fx.Node, *, quantized: bool) -> list[Step]:
    graph = module.graph
    given, result = shape_of(next(iter(node.all_input_nodes), None)), shape_of(node)

    def view(*shape: int) -> Step:
        return lambda value: graph.call_function(aten.reshape.default, (value, list(shape)))

    def permute(*order: int) -> Step:
        # The copying form: behind a transposed view, ExecuTorch would put a copy in front of the next reshape, and that one would be fp32.
        return lambda value: graph.call_function(aten.permute_copy.default, (value, list(order)))

    def pixels(value: fx.Node) -> fx.Node:
        return graph.call_function(PIXELS, (value,))

    if (node.target in RESHAPING or (node.target == aten.cat.default and len(node.all_input_nodes) == 1)) and given and result:
        return [view(*result)]
    if node.target == aten.transpose.int and given:
        order = list(range(len(given)))
        first, second = node.args[1], node.args[2]
        if isinstance(first, int) and isinstance(second, int):
            order[first], order[second] = order[second], order[first]
            return [permute(*order)]
    if len(given) != 4 or len(result) != 4:
        return []
    batch, channels, height, width = given
    if node.target == aten.pixel_shuffle.default:
        factor = result[2] // height
        inner = channels // factor**2
        return [pixels, view(batch, height, width, inner, factor, factor), permute(0, 3, 1, 4, 2, 5), view(*result)]
    if node.target == aten.pixel_unshuffle.default:
        factor = height // result[2]
        first_view = view(batch, channels, result[2], factor, result[3], factor)
        return [first_view, permute(0, 1, 3, 5, 2, 4), view(*result)]
    if node.target in (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default):
        tall, wide = result[2:]
        if tall % height or wide % width:
            return []
        ones = _ones(module, f"_ones_{node.name}", (1, 1, tall // height, 1, wide // width, 1), quantized=quantized)
        return [
            pixels,
            view(batch, height, 1, width, 1, channels),
            lambda value: graph.call_function(aten.mul.Tensor, (value, ones(value))),
            view(batch, 1, tall, wide * channels),
            lambda value: graph.call_function(IMAGE, (value, channels)),
        ]
    return []


def _pixels(x: Tensor) -> Tensor:
    # Said, not left to `clone`: an image of one column is a view here, whose strides it would keep, and no pass takes such a tensor for NCHW or NHWC.
    return x.permute(0, 2, 3, 1).flatten(2).unsqueeze(1).clone(memory_format=torch.contiguous_format)


def _image(x: Tensor, channels: int) -> Tensor:
    batch, _, height, row = x.shape
    return x.reshape(batch, height, row // channels, channels).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def _ones(module: fx.GraphModule, name: str, shape: tuple[int, ...], *, quantized: bool) -> Step:
    """A constant tensor of ones, as fp32 or as INT8 behind a dequantize node; made where the step needs it."""

    def make(_: fx.Node) -> fx.Node:
        graph = module.graph
        if not quantized:
            module.register_buffer(name, torch.ones(shape))
            return graph.get_attr(name)
        module.register_buffer(name, torch.full(shape, ONE, dtype=torch.int8))
        return graph.call_function(DEQUANTIZE, (graph.get_attr(name), 1.0 / ONE, 0, -128, 127, torch.int8))

    return make
