"""Mean and covariance of what the weights of an operator are multiplied with, streamed over calibration inputs.

For a row of weights w of a convolution the output at a position is w . p + bias, where p are the input values under the kernel. When the row is
rounded to q, the squared error of the output is (w - q)^T C (w - q) with the covariance C of p, once the bias has absorbed the mean error
(w - q) . E[p].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.recovery.noise import groups_of
from mcompress.errors import StageError

POSITIONS = 256  # per input and operator: neighbouring positions say much the same
DILATION_ARGUMENT: dict[object, int] = {torch.ops.aten.conv_transpose2d.input: 7}


@dataclass(frozen=True)
class Moments:
    """Per group of the operator: mean (G, n) and covariance (G, n, n) of the n = inputs per group x kernel values under the kernel."""

    mean: Tensor
    covariance: Tensor


class MomentSum:
    """Adds up the moments of one operator. Memory: n^2 float64 per group, whatever the number of inputs."""

    def __init__(self, node: fx.Node, weight: Tensor) -> None:
        """`weight` gives the kernel's size."""
        self._node, self._kernel = node, tuple(weight.shape[2:])
        self._count = 0
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def add(self, value: Tensor, generator: torch.Generator) -> None:
        """The operator's input for one calibration input; `generator` draws positions where there are many."""
        patches = patches_of(self._node, value, self._kernel)  # (G, n, positions)
        if patches.shape[2] > POSITIONS:
            patches = patches[:, :, torch.randperm(patches.shape[2], generator=generator)[:POSITIONS]]
        # In double precision before anything is multiplied: the squared mean is taken off later, and of a constant input nothing may be left.
        wide = patches.double()
        first, second = wide.sum(2), wide @ wide.transpose(1, 2)
        self._first = first if self._first is None else self._first + first
        self._second = second if self._second is None else self._second.add_(second)
        self._count += patches.shape[2]

    def result(self) -> Moments:
        """The moments of everything added."""
        if self._first is None or self._second is None:
            raise StageError("no calibration inputs were given; recovery needs at least one")
        mean = self._first / self._count
        return Moments(mean, self._second / self._count - mean[:, :, None] * mean[:, None, :])


def patches_of(node: fx.Node, value: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The values under the kernel, (groups, inputs per group x kernel positions, positions), in the order of `by_output_and_input`."""
    groups = groups_of(node)
    if node.target is torch.ops.aten.linear.default:
        return value.reshape(1, -1, value.shape[-1]).transpose(1, 2)
    if len(kernel) == 1:
        value, kernel = value.unsqueeze(2), (1, kernel[0])
    stride, dilation = _pair(node, 3, 1), _pair(node, DILATION_ARGUMENT.get(node.target, 5), 1)
    if kinds.WEIGHTED[node.target] == 1:
        value = _spread(node, value, kernel, stride, dilation)
        columns = functional.unfold(value, kernel, dilation=dilation)
        batch, _, positions = columns.shape
        # A transposed convolution runs through its kernel backwards.
        columns = columns.reshape(batch, -1, kernel[0] * kernel[1], positions).flip(2).reshape(batch, -1, positions)
    else:
        columns = functional.unfold(_padded(node, value, kernel, dilation), kernel, dilation=dilation, stride=stride)
    batch, rows, positions = columns.shape
    return columns.transpose(0, 1).reshape(groups, rows // groups, batch * positions)


def _padded(node: fx.Node, value: Tensor, kernel: tuple[int, ...], dilation: tuple[int, int]) -> Tensor:
    padding = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):
        if padding == "valid":
            return value
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return functional.pad(value, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    vertical, horizontal = _pair(node, 4, 0)
    return functional.pad(value, (horizontal, horizontal, vertical, vertical))


def _spread(node: fx.Node, value: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The input of a transposed convolution with zeros between its values and around them: then it is an ordinary one with stride 1."""
    padding, extra = _pair(node, 4, 0), _pair(node, 5, 0)
    batch, channels, height, width = value.shape
    spread = value.new_zeros(batch, channels, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = value
    before = [step * (size - 1) - pad for step, size, pad in zip(dilation, kernel, padding, strict=True)]
    return functional.pad(spread, (before[1], before[1] + extra[1], before[0], before[0] + extra[0]))


def _pair(node: fx.Node, position: int, default: int) -> tuple[int, int]:
    """An argument with one number or one per dimension; one dimension is the horizontal one."""
    found = node.args[position] if len(node.args) > position else default
    numbers = [int(value) for value in found] if isinstance(found, list | tuple) else [int(found)]  # type: ignore[arg-type]
    neutral = default if len(numbers) == 1 and node.target is torch.ops.aten.conv1d.default else numbers[0]
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (neutral, numbers[0])
