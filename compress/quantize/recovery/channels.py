"""Which activation channels have to be scaled alike for the network to compute the same.

A channel may be multiplied by any positive number if whoever makes it does so (a convolution: its row of weights and its bias) and whoever reads it
divides again (a convolution: its column of weights). What lies between must be positively homogeneous, f(s x) = s f(x): ReLU, LeakyReLU, PReLU,
pooling, copies, residual additions. Channels that meet in an addition, in a concatenation along another axis or inside one pixel shuffle belong
together. Channels that meet anything else keep their scale (class 0): the network's input and output, sigmoids, clamps, products of activations.

An instance norm takes every channel's own scale and mean out: in front of it channels have any scale, and any bias, behind it they keep theirs. That
is exact but for the epsilon that it adds to the variance, and holds for channels whose variance is far above it (`NoiseModel.least_variance`).

Channels are dimension 1 of (N, C, ...) tensors. Where an operator reads others as its channels (a linear layer on (N, tokens, C), a convolution or
pooling on (C, H, W)), scales are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.recovery import parameters

Ids = NDArray[np.int64]
aten = torch.ops.aten
CHANNEL_AXIS = 1
KEPT = 0
"""The class of channels that must not be scaled."""

SAME = {
    aten.relu.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.vec,
    aten.clone.default,
    aten.contiguous.default,
}
OF_IMAGES = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.pixel_shuffle.default}
"""What reads the third dimension from the end as channels: dimension 1 of (N, C, H, W) alone."""
SPATIAL_REDUCTIONS = {aten.mean.dim, aten.amax.default}
SUMS = {aten.add.Tensor, aten.sub.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.div.Tensor}


@dataclass(frozen=True)
class ChannelClasses:
    """Class of every channel of every tensor (by node); `count` classes, of which class 0 keeps its scale."""

    of: dict[fx.Node, Ids]
    count: int
    scalable: frozenset[fx.Node]
    """Weighted operators whose weights can take the scales of what they read and make; those of the others stay as they are."""


def removes_scale(node: fx.Node) -> bool:
    """Whether it is an instance norm with statistics of what it reads: (N, C, ...)."""
    return node.target is aten.instance_norm.default and bool(node.args[5])


def epsilon_of(node: fx.Node) -> float:
    """What an instance norm adds to the variance."""
    return float(node.args[7])  # type: ignore[arg-type]  # the operator's schema


def channel_classes(module: fx.GraphModule) -> ChannelClasses:
    """Find the classes of the whole graph."""
    finder = _Finder(module)
    for node in module.graph.nodes:
        finder.visit(node)
    return finder.result()


class _Finder:
    """A union-find over channels; element 0 stands for all channels that keep their scale."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._parent: list[int] = [KEPT]
        self._ids: dict[fx.Node, Ids] = {}
        self._scalable: set[fx.Node] = set()
        self._shared = parameters.shared_constants(module.graph)

    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self._keep_all(node.all_input_nodes)
            return
        if node.op == "call_function" and self._visit_call(node):
            return
        self._keep_all(node.all_input_nodes)
        channels = _channels(node)
        if channels is not None:
            self._ids[node] = np.full(channels, KEPT, dtype=np.int64)

    def _visit_call(self, node: fx.Node) -> bool:
        """Whether the operator is one through which scales can pass; then its result has its classes."""
        sources = kinds.activations(node)
        channels = _channels(node)
        if channels is None or any(source not in self._ids or _rank(source) != _rank(node) for source in sources):
            return False
        if node.target in OF_IMAGES and _rank(node) != 4:
            return False
        if node.target in kinds.WEIGHTED:
            return self._weighted(node, channels)
        if node.target in SAME or (node.target in SPATIAL_REDUCTIONS and _keeps_channels(node)):
            self._ids[node] = self._ids[sources[0]]
            return True
        if node.target in SUMS and len(sources) == 2 and node.kwargs.get("alpha", 1) == 1:
            return self._sum(node, sources, channels)
        if node.target in PRODUCTS and len(sources) == 1:
            return self._scaled(node, sources[0], channels)
        if removes_scale(node):
            self._ids[node] = np.full(channels, KEPT, dtype=np.int64)
            return True
        if node.target is aten.cat.default:
            return self._cat(node, channels)
        if node.target is aten.pixel_shuffle.default:
            return self._shuffle(node, sources[0])
        if node.target is aten.slice.Tensor:
            return self._slice(node, sources[0])
        if node.target is aten.pad.default and _pads_neutrally(node):
            self._ids[node] = self._ids[sources[0]]
            return True
        return False

    def _weighted(self, node: fx.Node, channels: int) -> bool:
        weight = node.args[1]
        if kinds.why_float(node) or not parameters.owns_constants(node, self._shared) or _rank(node) != _rank(weight):
            return False
        self._scalable.add(node)
        self._ids[node] = np.arange(len(self._parent), len(self._parent) + channels, dtype=np.int64)
        self._parent += range(len(self._parent), len(self._parent) + channels)
        return True

    def _sum(self, node: fx.Node, sources: list[fx.Node], channels: int) -> bool:
        first, second = (self._ids[source] for source in sources)
        if len(first) != channels or len(second) != channels:
            return False
        self._join(first, second)
        self._ids[node] = first
        return True

    def _scaled(self, node: fx.Node, source: fx.Node, channels: int) -> bool:
        """A product with a number, or with one constant per channel or for all: linear. Squares and division by an activation are not."""
        if node.args.count(source) != 1 or (node.target is aten.div.Tensor and node.args[0] is not source) or len(self._ids[source]) != channels:
            return False
        self._ids[node] = self._ids[source]
        return True

    def _cat(self, node: fx.Node, channels: int) -> bool:
        given = node.args[0]
        members = [member for member in given if isinstance(member, fx.Node)] if isinstance(given, list | tuple) else []
        if not members or any(member not in self._ids for member in members):
            return False
        axis = _axis(node, 1)
        if axis == CHANNEL_AXIS:
            self._ids[node] = np.concatenate([self._ids[member] for member in members])
            return len(self._ids[node]) == channels
        if axis == 0:
            return False
        for member in members[1:]:  # constants as well, which keep their scale
            self._join(self._ids[members[0]], self._ids[member])
        self._ids[node] = self._ids[members[0]]
        return True

    def _shuffle(self, node: fx.Node, source: fx.Node) -> bool:
        factor = node.args[1]
        assert isinstance(factor, int)  # noqa: S101  (the operator's schema)
        together = self._ids[source].reshape(-1, factor * factor)
        for column in range(1, factor * factor):
            self._join(together[:, 0], together[:, column])
        self._ids[node] = together[:, 0].copy()
        return True

    def _slice(self, node: fx.Node, source: fx.Node) -> bool:
        given = [value if isinstance(value, int) else None for value in node.args[2:]]
        start, end, step = (*given, *(0, None, 1)[len(given) :])
        axis = _axis(node, 1)
        if axis == 0:
            return False
        if axis != CHANNEL_AXIS:
            self._ids[node] = self._ids[source]
            return True
        self._ids[node] = self._ids[source][slice(start, end, step)]
        return len(self._ids[node]) == _channels(node)

    def _find(self, element: int) -> int:
        while self._parent[element] != element:
            self._parent[element] = self._parent[self._parent[element]]
            element = self._parent[element]
        return element

    def _join(self, first: Ids, second: Ids) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self._find(one), self._find(other)
            self._parent[max(a, b)] = min(a, b)  # so that whatever is joined to element 0 keeps its scale

    def _keep_all(self, nodes: list[fx.Node]) -> None:
        for node in nodes:
            if node in self._ids:
                self._join(self._ids[node], np.full(len(self._ids[node]), KEPT, dtype=np.int64))

    def result(self) -> ChannelClasses:
        roots = np.array([self._find(element) for element in range(len(self._parent))], dtype=np.int64)
        kept, numbers = np.unique(roots, return_inverse=True)  # sorted, so element 0 gets number 0
        return ChannelClasses({node: numbers[ids] for node, ids in self._ids.items()}, len(kept), frozenset(self._scalable))


def _channels(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.shape[CHANNEL_AXIS]) if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2 else None


def _rank(node: object) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.ndim if isinstance(value, torch.Tensor) else 0


def _axis(node: fx.Node, position: int) -> int:
    """An argument that counts dimensions, 0 where it is left out; never negative."""
    found = node.args[position] if len(node.args) > position else 0
    return found % _rank(node) if isinstance(found, int) else 0


def _keeps_channels(node: fx.Node) -> bool:
    axes, rank = node.args[1], node.meta["val"].ndim
    keeps = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    return keeps and isinstance(axes, list | tuple) and all(isinstance(axis, int) and axis % rank > CHANNEL_AXIS for axis in axes)


def _pads_neutrally(node: fx.Node) -> bool:
    """Copies or zeros at the borders of the spatial dimensions."""
    widths, mode = node.args[1], node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    spatial = isinstance(widths, list | tuple) and len(widths) <= 2 * (node.meta["val"].ndim - 2)
    return spatial and (mode != "constant" or value in (None, 0, 0.0))
