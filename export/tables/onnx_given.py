"""The inputs of an ONNX graph and their sizes: which the file leaves open, and those that somebody gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import UsageError
from mcompress.export.tables.asked import sizes_asked
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import bodies

if TYPE_CHECKING:
    import onnx


def give(graph: onnx.GraphProto, given: Shape | Mapping[str, Shape] | None, path: Path) -> str:
    """Fill in the sizes of all inputs, `given` ones where the file leaves them open; what was assumed for that, empty if nothing was.

    Raises `UsageError` for inputs that are not there, for sizes that the file does not take, and for sizes that stay open.
    """
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    sizes = sizes_asked(path, [(item.name, _stated(item, path)) for item in inputs], given)
    changed = False
    for item, found in zip(inputs, sizes.inputs, strict=True):
        for size, one in zip(item.type.tensor_type.shape.dim, found["shape"], strict=True):
            changed = changed or size.dim_value != one
            size.dim_value = one
    if changed:
        _forget_shapes(graph)
    return sizes.assumed


def _stated(item: onnx.ValueInfoProto, path: Path) -> list[int | str]:
    """Sizes, names of sizes, and an empty text for what has neither."""
    if item.type.WhichOneof("value") != "tensor_type":
        raise UsageError(f"the input '{item.name}' of {path} is a {item.type.WhichOneof('value') or 'value'}, no tensor; export it with tensors")
    if not item.type.tensor_type.HasField("shape"):
        raise UsageError(
            f"{path} does not say how many sizes its input '{item.name}' has; export it with a shape (onnx.helper.make_tensor_value_info)"
        )
    return [size.dim_value if size.dim_value > 0 else size.dim_param for size in item.type.tensor_type.shape.dim]


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """What an exporter noted for other sizes of the input."""
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for inner in (inner for node in graph.node for inner in bodies(node)):
        _forget_shapes(inner)
