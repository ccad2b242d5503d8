"""What an operator costs and is, out of plain numbers: the same whether a module or a file says them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mcompress.compress.counting.steps import Step, as_matrices

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """What a convolution is besides its shapes."""

    transposed: bool
    kernel: Shape
    stride: int
    groups: int
    per_group: int
    """Input channels per group; output channels per group of a transposed convolution."""
    has_bias: bool


def describe_convolution(step: Step, window: Window) -> None:
    """Kind and multiply-adds; the shapes of `step` are images, channels behind the batch."""
    area = math.prod(window.kernel)
    step.kernel, step.stride, step.groups, step.has_bias = window.kernel, window.stride, window.groups, window.has_bias
    if window.transposed:
        step.kind = "transposed_convolution"
        step.macs = math.prod(step.input_shape) * window.per_group * area
        step.macs_output_convention = math.prod(step.output_shape) * (step.input_shape[1] // window.groups) * area
        return
    step.kind = "convolution"
    step.macs = step.macs_output_convention = math.prod(step.output_shape) * window.per_group * area
    if window.groups > 1:
        step.kind = "depthwise_convolution" if window.per_group == 1 else "grouped_convolution"


def describe_attention(step: Step, query: Sequence[int], result: Sequence[int], keys: int) -> None:
    """Multiply-adds, shapes and scratch memory of (..., rows, columns) over so many keys, those of earlier calls included.

    The runtimes of all four exports compute it as a product, a softmax and a product, so that the matrix of scores exists as a whole, and for a
    moment twice: as what the softmax reads and what it writes.
    """
    # Query times key transposed, and the weights times value: both for every query and every key.
    step.macs = step.macs_output_convention = (math.prod(query) + math.prod(result)) * keys
    step.input_shape, step.output_shape = as_matrices(query), as_matrices(result)
    step.scratch_elements = 2 * math.prod(query[:-1]) * keys


def describe_elementwise(step: Step, *, has_constant: bool) -> None:
    """Weights and whether they fold into the operator before; `has_constant` says whether one of exactly two operands is a constant."""
    if step.weight_elements == 1:
        step.weight_elements = 0  # a number, which runtimes keep in the operator
    per_channel = step.weight_elements <= max((*step.output_shape[1:2], *step.output_shape[-1:]), default=1)
    step.foldable = step.operation in ("add", "sub", "mul", "div") and has_constant and per_channel
