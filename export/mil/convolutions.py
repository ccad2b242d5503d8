"""Convolutions as matrix products: the input's windows are copied into columns, a bounded number at a time.

All sums are in fp32, also where the file says fp16: the width in which an Apple unit accumulates is not documented, a narrower one would be a guess.
"""

from __future__ import annotations

import math

import numpy as np

from mcompress.export.mil.arguments import Arguments
from mcompress.export.mil.types import Array, FloatArray
from mcompress.export.mil.windows import Windows, padded, windows_of

COLUMN_FLOATS = 1 << 18
"""Elements of the columns made at a time: 1 MiB, which stays in a processor's second-level cache."""


def conv(arguments: Arguments) -> Array:
    """x (N, C, *sizes), weight (O, C / groups, *kernel), one to three spatial axes."""
    x, weight = arguments.floats("x"), arguments.floats("weight")
    groups = arguments.integer("groups", 1)
    if weight.ndim != x.ndim or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise arguments.wrong(f"weights of shape {weight.shape} in {groups} groups do not fit an input of shape {x.shape}")
    windows = windows_of(arguments, x.shape[2:], weight.shape[2:])
    counts = windows.counts(x.shape[2:])
    if min(counts) < 1:
        raise arguments.wrong(f"a kernel of {weight.shape[2:]} does not fit an input of shape {x.shape}")
    out = np.empty((x.shape[0], weight.shape[0], *counts), np.float32)
    source = padded(x, windows, 0.0)
    for sample, result in zip(source, out, strict=True):
        if weight.shape[1] == 1 and groups > 1:
            _depthwise(sample, weight, windows, result)
        else:
            _grouped(sample, weight, windows, groups, result)
    return _with_bias(out, arguments.floats_if_given("bias"))


def _grouped(sample: FloatArray, weight: FloatArray, windows: Windows, groups: int, out: FloatArray) -> None:
    inputs = weight.shape[1]
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    counts = out.shape[1:]
    if math.prod(windows.kernel) == 1 and set(windows.strides) == {1}:
        np.matmul(matrix, sample.reshape(groups, inputs, -1), out=out.reshape(groups, -1, math.prod(counts)))
        return
    positions = windows.positions()
    per_row = weight[0].size * groups * math.prod(counts[1:])
    rows = max(1, min(counts[0], COLUMN_FLOATS // per_row))
    columns = np.empty((groups * inputs, len(positions), rows, *counts[1:]), np.float32)
    for first in range(0, counts[0], rows):
        some = min(rows, counts[0] - first)
        here = columns if some == rows else np.empty((groups * inputs, len(positions), some, *counts[1:]), np.float32)
        for number, position in enumerate(positions):
            here[:, number] = sample[(slice(None), *windows.taken(position, (some, *counts[1:]), first))]
        product = matrix @ here.reshape(groups, inputs * len(positions), -1)
        out[:, first : first + some] = product.reshape(out.shape[0], some, *counts[1:])


def _depthwise(sample: FloatArray, weight: FloatArray, windows: Windows, out: FloatArray) -> None:
    channels, counts = sample.shape[0], out.shape[1:]
    factors = weight.reshape(channels, -1, math.prod(windows.kernel))
    result = out.reshape(channels, -1, *counts)
    rows = max(1, min(counts[0], COLUMN_FLOATS // (channels * math.prod(counts[1:]))))
    ones = (1,) * len(counts)
    for first in range(0, counts[0], rows):
        some = min(rows, counts[0] - first)
        total: FloatArray = np.zeros((channels, factors.shape[1], some, *counts[1:]), np.float32)
        for number, position in enumerate(windows.positions()):
            taken = sample[(slice(None), *windows.taken(position, (some, *counts[1:]), first))]
            total += factors[:, :, number].reshape(channels, -1, *ones) * taken[:, None]
        result[:, :, first : first + some] = total


def conv_transpose(arguments: Arguments) -> Array:
    """x (N, C, *sizes), weight (C, O / groups, *kernel). `output_shape` decides where strides leave the size open."""
    x, weight = arguments.floats("x"), arguments.floats("weight")
    groups = arguments.integer("groups", 1)
    if weight.ndim != x.ndim or weight.shape[0] != x.shape[1] or x.shape[1] % groups:
        raise arguments.wrong(f"weights of shape {weight.shape} in {groups} groups do not fit an input of shape {x.shape}")
    windows, sizes = _transposed_windows(arguments, x.shape, weight.shape)
    outputs = weight.shape[1] * groups
    matrix = weight.reshape(groups, x.shape[1] // groups, -1).transpose(0, 2, 1)
    full = [(count - 1) * windows.strides[axis] + windows.reach(axis) for axis, count in enumerate(x.shape[2:])]
    out: FloatArray = np.zeros((x.shape[0], outputs, *(max(f, b + s) for f, b, s in zip(full, windows.before, sizes, strict=True))), np.float32)
    rows = max(1, min(x.shape[2], COLUMN_FLOATS // max(1, outputs * math.prod(windows.kernel) * math.prod(x.shape[3:]))))
    for sample, result in zip(x, out, strict=True):
        for first in range(0, x.shape[2], rows):
            part = sample[:, first : first + rows]
            columns = (matrix @ part.reshape(groups, x.shape[1] // groups, -1)).reshape(outputs, -1, *part.shape[1:])
            for number, position in enumerate(windows.positions()):
                result[(slice(None), *windows.taken(position, part.shape[1:], first))] += columns[:, number]
    kept = tuple(slice(start, start + size) for start, size in zip(windows.before, sizes, strict=True))
    return _with_bias(np.ascontiguousarray(out[(slice(None), slice(None), *kept)]), arguments.floats_if_given("bias"))


def _transposed_windows(arguments: Arguments, x: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Windows, list[int]]:
    """Windows of the convolution that this one transposes, and the spatial sizes of the result."""
    ones = [1] * (len(x) - 2)
    kernel, strides, dilations = list(weight[2:]), arguments.integers("strides", ones), arguments.integers("dilations", ones)
    full = [(count - 1) * stride + (k - 1) * dilation + 1 for count, stride, k, dilation in zip(x[2:], strides, kernel, dilations, strict=True)]
    kind = arguments.text("pad_type", "valid")
    arguments.without_meaning("pad")  # unless custom: converters write zeros
    pad = arguments.integers("pad", [0] * 2 * len(kernel)) if kind == "custom" else [0] * 2 * len(kernel)
    sizes = [size - front - back for size, front, back in zip(full, pad[0::2], pad[1::2], strict=True)]
    if kind == "same":
        sizes = [count * stride for count, stride in zip(x[2:], strides, strict=True)]
    elif kind not in ("valid", "custom"):
        raise arguments.wrong(f"its pad_type is '{kind}'; known are valid, same, custom")
    if arguments.has("output_shape"):
        sizes = arguments.integers("output_shape")[-len(kernel) :]
    before = [max(0, size - kept) // 2 for size, kept in zip(full, sizes, strict=True)] if kind == "same" else pad[0::2]
    after = [size - front - kept for size, front, kept in zip(full, before, sizes, strict=True)]
    return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(after)), sizes


def _with_bias(out: FloatArray, bias: FloatArray | None) -> FloatArray:
    if bias is not None:
        out += bias.reshape(-1, *(1,) * (out.ndim - 2))
    return out


OPERATORS = {"conv": conv, "conv_transpose": conv_transpose}
