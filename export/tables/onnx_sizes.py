"""The sizes of every tensor of an ONNX graph, with those that the graph computes from other sizes.

ONNX's shape inference follows few of the operators with which exporters compute sizes (torch's older one writes a Cast, a Div or a Transpose between
the shape of one tensor and that of the next). What it leaves open is computed here: a node whose inputs are all known and short is run with ONNX's
reference implementation, its result becomes a constant, and the inference goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape

if TYPE_CHECKING:
    import onnx

Numbers = NDArray[np.generic]

SMALL = 256
"""Constants up to so many elements may be sizes, or what sizes are computed with."""
_SIZES = {"Shape", "Size"}
_NO_SIZES = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop", "Scan"}
"""Whose results are not decided by their inputs, or that hold graphs."""
_CONTENTS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def sized(model: onnx.ModelProto, input_shape: Shape | None, path: Path) -> tuple[onnx.GraphProto, str]:
    """The graph of `model` with the shape of every tensor that can be known, and what was assumed for that; the weights of `model` are forgotten.

    Raises `UsageError` for an `input_shape` that the file does not take, and for shapes that contradict one another.
    """
    _forget_weights(model.graph)
    assumed = ""
    if input_shape is not None:
        _give(model.graph, input_shape, path)
    elif _batch_is_open(model.graph):
        for item in _inputs(model.graph):
            item.type.tensor_type.shape.dim[0].dim_value = 1
        _forget_shapes(model.graph)
        assumed = "batch 1 assumed, which the file leaves open"
    inferred = _inferred(model, input_shape, path)
    while _unknown(inferred.graph) and _fold(inferred):
        inferred = _inferred(inferred, input_shape, path)
    return inferred.graph, assumed


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


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """What an exporter noted for other sizes of the input."""
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")


def _batch_is_open(graph: onnx.GraphProto) -> bool:
    """Whether the first sizes are all that the file leaves open."""
    shapes = [item.type.tensor_type.shape.dim for item in _inputs(graph) if not _is_static(item)]
    return bool(shapes) and all(dims and dims[0].dim_value <= 0 and all(size.dim_value > 0 for size in dims[1:]) for dims in shapes)


def _give(graph: onnx.GraphProto, shape: Shape, path: Path) -> None:
    """Fill in the sizes of the first input; other inputs take what has the same name there."""
    inputs = _inputs(graph)
    sizes = inputs[0].type.tensor_type.shape.dim if inputs else ()
    if len(sizes) != len(shape):
        raise UsageError(f"--input has {len(shape)} sizes, but the input of {path} has {len(sizes)}")
    if any(size.dim_value > 0 and size.dim_value != given for size, given in zip(sizes, shape, strict=True)):
        taken = ",".join(str(size.dim_value) if size.dim_value > 0 else "?" for size in sizes)
        raise UsageError(f"--input is {','.join(map(str, shape))}, but {path} takes {taken} only; leave --input out")
    named = {size.dim_param: given for size, given in zip(sizes, shape, strict=True) if size.dim_param}
    for size, given in zip(sizes, shape, strict=True):
        size.dim_value = given
    for size in (size for item in inputs[1:] for size in item.type.tensor_type.shape.dim):
        if size.dim_param in named:
            size.dim_value = named[size.dim_param]
    _forget_shapes(graph)


def _inferred(model: onnx.ModelProto, input_shape: Shape | None, path: Path) -> onnx.ModelProto:
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
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer if math.prod(item.dims) <= SMALL and _is_held(item)}
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
