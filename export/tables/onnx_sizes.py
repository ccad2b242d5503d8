"""The sizes of every tensor of an ONNX graph, with those that the graph computes from other sizes.

ONNX's shape inference follows few of the operators with which exporters compute sizes (torch's older one writes a Cast, a Div or a Transpose between
the shape of one tensor and that of the next). What it leaves open is computed (`mcompress.export.tables.onnx_folding`), and the inference goes on
from there. Functions that the file defines are put in place first, and graphs inside nodes as soon as it is known which of them run
(`mcompress.export.tables.onnx_bodies`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import OWN, element_types, free_names
from mcompress.export.tables.onnx_bodies import Opened, Surroundings, Work, describe_closed, holds_bodies, measure_closed, open_assumed, open_known
from mcompress.export.tables.onnx_contrib import DOMAIN, call_of, results_of
from mcompress.export.tables.onnx_folding import fold, forget_weights, short_constants
from mcompress.export.tables.onnx_given import give

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Sized:
    """A graph with the shape of every tensor that can be known."""

    graph: onnx.GraphProto
    opset: int
    """Version of ONNX's own operators, 0 where the file has none of them."""
    assumed: str
    """What was assumed for that, empty if nothing was."""
    closed_macs: Mapping[str, int]
    """Result -> multiply-adds of what a node holds that could not be put in its place."""


def sized(model: onnx.ModelProto, input_shape: Shape | Mapping[str, Shape] | None, path: Path, work_of: Callable[[Sized], Work | None]) -> Sized:
    """The graph of `model` with its sizes, functions and graphs inside nodes put in place; the weights of `model` are forgotten.

    `work_of` is the work of a sized graph, None where sizes are missing. Raises `UsageError` for an `input_shape` that the file does not take, for
    sizes that stay open, and for shapes that contradict one another.
    """
    forget_weights(model.graph)
    if model.functions:
        model = _without_functions(model, path)
    assumed = give(model.graph, input_shape, path)
    return _followed(model, path, work_of, assumed, "use a shape that the network takes" if input_shape else "check it with onnx.checker")


def _followed(model: onnx.ModelProto, path: Path, work_of: Callable[[Sized], Work | None], assumed: str, advice: str) -> Sized:
    """With what follows from the sizes that `model` states; `advice` is for sizes that contradict one another."""
    opened = Opened()
    model = _inferred(model, path, advice)
    while _goes_further(model, path, opened, work_of):
        model = _inferred(model, path, advice)
    opset = next((item.version for item in model.opset_import if item.domain in OWN), 0)
    return Sized(model.graph, opset, "; ".join(filter(None, (assumed, *opened.notes))), opened.macs)


def _goes_further(model: onnx.ModelProto, path: Path, opened: Opened, work_of: Callable[[Sized], Work | None]) -> bool:
    """Change the graph where that can make more of it known; whether there was anything to change."""
    graph = model.graph
    if _unknown(graph) and _describe_contrib(graph):
        return True
    if not holds_bodies(graph):
        return _unknown(graph) and fold(model, shapes_of(graph))

    def cost(body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> Work | None:
        return work_of(_followed(_alone(body, shapes, model), path, work_of, "", "check it with onnx.checker"))

    around = Surroundings(short_constants(graph), shapes_of(graph), cost)
    if open_known(graph, around, opened) or fold(model, around.shapes) or open_assumed(graph, around, opened) or describe_closed(graph, around):
        return True
    measure_closed(graph, around, opened)
    return False


def _describe_contrib(graph: onnx.GraphProto) -> bool:
    """Write down the sizes of what ONNX Runtime's own operators give, where they follow from known ones; whether there were any."""
    from onnx import helper

    shapes = shapes_of(graph)
    types = element_types(graph)
    found: dict[str, onnx.ValueInfoProto] = {}
    for node in graph.node:
        if node.domain != DOMAIN or all(name in shapes for name in node.output if name):
            continue
        kind = types.get(node.input[0], 0) if node.op_type.startswith("QLinear") else types.get(node.output[0], 0)
        for name, shape in zip(node.output, results_of(call_of(node), shapes), strict=False):
            if name and name not in shapes:
                found[name] = helper.make_tensor_value_info(name, kind or types.get(node.input[0], 0) or 1, shape)
                shapes[name] = shape
    kept = [item for item in graph.value_info if item.name not in found]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    outputs = {item.name: item for item in graph.output}
    for name, item in found.items():
        (outputs[name].CopyFrom(item) if name in outputs else graph.value_info.append(item))
    return bool(found)


def _alone(body: onnx.GraphProto, shapes: Mapping[str, Shape], model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph inside a node as a model: what it reads from outside enters it, constants are its own."""
    from onnx import helper

    graph = type(body)()
    graph.CopyFrom(body)
    read = set(free_names(graph))
    graph.initializer.extend(item for item in model.graph.initializer if item.name in read)
    held = {item.name for item in graph.initializer}
    types = {item.name: item.type for item in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    entering = [helper.make_value_info(name, types[name]) for name in sorted(read - held) if name in types]
    for item in graph.input:
        if item.name in shapes:
            kind = item.type.tensor_type
            item.CopyFrom(helper.make_tensor_value_info(item.name, kind.elem_type, shapes[item.name]))
    graph.input.extend(entering)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _without_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """With the nodes of every function that the file defines in the place of its calls."""
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"functions that {path} defines cannot be put in place: {first_line(error)}; check it with onnx.checker") from error


def shapes_of(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Every tensor whose sizes are all known."""
    found = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(size.HasField("dim_value") and size.dim_value > 0 for size in kind.shape.dim):
            found[item.name] = tuple(size.dim_value for size in kind.shape.dim)
    return found


def _inferred(model: onnx.ModelProto, path: Path, advice: str) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:  # the second for a type of elements that is none
        raise UsageError(f"shapes in {path} do not fit together: {first_line(error)}; {advice}") from error


def _unknown(graph: onnx.GraphProto) -> bool:
    shapes = shapes_of(graph)
    return any(name and name not in shapes for node in graph.node for name in node.output)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
