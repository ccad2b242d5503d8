"""The operators that the plan makes fp16, in fp16 in the file: their constants, their tensors, and casts where fp16 and fp32 meet.

A tensor is cast at most once in each direction, and between two fp16 operators not at all. What a node may take and give in fp16 is asked of ONNX's
own definition of the operator. TensorRT computes such a node in fp16 as it stands; what onnxruntime's CPU does with it is in
`mcompress.export.onnx_reading`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.onnx_naming import operators_named
from mcompress.export.onnx_rewriting import CONVERSIONS, drop_unused
from mcompress.export.tables.onnx_attributes import OWN, bodies, captured, number

if TYPE_CHECKING:
    import onnx

FLOAT, HALF = 1, 10
"""TensorProto's numbers."""
LARGEST = float(np.finfo(np.float16).max)
_HALF_TYPE = "tensor(float16)"


@dataclass(frozen=True)
class Ends:
    """Positions of a node's inputs and outputs that may be fp32 or fp16, and are floats in this file."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def element_kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> type of its elements, inferred for all. Raises onnx's `InferenceError` where types or shapes contradict one another."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
    return found | {item.name: item.data_type for item in graph.initializer}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the file uses; 0 where it names none."""
    return int(next((item.version for item in model.opset_import if item.domain in OWN), 0))


def float_ends(node: onnx.NodeProto, kinds: Mapping[str, int], opset: int) -> Ends:
    """Where the node reads and writes floats that could be fp16. Raises onnx's `SchemaError` for an operator that it does not define."""
    from onnx import defs

    schema = defs.get_schema(node.op_type, opset, node.domain)
    may = {item.type_param_str for item in schema.type_constraints if _HALF_TYPE in item.allowed_type_strs}
    inputs = tuple(at for at, name in enumerate(node.input) if _parameter(schema.inputs, at) in may and kinds.get(name) in (FLOAT, HALF))
    outputs = tuple(at for at, name in enumerate(node.output) if _parameter(schema.outputs, at) in may and kinds.get(name) in (FLOAT, HALF))
    return Ends(inputs, outputs)


def why_not_half(node: onnx.NodeProto, kinds: Mapping[str, int], constants: Mapping[str, NDArray[np.generic]], opset: int) -> str:
    """Why the node cannot be fp16 in a file of this opset; empty if it can."""
    from onnx import defs

    if bodies(node):
        return f"{node.op_type} holds graphs of its own, which stay fp32"
    try:
        ends = float_ends(node, kinds, opset)
    except defs.SchemaError:
        return f"{node.op_type} is no operator of ONNX's opset {opset}"
    if not (ends.outputs if any(kinds.get(name) in (FLOAT, HALF) for name in node.output) else ends.inputs):
        return f"ONNX's {node.op_type} of opset {opset} does not take fp16"
    if ends.outputs and node.op_type != "Cast" and (not ends.inputs or number(node, "dtype", 0)):
        return f"{node.op_type} gives fp32 whatever it reads"
    for at in ends.inputs:
        value = constants.get(node.input[at])
        if value is None or value.dtype != np.float32:
            continue
        finite = value[np.isfinite(value)]
        if finite.size and float(np.abs(finite).max()) > LARGEST:
            return f"its constant {float(np.abs(finite).max()):.3g} is beyond fp16's range, which ends at {LARGEST:.0f}"
        if value.size == 1 and finite.size and finite.item() != 0 and np.float16(finite.item()) == 0:
            return f"its constant {finite.item():.3g} is zero in fp16"
    return ""


def halve(model: onnx.ModelProto, planned: frozenset[str]) -> None:
    """Make the nodes that compute the operators `planned`, and only those, fp16, in place; those that cannot be stay fp32."""
    if not planned:
        return
    from onnx import numpy_helper

    kinds, opset = element_kinds(model), opset_of(model)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    chosen = {
        at
        for at, node in enumerate(model.graph.node)
        if node.op_type not in CONVERSIONS
        and (operators := operators_named(node.name))
        and planned.issuperset(operators)
        and _touches_floats(node, kinds)
        and not why_not_half(node, kinds, constants, opset)
    }
    nodes = list(_Halving(model.graph, kinds, opset, chosen).rewritten())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model.graph)


def is_border(node: onnx.NodeProto) -> bool:
    """Whether the node is a cast that stands between fp16 and fp32, and computes no operator of the network."""
    return node.op_type == "Cast" and not operators_named(node.name)


def _touches_floats(node: onnx.NodeProto, kinds: Mapping[str, int]) -> bool:
    return any(kinds.get(name) == FLOAT for name in (*node.input, *node.output))


class _Halving:
    """One pass over the nodes in their order."""

    def __init__(self, graph: onnx.GraphProto, kinds: Mapping[str, int], opset: int, chosen: set[int]) -> None:
        self.graph, self.kinds, self.opset, self.chosen = graph, kinds, opset, chosen
        self.constants = {item.name: item for item in graph.initializer}
        self.ends = {at: float_ends(graph.node[at], kinds, opset) for at in chosen}
        self.wide = {item.name for item in graph.output}
        """Tensors that somebody reads in fp32."""
        for at, node in enumerate(graph.node):
            taken = self.ends[at].inputs if at in chosen else ()
            self.wide |= {name for position, name in enumerate(node.input) if position not in taken} | set(captured(node))
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(self.constants)
        self.halves: dict[str, str] = {}
        """Tensor -> its name in fp16, once it has one."""

    def rewritten(self) -> Iterator[onnx.NodeProto]:
        """All nodes, with the casts among them."""
        from onnx import helper

        for at, node in enumerate(self.graph.node):
            if at not in self.chosen:
                yield node
                continue
            for position in self.ends[at].inputs:
                yield from self._narrow(node.input[position])
                node.input[position] = self.halves[node.input[position]]
            written = [node.output[position] for position in self.ends[at].outputs]
            for position, name in zip(self.ends[at].outputs, written, strict=True):
                self.halves[name] = node.output[position] = self._name(name)
            if node.op_type == "Cast" and written:
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("to", HALF))
            yield node
            for name in written:
                if name in self.wide:
                    yield _cast(self.halves[name], name, FLOAT)

    def _narrow(self, name: str) -> Iterator[onnx.NodeProto]:
        """See to it that the tensor exists in fp16."""
        from onnx import numpy_helper

        if name in self.halves or self.kinds[name] == HALF:
            self.halves.setdefault(name, name)
            return
        self.halves[name] = self._name(name)
        if name in self.constants:
            value = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(value, self.halves[name]))
        else:
            yield _cast(name, self.halves[name], HALF)

    def _name(self, name: str) -> str:
        wanted = f"{name}_fp16"
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node("Cast", [source], [result], name=f"{source}_to_{'fp16' if kind == HALF else 'fp32'}", to=kind)


def _parameter(formal: object, at: int) -> str:
    """The type parameter of an operator's input or output; the last one stands for all that follow it."""
    if not isinstance(formal, list | tuple) or not formal:
        return ""
    return str(formal[min(at, len(formal) - 1)].type_str)
