"""The proof that a written file computes what PyTorch computes: parity, and where that fails, the first operator that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError, ParityError, StageError
from mcompress.export.backend import Runner, Written
from mcompress.export.divergence import examine
from mcompress.export.parity import Halved, Inputs, computed, float_parity, half_parity, int8_parity, own_agreement_db
from mcompress.export.stated import INT8_SQNR_DB
from mcompress.record import DivergenceRecord, ParityRecord
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan


OWN_MARGIN_DB = 1.5
"""A file may be so much further from its reference than the reference is from itself: the two are measured on the same few pictures."""


@dataclass(frozen=True)
class Networks:
    """What a file is compared with."""

    module: nn.Module
    """The network that it was written from."""
    reference: Callable[..., Tensor]
    """The same as planned."""
    inputs: Sequence[Inputs]
    """Each as the network is called, float32 NCHW."""


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
        divergence = _searched(backend, written, networks, plan, runner).divergence if networks.inputs else None
        raise ParityError(f"{written.path.name}: {problem}" + (f". {divergence.sentence()}" if divergence is not None else "")) from problem
    if parity.passed is not False:
        return Proof(parity)
    search = _searched(backend, written, networks, plan, runner)
    usual = limit == INT8_SQNR_DB  # who asks for another limit gets an answer to that
    if plan is None or not usual or not search.each_is_right or parity.value is None:
        return Proof(parity, search.divergence, search.doubts)
    # Every operator is right by itself. Then the file may be as far from the reference as the reference is from itself.
    agreement_db = own_agreement_db(networks.reference, networks.inputs)
    own_limit_db = round(agreement_db - OWN_MARGIN_DB, 2)
    if not own_limit_db <= parity.value < limit:
        return Proof(parity, None, search.doubts)
    why = f"the plan itself agrees only to {agreement_db:.1f} dB with what it computes when its input moves by a hundredth of an 8-bit step"
    alone = "each operator, recomputed from what the runtime gives it for the worst picture, is within its tolerance"
    reason = f"{why}; {alone}, so {own_limit_db:g} dB are asked for, not {limit:g}"
    passed = parity.model_copy(update={"limit": own_limit_db, "passed": True})
    return Proof(passed, None, (Fallback(where=f"export {written.path.name}", what="parity limit", reason=reason),))


def worst_input(runner: Runner, reference: Callable[..., Tensor], inputs: Sequence[Inputs]) -> Inputs:
    """The input for which the file is furthest from the reference; one that gives NaN, infinity or another shape before all others."""

    def far(values: Inputs) -> float:
        with np.errstate(invalid="ignore"):
            expected, given = computed(reference, values), runner.run(*values)
            difference = float(np.abs(given - expected).max()) if given.shape == expected.shape else np.inf
        return difference if np.isfinite(difference) else np.inf

    return max(inputs, key=far)


@dataclass(frozen=True)
class _Search:
    """What was found where parity fails; `each_is_right`: every operator was looked at by itself, and so was the result for the worst input."""

    divergence: DivergenceRecord | None = None
    doubts: tuple[Fallback, ...] = ()
    each_is_right: bool = False


def _searched(backend: str, written: Written, networks: Networks, plan: PrecisionPlan | None, runner: Runner) -> _Search:
    where, what = f"export {written.path.name}", "the first operator that diverges"
    try:
        values = worst_input(runner, networks.reference, networks.inputs)
        found = examine(backend, written.path, networks.module, plan, written.operators, *values)
    except (ExportError, StageError) as problem:
        return _Search(doubts=(Fallback(where=where, what=what, reason=f"it could not be looked for: {problem}"),))
    if found.divergence is not None:
        return _Search(found.divergence)
    reason = "every operator that can be looked at is within its tolerance, and so is what they give together for the worst input"
    unseen = f"; these could not be looked at by themselves: {', '.join(found.not_alone)}" if found.not_alone else ""
    return _Search(None, (Fallback(where=where, what=what, reason=reason + unseen),), each_is_right=not found.not_alone)
