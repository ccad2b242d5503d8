"""Does the exported file compute what PyTorch computes? Float files against the network, INT8 files against the fake-quantized reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ParityError
from mcompress.export.backend import FloatArray, Runner, saturates_int8_sums
from mcompress.record import ParityRecord

if TYPE_CHECKING:
    from torch import nn

FLOAT_METRIC = "max absolute difference / output range"
INT8_METRIC = "sqnr_db"
FLOAT_REFERENCE, INT8_REFERENCE = "PyTorch fp32", "fake-quantized PyTorch"
HIGHEST_DB = 200.0
"""Reported for files that agree to the last bit; JSON has no infinity."""


def float_parity(runner: Runner, model: nn.Module, inputs: Sequence[FloatArray], limit: float) -> ParityRecord:
    """Largest absolute difference over all `inputs` (float32 NCHW), as a share of the range of PyTorch's outputs."""
    expected, found = _both(runner, model, inputs)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    span = max(float(a.max()) for a in expected) - min(float(a.min()) for a in expected)
    value = difference / span if span > 0 else difference
    return ParityRecord(reference=FLOAT_REFERENCE, metric=FLOAT_METRIC, value=value, limit=limit, passed=value <= limit, runtime=runner.runtime)


def int8_parity(runner: Runner, reference: nn.Module, inputs: Sequence[FloatArray], limit_db: float) -> ParityRecord:
    """SQNR in dB of the file's outputs against `reference_program`'s, over all `inputs` together."""
    expected, found = _both(runner, reference, inputs)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, found, strict=True))
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)
    value = HIGHEST_DB if noise == 0 else min(HIGHEST_DB, 10 * math.log10(max(signal, 1e-30) / noise))
    passed = value >= limit_db
    runtime = runner.runtime
    if not passed and saturates_int8_sums():
        runtime += " (suspected host artefact: this x86 processor has no VNNI and may saturate 8-bit sums; Arm does not)"
    return ParityRecord(reference=INT8_REFERENCE, metric=INT8_METRIC, value=value, limit=limit_db, passed=passed, runtime=runtime)


def not_executed(reference: str, metric: str, limit: float, why: str) -> ParityRecord:
    """The record of a file that this machine cannot run."""
    return ParityRecord(reference=reference, metric=metric, value=None, limit=limit, passed=None, runtime=f"not executed: {why}")


def _both(runner: Runner, reference: nn.Module, inputs: Sequence[FloatArray]) -> tuple[list[FloatArray], list[FloatArray]]:
    """Outputs of PyTorch and of the file; raises `ParityError` for other shapes, NaN or infinity."""
    import torch

    if not inputs:
        raise ParityError("parity needs at least one input; the task gave no held-out samples")
    expected: list[FloatArray] = []
    with torch.no_grad():
        expected += [reference(torch.from_numpy(np.ascontiguousarray(value))).numpy() for value in inputs]
    found = [runner.run(value) for value in inputs]
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise ParityError(f"{runner.runtime} returned shape {b.shape}, PyTorch {a.shape}")
        if not np.isfinite(b).all():
            raise ParityError(f"{runner.runtime} returned NaN or infinity where PyTorch did not; the file must not be used")
    return expected, found
