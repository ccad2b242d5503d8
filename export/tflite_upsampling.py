"""Transposed convolutions in the two forms that the format has: all that the kernel reaches, or exactly the input's size times the stride.

litert-torch converts no others: with an odd kernel and `output_padding` (3x3, stride 2, padding 1: the generators' way to double an image), it stops.
Such a one is computed without padding here, and its border is cut off, which costs a copy. A kernel with a row of zeros would fit the second form and
takes more than twice as long (2.3 ms instead of 1.0 ms from 32x64x64 to 16x128x128 on one x86 core).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from mcompress.export.spelled_out import STANDS_FOR, Spelling, Steps, aten, shape_of, stands_for

_ONES = [1, 1]
_NONE = [0, 0]


def cut_transposed(steps: Steps, node: fx.Node) -> fx.Node | None:
    """`conv_transpose2d` without padding and two slices; None where the format has the form, and where it gives more than the kernel reaches."""
    stride, padding, extra = (_pair(node, place, default) for place, default in ((3, _ONES), (4, _NONE), (5, _NONE)))
    kernel, shape = shape_of(node.args[1])[2:], shape_of(node)
    if len(shape) != 4 or _pair(node, 7, _ONES) != _ONES or stride == _ONES or any(more > cut for more, cut in zip(extra, padding, strict=True)):
        return None
    whole = all(k - 2 * p == s for k, p, s in zip(kernel, padding, stride, strict=True))
    if extra == _NONE and (padding == _NONE or whole):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    groups = node.args[6] if len(node.args) > 6 else 1
    value = steps.call(aten.conv_transpose2d.input, node.args[0], node.args[1], bias, stride, _NONE, _NONE, groups, _ONES)
    for axis, cut in zip((2, 3), padding, strict=True):
        value = steps.call(aten.slice.Tensor, value, axis, cut, cut + shape[axis])
    return value


def activate_before_cutting(module: fx.GraphModule) -> None:
    """Let a ReLU that alone reads a cut convolution come before the cut, where it can be merged into the convolution; in place."""
    for relu in [node for node in module.graph.nodes if node.target == aten.relu.default]:
        base, cuts = relu.args[0], list[fx.Node]()
        while isinstance(base, fx.Node) and base.target == aten.slice.Tensor and len(base.users) == 1:
            cuts.insert(0, base)
            base = base.args[0]
        if not cuts or not isinstance(base, fx.Node) or base.target != aten.conv_transpose2d.input or len(base.users) != 1:
            continue
        relu.replace_all_uses_with(cuts[-1])
        relu.replace_input_with(cuts[-1], base)
        cuts[0].replace_input_with(base, relu)
        for cut in reversed(cuts):
            relu.append(cut)
            cut.meta[STANDS_FOR] = stands_for(relu) or (relu.name,)
    module.graph.lint()
    module.recompile()


def _pair(node: fx.Node, place: int, default: Sequence[int]) -> list[int]:
    found = node.args[place] if len(node.args) > place else default
    sizes = [int(str(size)) for size in found] if isinstance(found, Sequence) else [int(str(found))]
    return sizes * 2 if len(sizes) == 1 else sizes


CUT: Mapping[object, Spelling] = {aten.conv_transpose2d.input: cut_transposed}
