"""The inputs of an ONNX graph and their sizes: which the file leaves open, and those that somebody gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import bodies

if TYPE_CHECKING:
    import onnx


def give(graph: onnx.GraphProto, given: Shape | Mapping[str, Shape], path: Path) -> None:
    """Fill in the sizes of the first input, or of those that are named; other inputs take what has the same name there.

    Raises `UsageError` for inputs that are not there, and for sizes that the file does not take.
    """
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


def take_batch_of_one(graph: onnx.GraphProto) -> bool:
    """Fill in 1 for the first sizes of inputs if they are all that the file leaves open; whether that is so."""
    opened = [item.type.tensor_type.shape.dim for item in _inputs(graph) if not _is_static(item)]
    if not opened or not all(sizes and sizes[0].dim_value <= 0 and all(size.dim_value > 0 for size in sizes[1:]) for sizes in opened):
        return False
    for sizes in opened:
        sizes[0].dim_value = 1
    _forget_shapes(graph)
    return True


def open_inputs(graph: onnx.GraphProto) -> dict[str, str]:
    """Inputs whose sizes the file leaves open, with these as people read them: `batch, 3, height, width`."""
    return {item.name: _shown_sizes(item) for item in _inputs(graph) if not _is_static(item)}


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    constants = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in constants]


def _is_static(item: onnx.ValueInfoProto) -> bool:
    shape = item.type.tensor_type.shape
    return item.type.tensor_type.HasField("shape") and all(size.dim_value > 0 for size in shape.dim)


def _shown_sizes(item: onnx.ValueInfoProto) -> str:
    return ", ".join(str(size.dim_value) if size.dim_value > 0 else size.dim_param or "?" for size in item.type.tensor_type.shape.dim)


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """What an exporter noted for other sizes of the input."""
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for inner in (inner for node in graph.node for inner in bodies(node)):
        _forget_shapes(inner)
