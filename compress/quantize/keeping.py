"""Operators that the target keeps in a float precision: found by their names, or by the paths of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import Precision
from mcompress.errors import StageError
from mcompress.targets.names import near


def kept_operators(module: fx.GraphModule, keep: Mapping[str, Precision]) -> dict[str, Precision]:
    """Operator of `module` (the graph of an exported program) -> the precision that `keep` gives it; others are left out.

    A key is an operator's name (`conv2d_3`), a module's path (`blocks.0`, with all that is in it), or a pattern of paths (`blocks.*.project`). Of
    several that name one operator its own name counts, else the last. A ReLU that is fused into an operator is kept with it, and it with its ReLU.
    Raises `StageError` for a key that names nothing, and for an operator and its ReLU that are to differ.
    """
    operators = kinds.operators(module.graph)
    names = {node.name for node in operators}
    found: dict[str, Precision] = {}
    for key in sorted(keep, key=names.__contains__):  # a stable sort: names of operators come last
        named = [node.name for node in operators if node.name == key or (key not in names and _is_in(kinds.module_of(node), key))]
        if not named:
            raise StageError(f"the quantize stage keeps {key!r} in {keep[key]}, and the network has no such operator or module{_known(module, key)}")
        found.update(dict.fromkeys(named, keep[key]))
    for node in operators:
        if kinds.is_fused(node):
            source = node.all_input_nodes[0].name
            if keep.get(source, keep.get(node.name)) != keep.get(node.name, keep.get(source)):
                raise StageError(
                    f"the quantize stage keeps '{source}' in {keep[source]} and '{node.name}', which is fused into it, in {keep[node.name]}; the two "
                    "have one precision. Name one of them"
                )
            precision = keep.get(source) or keep.get(node.name) or found.get(source) or found.get(node.name)
            if precision is not None:
                found[source] = found[node.name] = precision
    return found


def _is_in(path: str, key: str) -> bool:
    return bool(path) and (fnmatchcase(path, key) or fnmatchcase(path, f"{key}.*"))


def _known(module: fx.GraphModule, key: str) -> str:
    operators = kinds.operators(module.graph)
    paths = {".".join(parts[:end]) for node in operators if (parts := kinds.module_of(node).split(".")) for end in range(1, len(parts) + 1)} - {""}
    known = [*(node.name for node in operators), *sorted(paths)]
    return near(key, known) or f"; operators are {', '.join(node.name for node in operators[:5])}, ... (see the bundle's precision_plan.json)"
