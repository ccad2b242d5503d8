"""Graphs inside the nodes of an ONNX graph - branches of `If`, bodies of `Loop` and `Scan`: which of them run, and how often.

The branch of an `If` whose condition is known is what runs; of one that an execution decides, the dearer branch is counted. A body runs as often as
its node says, and is put in its place as many times (`mcompress.export.tables.onnx_unrolled`). What cannot be put in place (the number of passes is
not known, or is so large that the graph would be) stays one node, which the table names and does not know; `Opened.macs` has what its body costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import OWN, Numbers, bodies, constant_of, first_result, label, number, numbers
from mcompress.export.tables.onnx_unrolled import Pieces, inlined, unrolled_loop, unrolled_scan

if TYPE_CHECKING:
    import onnx

Work = tuple[int, int]
"""Multiply-adds, and elements moved."""
MOST_NODES = 5000
"""A body that would become more nodes than these stays one node."""
HELD = ("If", "Loop", "Scan")
_BRANCHES = ("then_branch", "else_branch")
_ENDLESS = 2**31
"""Passes from which on a number of passes is a way to say that there is no limit."""


@dataclass
class Opened:
    """What was decided about nodes that hold graphs."""

    notes: list[str] = field(default_factory=list)
    """What was assumed, for people."""
    macs: dict[str, int] = field(default_factory=dict)
    """Result -> multiply-adds of the body of a node that was left as it is, times its passes."""


@dataclass(frozen=True)
class Surroundings:
    """What is known about the graph in which the nodes stand."""

    known: Mapping[str, Numbers]
    """Constants that are short."""
    shapes: Mapping[str, Shape]
    cost: Callable[[onnx.GraphProto, Mapping[str, Shape]], Work | None]
    """Of a graph, given the shapes of what enters it; None where its sizes are not known."""


def holds_bodies(graph: onnx.GraphProto) -> bool:
    """Whether a node of the graph holds graphs that this module opens."""
    return any(_holds_bodies(node) for node in graph.node)


def open_known(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> bool:
    """Put in place, in `graph`, what is known to run; whether there was anything."""
    return _replaced(graph, lambda node: _known(node, around, opened))


def open_assumed(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> bool:
    """Put in place the dearer branch of the first `If` that an execution decides; whether there was one."""
    done: list[str] = []

    def chosen(node: onnx.NodeProto) -> Pieces | None:
        if node.op_type != "If" or done:
            return None
        works = [(around.cost(branch, around.shapes), branch) for branch in _branches(node)]
        sized = [(work, branch) for work, branch in works if work is not None]
        if not sized:
            return None
        done.append(node.name)
        opened.notes.append(f"If '{label(node)}' takes its dearer branch")
        return inlined(node, max(sized, key=lambda one: one[0])[1])

    return _replaced(graph, chosen)


def measure_closed(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> None:
    """Note what the bodies of nodes cost that stay."""
    for node in graph.node:
        if not _holds_bodies(node):
            continue
        if node.op_type == "If":
            opened.macs[first_result(node)] = max((work[0] for one in _branches(node) if (work := around.cost(one, around.shapes))), default=0)
            continue
        passes = _passes(node, around)
        (body,) = bodies(node)
        work = around.cost(body, dict(around.shapes) | _entering(node, body, around.shapes))
        opened.macs[first_result(node)] = (1 if passes is None else passes) * (work[0] if work else 0)
        if passes is None:
            opened.notes.append(f"how often {node.op_type} '{label(node)}' runs is not known, and once is counted")


def describe_closed(graph: onnx.GraphProto, around: Surroundings) -> bool:
    """Give the results of loops that stay the sizes of what enters them, which no inference does; whether there were any without."""
    changed = False
    for node in (node for node in graph.node if _holds_bodies(node) and node.op_type == "Loop"):
        for result, source in zip(node.output, node.input[2:], strict=False):
            if not result or result in around.shapes or source not in around.shapes:
                continue
            for item in (item for item in (*graph.value_info, *graph.output) if item.name == result):
                item.type.tensor_type.ClearField("shape")
                item.type.tensor_type.shape.SetInParent()
                for size in around.shapes[source]:
                    item.type.tensor_type.shape.dim.add().dim_value = size
                changed = True
    return changed


def _holds_bodies(node: onnx.NodeProto) -> bool:
    return node.op_type in HELD and node.domain in OWN


def _replaced(graph: onnx.GraphProto, pieces_of: Callable[[onnx.NodeProto], Pieces | None]) -> bool:
    kept: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        pieces = pieces_of(node) if _holds_bodies(node) else None
        if pieces is None:
            kept.append(node)
            continue
        changed = True
        kept += pieces.nodes
        graph.initializer.extend(pieces.constants)
        # What was inferred of the node's results was inferred of everything that may run.
        written = set(node.output)
        noted = [item for item in graph.value_info if item.name not in written]
        del graph.value_info[:]
        graph.value_info.extend(noted + pieces.described)
    if changed:
        del graph.node[:]
        graph.node.extend(kept)
    return changed


def _known(node: onnx.NodeProto, around: Surroundings, opened: Opened) -> Pieces | None:
    if node.op_type == "If":
        condition = around.known.get(node.input[0])
        return None if condition is None else inlined(node, _branches(node)[0 if condition.any() else 1])
    passes = _passes(node, around)
    (body,) = bodies(node)
    if passes is None or passes * _size(body) > MOST_NODES or (passes < 1 and (node.op_type == "Scan" or len(node.output) > len(node.input) - 2)):
        return None
    if node.op_type == "Scan":
        return unrolled_scan(node, body, passes, around.shapes)
    if not _goes_on(body):
        opened.notes.append(f"Loop '{label(node)}' runs all of its {passes} passes")
    return unrolled_loop(node, body, passes)


def _passes(node: onnx.NodeProto, around: Surroundings) -> int | None:
    """How often a body runs, at most; None where that is not known."""
    if node.op_type == "Loop":
        if len(node.input) > 1 and node.input[1] in around.known and not around.known[node.input[1]].any():
            return 0
        limit = around.known.get(node.input[0])
        return int(limit.reshape(-1)[0]) if limit is not None and limit.size and int(limit.reshape(-1)[0]) < _ENDLESS else None
    states = len(node.input) - number(node, "num_scan_inputs", 0)
    axes = numbers(node, "scan_input_axes") or (0,) * (len(node.input) - states)
    shape = around.shapes.get(node.input[states]) if len(node.input) > states else None
    return None if shape is None else shape[axes[0]]


def _entering(node: onnx.NodeProto, body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the inputs of a body."""
    names = [item.name for item in body.input]
    if node.op_type == "Loop":
        return {name: shapes[source] for name, source in zip(names[2:], node.input[2:], strict=False) if source in shapes} | dict.fromkeys(
            names[:2], ()
        )
    states = len(node.input) - number(node, "num_scan_inputs", 0)
    axes = (None,) * states + (numbers(node, "scan_input_axes") or (0,) * (len(names) - states))
    found = {}
    for name, source, axis in zip(names, node.input, axes, strict=False):
        if source in shapes:
            whole = shapes[source]
            found[name] = whole if axis is None else tuple(size for at, size in enumerate(whole) if at != axis % len(whole))
    return found


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether a body always asks for the next pass: its condition is the one that it was given, or true."""
    made = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    held = next((item for item in body.initializer if item.name == name), constant_of(made[name]) if name in made else None)
    if held is not None:
        from onnx import numpy_helper

        return bool(numpy_helper.to_array(held).any())
    return bool(name == body.input[1].name)


def _size(graph: onnx.GraphProto) -> int:
    """Nodes, those of graphs within included."""
    return len(graph.node) + sum(_size(inner) for node in graph.node for inner in bodies(node))


def _branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Of an `If`, the one for true first."""
    return [item.g for name in _BRANCHES for item in node.attribute if item.name == name]
