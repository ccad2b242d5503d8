"""The proof that a written file computes what PyTorch computes: parity, and where that fails, the first operator that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError, ParityError, StageError
from mcompress.export.backend import FloatArray, Runner, Written
from mcompress.export.divergence import first_divergence
from mcompress.export.parity import Halved, float_parity, half_parity, int8_parity
from mcompress.record import DivergenceRecord, ParityRecord
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan


@dataclass(frozen=True)
class Networks:
    """What a file is compared with."""

    module: nn.Module
    """The network that it was written from."""
    reference: Callable[[Tensor], Tensor]
    """The same as planned."""
    inputs: Sequence[FloatArray]
    """float32 NCHW."""


@dataclass(frozen=True)
class Proof:
    """Whether a file computes what PyTorch computes, and where it stops doing so."""

    parity: ParityRecord
    divergence: DivergenceRecord | None = None
    doubts: tuple[Fallback, ...] = ()
    """Why nothing could be found although parity fails."""


def proven(
    backend: str, written: Written, networks: Networks, plan: PrecisionPlan | None, runner: Runner, limit: float, halved: Halved | None = None
) -> Proof:
    """Parity of `written` on all inputs, and where it fails its first divergence, for the input that is furthest off.

    `limit` is that of `float_parity` without a plan, of `int8_parity` with one, of `half_parity` with `halved`, for files that are FP16 throughout.
    Raises `ParityError` for a file that gives another shape, NaN or infinity, with the operator that does it.
    """
    measure = float_parity if plan is None else int8_parity
    try:
        if halved is None:
            parity = measure(runner, networks.reference, networks.inputs, limit)
        else:
            parity = half_parity(runner, halved, networks.inputs, limit)
    except ParityError as problem:
        divergence, _ = _searched(backend, written, networks, plan, runner) if networks.inputs else (None, ())
        raise ParityError(f"{written.path.name}: {problem}" + (f". {divergence.sentence()}" if divergence is not None else "")) from problem
    if parity.passed is not False:
        return Proof(parity)
    return Proof(parity, *_searched(backend, written, networks, plan, runner))


def worst_input(runner: Runner, reference: Callable[[Tensor], Tensor], inputs: Sequence[FloatArray]) -> FloatArray:
    """The input for which the file is furthest from the reference; one that gives NaN, infinity or another shape before all others."""
    import torch

    def far(value: FloatArray) -> float:
        with torch.no_grad(), np.errstate(invalid="ignore"):
            expected, given = reference(torch.from_numpy(value)).numpy(), runner.run(value)
            difference = float(np.abs(given - expected).max()) if given.shape == expected.shape else np.inf
        return difference if np.isfinite(difference) else np.inf

    return max(inputs, key=far)


def _searched(
    backend: str, written: Written, networks: Networks, plan: PrecisionPlan | None, runner: Runner
) -> tuple[DivergenceRecord | None, tuple[Fallback, ...]]:
    where = f"export {written.path.name}"
    try:
        value = worst_input(runner, networks.reference, networks.inputs)
        found = first_divergence(backend, written.path, networks.module, plan, written.operators, value)
    except (ExportError, StageError) as problem:
        return None, (Fallback(where=where, what="the first operator that diverges", reason=f"it could not be looked for: {problem}"),)
    if found is None:
        reason = "every operator that can be looked at is within its tolerance, and so is what they give together for the worst input"
        return None, (Fallback(where=where, what="the first operator that diverges", reason=reason),)
    return found, ()
