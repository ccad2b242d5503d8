"""Does the exported file compute what PyTorch computes? Float files against the network, INT8 files against the fake-quantized reference.

Files that are FP16 throughout are compared twice. As they are written, with the network whose FP16 is simulated: values between two halves go either
way, so the power of all differences is judged. And computed in FP32, with the network whose constants are rounded: nothing is left there but the
order of sums, and a limit can be so narrow that a changed weight is seen.

How near an INT8 file can come to its reference is a property of the plan: where a value lies half way between two steps, the last bit of a sum
decides, and what is decided there spreads. `own_agreement_db` measures it on the reference alone, by moving its input by a hundredth of a step.

Some processors do not add up 8-bit products exactly. A failure is put down to that only where an experiment has shown that this machine does so, and
the same file, computed in a mode that the experiment found exact, agrees with the reference; the record is then that of the exact mode, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from mcompress.errors import MissingBackendError, ParityError
from mcompress.export.backend import FloatArray, Runner
from mcompress.export.replay import IMAGE_AXES
from mcompress.record import HIGHEST_DB, ParityRecord

if TYPE_CHECKING:
    from torch import Tensor

    Reference = Callable[..., Tensor]
    """Called with all inputs of the network."""

FLOAT_METRIC = "max absolute difference / output range"
INT8_METRIC = "sqnr_db"
FLOAT_REFERENCE, INT8_REFERENCE = "PyTorch fp32", "fake-quantized PyTorch"
NUDGE_STEPS = 0.01
Inputs = tuple[FloatArray, ...]
"""One test input: what the network is called with, float32 as it takes it (NCHW)."""
HALF_REFERENCE, ROUNDED_REFERENCE = "PyTorch, FP16 simulated", "PyTorch, constants in FP16"


def float_parity(runner: Runner, model: Reference, inputs: Sequence[Inputs], limit: float, name: str = FLOAT_REFERENCE) -> ParityRecord:
    """Largest absolute difference over all `inputs`, as a share of the range of PyTorch's outputs."""
    expected, found = _both(runner, model, inputs)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    span = max(float(a.max()) for a in expected) - min(float(a.min()) for a in expected)
    value = difference / span if span > 0 else difference
    return ParityRecord(reference=name, metric=FLOAT_METRIC, value=value, limit=limit, passed=value <= limit, runtime=runner.runtime)


@runtime_checkable
class ComputesFP32(Protocol):
    """A runner of FP16 files that can also be had with FP32 arithmetic."""

    def in_fp32(self) -> Runner:
        """The same file, its constants as stored, all tensors FP32. Raises `MissingBackendError` if it has operators that only its runtime knows."""


@dataclass(frozen=True)
class Halved:
    """The network that a file which is FP16 throughout is compared with; both are in compress/quantize/halves.py."""

    simulated: Reference
    """Every operator's operands and results rounded to half precision."""
    rounded: Reference
    """Constants rounded, everything computed in FP32."""
    limit_db: float
    """Least SQNR of the file as it is written against `simulated`."""


def half_parity(runner: Runner, network: Halved, inputs: Sequence[Inputs], limit: float) -> ParityRecord:
    """SQNR in dB of a file that is FP16 throughout against `network.simulated`, over all `inputs` together.

    Where the runner computes in FP32 as well (`ComputesFP32`), the file also has to be within `limit`, a share of the range, of `network.rounded`:
    the record is of that comparison if it fails, and its `runtime` says how it came out otherwise, or why it could not be made.
    """
    note = ""
    if isinstance(runner, ComputesFP32):
        try:
            exact = float_parity(runner.in_fp32(), network.rounded, inputs, limit, ROUNDED_REFERENCE)
        except MissingBackendError as problem:
            note = f"; not compared with {ROUNDED_REFERENCE}, for which it would have to be computed in FP32: {problem}"
        else:
            if not exact.passed:
                return exact
            note = f"; computed in FP32 it is within {exact.value:.1e} of the range of {ROUNDED_REFERENCE}, limit {limit:g}"
    record = _sqnr(runner, network.simulated, inputs, network.limit_db, HALF_REFERENCE)
    return record.model_copy(update={"runtime": record.runtime + note})


@runtime_checkable
class HostTrapped(Protocol):
    """A runner whose runtime may compute inexactly on some processors."""

    def exact_alternatives(self) -> Iterator[Runner]:
        """The same file in other modes that are exact on this machine; none where an experiment shows that it has no such trap."""


