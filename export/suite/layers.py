"""Layers on a `Graph`: each takes the graph and its input tensors (NHWC), adds one operator, and returns the output tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ai_edge_litert import schema_py_generated as schema

from mcompress.export.suite.writer import Graph

Op, Options, Fused = schema.BuiltinOperator, schema.BuiltinOptions, schema.ActivationFunctionType


def convolution(graph: Graph, x: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> int:
    """Convolution with bias and ReLU, padded to keep the size at stride 1."""
    batch, height, width, inputs = graph.shape(x)
    options = schema.Conv2DOptionsT()
    _window(options, stride)
    weights = graph.weights((channels, kernel, kernel, inputs // groups), 0)
    return graph.add(
        Op.CONV_2D, [x, weights, graph.bias(channels)], (batch, -(-height // stride), -(-width // stride), channels), options, Options.Conv2DOptions
    )


def depthwise(graph: Graph, x: int, kernel: int, stride: int = 1) -> int:
    """Depthwise convolution with bias and ReLU."""
    batch, height, width, channels = graph.shape(x)
    options = schema.DepthwiseConv2DOptionsT()
    _window(options, stride)
    options.depthMultiplier = 1
    weights = graph.weights((1, kernel, kernel, channels), 3)
    return graph.add(
        Op.DEPTHWISE_CONV_2D,
        [x, weights, graph.bias(channels)],
        (batch, -(-height // stride), -(-width // stride), channels),
        options,
        Options.DepthwiseConv2DOptions,
    )


def transposed(graph: Graph, x: int, channels: int, kernel: int, stride: int) -> int:
    """Transposed convolution with bias that enlarges by `stride`."""
    batch, height, width, inputs = graph.shape(x)
    shape = (batch, height * stride, width * stride, channels)
    options = schema.TransposeConvOptionsT()
    options.padding, options.strideH, options.strideW, options.fusedActivationFunction = schema.Padding.SAME, stride, stride, Fused.NONE
    weights = graph.weights((channels, kernel, kernel, inputs), 0)
    return graph.add(Op.TRANSPOSE_CONV, [graph.integers(shape), weights, x, graph.bias(channels)], shape, options, Options.TransposeConvOptions)


def dense(graph: Graph, x: int, channels: int) -> int:
    """Matrix product with constant weights, and bias, over the last dimension."""
    *rows, inputs = graph.shape(x)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction, options.keepNumDims = Fused.NONE, True
    weights = graph.weights((channels, inputs), 0)
    return graph.add(Op.FULLY_CONNECTED, [x, weights, graph.bias(channels)], (*rows, channels), options, Options.FullyConnectedOptions)


def product(graph: Graph, x: int, y: int) -> int:
    """Product of two computed matrices, (..., M, K) by (..., K, N)."""
    options = schema.BatchMatMulOptionsT()
    options.adjX = options.adjY = options.asymmetricQuantizeInputs = False
    return graph.add(Op.BATCH_MATMUL, [x, y], (*graph.shape(x)[:-1], graph.shape(y)[-1]), options, Options.BatchMatMulOptions)


def total(graph: Graph, x: int, y: int) -> int:
    """Sum of two tensors of one shape."""
    options = schema.AddOptionsT()
    options.fusedActivationFunction, options.potScaleInt16 = Fused.NONE, False
    return graph.add(Op.ADD, [x, y], graph.shape(x), options, Options.AddOptions)


def multiple(graph: Graph, x: int, y: int) -> int:
    """Product, element by element; `y` may be of shape (1, 1, 1, channels)."""
    options = schema.MulOptionsT()
    options.fusedActivationFunction = Fused.NONE
    return graph.add(Op.MUL, [x, y], graph.shape(x), options, Options.MulOptions)


Curve = Literal["logistic", "tanh", "hard_swish", "prelu", "leaky_relu", "softmax", "clamp", "gelu"]


def activation(graph: Graph, x: int, curve: Curve) -> int:
    """A nonlinearity that no other operator absorbs; `softmax` runs over the last dimension."""
    shape = graph.shape(x)
    if curve == "prelu":
        return graph.add(Op.PRELU, [x, graph.slopes((1, 1, shape[-1]))], shape)
    if curve == "leaky_relu":
        leaky = schema.LeakyReluOptionsT()
        leaky.alpha = 0.2
        return graph.add(Op.LEAKY_RELU, [x], shape, leaky, Options.LeakyReluOptions)
    if curve == "softmax":
        softmax = schema.SoftmaxOptionsT()
        softmax.beta = 1.0
        # LiteRT asks for exactly this output scale and zero point in INT8.
        return graph.add(Op.SOFTMAX, [x], shape, softmax, Options.SoftmaxOptions, scale=1 / 256, zero=-128)
    if curve == "hard_swish":
        return graph.add(Op.HARD_SWISH, [x], shape, schema.HardSwishOptionsT(), Options.HardSwishOptions)
    if curve == "gelu":
        gelu = schema.GeluOptionsT()
        gelu.approximate = False
        return graph.add(Op.GELU, [x], shape, gelu, Options.GeluOptions)
    if curve == "logistic":
        return graph.add(Op.LOGISTIC, [x], shape, scale=1 / 256, zero=-128)
    if curve == "tanh":
        return graph.add(Op.TANH, [x], shape, scale=1 / 128, zero=0)
    return graph.add(Op.RELU_0_TO_1, [x], shape)


def pool(graph: Graph, x: int, kernel: int, stride: int, kind: Literal["average", "largest"]) -> int:
    """Pooling in square windows, padded to keep the size at stride 1."""
    batch, height, width, channels = graph.shape(x)
    options = schema.Pool2DOptionsT()
    options.padding, options.strideH, options.strideW, options.fusedActivationFunction = schema.Padding.SAME, stride, stride, Fused.NONE
    options.filterHeight = options.filterWidth = kernel
    code = Op.AVERAGE_POOL_2D if kind == "average" else Op.MAX_POOL_2D
    return graph.add(code, [x], (batch, -(-height // stride), -(-width // stride), channels), options, Options.Pool2DOptions)


def mean(graph: Graph, x: int, axes: Sequence[int]) -> int:
    """Mean over axes, which keep length 1."""
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(graph.shape(x)))
    options = schema.ReducerOptionsT()
    options.keepDims = True
    return graph.add(Op.MEAN, [x, graph.integers(axes)], shape, options, Options.ReducerOptions)


def resize(graph: Graph, x: int, factor: int, kind: Literal["bilinear", "nearest"]) -> int:
    """Enlargement by a whole factor."""
    batch, height, width, channels = graph.shape(x)
    size = (height * factor, width * factor)
    if kind == "bilinear":
        bilinear = schema.ResizeBilinearOptionsT()
        bilinear.alignCorners, bilinear.halfPixelCenters = False, True
        return graph.add(Op.RESIZE_BILINEAR, [x, graph.integers(size)], (batch, *size, channels), bilinear, Options.ResizeBilinearOptions)
    nearest = schema.ResizeNearestNeighborOptionsT()
    nearest.alignCorners, nearest.halfPixelCenters = False, False
    return graph.add(Op.RESIZE_NEAREST_NEIGHBOR, [x, graph.integers(size)], (batch, *size, channels), nearest, Options.ResizeNearestNeighborOptions)


def depth_to_space(graph: Graph, x: int, block: int) -> int:
    """Pixel shuffle."""
    batch, height, width, channels = graph.shape(x)
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = block
    return graph.add(Op.DEPTH_TO_SPACE, [x], (batch, height * block, width * block, channels // block**2), options, Options.DepthToSpaceOptions)


def concatenate(graph: Graph, parts: Sequence[int]) -> int:
    """Concatenation over channels."""
    shape = graph.shape(parts[0])
    options = schema.ConcatenationOptionsT()
    options.axis, options.fusedActivationFunction = len(shape) - 1, Fused.NONE
    channels = sum(graph.shape(part)[-1] for part in parts)
    return graph.add(Op.CONCATENATION, list(parts), (*shape[:-1], channels), options, Options.ConcatenationOptions)


def pad(graph: Graph, x: int, border: int) -> int:
    """A border of the least value, as largest pooling needs it; a border of zeros is part of the operator behind it in most runtimes."""
    batch, height, width, channels = graph.shape(x)
    borders = graph.integers_table([[0, 0], [border, border], [border, border], [0, 0]])
    shape = (batch, height + 2 * border, width + 2 * border, channels)
    return graph.add(Op.PADV2, [x, borders, graph.least()], shape, schema.PadV2OptionsT(), Options.PadV2Options)


def layer_norm(graph: Graph, x: int) -> int:
    """Layer normalization over the last dimension, in the operators that converters write: LiteRT has none of its own."""
    shape = graph.shape(x)
    centre = mean(graph, x, (len(shape) - 1,))
    variance = mean(graph, squared_difference(graph, x, centre), (len(shape) - 1,))
    apart = difference(graph, x, centre)
    inverse = graph.add(Op.RSQRT, [variance], graph.shape(variance))
    ones = (*(1 for _ in shape[:-1]), shape[-1])
    scaled = multiple(graph, multiple(graph, apart, inverse), graph.slopes(ones))
    return total(graph, scaled, graph.slopes(ones))


def instance_norm(graph: Graph, x: int) -> int:
    """Normalization of every channel over the image, in the operators that converters write: they put the channels first for it."""
    batch, *_, channels = graph.shape(x)
    first = transpose(graph, x, (0, 3, 1, 2))
    apart = difference(graph, first, mean(graph, first, (2, 3)))
    variance = mean(graph, multiple(graph, apart, apart), (2, 3))
    inverse = graph.add(Op.RSQRT, [total(graph, variance, graph.slopes((1, 1, 1, 1)))], (batch, channels, 1, 1))
    return transpose(graph, multiple(graph, apart, inverse), (0, 2, 3, 1))


def transpose(graph: Graph, x: int, axes: Sequence[int]) -> int:
    """The axes in another order."""
    shape = graph.shape(x)
    return graph.add(
        Op.TRANSPOSE, [x, graph.integers(axes)], tuple(shape[axis] for axis in axes), schema.TransposeOptionsT(), Options.TransposeOptions
    )


def attention(graph: Graph, query: int, key: int, value: int) -> int:
    """Scaled dot products, softmax, and the product with the values. Shapes (1, heads, rows, width), the key's (1, heads, width, rows)."""
    return product(graph, activation(graph, product(graph, query, key), "softmax"), value)


def difference(graph: Graph, x: int, y: int) -> int:
    """Difference; `y` may be shorter along any dimension."""
    options = schema.SubOptionsT()
    options.fusedActivationFunction, options.potScaleInt16 = Fused.NONE, False
    return graph.add(Op.SUB, [x, y], graph.shape(x), options, Options.SubOptions)


def squared_difference(graph: Graph, x: int, y: int) -> int:
    """Square of the difference, one operator in LiteRT."""
    return graph.add(Op.SQUARED_DIFFERENCE, [x, y], graph.shape(x), schema.SquaredDifferenceOptionsT(), Options.SquaredDifferenceOptions)


def _window(options: schema.Conv2DOptionsT | schema.DepthwiseConv2DOptionsT, stride: int) -> None:
    options.padding, options.strideH, options.strideW = schema.Padding.SAME, stride, stride
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = Fused.RELU
