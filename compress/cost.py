"""What a network costs: run it without data, record every ATen operator, fuse as runtimes fuse, plan its memory.

The network runs once on the meta device: shapes and aliasing are real, numbers are not, so a network of fifty operators costs milliseconds whatever
its resolution. A network that needs numbers to find its way (`.item()` in the forward pass) runs on the CPU instead.

Rules, all visible in the resulting `OperatorTable`:

- A view costs nothing. What copies is a row: concatenation, pixel shuffle, padding, `contiguous`.
- What only depends on parameters is folded before deployment and costs nothing: transposed or normalized weights, position tables.
- A convolution (or matrix product) takes in the batch normalization, the bias, the constant factor and the activation that follow it, and an addition
  or a normalization the activation that follows it, as long as nothing else reads what is between them (`counting.fusing` names the runtimes).
- What is several operators in one place and one in another is one row: attention, GELU, SiLU, a convolution and its padding (`counting.patterns`).
- An operator that is not known is a row of kind `other` with multiply-adds that are assumed, never zero.
- Of a table that is looked up in, an inference reads what it finds there; what is stored is the whole.
- Memory is live from the row that writes it to the last row that reads it, in execution order. Weights are not counted; the input is. While
  attention runs, its matrix of scores and the softmax of that are live as well: runtimes write both out (`counting.describing`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mcompress.compress.counting.rows import FP32_BYTES, figures, table_of
from mcompress.compress.counting.running import Input, record
from mcompress.errors import StageError
from mcompress.targets.operators import OperatorTable

__all__ = ["FP32_BYTES", "Input", "count", "number_type", "operator_table", "table_on"]


def operator_table(model: nn.Module, *input_shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> OperatorTable:
    """Cost of one forward pass of `model` on inputs of these shapes, batch first, in the order in which it takes them.

    `model` may lie on any device, the meta device included; it is not changed. `dtype` is that of the inputs; left out, that of the parameters.
    Raises `StageError`, naming the module, if the forward pass fails on inputs of these shapes.
    """
    return table_on(model, [Input(shape, dtype or number_type(model)) for shape in input_shapes])


def table_on(model: nn.Module, inputs: Sequence[Input]) -> OperatorTable:
    """The same for inputs of several types, a diffusion U-Net's image and time step for example: in their order, or by name."""
    for one in inputs:
        if not one.shape or any(size < 1 for size in one.shape):
            raise StageError(f"input shape {one} cannot be counted: every size must be at least 1, batch first, for example (1, 3, 128, 128)")
    return table_of(record(model, inputs), sum(p.numel() for p in model.parameters()))


def number_type(model: nn.Module) -> torch.dtype:
    """In which `model` computes: the type of its parameters."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def count(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """The figures of `mcompress count`: parameters, MACs in both conventions, peak, planned and moved activation bytes (fp32) of one forward pass."""
    return figures(operator_table(model, input_shape))
