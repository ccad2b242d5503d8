"""Graphs inside the nodes of an ONNX graph - branches of `If`, bodies of `Loop` and `Scan` - put where the node stands.

The branch of an `If` whose condition is known is what runs; of one that an execution decides, the dearer branch is counted. A body runs as often as
its node says, so it stands there as many times, each pass reading what the one before it wrote. What cannot be put in place (the number of passes is
not known, or is so large that the graph would be) stays one node, which the table names and does not know; `Opened.macs` has what its body costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.tables.graph import Shape

if TYPE_CHECKING:
    import onnx

Numbers = NDArray[np.generic]
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


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds."""
    return [graph for item in node.attribute for graph in ((item.g,) if item.HasField("g") else item.graphs)]


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors from outside that the graphs of a node read without being given them."""
    return tuple(dict.fromkeys(name for graph in bodies(node) for name in free_names(graph)))


def free_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a graph reads and does not define."""
    own = _defined(graph)
    for node in graph.node:
        yield from (name for name in (*node.input, *captured(node)) if name and name not in own)
    yield from (item.name for item in graph.output if item.name not in own)


def holds_bodies(graph: onnx.GraphProto) -> bool:
    """Whether a node of the graph holds graphs that this module opens."""
    return any(_is_held(node) for node in graph.node)


