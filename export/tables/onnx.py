"""ONNX files as operator tables: float, fp16, and INT8 as QDQ or in QLinear operators. Weights are not read, not even loaded where they lie outside.

Which operator of a QDQ file computes in integers is what onnxruntime makes of the conversions around it
(`mcompress.export.tables.onnx_integer`); the others are fp32 between two conversions, however the file quantizes their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.compress.counting.describing import Window
from mcompress.errors import UsageError
from mcompress.export.backend import require
from mcompress.export.onnx import CONVERSIONS
from mcompress.export.tables.einsums import einsum
from mcompress.export.tables.facts import FileFacts, Read
from mcompress.export.tables.graph import Graph, Shape, table_of_graph
from mcompress.export.tables.making import (
    Node,
    activations,
    attention,
    clamps,
    convolution,
    linear,
    padding,
    plain,
    product,
    recurrent,
    reduction,
)
from mcompress.export.tables.onnx_attributes import bodies, captured, element_types, first_result, label, number, numbers, word
from mcompress.export.tables.onnx_bodies import Work
from mcompress.export.tables.onnx_contrib import ATTENTION, DOMAIN, PACKED_BITS, PACKED_WEIGHTS, Call, attend, call_of
from mcompress.export.tables.onnx_folding import short_constants
from mcompress.export.tables.onnx_integer import integer_nodes
from mcompress.export.tables.onnx_openness import openness
from mcompress.export.tables.onnx_operators import (
    AROUND,
    ENLARGED,
    FROM_SHAPES,
    FUSED_AS,
    LIMITS,
    NOISE,
    PARAMETERS_FROM,
    PARTS,
    PLAIN,
    QUANTIZED_AS,
    QUANTIZED_INPUTS,
    RECURRENT,
    REDUCTIONS,
    RESHAPES,
    SAME,
    STANDARD,
    WITHOUT_AXES,
)
from mcompress.export.tables.onnx_sizes import Sized, first_line, shapes_of, sized
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    import onnx

LAST_AXIS_FROM = 13
"""Opset from which on a softmax without an axis is over the last; before it is over all from axis 1 on."""
_HALF = (10, 16)
"""TensorProto.FLOAT16 and BFLOAT16; onnx is imported where a file is read, not before."""
_FLOATS = (1, *_HALF)
_BYTES = {2, 3}
_PAST = 4
"""Input of Attention that holds the keys of calls before."""


def read(path: Path, input_shape: Shape | Mapping[str, Shape] | None) -> Read:
    """The graph of the file. Raises `UsageError` for a file that is not ONNX, or whose shapes are not known."""
    require("onnx", {"onnx": "onnx"}, "It runs on Linux, macOS and Windows.")

    model = _load(path)
    found = sized(model, input_shape, path, lambda inner: _work(path, inner))
    reader = _Reader(path, found)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    assumed = "; ".join(filter(None, (found.assumed, *reader.notes)))
    facts = FileFacts("onnx", f"opset {found.opset}, IR {model.ir_version}", producer, reader.inputs, assumed)
    return Read(reader.graph, facts)


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise UsageError(f"{path} is no ONNX file, or is damaged: {first_line(error)}; export or copy it again") from error
    if not model.graph.node and not model.graph.output:
        raise UsageError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes); it is another kind of file, or damaged")
    _check(model.graph, path)
    return model


def _check(graph: onnx.GraphProto, path: Path) -> None:
    """Raises `UsageError` for a graph in which names are no text, or nodes write nothing; both are read without a complaint."""
    # What is no UTF-8 comes as bytes.
    named = [item.name for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)]
    for node in graph.node:
        named += (node.name, node.op_type, node.domain, *node.input, *node.output, *(item.name for item in node.attribute))
        if not any(node.output):
            raise UsageError(f"{path} is damaged: node '{node.name}' ({node.op_type}) writes nothing; export or copy it again")
        for inner in bodies(node):
            _check(inner, path)
    broken = next((name for name in named if not isinstance(name, str)), None)
    if broken is not None:
        raise UsageError(f"{path} is damaged: the name {broken!r} is no text; export or copy it again")


def _work(path: Path, found: Sized) -> Work | None:
    """What a graph inside a node costs; None where its sizes are not known."""
    try:
        table, _ = table_of_graph(_Reader(path, found).graph)
    except UsageError:
        return None
    return table.macs, table.activation_traffic_elements


class _Reader:
    """Goes over the nodes in their order."""

    def __init__(self, path: Path, found: Sized) -> None:
        self.path, self.graph = path, Graph()
        self.closed_macs, self.opset, proto = found.closed_macs, found.opset, found.graph
        self.proto, self.known = proto, short_constants(proto)
        self.shapes = shapes_of(proto) | {name: value.shape for name, value in self.known.items()}
        self.notes: dict[str, None] = {}
        """What was assumed on the way, for people, each once."""
        self.types = element_types(proto)
        self.integer = integer_nodes(proto, found.opset)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.producers = {name: node for node in proto.node for name in node.output}
        self.outputs = {item.name for item in proto.output}
        for node in proto.node:
            for name in (*node.input, *captured(node)):
                self.readers.setdefault(name, []).append(node)
        for item in proto.initializer:
            self.graph.constant(item.name, tuple(item.dims))
        given = [item for item in proto.input if item.name not in self.graph.constants]
        self.inputs = {item.name: self._shape(item.name) for item in given}
        for name, shape in self.inputs.items():
            self.graph.input(name, shape)
        for node in proto.node:
            self._visit(node)
        for item in proto.output:
            self.graph.output(item.name)

    def _visit(self, node: onnx.NodeProto) -> None:
        graph = self.graph
        standard = node.domain in STANDARD
        taken = [name for name in (*node.input, *captured(node)) if name]
        decided = node.op_type in FROM_SHAPES or (node.op_type not in NOISE and all(graph.is_constant(name) for name in taken))
        if standard and decided:
            for name in node.output:
                graph.constant(name, self.shapes.get(name, ()))
            return
        source, result = node.input[0] if node.input else "", node.output[0]
        kind = node.op_type if standard else ""
        if kind in SAME and not (kind in CONVERSIONS and self._is_lone(node)):
            graph.same(source, result)
        elif kind in CONVERSIONS:
            plain(graph, self._node(node, "int8", (source,)), "quantize" if kind == "QuantizeLinear" else "dequantize", "copy")
        elif kind == "Transpose":
            graph.transpose(source, result, numbers(node, "perm") or tuple(reversed(range(len(graph.shape(source))))))
        elif kind in RESHAPES or kind == "Expand":
            self._reshape(kind, source, result)
        elif kind in PARTS or (kind and self._picks_one(node)):
            self._part(node, source)
        else:
            self._compute(node, node.op_type if standard else f"{node.domain}.{node.op_type}")

    def _reshape(self, kind: str, source: str, result: str) -> None:
        if self.graph.is_constant(source):
            # Whatever decides its shape: what it holds is known.
            self.graph.constant(result, self._shape(result))
        elif kind == "Expand":
            self.graph.expand(source, result, self._shape(result))
        else:
            self.graph.reshape(source, result, self._shape(result))

    def _part(self, node: onnx.NodeProto, source: str) -> None:
        if self.graph.is_constant(source):
            # What enters decides the part: a lookup.
            decides = [name for name in node.input[1:] if name and not self.graph.is_constant(name)]
            plain(self.graph, self._node(node, self._precision(node), (source, *decides)), "slice", "copy")
            return
        for name in node.output:
            self.graph.part(source, name, self._shape(name))

    def _compute(self, node: onnx.NodeProto, kind: str) -> None:
        precision, given, call = self._precision(node), [name for name in (*node.input, *captured(node)) if name], call_of(node)
        if kind in QUANTIZED_INPUTS:
            given = [name for i in QUANTIZED_INPUTS[kind] if (name := call.input(i))]
            precision, kind = "int8", QUANTIZED_AS[kind]
        elif kind == "QLinearConcat":
            given, precision, kind = list(node.input[2::3]), "int8", "Concat"
        fused = word(node, "activation") if kind in FUSED_AS else ""
        kind = FUSED_AS.get(kind, kind)
        if kind in PACKED_WEIGHTS:
            given = [given[0], self._packed(call, node.output[0], precision), *filter(None, call.inputs[5:6])]
        known = self._node(node, precision, given[: PARAMETERS_FROM.get(kind, len(given))])
        if node.domain == DOMAIN and kind in ATTENTION:
            attend(self.graph, replace(known, precision="int8") if kind == "QAttention" else known, call)
        elif kind in PACKED_WEIGHTS:
            linear(self.graph, known, call.number("K", 1), has_bias=len(given) > 2)
        elif kind in ("Conv", "ConvTranspose"):
            self._convolution(node, known, transposed=kind == "ConvTranspose")
        elif kind == "Gemm":
            inner = self.graph.shape(given[0])[0 if number(node, "transA", 0) else -1]
            linear(self.graph, known, inner, has_bias=len(given) > 2)
        elif kind == "MatMul":
            self._product(known, transposed=number(node, "transA", 0) == 1)
        elif kind == "Einsum":
            einsum(self.graph, known, word(node, "equation").replace(" ", ""))
        elif kind == "Attention" and len(given) >= 3 and all(len(self.graph.shape(name)) > 2 for name in given[:3]):
            past = self.graph.shape(call.input(_PAST))[-2] if call.input(_PAST) else 0
            attention(self.graph, known, number(node, "q_num_heads", 1), past)
        elif kind in RECURRENT:
            weights = [name for name in node.input[1:3] if name]
            used = self._node(node, precision, [name for name in node.input[:4] if name])
            recurrent(self.graph, used, RECURRENT[kind], weights)
        elif kind in REDUCTIONS:
            self._reduction(node, known, kind)
        elif kind == "Pad":
            self._padding(node, known)
        elif kind == "BatchNormalization":
            self._batch_norm(known)
        elif kind in ("Resize", "Upsample"):
            plain(self.graph, known, ENLARGED.get(word(node, "mode"), "upsample_nearest"), "resize")
        elif kind in NOISE:
            # Of what enters it takes the sizes.
            plain(self.graph, self._node(node, precision, ()), NOISE[kind], "elementwise")
        elif kind in LIMITS and clamps(self.graph, known):
            plain(self.graph, replace(known, inputs=activations(self.graph, known)), "clamp", "activation")
        elif kind in PLAIN:
            plain(self.graph, known, *PLAIN[kind])
            if PLAIN[kind][0] == "_softmax":
                last = self.opset >= LAST_AXIS_FROM and node.domain != DOMAIN
                self.graph.trace.steps[-1].axis = number(node, "axis", -1 if last else 1) % max(len(known.result), 1)
        else:
            plain(self.graph, known, kind, "other")
            step = self.graph.trace.steps[-1]
            step.macs = step.macs_output_convention = max(step.macs, self.closed_macs.get(first_result(node), 0))
        if fused in PLAIN:
            plain(self.graph, self._node(node, precision, node.output[:1]), *PLAIN[fused])

    def _convolution(self, node: onnx.NodeProto, known: Node, *, transposed: bool) -> None:
        weight = self.graph.shape(known.inputs[1])
        window = Window(
            transposed=transposed,
            kernel=weight[2:],
            stride=max(numbers(node, "strides"), default=1),
            groups=number(node, "group", 1),
            per_group=weight[1],
            has_bias=len(known.inputs) > 2,
        )
        convolution(self.graph, known, window)

    def _padding(self, node: onnx.NodeProto, known: Node) -> None:
        mode = word(node, "mode", "constant")
        zeros = not any(item.f for item in node.attribute if item.name == "value")
        if len(node.input) > 2 and node.input[2]:
            zeros = node.input[2] in self.known and not self.known[node.input[2]].any()
        padding(self.graph, known, AROUND.get(mode, f"{mode}_pad"), zeros=mode == "constant" and zeros)

    def _reduction(self, node: onnx.NodeProto, known: Node, kind: str) -> None:
        axes = self._axes(node, known, kind)
        if axes is not None:
            reduction(self.graph, known, REDUCTIONS[kind], axes)
        elif kind in WITHOUT_AXES:
            plain(self.graph, replace(known, inputs=known.inputs[:1]), WITHOUT_AXES[kind], "elementwise")
        else:
            self.graph.same(known.inputs[0], node.output[0])

    def _axes(self, node: onnx.NodeProto, known: Node, kind: str) -> tuple[int, ...] | None:
        """The axes that a reduction is over, empty for all of them; None where it is over none."""
        shape = self.graph.shape(known.inputs[0])
        if kind == "GlobalAveragePool":
            return tuple(range(2, len(shape)))
        given = node.input[1] if len(node.input) > 1 else ""
        if given and given not in self.known:
            return self._axes_by_sizes(node, shape, self._shape(node.output[0]))
        axes = tuple(int(axis) for axis in self.known[given].reshape(-1)) if given else numbers(node, "axes")
        return axes if axes or not number(node, "noop_with_empty_axes", 0) else None

    def _axes_by_sizes(self, node: onnx.NodeProto, before: Shape, after: Shape) -> tuple[int, ...] | None:
        """The axes of a reduction that an execution decides, where its sizes tell them; None where nothing is reduced."""
        if len(before) == len(after):
            return tuple(axis for axis, sizes in enumerate(zip(before, after, strict=True)) if sizes[0] != sizes[1]) or None
        if math.prod(after) == 1:
            return ()
        raise UsageError(
            f"{self.path} decides the axes of {node.op_type} '{label(node)}' while it runs, and the sizes {before} before it and {after} behind it "
            f"do not tell them; keep the reduced axes (keepdims), or make their numbers constants"
        )

    def _packed(self, call: Call, result: str, precision: PrecisionName) -> str:
        """A name for the weight as it is used; what the file holds is bits of it, with scales."""
        name = f"{result}/weight"
        self.graph.constant(name, (call.number("K", 1), call.number("N", 1)))
        self.notes[f"weights of {call.number('bits', PACKED_BITS)} bits counted as {precision}"] = None
        return name

    def _product(self, known: Node, *, transposed: bool) -> None:
        left, right = (self.graph.shape(name) for name in known.inputs[:2])
        left = (*left[:-2], left[-1], left[-2]) if transposed else left
        if self.graph.is_constant(known.inputs[1]) and len(right) <= 2:
            linear(self.graph, known, left[-1], has_bias=False)
        else:
            product(self.graph, known, left[-1], (math.prod(left[:-2]), left[-2] if len(left) > 1 else 1, left[-1]))

    def _batch_norm(self, known: Node) -> None:
        # Its four tables of numbers are one factor and one shift per channel.
        source = Node(known.name, known.inputs[:3], known.outputs, known.precision)
        plain(self.graph, source, "native_batch_norm", "normalization")
        self.graph.trace.steps[-1].foldable = self.graph.trace.steps[-1].takes_over_bias = True

    def _is_lone(self, node: onnx.NodeProto) -> bool:
        """Whether a runtime executes the conversion by itself: no operator on one of its sides computes in integers."""
        if node.op_type == "QuantizeLinear":
            made = self.producers.get(node.input[0])
            ends = [end for reader in self.readers.get(node.output[0], []) for end in self.readers.get(reader.output[0], [])]
            inner = made is not None and made.output[0] in self.integer
            # From a float operator to an integer one the estimate adds the boundary between the two.
            return not inner and (made is None or not any(end.output[0] in self.integer for end in ends))
        source = self.producers.get(node.input[0])
        before = self.producers.get(source.input[0]) if source is not None and source.op_type == "QuantizeLinear" else source
        if before is not None and before.output[0] in self.integer:
            return node.output[0] in self.outputs
        return not any(reader.output[0] in self.integer for reader in self.readers.get(node.output[0], []))

    def _picks_one(self, node: onnx.NodeProto) -> bool:
        """Gather with one constant index: a part, not a copy."""
        return node.op_type == "Gather" and self.graph.is_constant(node.input[1]) and math.prod(self.graph.shape(node.input[1])) == 1

    def _precision(self, node: onnx.NodeProto) -> PrecisionName:
        if node.output[0] in self.integer:
            return "int8"
        # Numbers of rows say nothing about the table in which they are looked up.
        given = [self.types.get(name, 0) for name in node.input if name and not self.graph.is_constant(name)]
        computed = next((one for one in given if one in _FLOATS), self.types.get(node.output[0]))
        if computed in _BYTES and set(given) <= _BYTES:
            return "int8"  # quantized values that are moved
        return "fp16" if computed in _HALF else "fp32"

    def _node(self, node: onnx.NodeProto, precision: PrecisionName, inputs: Sequence[str]) -> Node:
        used = [name for i, name in enumerate(node.output) if name and (i == 0 or name in self.readers or name in self.outputs)]
        return Node(node.name or node.output[0], tuple(inputs), {name: self._shape(name) for name in used}, precision)

    def _shape(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None:
            raise UsageError(openness(self.path, self.proto, self.shapes, name))
        return shape
