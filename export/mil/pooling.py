"""Pooling: maximum, average and L2 over windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mcompress.export.mil.arguments import Arguments
from mcompress.export.mil.types import Array, FloatArray
from mcompress.export.mil.windows import Windows, padded, windows_of


def max_pool(arguments: Arguments) -> Array:
    """Largest value of each window; what is padded never counts."""
    x, windows = _prepared(arguments)
    return _over_windows(padded(x, windows, -np.inf), windows, windows.counts(x.shape[2:]), np.maximum)


def avg_pool(arguments: Arguments) -> Array:
    """Mean of each window. Padding counts as zeros unless `exclude_padding_from_average`; what `ceil_mode` adds behind the padding never counts."""
    x, windows = _prepared(arguments)
    counts = windows.counts(x.shape[2:])
    total = _over_windows(padded(x, windows, 0.0), windows, counts, np.add)
    pad = arguments.integers("pad", windows.after * 2)[1::2] if arguments.text("pad_type", "valid") == "custom" else list(windows.after)
    if arguments.text("pad_type", "valid") == "valid":
        pad = [0] * len(counts)
    exclude = arguments.flag("exclude_padding_from_average", default=False)
    for axis, size in enumerate(x.shape[2:]):
        starts = np.arange(counts[axis]) * windows.strides[axis] - windows.before[axis]
        ends = starts + windows.kernel[axis]
        members = np.minimum(ends, size) - np.maximum(starts, 0) if exclude else np.minimum(ends, size + pad[axis]) - starts
        total /= members.astype(np.float32).reshape(-1, *(1,) * (len(counts) - 1 - axis))
    return total


def l2_pool(arguments: Arguments) -> Array:
    """Square root of the sum of squares of each window."""
    x, windows = _prepared(arguments)
    return np.sqrt(_over_windows(padded(x * x, windows, 0.0), windows, windows.counts(x.shape[2:]), np.add))


def _prepared(arguments: Arguments) -> tuple[FloatArray, Windows]:
    """The input, and the windows with the padding that `ceil_mode` needs behind."""
    x = arguments.floats("x")
    windows = windows_of(arguments, x.shape[2:], arguments.integers("kernel_sizes"))
    if arguments.flag("ceil_mode", default=False):
        more = []
        for axis, size in enumerate(x.shape[2:]):
            whole = size + windows.before[axis] + windows.after[axis]
            stride = windows.strides[axis]
            count = -(-(whole - windows.reach(axis)) // stride) + 1
            if (count - 1) * stride >= size + windows.before[axis] and windows.before[axis] + windows.after[axis] > 0:
                count -= 1  # the last window would lie in the padding alone
            more.append(max(0, (count - 1) * stride + windows.reach(axis) - whole))
        windows = dataclasses.replace(windows, after=tuple(pad + extra for pad, extra in zip(windows.after, more, strict=True)))
    return x, windows


def _over_windows(
    source: FloatArray, windows: Windows, counts: tuple[int, ...], combine: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
) -> FloatArray:
    first, *others = windows.positions()
    total: FloatArray = source[(..., *windows.taken(first, counts))].copy()
    for position in others:
        combine(total, source[(..., *windows.taken(position, counts))], total)
    return total


OPERATORS = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}
