"""Does the exported file compute what PyTorch computes? Float files against the network, INT8 files against the fake-quantized reference.

Some processors do not add up 8-bit products exactly. A failure is put down to that only where an experiment has shown that this machine does so, and
the same file, computed in a mode that the experiment found exact, agrees with the reference; the record is then that of the exact mode, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from mcompress.errors import ParityError
from mcompress.export.backend import FloatArray, Runner
from mcompress.record import ParityRecord

if TYPE_CHECKING:
    from torch import Tensor

    Reference = Callable[[Tensor], Tensor]

FLOAT_METRIC = "max absolute difference / output range"
INT8_METRIC = "sqnr_db"
FLOAT_REFERENCE, INT8_REFERENCE = "PyTorch fp32", "fake-quantized PyTorch"
HIGHEST_DB = 200.0
"""Reported for files that agree to the last bit; JSON has no infinity."""


def float_parity(runner: Runner, model: Reference, inputs: Sequence[FloatArray], limit: float) -> ParityRecord:
    """Largest absolute difference over all `inputs` (float32 NCHW), as a share of the range of PyTorch's outputs."""
    expected, found = _both(runner, model, inputs)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    span = max(float(a.max()) for a in expected) - min(float(a.min()) for a in expected)
    value = difference / span if span > 0 else difference
    return ParityRecord(reference=FLOAT_REFERENCE, metric=FLOAT_METRIC, value=value, limit=limit, passed=value <= limit, runtime=runner.runtime)


@runtime_checkable
class HostTrapped(Protocol):
    """A runner whose runtime may compute inexactly on some processors."""

    def exact_alternatives(self) -> Iterator[Runner]:
        """The same file in other modes that are exact on this machine; none where an experiment shows that it has no such trap."""


def int8_parity(runner: Runner, reference: Reference, inputs: Sequence[FloatArray], limit_db: float) -> ParityRecord:
    """SQNR in dB of the file's outputs against `reference_program`'s, over all `inputs` together.

    A file that fails is tried in the modes that an experiment showed to be exact, on a machine where others are not (`HostTrapped`).
    """
    record = _int8_record(runner, reference, inputs, limit_db)
    if record.passed or not isinstance(runner, HostTrapped):
        return record
    for exact in runner.exact_alternatives():
        again = _int8_record(exact, reference, inputs, limit_db)
        if again.passed:
            return again.model_copy(update={"runtime": f"{exact.runtime} (host artefact: {record.value:.1f} dB in {runner.runtime})"})
    return record


def _int8_record(runner: Runner, reference: Reference, inputs: Sequence[FloatArray], limit_db: float) -> ParityRecord:
    expected, found = _both(runner, reference, inputs)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, found, strict=True))
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)
    value = HIGHEST_DB if noise == 0 else min(HIGHEST_DB, 10 * math.log10(max(signal, 1e-30) / noise))
    return ParityRecord(reference=INT8_REFERENCE, metric=INT8_METRIC, value=value, limit=limit_db, passed=value >= limit_db, runtime=runner.runtime)


def not_executed(reference: str, metric: str, limit: float, why: str) -> ParityRecord:
    """The record of a file that this machine cannot run."""
    return ParityRecord(reference=reference, metric=metric, value=None, limit=limit, passed=None, runtime=f"not executed: {why}")


def _both(runner: Runner, reference: Reference, inputs: Sequence[FloatArray]) -> tuple[list[FloatArray], list[FloatArray]]:
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
