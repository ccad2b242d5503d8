"""The sizes of every tensor of an ONNX graph, with those that the graph computes from other sizes.

ONNX's shape inference follows few of the operators with which exporters compute sizes (torch's older one writes a Cast, a Div or a Transpose between
the shape of one tensor and that of the next). What it leaves open is computed here: a node whose inputs are all known and short is run with ONNX's
reference implementation, its result becomes a constant, and the inference goes on from there. Functions that the file defines are put in place first,
and graphs inside nodes as soon as it is known which of them run (`mcompress.export.tables.onnx_bodies`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_bodies import (
    Opened,
    Surroundings,
    Work,
    bodies,
    describe_closed,
    free_names,
    holds_bodies,
    measure_closed,
    open_assumed,
    open_known,
)
from mcompress.export.tables.onnx_contrib import DOMAIN, call_of, results_of

if TYPE_CHECKING:
    import onnx

Numbers = NDArray[np.generic]

SMALL = 256
"""Constants up to so many elements may be sizes, or what sizes are computed with."""
_SIZES = {"Shape", "Size"}
_NO_SIZES = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop", "Scan"}
"""Whose results are not decided by their inputs, or that hold graphs."""
_CONTENTS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class Sized:
    """A graph with the shape of every tensor that can be known."""

    graph: onnx.GraphProto
    assumed: str
    """What was assumed for that, empty if nothing was."""
    closed_macs: Mapping[str, int]
    """Result -> multiply-adds of what a node holds that could not be put in its place."""


def sized(model: onnx.ModelProto, input_shape: Shape | Mapping[str, Shape] | None, path: Path, work_of: Callable[[Sized], Work | None]) -> Sized:
    """The graph of `model` with its sizes, functions and graphs inside nodes put in place; the weights of `model` are forgotten.

    `work_of` is the work of a sized graph, None where sizes are missing. Raises `UsageError` for an `input_shape` that the file does not take, and
    for shapes that contradict one another.
    """
    _forget_weights(model.graph)
    if model.functions:
        model = _without_functions(model, path)
    assumed = ""
    if input_shape is not None:
        _give(model.graph, input_shape, path)
    elif _batch_is_open(model.graph):
        for item in _inputs(model.graph):
            item.type.tensor_type.shape.dim[0].dim_value = 1
        _forget_shapes(model.graph)
        assumed = "batch 1 assumed, which the file leaves open"
    opened = Opened()
    model = _inferred(model, input_shape, path)
    while _goes_further(model, path, opened, work_of):
        model = _inferred(model, input_shape, path)
    return Sized(model.graph, "; ".join(filter(None, (assumed, *opened.notes))), opened.macs)


def _goes_further(model: onnx.ModelProto, path: Path, opened: Opened, work_of: Callable[[Sized], Work | None]) -> bool:
    """Change the graph where that can make more of it known; whether there was anything to change."""
    graph = model.graph
    if _unknown(graph) and _describe_contrib(graph):
        return True
    if not holds_bodies(graph):
        return _unknown(graph) and _fold(model)

    def cost(body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> Work | None:
        return work_of(sized(_alone(body, shapes, model), None, path, work_of))

    around = Surroundings(_numbers(graph), shapes_of(graph), cost)
    if open_known(graph, around, opened) or _fold(model) or open_assumed(graph, around, opened) or describe_closed(graph, around):
        return True
    measure_closed(graph, around, opened)
    return False


def _describe_contrib(graph: onnx.GraphProto) -> bool:
    """Write down the sizes of what ONNX Runtime's own operators give, where they follow from known ones; whether there were any."""
    from onnx import helper

    shapes = shapes_of(graph)
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
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


