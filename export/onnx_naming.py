"""Which operators of the network a node of an ONNX file computes: told by the node's name, `node_conv2d_1` or `node_gelu/Erf`.

Torch's exporter decomposes operators before it translates them and numbers the results anew: what it calls `sqrt` may be a step of the network's
`std`, while the network's own `sqrt` becomes `sqrt_1`. So no name is taken from it. Every operator is marked before the export, the mark survives
the decomposition (torch copies `custom` notes to whatever a node becomes), and the nodes of the file are named by it.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import fx

PREFIX = "node_"
"""Of every node that computes an operator of the network; the others have none."""
AND, STEP = "+", "/"
"""Between the names of operators that one node computes, and behind the name of an operator that takes several nodes. Neither is in an fx name."""
_CUSTOM, _MARK = "custom", "mcompress_operator"
_FX_NODE = "pkg.torch.onnx.fx_node"


def mark_operators(graph: fx.Graph) -> dict[str, tuple[str, ...]]:
    """Note in every call node of `graph` what it is called; node -> names of the operators that it computes.

    An operator is a node that computes a floating-point tensor; of one that gives several tensors, those are its `getitem` nodes. Conversions to and
    from INT8 are none.
    """
    from mcompress.compress.quantize import kinds

    operators = {node.name for node in kinds.operators(graph) if not str(node.target).startswith("quantized_decomposed.")}
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        node.meta[_CUSTOM] = {**(node.meta.get(_CUSTOM) or {}), _MARK: node.name}
        parts = tuple(user.name for user in node.users if user.target is operator.getitem and user.name in operators)
        found[node.name] = (node.name,) if node.name in operators else parts
    return found


def name_nodes(graph: onnx.GraphProto, decomposed: fx.Graph, computes: Mapping[str, tuple[str, ...]]) -> None:
    """Name the nodes of the file that was made of `decomposed`, uniquely, while they still have the exporter's notes."""
    marks = {node.name: (node.meta.get(_CUSTOM) or {}).get(_MARK, "") for node in decomposed.nodes if node.op == "call_function"}
    standing = [computes.get(marks.get(_origin(node, marks), ""), ()) for node in graph.node]
    steps = Counter(standing)
    taken: set[str] = set()
    for node, operators in zip(graph.node, standing, strict=True):
        name = node.name.removeprefix(PREFIX) or node.op_type
        if operators:
            name = PREFIX + AND.join(operators) + (f"{STEP}{node.op_type}" if steps[operators] > 1 else "")
        numbered = (f"{name}_{number}" for number in count(2))
        node.name = name if name not in taken else next(other for other in numbered if other not in taken)
        taken.add(node.name)


def operators_named(name: str) -> tuple[str, ...]:
    """The operators that a node of this name computes, in execution order; none for other nodes."""
    return tuple(name.removeprefix(PREFIX).split(STEP)[0].split(AND)) if name.startswith(PREFIX) else ()


def _origin(node: onnx.NodeProto, marks: Mapping[str, str]) -> str:
    """The node of the decomposed program that this one was made of; empty where nothing says it."""
    noted = next((item.value for item in node.metadata_props if item.key == _FX_NODE), "")
    found = re.match(r"%(\w+)", noted)
    if found is not None:
        return found.group(1)
    written = next((name for name in node.output if name), "")
    return written if written in marks else ""
