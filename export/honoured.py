"""Does a written file hold the plan? Every operator of the file is read back with its precision, and compared with what was planned for it.

A backend reads its own file and says, operator by operator, which operators of the plan it stands for; the comparison is one for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.record import OperatorFallback
from mcompress.targets.speeds import PrecisionName


@dataclass(frozen=True)
class FileOperator:
    """One operator of a written file. Conversions between precisions are none."""

    name: str
    """In the file, as the runtime's own tools call it; unique in the file."""
    kind: str
    """In the file's words: `CONV_2D`, `XNNConv2d`, `conv`."""
    stands_for: tuple[str, ...]
    """Names of the plan's operators (nodes of the exported program) whose work it does, in execution order: a convolution with its fused activation
    has two, one of the three steps of a pixel shuffle names the pixel shuffle. Empty for one that the converter added."""
    precision: PrecisionName
    """What the file holds: the type of its weights and of the tensors between which it stands."""
    computed: PrecisionName
    """What this machine's runtime computes it in; wider than `precision` where it has no such kernel."""
    unit: str
    """Where this machine's runtime computes it: `xnnpack`, `builtin`, `cpu`."""
    output: str | None = None
    """Tensor of the file that holds its result, by the name or number under which the runtime can be asked for it; None if it cannot."""
    reason: str = ""
    """Why `precision` or `computed` is not what the plan says; empty where it is."""


class _Stands(Protocol):
    @property
    def stands_for(self) -> tuple[str, ...]: ...


Standing = TypeVar("Standing", bound=_Stands)


def standing_for(operators: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Operator of the plan -> the operators of the file that do its work, as read back or as recorded, in the file's order."""
    found: dict[str, list[Standing]] = {}
    for operator in operators:
        for name in operator.stands_for:
            found.setdefault(name, []).append(operator)
    return found


def precision_of_steps(steps: Iterable[str], planned: str) -> str:
    """The precision of an operator of the plan that a file does in these steps: it departs if one of them does, and is as planned without any."""
    return next((precision for precision in steps if precision != planned), planned)


def counts_of(operators: Sequence[FileOperator]) -> dict[str, int]:
    """Operators per precision that the file holds, always with the keys int8, fp16 and fp32."""
    found = Counter(operator.precision for operator in operators)
    return {name: found[name] for name in ("int8", "fp16", "fp32")}


def units_of(operators: Sequence[FileOperator]) -> dict[str, int]:
    """Operators per unit."""
    return dict(Counter(operator.unit for operator in operators))


def departures(
    backend: str, plan: PrecisionPlan | None, operators: Sequence[FileOperator], reasons: Mapping[str, str]
) -> tuple[OperatorFallback, ...]:
    """Where the file is not what was planned, each with its reason; nothing for a float file, which has no plan.

    `reasons` says per kind of the plan (`conv_transpose2d`) what the backend cannot do; an operator's own `reason` comes first.
    """
    return tuple(_departures(backend, plan, operators, reasons)) if plan is not None else ()


def _departures(backend: str, plan: PrecisionPlan, operators: Sequence[FileOperator], reasons: Mapping[str, str]) -> Iterator[OperatorFallback]:
    standing = standing_for(operators)
    for planned in plan.operators:
        found = standing.get(planned.name, [])
        other = next((operator for operator in found if operator.precision != planned.precision), None)
        if other is not None:
            why = other.reason or reasons.get(planned.kind) or f"{backend} does not write {planned.kind} in {planned.precision}"
            yield OperatorFallback(operator=planned.name, reason=f"planned {planned.precision}, the file holds {other.precision}: {why}")
            continue
        wider = next((operator for operator in found if operator.computed != operator.precision), None)
        if wider is not None:
            why = wider.reason or f"this machine's runtime has no {wider.precision} kernel for {wider.kind}"
            yield OperatorFallback(operator=planned.name, reason=f"{planned.precision} in the file, computed in {wider.computed} here: {why}")
        elif not found and planned.kind not in _MAY_VANISH:
            yield OperatorFallback(operator=planned.name, reason=f"planned {planned.precision}, and not in the file: {backend} merged or removed it")
    unplanned = {planned.name for planned in plan.operators}
    for operator in operators:
        strange = [name for name in operator.stands_for if name not in unplanned]
        if strange:
            yield OperatorFallback(operator=operator.name, reason=f"it stands for {', '.join(strange)}, which the plan does not know")


_MAY_VANISH = frozenset(
    (
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "slice",
        "clone",
        "contiguous",
        "relu",
        "relu6",
        "clamp",
        "hardtanh",
    )
)
"""Kinds that converters rightly merge into their neighbours: they copy values, or clip them where they are made."""
