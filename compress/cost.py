"""What a network costs: run it without data, record every ATen operator, fuse as runtimes fuse, plan its memory.

The network runs once on the meta device: shapes and aliasing are real, numbers are not, so a network of fifty operators costs milliseconds whatever
its resolution. A network that needs numbers to find its way (`.item()` in the forward pass) runs on the CPU instead.

Rules, all visible in the resulting `OperatorTable`:

- A view costs nothing. What copies is a row: concatenation, pixel shuffle, padding, `contiguous`.
- What only depends on parameters is folded before deployment and costs nothing: transposed or normalized weights, position tables.
- A convolution (or matrix product) takes in the batch normalization, the bias and the activation that follow it, and an addition or a normalization
  the activation that follows it, as long as nothing else reads what is between them.
- Memory is live from the row that writes it to the last row that reads it, in execution order. Weights are not counted; the input is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mcompress.compress.counting.fusing import fused
from mcompress.compress.counting.memory import live_elements
from mcompress.compress.counting.operations import Step
from mcompress.compress.counting.recorder import Trace
from mcompress.compress.counting.running import record
from mcompress.errors import StageError
from mcompress.targets.operators import Operator, OperatorTable

FP32_BYTES = 4


def operator_table(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> OperatorTable:
    """Cost of one forward pass of `model` on an input of `input_shape`, batch first.

    `model` may lie on any device, the meta device included; it is not changed. `dtype` is that of the input; left out, that of the parameters.
    Raises `StageError`, naming the module, if the forward pass fails on an input of that shape.
    """
    if not input_shape or any(size < 1 for size in input_shape):
        raise StageError(f"input shape {input_shape} cannot be counted: every size must be at least 1, batch first, for example (1, 3, 128, 128)")
    parameters = list(model.parameters())
    chosen = dtype or next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    trace = record(model, input_shape, chosen)
    groups = fused(trace)
    rows = _rows(trace, groups, live_elements(trace, groups))
    return OperatorTable(rows, sum(p.numel() for p in parameters))


def count(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """The five figures of `mcompress count`: parameters, MACs in both conventions, peak and moved activation bytes (fp32) of one forward pass."""
    table = operator_table(model, input_shape)
    return {
        "params": table.params,
        "macs": table.macs,
        "macs_output_convention": table.macs_output_convention,
        "peak_activation_bytes": FP32_BYTES * table.peak_activation_elements,
        "activation_traffic_bytes": FP32_BYTES * table.activation_traffic_elements,
    }


def _rows(trace: Trace, groups: Sequence[Sequence[Step]], live: Sequence[int]) -> tuple[Operator, ...]:
    names = _names([group[0] for group in groups])
    consumed = {value for group in groups for step in group for value in step.reads} | trace.outputs
    rows = []
    for group, name, elements in zip(groups, names, live, strict=True):
        head, last = group[0], group[-1]
        # Side results that nobody reads (indices of a pooling, statistics of a normalization) are never written by a runtime.
        written = sum(n for i, (v, n) in enumerate(last.writes.items()) if i == 0 or v in consumed)
        rows.append(
            Operator(
                name=name,
                kind=head.kind,
                operation=head.operation,
                fused=tuple(step.operation for step in group[1:]),
                input_shape=head.input_shape,
                output_shape=last.output_shape,
                groups=head.groups,
                kernel=head.kernel,
                stride=head.stride,
                macs=head.macs,
                macs_output_convention=head.macs_output_convention,
                elements_read=sum(head.reads.values()),
                elements_written=written,
                weight_elements=sum(step.weight_elements for step in group),
                live_elements=elements,
            )
        )
    return tuple(rows)


def _names(heads: Sequence[Step]) -> list[str]:
    """Module path where the module is one operator, else path and operator; numbered where that is not unique."""
    used: dict[str, int] = {}
    names = []
    for step in heads:
        base = step.module if step.module and step.module_is_leaf else ".".join(filter(None, (step.module, step.operation)))
        number = used.get(base, 0)
        used[base] = number + 1
        names.append(base if number == 0 else f"{base}_{number}")
    return names