def open_known(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> bool:
    """Put in place, in `graph`, what is known to run; whether there was anything."""
    return _replaced(graph, lambda node: _known(node, around, opened))


def open_assumed(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> bool:
    """Put in place the dearer branch of the first `If` that an execution decides; whether there was one."""
    done: list[str] = []

    def chosen(node: onnx.NodeProto) -> _Pieces | None:
        if node.op_type != "If" or done:
            return None
        works = [(around.cost(branch, around.shapes), branch) for branch in _branches(node)]
        sized = [(work, branch) for work, branch in works if work is not None]
        if not sized:
            return None
        done.append(node.name)
        opened.notes.append(f"If '{_label(node)}' takes its dearer branch")
        return _inlined(node, max(sized, key=lambda one: one[0])[1])

    return _replaced(graph, chosen)


def measure_closed(graph: onnx.GraphProto, around: Surroundings, opened: Opened) -> None:
    """Note what the bodies of nodes cost that stay."""
    for node in graph.node:
        if not _is_held(node):
            continue
        if node.op_type == "If":
            opened.macs[_result(node)] = max((work[0] for one in _branches(node) if (work := around.cost(one, around.shapes))), default=0)
            continue
        passes = _passes(node, around)
        (body,) = bodies(node)
        work = around.cost(body, dict(around.shapes) | _entering(node, body, around.shapes))
        opened.macs[_result(node)] = (1 if passes is None else passes) * (work[0] if work else 0)
        if passes is None:
            opened.notes.append(f"how often {node.op_type} '{_label(node)}' runs is not known, and once is counted")


def describe_closed(graph: onnx.GraphProto, around: Surroundings) -> bool:
    """Give the results of loops that stay the sizes of what enters them, which no inference does; whether there were any without."""
    changed = False
    for node in (node for node in graph.node if _is_held(node) and node.op_type == "Loop"):
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


@dataclass(frozen=True)
class _Pieces:
    """What takes the place of a node."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    described: list[onnx.ValueInfoProto]


def _is_held(node: onnx.NodeProto) -> bool:
    return node.op_type in HELD and node.domain in ("", "ai.onnx")


def _replaced(graph: onnx.GraphProto, pieces_of: Callable[[onnx.NodeProto], _Pieces | None]) -> bool:
    kept: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        pieces = pieces_of(node) if _is_held(node) else None
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


def _known(node: onnx.NodeProto, around: Surroundings, opened: Opened) -> _Pieces | None:
    if node.op_type == "If":
        condition = around.known.get(node.input[0])
        return None if condition is None else _inlined(node, _branches(node)[0 if condition.any() else 1])
    passes = _passes(node, around)
    (body,) = bodies(node)
    if passes is None or passes * _size(body) > MOST_NODES or (passes < 1 and (node.op_type == "Scan" or len(node.output) > len(node.input) - 2)):
        return None
    if node.op_type == "Scan":
        return _unrolled_scan(node, body, passes, around.shapes)
    if not _goes_on(body):
        opened.notes.append(f"Loop '{_label(node)}' runs all of its {passes} passes")
    return _unrolled_loop(node, body, passes)


def _passes(node: onnx.NodeProto, around: Surroundings) -> int | None:
    """How often a body runs, at most; None where that is not known."""
    if node.op_type == "Loop":
        if len(node.input) > 1 and node.input[1] in around.known and not around.known[node.input[1]].any():
            return 0
        limit = around.known.get(node.input[0])
        return int(limit.reshape(-1)[0]) if limit is not None and limit.size and int(limit.reshape(-1)[0]) < _ENDLESS else None
    states = len(node.input) - _integer(node, "num_scan_inputs")
    axes = _integers(node, "scan_input_axes") or (0,) * (len(node.input) - states)
    shape = around.shapes.get(node.input[states]) if len(node.input) > states else None
    return None if shape is None else shape[axes[0]]


def _inlined(node: onnx.NodeProto, branch: onnx.GraphProto) -> _Pieces:
    pieces = _Pieces([], [], [])
    results = _copied(branch, f"{_result(node)}/", f"{_label(node)}/", {}, pieces)
    _forwarded(zip(results, node.output, strict=False), pieces)
    return pieces


def _unrolled_loop(node: onnx.NodeProto, body: onnx.GraphProto, passes: int) -> _Pieces:
    from onnx import numpy_helper

    pieces = _Pieces([], [], [])
    carried, scanned = list(node.input[2:]), list[list[str]]()
    true = f"{_result(node)}/true"
    pieces.constants.append(numpy_helper.from_array(np.array(True), true))
    for index in range(passes):
        number = f"{_result(node)}/{index}"
        pieces.constants.append(numpy_helper.from_array(np.array(index, np.int64), number))
        given = dict(zip((item.name for item in body.input), (number, true, *carried), strict=False))
        results = _copied(body, f"{number}/", f"{_label(node)}/{index}/", given, pieces)[1:]
        carried = results[: len(carried)]
        scanned.append(results[len(carried) :])
    _forwarded(zip(carried, node.output, strict=False), pieces)
    _gathered(node, scanned, list(node.output)[len(carried) :], [0] * len(node.output), pieces)
    return pieces


def _unrolled_scan(node: onnx.NodeProto, body: onnx.GraphProto, passes: int, shapes: Mapping[str, Shape]) -> _Pieces:
    from onnx import helper, numpy_helper

    pieces = _Pieces([], [], [])
    states = len(node.input) - _integer(node, "num_scan_inputs")
    carried, sequences, scanned = list(node.input[:states]), list(node.input[states:]), list[list[str]]()
    axes = _integers(node, "scan_input_axes") or (0,) * len(sequences)
    backwards = _integers(node, "scan_input_directions") or (0,) * len(sequences)
    for index in range(passes):
        given = dict(zip((item.name for item in body.input), carried, strict=False))
        for item, sequence, axis, back in zip(body.input[states:], sequences, axes, backwards, strict=True):
            at, one = f"{_result(node)}/{index}/{item.name}/at", f"{_result(node)}/{index}/{item.name}/given"
            pieces.constants.append(numpy_helper.from_array(np.array(passes - 1 - index if back else index, np.int64), at))
            pieces.nodes.append(helper.make_node("Gather", [sequence, at], [one], axis=axis % len(shapes[sequence]) if axis < 0 else axis))
            given[item.name] = one
        results = _copied(body, f"{_result(node)}/{index}/", f"{_label(node)}/{index}/", given, pieces)
        carried = results[:states]
        scanned.append(results[states:])
    _forwarded(zip(carried, node.output, strict=False), pieces)
    outputs = list(node.output)[states:]
    turned = _integers(node, "scan_output_directions") or (0,) * len(outputs)
    ordered = [[one[i] for one in (reversed(scanned) if turned[i] else scanned)] for i in range(len(outputs))]
    _gathered(node, list(zip(*ordered, strict=True)), outputs, _integers(node, "scan_output_axes") or [0] * len(outputs), pieces)
    return pieces


def _gathered(node: onnx.NodeProto, scanned: Iterable[Iterable[str]], outputs: list[str], axes: Iterable[int], pieces: _Pieces) -> None:
    """What every pass wrote, side by side along a new axis."""
    from onnx import helper, numpy_helper

    for output, parts, axis in zip(outputs, zip(*scanned, strict=True), axes, strict=False):
        if not output:
            continue
        at = f"{output}/axis"
        pieces.constants.append(numpy_helper.from_array(np.array([axis], np.int64), at))
        wide = [f"{output}/pass/{index}" for index in range(len(parts))]
        pieces.nodes.extend([helper.make_node("Unsqueeze", [part, at], [name]) for part, name in zip(parts, wide, strict=True)])
        pieces.nodes.append(helper.make_node("Concat", wide, [output], name=f"{_label(node)}/{output}", axis=axis))


def _forwarded(pairs: Iterable[tuple[str, str]], pieces: _Pieces) -> None:
    from onnx import helper

    pieces.nodes.extend([helper.make_node("Identity", [source], [result]) for source, result in pairs if result])


def _copied(graph: onnx.GraphProto, prefix: str, label: str, given: Mapping[str, str], pieces: _Pieces) -> list[str]:
    """Add the nodes of a body, what it defines with `prefix` before its name, and `given` in the place of its inputs; the names of its results."""
    names = {name: prefix + name for name in _defined(graph)} | dict(given)
    for node in graph.node:
        copy = _renamed(node, names)
        copy.name = label + (node.name or node.op_type)
        pieces.nodes.append(copy)
    for item in graph.initializer:
        constant = type(item)()
        constant.CopyFrom(item)
        constant.name = names[item.name]
        pieces.constants.append(constant)
    for described in (*graph.value_info, *graph.output):
        if described.name in names and described.name not in given and described.type.WhichOneof("value") == "tensor_type":
            info = type(described)()
            info.CopyFrom(described)
            info.name = names[described.name]
            if all(size.dim_value > 0 for size in info.type.tensor_type.shape.dim):
                pieces.described.append(info)
    return [names.get(item.name, item.name) for item in graph.output]


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for graph in bodies(copy):
        own = _defined(graph)
        outside = {name: new for name, new in names.items() if name not in own}
        inner = [_renamed(one, outside) for one in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for item in graph.output:
            item.name = outside.get(item.name, item.name)
    return copy


def _defined(graph: onnx.GraphProto) -> set[str]:
    written = {name for node in graph.node for name in node.output if name}
    return written | {item.name for item in graph.initializer} | {item.name for item in graph.input}


def _entering(node: onnx.NodeProto, body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the inputs of a body."""
    names = [item.name for item in body.input]
    if node.op_type == "Loop":
        return {name: shapes[source] for name, source in zip(names[2:], node.input[2:], strict=False) if source in shapes} | dict.fromkeys(
            names[:2], ()
        )
    states = len(node.input) - _integer(node, "num_scan_inputs")
    axes = (None,) * states + (_integers(node, "scan_input_axes") or (0,) * (len(names) - states))
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
    held = next((item for item in body.initializer if item.name == name), None)
    if name in made and made[name].op_type == "Constant":
        held = next((item.t for item in made[name].attribute if item.name == "value"), None)
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


def _label(node: onnx.NodeProto) -> str:
    return str(node.name or _result(node))


def _result(node: onnx.NodeProto) -> str:
    return str(next((name for name in node.output if name), node.name))


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), 0)


def _integers(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in node.attribute if item.name == name), ())
