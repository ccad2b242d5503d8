"""What ONNX nodes and graphs say beside the names of their tensors: attributes, graphs and constants among them, and types of elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Numbers = NDArray[np.generic]
OWN = ("", "ai.onnx")
"""Names of ONNX's own domain of operators."""


def number(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute that is one whole number; `default` where the node does not have it."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def numbers(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    """An attribute that is a list of whole numbers; empty where the node does not have it."""
    return next((tuple(item.ints) for item in node.attribute if item.name == name), ())


def word(node: onnx.NodeProto, name: str, default: str = "") -> str:
    """An attribute that is text; `default` where the node does not have it."""
    return next((item.s.decode("utf-8", "replace") for item in node.attribute if item.name == name), default)


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a `Constant` holds, under the name of its result; None for any other node, for text and for sparse tensors."""
    from onnx import TensorProto, helper

    if node.op_type != "Constant" or node.domain not in OWN or not node.attribute:
        return None
    item, name = node.attribute[0], node.output[0]
    if item.name == "value":
        held = TensorProto()
        held.CopyFrom(item.t)
        held.name = name
        return held
    if item.name in ("value_int", "value_float"):
        return helper.make_tensor(name, TensorProto.INT64 if item.name == "value_int" else TensorProto.FLOAT, (), [item.i or item.f])
    if item.name in ("value_ints", "value_floats"):
        given = list(item.ints) or list(item.floats)
        return helper.make_tensor(name, TensorProto.INT64 if item.name == "value_ints" else TensorProto.FLOAT, (len(given),), given)
    return None


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds."""
    return [graph for item in node.attribute for graph in ((item.g,) if item.HasField("g") else item.graphs)]


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors from outside that the graphs of a node read without being given them."""
    return tuple(dict.fromkeys(name for graph in bodies(node) for name in free_names(graph)))


def free_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a graph reads and does not define."""
    own = defined_names(graph)
    for node in graph.node:
        yield from (name for name in (*node.input, *captured(node)) if name and name not in own)
    yield from (item.name for item in graph.output if item.name not in own)


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """What a graph writes, holds, or is given."""
    written = {name for node in graph.node for name in node.output if name}
    return written | {item.name for item in graph.initializer} | {item.name for item in graph.input}


def first_result(node: onnx.NodeProto) -> str:
    """The name of the first tensor that a node writes."""
    return str(next((name for name in node.output if name), node.name))


def label(node: onnx.NodeProto) -> str:
    """What to call a node: its name, else its result's."""
    return str(node.name or first_result(node))


def element_types(graph: onnx.GraphProto) -> Mapping[str, int]:
    """Tensor -> type of its elements, where the graph says it."""
    return {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
