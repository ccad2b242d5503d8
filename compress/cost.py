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
- Memory is live from the row that writes it to the last row that reads it, in execution order. Weights are not counted; the input is.
"""

from __future__ import annotations

import torch
from torch import nn

from mcompress.compress.counting.rows import FP32_BYTES, figures, table_of
from mcompress.compress.counting.running import record
from mcompress.errors import StageError
from mcompress.targets.operators import OperatorTable

__all__ = ["FP32_BYTES", "count", "operator_table"]


def operator_table(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> OperatorTable:
    """Cost of one forward pass of `model` on an input of `input_shape`, batch first.

    `model` may lie on any device, the meta device included; it is not changed. `dtype` is that of the input; left out, that of the parameters.
    Raises `StageError`, naming the module, if the forward pass fails on an input of that shape.
    """
    if not input_shape or any(size < 1 for size in input_shape):
        raise StageError(f"input shape {input_shape} cannot be counted: every size must be at least 1, batch first, for example (1, 3, 128, 128)")
    parameters = list(model.parameters())
    chosen = dtype or next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    return table_of(record(model, input_shape, chosen), sum(p.numel() for p in parameters))


def count(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """The figures of `mcompress count`: parameters, MACs in both conventions, peak, planned and moved activation bytes (fp32) of one forward pass."""
    return figures(operator_table(model, input_shape))
