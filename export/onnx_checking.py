"""Is an ONNX file still what was written? Asked before anything runs it: onnxruntime believes more than it should of a damaged or edited file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.onnx_large import GRAPH, WEIGHTS, graph_file
from mcompress.export.tables.onnx_attributes import number

if TYPE_CHECKING:
    import onnx

_SCALED = ("QuantizeLinear", "DequantizeLinear")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
Shape = tuple[int, ...]


def check(path: Path) -> None:
    """Raise `ExportError` for a file that is damaged or was edited: no graph, weights elsewhere, scales or channels that cannot be.

    Contradicting types and shapes, loops and unknown operators are errors of onnx's own checker, which are raised as they are.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import TensorProto, checker, shape_inference

    try:
        model = onnx.load(str(graph_file(path)), load_external_data=False)
    except DecodeError as problem:
        raise ExportError(f"{path.name} is no ONNX file, or is damaged ({path.stat().st_size} bytes); export it again") from problem
    if not model.graph.node or not model.graph.output:
        raise ExportError(f"{path.name} holds no ONNX graph ({path.stat().st_size} bytes); it is another kind of file, or damaged; export it again")
    outside = next((item.name for item in model.graph.initializer if item.data_location == TensorProto.EXTERNAL), None)
    if outside is not None and path.is_dir() and _places(model) == {WEIGHTS} and (path / WEIGHTS).is_file():
        checker.check_model(str(path / GRAPH), full_check=True)
    elif outside is not None:
        raise ExportError(f"{path.name} keeps '{outside}' in another file, which files of mcompress never do; export it again")
    else:
        checker.check_model(model, full_check=True)
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes, constants = _shapes(graph), {item.name: item for item in graph.initializer}
    for node in graph.node:
        problem_seen = _scale_problem(node, constants, shapes) if node.op_type in _SCALED else _channel_problem(node, shapes)
        if problem_seen:
            raise ExportError(
                f"{path.name} is damaged or was edited: '{node.name or node.output[0]}' ({node.op_type}): {problem_seen}; export it again"
            )


def _places(model: onnx.ModelProto) -> set[str]:
    """The files that the graph's weights are said to be in."""
    return {entry.value for item in model.graph.initializer for entry in item.external_data if entry.key == "location"}


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        if item.type.tensor_type.HasField("shape"):
            found[item.name] = tuple(size.dim_value for size in item.type.tensor_type.shape.dim)
    return found


def _scale_problem(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, Shape]) -> str:
    from onnx import numpy_helper

    held = constants.get(node.input[1])
    if held is None:
        return "its scale is no constant"
    scale = numpy_helper.to_array(held)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return f"its scale is {scale.reshape(-1)[:4].tolist()}; it must be finite and above 0"
    shape = shapes.get(node.input[0], ())
    channels = shape[number(node, "axis", 1)] if scale.ndim and -len(shape) <= number(node, "axis", 1) < len(shape) else 1
    if scale.size != channels and scale.size != 1:
        return f"it has {scale.size} scales for {channels} channels"
    if len(node.input) > 2 and node.input[2] and shapes.get(node.input[2]) != scale.shape:
        return f"its zero point has shape {shapes.get(node.input[2])} and its scale {scale.shape}"
    return ""


def _channel_problem(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> str:
    """Channels of a convolution that do not fit its input; onnx infers shapes without looking at them."""
    if node.op_type not in _CONVOLUTIONS or not all(len(shapes.get(name, ())) > 2 for name in node.input[:2]):
        return ""
    given, weight, groups = shapes[node.input[0]][1], shapes[node.input[1]], number(node, "group", 1)
    taken, made = (weight[0], weight[1] * groups) if node.op_type == "ConvTranspose" else (weight[1] * groups, weight[0])
    if given != taken or groups < 1 or made % groups or taken % groups:
        return f"its input has {given} channels, its weights {weight} in {groups} groups take {taken}"
    bias = shapes.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return f"its bias has shape {bias}, its result {made} channels" if bias is not None and bias != (made,) else ""