def open_inputs(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Inputs whose sizes the file leaves open, as `name (batch, 3, height, width)`."""
    return tuple(f"'{item.name}' ({_shown_sizes(item)})" for item in _inputs(graph) if not _is_static(item))


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    constants = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in constants]


def _is_static(item: onnx.ValueInfoProto) -> bool:
    shape = item.type.tensor_type.shape
    return item.type.tensor_type.HasField("shape") and all(size.dim_value > 0 for size in shape.dim)


def _shown_sizes(item: onnx.ValueInfoProto) -> str:
    return ", ".join(str(size.dim_value) if size.dim_value > 0 else size.dim_param or "?" for size in item.type.tensor_type.shape.dim)


def _forget_weights(graph: onnx.GraphProto) -> None:
    """Forget what large constants hold: shape inference copies the model, and needs sizes only."""
    for item in graph.initializer:
        if math.prod(item.dims) > SMALL:
            for field in _CONTENTS:
                item.ClearField(field)
    for inner in (inner for node in graph.node for inner in bodies(node)):
        _forget_weights(inner)


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """What an exporter noted for other sizes of the input."""
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for inner in (inner for node in graph.node for inner in bodies(node)):
        _forget_shapes(inner)


def _batch_is_open(graph: onnx.GraphProto) -> bool:
    """Whether the first sizes are all that the file leaves open."""
    shapes = [item.type.tensor_type.shape.dim for item in _inputs(graph) if not _is_static(item)]
    return bool(shapes) and all(dims and dims[0].dim_value <= 0 and all(size.dim_value > 0 for size in dims[1:]) for dims in shapes)


def _give(graph: onnx.GraphProto, given: Shape | Mapping[str, Shape], path: Path) -> None:
    """Fill in the sizes of the first input, or of those that are named; other inputs take what has the same name there."""
    inputs = {item.name: item for item in _inputs(graph)}
    shapes = given if isinstance(given, Mapping) else dict.fromkeys(list(inputs)[:1], given)
    named: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"--input names '{name}', but the inputs of {path} are {', '.join(inputs) or 'none'}")
        sizes = inputs[name].type.tensor_type.shape.dim
        which = f"the input '{name}'" if isinstance(given, Mapping) else "the input"
        shown = f"{name}=" if isinstance(given, Mapping) else ""
        if len(sizes) != len(shape):
            raise UsageError(f"--input has {len(shape)} sizes, but {which} of {path} has {len(sizes)}")
        if any(size.dim_value > 0 and size.dim_value != one for size, one in zip(sizes, shape, strict=True)):
            taken = ",".join(str(size.dim_value) if size.dim_value > 0 else "?" for size in sizes)
            raise UsageError(f"--input is {shown}{','.join(map(str, shape))}, but {path} takes {shown}{taken} only; leave --input out")
        named |= {size.dim_param: one for size, one in zip(sizes, shape, strict=True) if size.dim_param}
        for size, one in zip(sizes, shape, strict=True):
            size.dim_value = one
    for size in (size for item in inputs.values() for size in item.type.tensor_type.shape.dim):
        if size.dim_param in named:
            size.dim_value = named[size.dim_param]
    _forget_shapes(graph)


def _inferred(model: onnx.ModelProto, input_shape: Shape | Mapping[str, Shape] | None, path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        advice = "use a shape that the network takes" if input_shape else "check it with onnx.checker"
        raise UsageError(f"shapes in {path} do not fit together: {first_line(error)}; {advice}") from error


def _unknown(graph: onnx.GraphProto) -> bool:
    shapes = shapes_of(graph)
    return any(name and name not in shapes for node in graph.node for name in node.output)


def _fold(model: onnx.ModelProto) -> bool:
    """Replace the nodes whose results are known and short by constants; whether there were any."""
    from onnx import numpy_helper

    graph, shapes = model.graph, shapes_of(model.graph)
    known = _numbers(graph)
    kept: list[onnx.NodeProto] = []
    folded = False
    for node in graph.node:
        results = _results(node, known, shapes, model)
        known.update(results)
        if results and node.op_type != "Constant":
            graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in results.items())
            folded = True
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    # What was inferred without the constants would be believed before them.
    noted = [item for item in graph.value_info if item.name in shapes and item.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(noted)
    return folded


def _numbers(graph: onnx.GraphProto) -> dict[str, Numbers]:
    """The short constants of the graph."""
    from onnx import numpy_helper

    held = list(graph.initializer)
    for node in (node for node in graph.node if node.op_type == "Constant"):
        for item in (item for item in node.attribute if item.name == "value"):
            held.append(type(item.t)())
            held[-1].CopyFrom(item.t)
            held[-1].name = node.output[0]
    return {item.name: numpy_helper.to_array(item) for item in held if math.prod(item.dims) <= SMALL and _is_held(item)}


def _is_held(item: onnx.TensorProto) -> bool:
    """Whether the constant's numbers are in the file and were not forgotten."""
    return not item.external_data and (any(len(getattr(item, field)) for field in _CONTENTS) or math.prod(item.dims) == 0)


def _results(node: onnx.NodeProto, known: Mapping[str, Numbers], shapes: Mapping[str, Shape], model: onnx.ModelProto) -> dict[str, Numbers]:
    """What a node gives where that is known without the network's input; nothing where it is not, or is long."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _NO_SIZES:
        return {}
    if node.op_type in _SIZES and node.input[0] in shapes:
        bounds = {item.name: int(item.i) for item in node.attribute}
        part = shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")]
        return {node.output[0]: np.array(part if node.op_type == "Shape" else math.prod(part), np.int64)}
    given = [name for name in node.input if name]
    if not all(name in known for name in given) or any(math.prod(shapes.get(name, (0,))) > SMALL for name in node.output if name):
        return {}
    results = _executed(node, {name: known[name] for name in given}, model)
    return {name: value for name, value in zip(node.output, results, strict=False) if name} if all(r.size <= SMALL for r in results) else {}


def _executed(node: onnx.NodeProto, inputs: dict[str, Numbers], model: onnx.ModelProto) -> list[Numbers]:
    """The results of one node in ONNX's reference implementation; none where it has none for the node."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    def described(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape) for name in names]

    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "node", described(list(inputs)), outputs)
    try:
        found = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, inputs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, LookupError, AttributeError):
        return []  # its sizes stay open, and are asked for where they are needed
    return [np.asarray(value) for value in found]


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
