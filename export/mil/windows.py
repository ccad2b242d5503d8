"""Windows that slide over the spatial axes: where they start, what is padded. Convolutions and pooling share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcompress.export.mil.arguments import Arguments
from mcompress.export.mil.types import FloatArray


@dataclass(frozen=True)
class Windows:
    """Per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    """Padding; `after` may be negative where a transposed convolution gives more than its full size."""

    def reach(self, axis: int) -> int:
        """Elements between the first and the last that one window reads, both counted."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def counts(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Windows per axis of an input of these sizes."""
        axes = range(len(self.kernel))
        return tuple((sizes[axis] + self.before[axis] + self.after[axis] - self.reach(axis)) // self.strides[axis] + 1 for axis in axes)

    def positions(self) -> list[tuple[int, ...]]:
        """Offsets of the elements of a window, in the order of the weights."""
        return [tuple(k * d for k, d in zip(place, self.dilations, strict=True)) for place in np.ndindex(*self.kernel)]

    def taken(self, position: Sequence[int], counts: Sequence[int], first: int = 0) -> tuple[slice, ...]:
        """The element at `position` of all windows, as slices of the padded input's spatial axes; the first window on the first axis is `first`."""
        starts = [offset + (first * self.strides[0] if axis == 0 else 0) for axis, offset in enumerate(position)]
        return tuple(
            slice(start, start + (count - 1) * stride + 1, stride) for start, count, stride in zip(starts, counts, self.strides, strict=True)
        )


def windows_of(arguments: Arguments, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Strides, dilations and padding of a convolution or pooling over an input of these spatial sizes.

    `same` pads as TensorFlow does, to ceil(size / stride) windows, the odd element behind; `same_lower` has it in front.
    """
    ones = [1] * len(kernel)
    strides, dilations = arguments.integers("strides", ones), arguments.integers("dilations", ones)
    kind = arguments.text("pad_type", "valid")
    arguments.without_meaning("pad")  # unless custom: converters write zeros
    if kind == "custom":
        pad = arguments.integers("pad", [0] * 2 * len(kernel))
        before, after = pad[0::2], pad[1::2]
    elif kind in ("same", "same_lower"):
        totals = [
            max(0, (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size)
            for size, stride, k, dilation in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (smaller, larger) if kind == "same" else (larger, smaller)
    elif kind == "valid":
        before = after = [0] * len(kernel)
    else:
        raise arguments.wrong(f"its pad_type is '{kind}'; known are valid, same, same_lower, custom")
    if not len(sizes) == len(strides) == len(dilations) == len(before) == len(after) == len(kernel):
        raise arguments.wrong(f"its strides {strides}, dilations {dilations} and padding do not fit {len(sizes)} spatial axes")
    return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(after))


def padded(x: FloatArray, windows: Windows, fill: float) -> FloatArray:
    """The input with its spatial axes padded; itself if there is nothing to pad."""
    if not any(windows.before) and not any(windows.after):
        return x
    widths = [(0, 0)] * (x.ndim - len(windows.kernel)) + list(zip(windows.before, windows.after, strict=True))
    return np.pad(x, widths, constant_values=fill)
