"""Pooling: maximum, average and L2 over windows."""

from __future__ import annotations

import dataclasses

import numpy as np

from mcompress.export.mil.arguments import Arguments
from mcompress.export.mil.types import Array, FloatArray
from mcompress.export.mil.windows import Windows, padded, windows_of


def max_pool(arguments: Arguments) -> Array:
    """Largest value of each window; what is padded never counts."""
    x, _, windows = _prepared(arguments)
    return _over_windows(padded(x, windows, -np.inf), windows, windows.counts(x.shape[2:]), np.maximum)


def avg_pool(arguments: Arguments) -> Array:
    """Mean of each window. Padding counts as zeros unless `exclude_padding_from_average`; what `ceil_mode` adds behind the padding never counts."""
    x, stated, windows = _prepared(arguments)
    counts = windows.counts(x.shape[2:])
    total = _over_windows(padded(x, windows, 0.0), windows, counts, np.add)
    exclude = arguments.flag("exclude_padding_from_average", default=False)
    for axis, size in enumerate(x.shape[2:]):
        starts = np.arange(counts[axis]) * windows.strides[axis] - windows.before[axis]
        ends = np.minimum(starts + windows.kernel[axis], size + (0 if exclude else stated.after[axis]))
        members = ends - (np.maximum(starts, 0) if exclude else starts)
        total /= members.astype(np.float32).reshape(-1, *(1,) * (len(counts) - 1 - axis))
    return total


def l2_pool(arguments: Arguments) -> Array:
    """Square root of the sum of squares of each window."""
    x, _, windows = _prepared(arguments)
    return np.asarray(np.sqrt(_over_windows(padded(x * x, windows, 0.0), windows, windows.counts(x.shape[2:]), np.add)))


def _prepared(arguments: Arguments) -> tuple[FloatArray, Windows, Windows]:
    """The input, the windows as stated, and with the padding that `ceil_mode` needs behind."""
    x = arguments.floats("x")
    stated = windows_of(arguments, x.shape[2:], arguments.integers("kernel_sizes"))
    if not arguments.flag("ceil_mode", default=False):
        return x, stated, stated
    after = []
    for axis, size in enumerate(x.shape[2:]):
        whole, stride = size + stated.before[axis] + stated.after[axis], stated.strides[axis]
        count = -(-(whole - stated.reach(axis)) // stride) + 1
        if (count - 1) * stride >= size + stated.before[axis] and stated.before[axis] + stated.after[axis] > 0:
            count -= 1  # the last window would lie in the padding alone
        after.append(stated.after[axis] + max(0, (count - 1) * stride + stated.reach(axis) - whole))
    return x, stated, dataclasses.replace(stated, after=tuple(after))


def _over_windows(source: FloatArray, windows: Windows, counts: tuple[int, ...], combine: np.ufunc) -> FloatArray:
    whole = (slice(None), slice(None))
    first, *others = windows.positions()
    total: FloatArray = source[whole + windows.taken(first, counts)].copy()
    for position in others:
        combine(total, source[whole + windows.taken(position, counts)], out=total)
    return total


OPERATORS = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}
