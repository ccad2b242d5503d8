"""The plan that makes everything INT8 that can be: what the tests of quantized files and of their reference write and compare."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.uniform import uniform_plan


def quiet(_done: int, _total: int, _note: str) -> None:
    """No progress line."""


def int8_plan(network: nn.Module, inputs: Sequence[Tensor]) -> PrecisionPlan:
    """Calibrated with all of these inputs, whose values are between 0 and 1; no loss is too large."""
    program = graph_of(export_program(network, inputs[0]))
    ranges, seen = calibrate(program, ((one,) for one in inputs), "mse", [(0.0, 1.0)], len(inputs), quiet)
    assert seen == len(inputs)
    return uniform_plan(program, ranges)
