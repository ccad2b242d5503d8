"""The first wrong operator of an ExecuTorch file, whose runtime gives no results from inside.

The network is written once more, by the same steps, with the results of all operators as outputs (`executorch_prefix`). Where that file gives the
same result as the one in question, each operator is recomputed from the others' results, as in the files of other runtimes.

Otherwise the network is written as far as one operator, and its result compared with PyTorch's. A wrong result leaves its operator and those that it
depends on as suspects, a right one clears them; about log2(n) operators are asked, as in a search for the change that broke a program. The operator
that is left is then recomputed from what ExecuTorch gives for its inputs, so that it is not blamed for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx, nn

from mcompress.errors import ExportError
from mcompress.export.backend import FloatArray
from mcompress.export.divergence_reference import OF_LARGEST, Expected, Found

if TYPE_CHECKING:
    from mcompress.compress.quantize.plan import PrecisionPlan

SAME = 1e-6
"""Two files of one network may differ by this share of the largest value."""


def first_in_prefixes(module: nn.Module, expected: Expected, inputs: Sequence[FloatArray], output: FloatArray) -> Found | None:
    """The operator with which the results become wrong; None where none does. `output` is what the whole file gives for `inputs`.

    A file that is not what the network would be written as now was changed, or is another network's: no operator is named then.
    Raises `ExportError` where nothing is wrong with `output`, and the results of the operators cannot be had.
    """
    nodes = [node for node in expected.operators if expected.rounds(node) or expected.planned(node.name) != "int8"]
    last, given = expected.end, torch.from_numpy(np.array(output, dtype=np.float32))
    values, problem = _values(module, expected, [node.name for node in nodes], inputs)
    if last.name in values and _difference(values[last.name], given) <= SAME:
        return expected.first_alone(values) or expected.first_grown(values)
    prefix = _Prefixes(module, expected.plan, inputs)
    whole = prefix(last.name)
    difference = 0.0 if whole is None or whole.shape != given.shape else _difference(whole, given)
    if not difference <= SAME:
        everything = frozenset(node.name for node in expected.operators)
        return Found(
            (last,), OF_LARGEST, difference, SAME, alone=True, exact=expected.exact[last.name], given=given, seen=everything, whole_file=True
        )
    if expected.judge_grown(last, given) is None:
        raise ExportError(f"the results of its operators cannot be looked at: {problem}")
    return bisected(expected, nodes, prefix)


def _values(module: nn.Module, expected: Expected, names: Sequence[str], inputs: Sequence[FloatArray]) -> tuple[dict[str, Tensor], str]:
    """What a file with the results of the operators `names` as outputs gives for them, and why they are of no use if the last is another one."""
    from mcompress.export import executorch_prefix

    try:
        found = executorch_prefix.operator_outputs(module, expected.plan, names, inputs)
    except ExportError as problem:
        return {}, str(problem)
    values = {name: torch.from_numpy(np.array(result, dtype=np.float32)) for name, result in found.items()}
    return values, "ExecuTorch computes another result where all of them are outputs"


def _difference(found: Tensor, given: Tensor) -> float:
    """Largest, as a share of the largest value that was `found`."""
    return float((found - given).abs().max()) / max(float(found.abs().max()), torch.finfo(torch.float32).tiny)


def bisect(ancestors: Mapping[str, frozenset[str]], end: str, is_wrong: Callable[[str], bool | None]) -> str:
    """The first wrong one among `end`, which is wrong, and what it depends on (`ancestors`, each with itself).

    `is_wrong` gives None where it cannot say. Asks for the one that splits the suspects most evenly.
    """
    suspects, silent = set(ancestors[end]), set[str]()
    while len(suspects) > 1:
        asked = sorted(suspects - {end} - silent, key=lambda name: (abs(2 * len(ancestors[name] & suspects) - len(suspects)), name))
        if not asked:
            return end
        wrong = is_wrong(asked[0])
        if wrong is None:
            silent.add(asked[0])
        elif wrong:
            end, suspects = asked[0], suspects & ancestors[asked[0]]
        else:
            suspects -= ancestors[asked[0]]
    return end


def ancestors_of(nodes: Sequence[fx.Node]) -> dict[str, frozenset[str]]:
    """Operator -> those of `nodes`, in execution order, whose results reach it, and itself; others in between are passed through."""
    names = {node.name for node in nodes}
    found: dict[fx.Node, frozenset[str]] = {}
    for node in nodes[-1].graph.nodes:
        before = frozenset[str]().union(*(found[source] for source in node.all_input_nodes))
        found[node] = before | {node.name} if node.name in names else before
    return {node.name: found[node] for node in nodes}


def bisected(expected: Expected, nodes: Sequence[fx.Node], prefix: Callable[[str], Tensor | None]) -> Found | None:
    """The first of `nodes` that is wrong, when the last is; `prefix` gives the result of a file that ends at one, None where no such file can be.

    What a right result behind it cleared counts as seen, and so does what was not asked because nothing wrong comes from there.
    """
    by_name, ancestors = {node.name: node for node in nodes}, ancestors_of(nodes)
    silent, cleared = set[str](), set[str]()

    def is_wrong(name: str) -> bool | None:
        value = prefix(name)
        if value is None:
            silent.add(name)
            return None
        if expected.judge_grown(by_name[name], value) is not None:
            return True
        cleared.update(ancestors[name])
        return False

    node = by_name[bisect(ancestors, expected.end.name, is_wrong)]
    near = _near(expected, node, by_name.keys())
    while missing := {name for name in near if prefix(name) is None}:
        silent |= missing
        near = _near(expected, node, by_name.keys() - silent)
    values = {name: value for name in (*sorted(near), node.name) if (value := prefix(name)) is not None}
    if node.name not in values:
        return None
    found = expected.judge_alone(node, values) or expected.judge_grown(node, values[node.name])
    unseen = (silent & ancestors[node.name]) - cleared
    return None if found is None else replace(found, seen=found.seen | {each.name for each in expected.operators if each.name not in unseen})


def _near(expected: Expected, node: fx.Node, known: Set[str]) -> Set[str]:
    """Those of the `known` results that `node` can be computed from."""
    return {source.name for each in expected.behind(node, known) for source in each.all_input_nodes} & known


class _Prefixes:
    """Results of files that end at an operator, each written once."""

    def __init__(self, module: nn.Module, plan: PrecisionPlan | None, inputs: Sequence[FloatArray]) -> None:
        self._module, self._plan, self._inputs = module, plan, inputs
        self._known: dict[str, Tensor | None] = {}

    def __call__(self, name: str) -> Tensor | None:
        """None where ExecuTorch cannot write a file that ends at this operator."""
        from mcompress.export import executorch_prefix

        if name not in self._known:
            try:
                given = executorch_prefix.prefix_output(self._module, self._plan, name, self._inputs)
                self._known[name] = torch.from_numpy(np.array(given, dtype=np.float32))
            except ExportError:
                self._known[name] = None
        return self._known[name]
