"""What the suite measures: shapes that real networks have, spread evenly over each class of operators, and short chains.

A file with one operator shows what that operator costs with its data close by. Chains show what is only seen in networks: weights that are read
anew in every inference, and results that the next operator takes from the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mcompress.export.suite import layers
from mcompress.export.suite.writer import Graph, Number

Choice = TypeVar("Choice")
Built = tuple[Sequence[int], Sequence[int]]
"""Input tensors, output tensors."""

CHANNELS = (3, 8, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 960, 1024, 1280, 2048)
SIDES = (1, 2, 4, 7, 8, 10, 14, 16, 20, 28, 32, 40, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
LEAST_MACS, MOST_MACS = 3e4, 6e8
LEAST_VALUES, MOST_VALUES = 2e3, 6e6
"""Of an activation tensor."""
MOST_WEIGHTS = 6e6
CHAIN_WEIGHT = 4.0
"""Chains are what networks look like; single operators tell apart what chains mix."""


@dataclass(frozen=True)
class Case:
    """One file: its name, and what it holds."""

    name: str
    build: Callable[[Graph], Built]
    weight: float = 1.0
    """What it counts for in a fit."""

    def file(self, number: Number) -> bytes:
        """The .tflite file."""
        graph = Graph(number)
        return graph.file(*self.build(graph))


def cases(share: float = 1.0) -> tuple[Case, ...]:
    """The whole suite, or about that share of every part of it."""
    parts = (
        _convolutions("pointwise", 70, kernels=(1,), strides=(1, 1, 1, 2)),
        _convolutions("convolution", 110, kernels=(3, 3, 3, 3, 5, 7), strides=(1, 1, 2)),
        _grouped(36),
        _depthwise(50),
        _transposed(24),
        _dense(50),
        _products(30),
        _attentions(16),
        _layer_norms(16),
        _instance_norms(14),
        *(_movers(name, layer, 14) for name, layer in _MOVERS.items()),
        _chains(130),
    )
    return tuple(case for part in parts for case in part[: max(1, round(share * len(part)))])


def _convolutions(name: str, count: int, kernels: Sequence[int], strides: Sequence[int]) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, inputs, outputs, kernel, stride = draw(SIDES), draw(CHANNELS), draw(CHANNELS[1:]), draw(kernels), draw(strides)
        weights, positions = kernel**2 * inputs * outputs, (-(-side // stride)) ** 2
        if not (_work(weights * positions) and _fits(side**2 * inputs, positions * outputs, weights=weights)) or side < kernel:
            return None
        return _one(
            f"{name}_{side}_{inputs}_{outputs}_{kernel}_{stride}", (side, inputs), lambda g, x: layers.convolution(g, x, outputs, kernel, stride)
        )

    return _drawn(count, 5, case)


def _grouped(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, channels, groups, stride = draw(SIDES), draw(CHANNELS), draw((2, 3, 4, 8, 16, 32)), draw((1, 1, 2))
        per_group, positions = channels // groups, (-(-side // stride)) ** 2
        work = 9 * per_group * channels * positions
        if channels % groups or per_group < 2 or side < 3 or not (_work(work) and _fits(side**2 * channels)):
            return None
        name = f"grouped_{side}_{channels}_{groups}_{stride}"
        return _one(name, (side, channels), lambda g, x: layers.convolution(g, x, channels, 3, stride, groups))

    return _drawn(count, 4, case)


def _depthwise(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, channels, kernel, stride = draw(SIDES), draw(CHANNELS[1:]), draw((3, 3, 5, 7)), draw((1, 1, 2))
        if side < kernel or not _fits(side**2 * channels):
            return None
        return _one(f"depthwise_{side}_{channels}_{kernel}_{stride}", (side, channels), lambda g, x: layers.depthwise(g, x, kernel, stride))

    return _drawn(count, 4, case)


def _transposed(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, inputs, outputs, kernel = draw(SIDES), draw(CHANNELS[1:]), draw(CHANNELS[1:]), draw((2, 3, 4))
        weights = kernel**2 * inputs * outputs
        if side < 4 or not (_work(weights * side**2) and _fits(side**2 * inputs, 4 * side**2 * outputs, weights=weights)):
            return None
        return _one(f"transposed_{side}_{inputs}_{outputs}_{kernel}", (side, inputs), lambda g, x: layers.transposed(g, x, outputs, kernel, 2))

    return _drawn(count, 4, case)


def _dense(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        rows, inputs, outputs = draw((1, 1, 4, 16, 49, 64, 196, 197, 256, 1024)), draw(CHANNELS[3:]), draw(CHANNELS[3:])
        weights = inputs * outputs
        if not (_work(rows * weights) and _fits(rows * inputs, weights=weights, least=1)):
            return None
        return _flat(f"dense_{rows}_{inputs}_{outputs}", (1, rows, inputs), lambda g, x: layers.dense(g, x, outputs))

    return _drawn(count, 3, case)


def _products(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        heads, rows, inner, columns = (
            draw((1, 3, 4, 6, 8, 12)),
            draw((16, 49, 64, 196, 256)),
            draw((16, 32, 64, 96, 196)),
            draw((16, 32, 64, 196, 256)),
        )
        if not _work(heads * rows * inner * columns):
            return None

        def build(graph: Graph) -> Built:
            x, y = graph.activation((1, heads, rows, inner)), graph.activation((1, heads, inner, columns))
            return [x, y], [layers.product(graph, x, y)]

        return Case(f"product_{heads}_{rows}_{inner}_{columns}", build)

    return _drawn(count, 4, case)


def _attentions(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        heads, rows, width = draw((1, 2, 3, 4, 6, 8, 12)), draw((16, 49, 64, 128, 196, 197, 256)), draw((16, 24, 32, 64))
        if not _work(2 * heads * rows**2 * width):
            return None

        def build(graph: Graph) -> Built:
            tall, wide = (1, heads, rows, width), (1, heads, width, rows)
            query, key, value = graph.activation(tall), graph.activation(wide), graph.activation(tall)
            return [query, key, value], [layers.attention(graph, query, key, value)]

        return Case(f"attention_{heads}_{rows}_{width}", build)

    return _drawn(count, 3, case)


def _layer_norms(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        rows, width = draw((16, 49, 64, 196, 256, 784, 1024, 3136)), draw((32, 64, 96, 128, 192, 256, 384, 768))
        return _flat(f"layer_norm_{rows}_{width}", (1, rows, width), layers.layer_norm) if _fits(rows * width) else None

    return _drawn(count, 2, case)


def _instance_norms(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, channels = draw((7, 14, 15, 28, 32, 56, 64, 112, 128)), draw((16, 32, 64, 96, 128, 256, 512))
        return _one(f"instance_norm_{side}_{channels}", (side, channels), layers.instance_norm) if _fits(side**2 * channels) else None

    return _drawn(count, 2, case)


Mover = Callable[[Graph, int, int], int]

_MOVERS: dict[str, Mover] = {
    "sum": lambda g, x, y: layers.total(g, x, y),
    "multiple": lambda g, x, y: layers.multiple(g, x, y),
    "squared_difference": lambda g, x, y: layers.squared_difference(g, x, y),
    "scale": lambda g, x, _: layers.multiple(g, x, g.slopes((1, 1, 1, g.shape(x)[-1]))),
    "prelu": lambda g, x, _: layers.activation(g, x, "prelu"),
    "clamp": lambda g, x, _: layers.activation(g, x, "clamp"),
    "leaky_relu": lambda g, x, _: layers.activation(g, x, "leaky_relu"),
    "logistic": lambda g, x, _: layers.activation(g, x, "logistic"),
    "hard_swish": lambda g, x, _: layers.activation(g, x, "hard_swish"),
    "gelu": lambda g, x, _: layers.activation(g, x, "gelu"),
    "softmax": lambda g, x, _: layers.activation(g, x, "softmax"),
    "largest_pool": lambda g, x, _: layers.pool(g, x, 3, 2, "largest"),
    "average_pool": lambda g, x, _: layers.pool(g, x, 2, 2, "average"),
    "mean": lambda g, x, _: layers.mean(g, x, (1, 2)),
    "bilinear": lambda g, x, _: layers.resize(g, x, 2, "bilinear"),
    "nearest": lambda g, x, _: layers.resize(g, x, 2, "nearest"),
    "depth_to_space": lambda g, x, _: layers.depth_to_space(g, x, 2),
    "concatenate": lambda g, x, y: layers.concatenate(g, (x, y)),
    "pad": lambda g, x, _: layers.pad(g, x, 1),
}
_PAIRS = ("sum", "multiple", "squared_difference", "concatenate")


def _movers(name: str, layer: Mover, count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        side, channels = draw(SIDES[3:]), draw((8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512))
        if not _fits(side**2 * channels):
            return None

        def build(graph: Graph) -> Built:
            shape = (1, side, side, channels)
            x = graph.activation(shape)
            y = graph.activation(shape) if name in _PAIRS else x
            return ([x, y] if name in _PAIRS else [x]), [layer(graph, x, y)]

        return Case(f"{name}_{side}_{channels}", build)

    return _drawn(count, 2, case)


def _chains(count: int) -> list[Case]:
    def case(draw: Draw) -> Case | None:
        kind, depth, side, width = draw(tuple(_BLOCKS)), draw((3, 4, 6, 8, 12)), draw(SIDES[4:]), draw(CHANNELS[3:20])
        flat = kind in _OVER_ROWS
        positions = side if flat else side**2
        if width % 16 or not _fits(positions * width):
            return None
        graph = _Counted("fp32")
        _BLOCKS[kind](graph, graph.activation((1, side, width) if flat else (1, side, side, width)))
        if not (1e6 <= depth * positions * graph.weight_count <= 2 * MOST_MACS) or depth * graph.weight_count > 4 * MOST_WEIGHTS:
            return None

        def build(graph: Graph) -> Built:
            x = start = graph.activation((1, side, width) if flat else (1, side, side, width))
            for _ in range(depth):
                x = _BLOCKS[kind](graph, x)
            return [start], [x]

        return Case(f"chain_{kind}_{side}_{width}_{depth}", build, weight=CHAIN_WEIGHT)

    return _drawn(count, 4, case)


class _Counted(Graph):
    """Counts weights instead of making them."""

    weight_count = 0

    def weights(self, shape: Sequence[int], channel_axis: int) -> int:
        del channel_axis
        self.weight_count += math.prod(shape)
        return self.activation(shape)


def _residual(graph: Graph, x: int) -> int:
    width = graph.shape(x)[-1]
    return layers.total(graph, x, layers.convolution(graph, layers.convolution(graph, x, width, 3), width, 3))


def _bottleneck(graph: Graph, x: int, groups: int = 1) -> int:
    width = graph.shape(x)[-1]
    inner = layers.convolution(graph, layers.convolution(graph, x, width // 4, 1), width // 4, 3, 1, groups)
    return layers.total(graph, x, layers.convolution(graph, inner, width, 1))


def _inverted(graph: Graph, x: int) -> int:
    width = graph.shape(x)[-1]
    inner = layers.depthwise(graph, layers.convolution(graph, x, 4 * width, 1), 3)
    return layers.total(graph, x, layers.convolution(graph, inner, width, 1))


def _excited(graph: Graph, x: int) -> int:
    """A separable convolution whose channels are weighted by what they hold on average."""
    width = graph.shape(x)[-1]
    x = layers.convolution(graph, layers.depthwise(graph, x, 5), width, 1)
    squeezed = layers.convolution(graph, layers.mean(graph, x, (1, 2)), width // 4, 1)
    return layers.multiple(graph, x, layers.activation(graph, layers.convolution(graph, squeezed, width, 1), "logistic"))


def _concatenated(graph: Graph, x: int) -> int:
    """Half of the channels new, half of them kept."""
    width = graph.shape(x)[-1]
    old, new = layers.convolution(graph, x, width // 2, 1), layers.convolution(graph, x, width // 2, 3)
    return layers.concatenate(graph, (old, new))


def _shuffled(graph: Graph, x: int) -> int:
    """Up by a pixel shuffle, down by a convolution."""
    width = graph.shape(x)[-1]
    return layers.convolution(graph, layers.depth_to_space(graph, layers.convolution(graph, x, width, 3), 2), width, 3, 2)


def _stem(graph: Graph, x: int) -> int:
    """A large kernel on few channels, pooled and enlarged again."""
    width = graph.shape(x)[-1]
    few = layers.convolution(graph, layers.convolution(graph, x, 3, 1), width, 7, 2)
    return layers.resize(graph, layers.pool(graph, few, 3, 1, "largest"), 2, "nearest") if graph.shape(x)[1] % 2 == 0 else x


def _transformer(graph: Graph, x: int) -> int:
    """Two dense layers after a normalization."""
    width = graph.shape(x)[-1]
    inner = layers.activation(graph, layers.dense(graph, layers.layer_norm(graph, x), 4 * width), "gelu")
    return layers.total(graph, x, layers.dense(graph, inner, width))


_BLOCKS: dict[str, Callable[[Graph, int], int]] = {
    "plain": lambda g, x: layers.convolution(g, x, g.shape(x)[-1], 3),
    "residual": _residual,
    "bottleneck": _bottleneck,
    "grouped": lambda g, x: _bottleneck(g, x, 4),
    "inverted": _inverted,
    "excited": _excited,
    "concatenated": _concatenated,
    "shuffled": _shuffled,
    "stem": _stem,
    "dense": lambda g, x: layers.dense(g, x, g.shape(x)[-1]),
    "transformer": _transformer,
}
_OVER_ROWS = ("dense", "transformer")


class Draw:
    """Choices from a point of a low-discrepancy sequence, one coordinate each."""

    def __init__(self, point: Iterator[float]) -> None:
        self._point = point

    def __call__(self, choices: Sequence[Choice]) -> Choice:
        """The next choice."""
        return choices[min(int(next(self._point) * len(choices)), len(choices) - 1)]


def _drawn(count: int, dimensions: int, case: Callable[[Draw], Case | None]) -> list[Case]:
    """The first `count` different cases that the bounds allow, along an additive recurrence (Roberts, 2018): evenly spread and repeatable."""
    ratio = 2.0
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (dimensions + 2))
    steps = np.array([ratio ** -(axis + 1) for axis in range(dimensions + 1)])
    found: dict[str, Case] = {}
    for index in range(200 * count):
        one = case(Draw(iter(((0.5 + steps * (index + 1)) % 1.0).tolist())))
        if one is not None:
            found.setdefault(one.name, one)
        if len(found) == count:
            break
    return list(found.values())


def _one(name: str, shape: tuple[int, int], layer: Callable[[Graph, int], int]) -> Case:
    side, channels = shape
    return _flat(name, (1, side, side, channels), layer)


def _flat(name: str, shape: tuple[int, ...], layer: Callable[[Graph, int], int]) -> Case:
    def build(graph: Graph) -> Built:
        x = graph.activation(shape)
        return [x], [layer(graph, x)]

    return Case(name, build)


def _work(macs: float) -> bool:
    return LEAST_MACS <= macs <= MOST_MACS


def _fits(*values: int, weights: int = 0, least: float = LEAST_VALUES) -> bool:
    return all(value <= MOST_VALUES for value in values) and values[0] >= least and weights <= MOST_WEIGHTS