def int8_parity(runner: Runner, reference: Reference, inputs: Sequence[Inputs], limit_db: float) -> ParityRecord:
    """SQNR in dB of the file's outputs against `reference_program`'s, over all `inputs` together.

    A file that fails is tried in the modes that an experiment showed to be exact, on a machine where others are not (`HostTrapped`).
    """
    record = _sqnr(runner, reference, inputs, limit_db, INT8_REFERENCE)
    if record.passed or not isinstance(runner, HostTrapped):
        return record
    for exact in runner.exact_alternatives():
        again = _sqnr(exact, reference, inputs, limit_db, INT8_REFERENCE)
        if again.passed:
            return again.model_copy(update={"runtime": f"{exact.runtime} (host artefact: {record.value:.1f} dB in {runner.runtime})"})
    return record


def own_agreement_db(reference: Reference, inputs: Sequence[Inputs]) -> float:
    """SQNR in dB of what the reference makes of `inputs` against what it makes of them moved by a hundredth of an 8-bit step at most.

    The step of a picture, or of whatever else the network takes, is a 255th of the range of its values over all `inputs`. Numbers of things (words
    of a table, steps) stay as they are: a word beside the one that was meant is another input, not a rounding of it.
    """
    chance, noise, signal = np.random.default_rng(0), 0.0, 0.0
    bounds = [_bounds(values) for values in zip(*inputs, strict=True)]
    for values in inputs:
        moved = tuple(_moved(value, low, high, chance) for value, (low, high) in zip(values, bounds, strict=True))
        expected, again = (computed(reference, one).astype(np.float64) for one in (values, moved))
        noise, signal = noise + float(np.square(expected - again).sum()), signal + float(np.square(expected).sum())
    return HIGHEST_DB if noise == 0 else min(HIGHEST_DB, 10 * math.log10(max(signal, 1e-30) / noise))


def _bounds(values: Sequence[FloatArray]) -> tuple[float, float]:
    """Of one of the network's inputs, over all test inputs: the range of its values, an empty one where it numbers things."""
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    numbers = all(one.ndim < IMAGE_AXES and bool((one == np.round(one)).all()) for one in values)
    return (low, low) if numbers else (low, high)


def _moved(value: FloatArray, low: float, high: float, chance: np.random.Generator) -> FloatArray:
    if low == high:
        return value
    nudge = NUDGE_STEPS * (high - low) / 255.0
    return np.clip(value + chance.uniform(-nudge, nudge, value.shape), low, high).astype(np.float32)


def computed(reference: Reference, values: Inputs) -> FloatArray:
    """What PyTorch gives for one test input."""
    import torch

    with torch.no_grad():
        result: FloatArray = reference(*(torch.from_numpy(np.ascontiguousarray(value)) for value in values)).numpy()
    return result


def _sqnr(runner: Runner, reference: Reference, inputs: Sequence[Inputs], limit_db: float, name: str) -> ParityRecord:
    expected, found = _both(runner, reference, inputs)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, found, strict=True))
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)
    value = HIGHEST_DB if noise == 0 else min(HIGHEST_DB, 10 * math.log10(max(signal, 1e-30) / noise))
    return ParityRecord(reference=name, metric=INT8_METRIC, value=value, limit=limit_db, passed=value >= limit_db, runtime=runner.runtime)


def not_executed(reference: str, metric: str, limit: float, why: str) -> ParityRecord:
    """The record of a file that this machine cannot run."""
    return ParityRecord(reference=reference, metric=metric, value=None, limit=limit, passed=None, runtime=f"not executed: {why}")


def _both(runner: Runner, reference: Reference, inputs: Sequence[Inputs]) -> tuple[list[FloatArray], list[FloatArray]]:
    """Outputs of PyTorch and of the file; raises `ParityError` for other shapes, NaN or infinity."""
    if not inputs:
        raise ParityError("parity needs at least one input; the task gave no held-out samples")
    expected = [computed(reference, values) for values in inputs]
    found = [runner.run(*values) for values in inputs]
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise ParityError(f"{runner.runtime} returned shape {b.shape}, PyTorch {a.shape}")
        if not np.isfinite(b).all():
            raise ParityError(f"{runner.runtime} returned NaN or infinity where PyTorch did not; the file must not be used")
    return expected, found
