"""The part of an ONNX graph that computes sizes, computed: nodes whose inputs are known and short become constants.

They are run in ONNX's reference implementation, and only those operators are with which exporters write such computations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.onnx_attributes import OWN, Numbers, bodies, constant_of, number

if TYPE_CHECKING:
    import onnx

SMALL = 256
"""Constants up to so many elements may be sizes, or what sizes are computed with."""
COMPUTED = frozenset(
    ("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum", "Div", "Equal", "Expand", "Flatten",
     "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul",
     "Neg", "NonZero", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements",
     "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where", "Xor")
)  # fmt: skip
"""Operators that are run where their inputs are known."""
_SIZES = {"Shape", "Size"}
_CONTENTS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def fold(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Replace the nodes whose results are known and short by constants, given the shapes that are known; whether there were any."""
    from onnx import numpy_helper

    graph, known = model.graph, short_constants(model.graph)
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


def short_constants(graph: onnx.GraphProto) -> dict[str, Numbers]:
    """The constants of the graph that have up to `SMALL` elements. Raises `UsageError` for one that does not hold what its sizes and type say."""
    held = [*graph.initializer, *filter(None, map(constant_of, graph.node))]
    return {item.name: _contents(item) for item in held if math.prod(item.dims) <= SMALL and _has_contents(item)}


def _contents(item: onnx.TensorProto) -> Numbers:
    from onnx import numpy_helper

    try:
        found: Numbers = numpy_helper.to_array(item)
    except (TypeError, ValueError, KeyError) as error:
        sizes = ", ".join(map(str, item.dims))
        raise UsageError(f"constant '{item.name}' ({sizes}) is damaged: {str(error).splitlines()[0]}; export or copy the file again") from error
    return found


def forget_weights(graph: onnx.GraphProto) -> None:
    """Forget what large constants hold: shape inference copies the model, and needs sizes only."""
    for item in graph.initializer:
        if math.prod(item.dims) > SMALL:
            for field in _CONTENTS:
                item.ClearField(field)
    for inner in (inner for node in graph.node for inner in bodies(node)):
        forget_weights(inner)


def _has_contents(item: onnx.TensorProto) -> bool:
    """Whether the constant's numbers are in the file and were not forgotten."""
    return not item.external_data and (any(len(getattr(item, field)) for field in _CONTENTS) or math.prod(item.dims) == 0)


def _results(node: onnx.NodeProto, known: Mapping[str, Numbers], shapes: Mapping[str, Shape], model: onnx.ModelProto) -> dict[str, Numbers]:
    """What a node gives where that is known without the network's input; nothing where it is not, or is long."""
    if node.domain not in OWN:
        return {}
    if node.op_type in _SIZES and node.input[0] in shapes:
        whole = shapes[node.input[0]]
        part = whole[number(node, "start", 0) : number(node, "end", len(whole))]
        return {node.output[0]: np.array(part if node.op_type == "Shape" else math.prod(part), np.int64)}
    given = [name for name in node.input if name]
    if node.op_type not in COMPUTED or not all(name in known for name in given) or _is_long(node, known, shapes):
        return {}
    results = _executed(node, {name: known[name] for name in given}, model)
    return {name: value for name, value in zip(node.output, results, strict=False) if name} if all(r.size <= SMALL for r in results) else {}


def _is_long(node: onnx.NodeProto, known: Mapping[str, Numbers], shapes: Mapping[str, Shape]) -> bool:
    """Whether a result has more than `SMALL` elements, or would have, told before it takes up memory."""
    if any(math.prod(shapes.get(name, (0,))) > SMALL for name in node.output if name):
        return True
    given = [known[name] for name in node.input if name]
    if node.op_type == "Range" and len(given) == 3 and all(one.size == 1 for one in given):
        start, limit, delta = (float(one.reshape(-1)[0]) for one in given)
        return not delta or (limit - start) / delta > SMALL
    sizes = given[0] if node.op_type == "ConstantOfShape" and given else given[1] if node.op_type in ("Expand", "Tile") and len(given) > 1 else None
    times = given[0].size if node.op_type == "Tile" else 1
    return sizes is not None and times * math.prod(abs(float(size)) for size in sizes.reshape(-1)) > SMALL


def _executed(node: onnx.NodeProto, inputs: dict[str, Numbers], model: onnx.ModelProto) -> list[Numbers]:
    """The results of one node in ONNX's reference implementation; none where the inputs are not what the operator takes."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    def described(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape) for name in names]

    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "node", described(list(inputs)), outputs)
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return []  # its sizes stay open, and are asked for where they are needed
    return [np.asarray(value) for value in found]
