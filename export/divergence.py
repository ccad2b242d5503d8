"""The first operator of an exported file that does not compute what it should, with its module, its precision and what can be done.

Where the runtime can be asked for the results inside a file, every operator is recomputed in PyTorch from the file's own inputs to it, as the plan
says: errors that it was given are not its own, however much they have grown. Only where no operator is wrong in itself is the file's result compared
with PyTorch's for the whole network, which it leaves where roundings add up. ExecuTorch cannot be asked, other files of the same network can; see
`divergence_prefixes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.export import backend_named
from mcompress.export.backend import FloatArray, encode_all
from mcompress.export.honoured import FileOperator
from mcompress.record import NO_OPERATOR, DivergenceRecord

if TYPE_CHECKING:
    from torch import fx, nn

    from mcompress.compress.quantize.plan import PrecisionPlan
    from mcompress.export.divergence_reference import Expected, Found

WITHOUT_VALUES = "executorch"
"""The backend whose runtime gives no results from inside a file."""


@dataclass(frozen=True)
class Examined:
    """What is known of a file's operators for one test input."""

    divergence: DivergenceRecord | None
    """The first that leaves its tolerance; None where none does that could be looked at."""
    not_alone: tuple[str, ...]
    """Operators of the network that were not recomputed from the file's own inputs to them, in execution order; there are such where one was found
    before them."""


def examine(
    backend: str, path: Path, module: nn.Module, plan: PrecisionPlan | None, operators: Sequence[FileOperator], *values: FloatArray
) -> Examined:
    """Look for the first operator of `path` that leaves its tolerance for the inputs `values` (float32 NCHW of the network's shapes).

    `module` is the network that the file was written from, `plan` its precisions (None for a float file), `operators` those of `Written`.
    Raises `ExportError` for a file that cannot be run, and for an ExecuTorch file without a wrong result whose operators cannot be looked at.
    """
    from mcompress.export.divergence_prefixes import first_in_prefixes
    from mcompress.export.divergence_reference import Expected

    runner = backend_named(backend).load(path, 1)
    encoded = encode_all(runner.inputs, values)
    read = [port.decode(one) for port, one in zip(runner.inputs, encoded, strict=True)]
    expected = Expected(module, plan, operators, values, read)
    if backend == WITHOUT_VALUES:
        found = first_in_prefixes(module, expected, values, runner.run(*values))
    else:
        from mcompress.export.divergence_values import values_in_file

        given = values_in_file(backend, path, encoded, operators, expected.exact, {} if plan is None else plan.ranges)
        found = expected.first_alone(given) or expected.first_grown(given)
    return Examined(None if found is None else _described(expected, found, operators), expected.not_alone())


def _described(expected: Expected, found: Found, operators: Sequence[FileOperator]) -> DivergenceRecord:
    from mcompress.compress.quantize import kinds
    from mcompress.export.divergence_advice import suggestion_for

    head = _head(found.nodes)
    names = [node.name for node in found.nodes]
    doing = [operator for operator in operators if set(operator.stands_for) & set(names)]
    own = next((operator for operator in doing if head.name in operator.stands_for), doing[-1] if doing else None)
    place = operators.index(own) if own is not None else len(operators)
    return DivergenceRecord(
        operator=NO_OPERATOR if found.whole_file else head.name,
        together=() if found.whole_file else tuple(name for name in names if name != head.name),
        in_file="" if own is None else own.name,
        module="" if found.whole_file else expected.module_of(head),
        kind=kinds.kind_of(head),
        precision=expected.stated(head.name),
        planned=expected.planned(head.name),
        measure=found.measure,
        value=found.value if math.isfinite(found.value) else None,
        limit=found.limit,
        alone=found.alone,
        suggestion=suggestion_for(found, head, expected),
        not_seen=_not_seen(operators[:place], found),
    )


def _head(nodes: Sequence[fx.Node]) -> fx.Node:
    """The operator with weights among several that were computed together, else the last."""
    from mcompress.compress.quantize import kinds

    return next((node for node in nodes if node.target in kinds.WEIGHTED), nodes[-1])


def _not_seen(before: Sequence[FileOperator], found: Found) -> tuple[str, ...]:
    return tuple(operator.name for operator in before if operator.stands_for and not set(operator.stands_for) & found.seen)
