"""A graph inside an ONNX node put where the node stands: once, as a branch, or as often as the body of a `Loop` or `Scan` runs.

Each pass reads what the one before it wrote; what a copy defines has a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import bodies, defined_names, first_result, label, number, numbers

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Pieces:
    """What takes the place of a node."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    described: list[onnx.ValueInfoProto]


def inlined(node: onnx.NodeProto, branch: onnx.GraphProto) -> Pieces:
    """A branch of an `If`."""
    pieces = Pieces([], [], [])
    results = _copied(branch, f"{first_result(node)}/", f"{label(node)}/", {}, pieces)
    _forwarded(zip(results, node.output, strict=False), pieces)
    return pieces


def unrolled_loop(node: onnx.NodeProto, body: onnx.GraphProto, passes: int) -> Pieces:
    """The body of a `Loop`, `passes` times."""
    from onnx import numpy_helper

    pieces = Pieces([], [], [])
    carried, scanned = list(node.input[2:]), list[list[str]]()
    true = f"{first_result(node)}/true"
    pieces.constants.append(numpy_helper.from_array(np.array(True), true))
    for index in range(passes):
        prefix = f"{first_result(node)}/{index}"
        pieces.constants.append(numpy_helper.from_array(np.array(index, np.int64), prefix))
        given = dict(zip((item.name for item in body.input), (prefix, true, *carried), strict=False))
        results = _copied(body, f"{prefix}/", f"{label(node)}/{index}/", given, pieces)[1:]
        carried = results[: len(carried)]
        scanned.append(results[len(carried) :])
    _forwarded(zip(carried, node.output, strict=False), pieces)
    _gathered(node, scanned, list(node.output)[len(carried) :], [0] * len(node.output), pieces)
    return pieces


def unrolled_scan(node: onnx.NodeProto, body: onnx.GraphProto, passes: int, shapes: Mapping[str, Shape]) -> Pieces:
    """The body of a `Scan`, `passes` times; `shapes` has those of the sequences that it goes over."""
    from onnx import helper, numpy_helper

    pieces = Pieces([], [], [])
    states = len(node.input) - number(node, "num_scan_inputs", 0)
    carried, sequences, scanned = list(node.input[:states]), list(node.input[states:]), list[list[str]]()
    axes = numbers(node, "scan_input_axes") or (0,) * len(sequences)
    backwards = numbers(node, "scan_input_directions") or (0,) * len(sequences)
    for index in range(passes):
        given = dict(zip((item.name for item in body.input), carried, strict=False))
        for item, sequence, axis, back in zip(body.input[states:], sequences, axes, backwards, strict=True):
            at, one = f"{first_result(node)}/{index}/{item.name}/at", f"{first_result(node)}/{index}/{item.name}/given"
            pieces.constants.append(numpy_helper.from_array(np.array(passes - 1 - index if back else index, np.int64), at))
            pieces.nodes.append(helper.make_node("Gather", [sequence, at], [one], axis=axis % len(shapes[sequence]) if axis < 0 else axis))
            given[item.name] = one
        results = _copied(body, f"{first_result(node)}/{index}/", f"{label(node)}/{index}/", given, pieces)
        carried = results[:states]
        scanned.append(results[states:])
    _forwarded(zip(carried, node.output, strict=False), pieces)
    outputs = list(node.output)[states:]
    turned = numbers(node, "scan_output_directions") or (0,) * len(outputs)
    ordered = [[one[i] for one in (reversed(scanned) if turned[i] else scanned)] for i in range(len(outputs))]
    _gathered(node, list(zip(*ordered, strict=True)), outputs, numbers(node, "scan_output_axes") or [0] * len(outputs), pieces)
    return pieces


def _gathered(node: onnx.NodeProto, scanned: Iterable[Iterable[str]], outputs: list[str], axes: Iterable[int], pieces: Pieces) -> None:
    """What every pass wrote, side by side along a new axis."""
    from onnx import helper, numpy_helper

    for output, parts, axis in zip(outputs, zip(*scanned, strict=True), axes, strict=False):
        if not output:
            continue
        at = f"{output}/axis"
        pieces.constants.append(numpy_helper.from_array(np.array([axis], np.int64), at))
        wide = [f"{output}/pass/{index}" for index in range(len(parts))]
        pieces.nodes.extend([helper.make_node("Unsqueeze", [part, at], [name]) for part, name in zip(parts, wide, strict=True)])
        pieces.nodes.append(helper.make_node("Concat", wide, [output], name=f"{label(node)}/{output}", axis=axis))


def _forwarded(pairs: Iterable[tuple[str, str]], pieces: Pieces) -> None:
    from onnx import helper

    pieces.nodes.extend([helper.make_node("Identity", [source], [result]) for source, result in pairs if result])


def _copied(graph: onnx.GraphProto, prefix: str, path: str, given: Mapping[str, str], pieces: Pieces) -> list[str]:
    """Add the nodes of a body to `pieces`; the names of its results.

    What it defines has `prefix` before its name, nodes have `path`, and `given` stands in the place of its inputs.
    """
    names = {name: prefix + name for name in defined_names(graph)} | dict(given)
    for node in graph.node:
        copy = _renamed(node, names)
        copy.name = path + (node.name or node.op_type)
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
        own = defined_names(graph)
        outside = {name: new for name, new in names.items() if name not in own}
        inner = [_renamed(one, outside) for one in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for item in graph.output:
            item.name = outside.get(item.name, item.name)
    return copy
