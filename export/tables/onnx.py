"""ONNX files as operator tables: float, fp16, and INT8 as QDQ or in QLinear operators. Weights are not read, not even loaded where they lie outside.

Which operator of a QDQ file computes in integers follows what ONNX Runtime does: everything of it between dequantized and quantized tensors
(`mcompress.export.onnx.integer_nodes`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import UsageError
from mcompress.export.backend import require
from mcompress.export.onnx import CONVERSIONS, integer_nodes
from mcompress.export.tables.facts import FileFacts, Read
from mcompress.export.tables.graph import Graph, Shape, table_of_graph
from mcompress.export.tables.making import (
    Node,
    Window,
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
from mcompress.export.tables.onnx_bodies import Work, captured
from mcompress.export.tables.onnx_contrib import ATTENTION, DOMAIN, PACKED_WEIGHTS, Call, attend, call_of
from mcompress.export.tables.onnx_operators import (
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
)
from mcompress.export.tables.onnx_sizes import SMALL, Sized, first_line, open_inputs, shapes_of, sized
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    import onnx


def read(path: Path, input_shape: Shape | Mapping[str, Shape] | None) -> Read:
    """The graph of the file. Raises `UsageError` for a file that is not ONNX, or whose shapes are not known."""
    require("onnx", {"onnx": "onnx"}, "It runs on Linux, macOS and Windows.")

    model = _load(path)
    found = sized(model, input_shape, path, lambda inner: _work(path, inner))
    reader = _Reader(path, found)
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    facts = FileFacts("onnx", f"opset {opset}, IR {model.ir_version}", producer, reader.inputs, found.assumed)
    return Read(reader.graph, facts)


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{path} is no ONNX file, or is damaged: {first_line(error)}; export or copy it again") from error
    if not model.graph.node and not model.graph.output:
        raise UsageError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes); it is another kind of file, or damaged")
    return model


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
        self.closed_macs, proto = found.closed_macs, found.graph
        self.proto, self.shapes = proto, shapes_of(proto)
        self.small = {item.name: item for item in proto.initializer if math.prod(item.dims) <= SMALL}
        self.types = _types(proto)
        self.integer = integer_nodes(proto)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.producers = {name: node for node in proto.node for name in node.output}
        self.outputs = {item.name for item in proto.output}
        for node in proto.node:
            for name in (*node.input, *captured(node)):
                self.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                self._keep_constant(node)
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
        if (standard and node.op_type in CONVERSIONS and not self._is_lone(node)) or (standard and node.op_type in SAME - CONVERSIONS):
            graph.same(source, result)
        elif standard and node.op_type in CONVERSIONS:
            plain(graph, self._node(node, "int8", (source,)), "quantize" if node.op_type == "QuantizeLinear" else "dequantize", "copy")
        elif standard and node.op_type == "Transpose":
            rank = len(graph.shape(source))
            order = self._numbers(node, "perm") or tuple(reversed(range(rank)))
            graph.transpose(source, result, order)
        elif standard and node.op_type in RESHAPES:
            graph.reshape(source, result, self._shape(result))
        elif standard and node.op_type == "Expand":
            graph.expand(source, result, self._shape(result))
        elif standard and (node.op_type in PARTS or self._picks_one(node)):
            for name in node.output:
                graph.part(source, name, self._shape(name))
        else:
            self._compute(node, node.op_type if standard else f"{node.domain}.{node.op_type}")

    def _compute(self, node: onnx.NodeProto, kind: str) -> None:
        precision, given = self._precision(node), [name for name in (*node.input, *captured(node)) if name]
        if kind in QUANTIZED_INPUTS:
            given = [node.input[i] for i in QUANTIZED_INPUTS[kind] if i < len(node.input)]
            precision, kind = "int8", QUANTIZED_AS[kind]
        elif kind == "QLinearConcat":
            given, precision, kind = list(node.input[2::3]), "int8", "Concat"
        fused = self._word(node, "activation") if kind in FUSED_AS else ""
        kind = FUSED_AS.get(kind, kind)
        call = call_of(node)
        if kind in PACKED_WEIGHTS:
            given = [given[0], self._packed(call, node.output[0]), *filter(None, call.inputs[5:6])]
        known = self._node(node, precision, given[: PARAMETERS_FROM.get(kind, len(given))])
        if node.domain == DOMAIN and kind in ATTENTION:
            attend(self.graph, replace(known, precision="int8") if kind == "QAttention" else known, call)
        elif kind in PACKED_WEIGHTS:
            linear(self.graph, known, call.number("K", 1), has_bias=len(given) > 2)
        elif kind in ("Conv", "ConvTranspose"):
            self._convolution(node, known, transposed=kind == "ConvTranspose")
        elif kind == "Gemm":
            inner = self.graph.shape(given[0])[0 if self._number(node, "transA", 0) else -1]
            linear(self.graph, known, inner, has_bias=len(given) > 2)
        elif kind == "MatMul":
            self._product(known, transposed=self._number(node, "transA", 0) == 1)
        elif kind == "Einsum":
            self._einsum(node, known)
        elif kind in ("Attention", "MultiHeadAttention") and len(given) >= 3:
            attention(self.graph, known, (self._number(node, "q_num_heads", 1), self._number(node, "kv_num_heads", 1)))
        elif kind in RECURRENT:
            weights = [name for name in node.input[1:3] if name]
            used = self._node(node, precision, [name for name in node.input[:4] if name])
            recurrent(self.graph, used, RECURRENT[kind], weights)
        elif kind in REDUCTIONS:
            axes = self._numbers(node, "axes") or (self._constant(node.input[1]) if len(node.input) > 1 and node.input[1] else ())
            reduction(self.graph, known, REDUCTIONS[kind], tuple(range(2, len(self.graph.shape(given[0])))) if kind == "GlobalAveragePool" else axes)
        elif kind == "Pad":
            value = self._floats(node.input[2]) if len(node.input) > 2 and node.input[2] else (0.0,)
            mode = next((item.s for item in node.attribute if item.name == "mode"), b"constant")
            padding(self.graph, known, zeros=mode == b"constant" and not any(value))
        elif kind == "BatchNormalization":
            self._batch_norm(known)
        elif kind in ("Resize", "Upsample"):
            plain(self.graph, known, ENLARGED.get(self._word(node, "mode"), "upsample_nearest"), "resize")
        elif kind in NOISE:
            # Of what enters it takes the sizes.
            plain(self.graph, self._node(node, precision, ()), NOISE[kind], "elementwise")
        elif kind in LIMITS and clamps(self.graph, known):
            plain(self.graph, replace(known, inputs=activations(self.graph, known)), "clamp", "activation")
        elif kind in PLAIN:
            plain(self.graph, known, *PLAIN[kind])
            if PLAIN[kind][0] == "_softmax":
                rank = len(known.result)
                self.graph.trace.steps[-1].axis = self._number(node, "axis", -1) % max(rank, 1)
        else:
            plain(self.graph, known, kind, "other")
            step = self.graph.trace.steps[-1]
            step.macs = step.macs_output_convention = max(step.macs, self.closed_macs.get(next(filter(None, node.output)), 0))
        if fused in PLAIN:
            plain(self.graph, self._node(node, precision, node.output[:1]), *PLAIN[fused])

    def _convolution(self, node: onnx.NodeProto, known: Node, *, transposed: bool) -> None:
        weight = self.graph.shape(known.inputs[1])
        window = Window(
            transposed=transposed,
            kernel=weight[2:],
            stride=max(self._numbers(node, "strides"), default=1),
            groups=self._number(node, "group", 1),
            per_group=weight[1],
            has_bias=len(known.inputs) > 2,
        )
        convolution(self.graph, known, window)

    def _packed(self, call: Call, result: str) -> str:
        """A name for the weight as it is used; what the file holds is bits of it, with scales."""
        name = f"{result}/weight"
        self.graph.constant(name, (call.number("K", 1), call.number("N", 1)))
        return name

    def _product(self, known: Node, *, transposed: bool) -> None:
        left, right = (self.graph.shape(name) for name in known.inputs[:2])
        left = (*left[:-2], left[-1], left[-2]) if transposed else left
        if self.graph.is_constant(known.inputs[1]) and len(right) <= 2:
            linear(self.graph, known, left[-1], has_bias=False)
        else:
            product(self.graph, known, left[-1], (math.prod(left[:-2]), left[-2] if len(left) > 1 else 1, left[-1]))

    def _einsum(self, node: onnx.NodeProto, known: Node) -> None:
        equation = next((item.s.decode() for item in node.attribute if item.name == "equation"), "").replace(" ", "")
        terms = re.split(r",|->", equation)
        if len(known.inputs) != 2 or len(terms) != 3 or not equation.replace(",", "").replace("->", "").isalpha():
            plain(self.graph, known, f"einsum {equation}", "other")
            return
        sizes = {
            letter: size for term, name in zip(terms, known.inputs, strict=False) for letter, size in zip(term, self.graph.shape(name), strict=True)
        }
        one, other, result = (set(term) for term in terms)

        def over(letters: set[str]) -> int:
            return math.prod(sizes[letter] for letter in letters)

        batch, rows, columns, inner = (
            over(one & other & result),
            over((one & result) - other),
            over((other & result) - one),
            over((one & other) - result),
        )
        if not (one & other) - result or (one ^ other) - result:
            plain(self.graph, known, "mul", "elementwise")
            return
        flat = Node(known.name, known.inputs, dict.fromkeys(known.outputs, (batch, rows, columns)), known.precision)
        product(self.graph, flat, inner, (batch, rows, inner))
        self.graph.reshape(node.output[0], node.output[0], tuple(sizes[letter] for letter in sorted(result, key=(*terms[0], *terms[1]).index)))
        order = sorted(result, key=(*terms[0], *terms[1]).index)
        self.graph.transpose(node.output[0], node.output[0], [order.index(letter) for letter in terms[2]])

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
        return "fp16" if self.types.get(next((n for n in node.input if not self.graph.is_constant(n)), "")) in _half_types() else "fp32"

    def _node(self, node: onnx.NodeProto, precision: PrecisionName, inputs: Sequence[str]) -> Node:
        used = [name for i, name in enumerate(node.output) if name and (i == 0 or name in self.readers or name in self.outputs)]
        return Node(node.name or node.output[0], tuple(inputs), {name: self._shape(name) for name in used}, precision)

    def _keep_constant(self, node: onnx.NodeProto) -> None:
        import onnx

        value = next((item.t for item in node.attribute if item.name == "value"), None)
        if value is None:
            numbers = next((list(item.ints) or list(item.floats) or [item.i or item.f] for item in node.attribute), [])
            kind = onnx.TensorProto.INT64 if any(item.name in ("value_int", "value_ints") for item in node.attribute) else onnx.TensorProto.FLOAT
            value = onnx.helper.make_tensor(node.output[0], kind, [len(numbers)], numbers)
        self.small[node.output[0]] = value
        self.shapes[node.output[0]] = tuple(value.dims)

    def _constant(self, name: str) -> tuple[int, ...]:
        return tuple(int(value) for value in self._floats(name))

    def _floats(self, name: str) -> tuple[float, ...]:
        from onnx import numpy_helper

        return tuple(float(value) for value in numpy_helper.to_array(self.small[name]).reshape(-1)) if name in self.small else ()

    def _numbers(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        return next((tuple(item.ints) for item in node.attribute if item.name == name), ())

    def _word(self, node: onnx.NodeProto, name: str) -> str:
        return next((item.s.decode("utf-8", "replace") for item in node.attribute if item.name == name), "")

    def _number(self, node: onnx.NodeProto, name: str, default: int) -> int:
        return next((int(item.i) for item in node.attribute if item.name == name), default)

    def _shape(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None:
            raise UsageError(self._openness(name))
        return shape

    def _openness(self, name: str) -> str:
        open_ = open_inputs(self.proto)
        if open_:
            own = f"{self.path} leaves sizes of its input {' and of '.join(open_)} open"
            if sum(item.name not in self.graph.constants for item in self.proto.input) > 1:
                return f"{own}; give the shape of each: {' '.join(f'--input {name}=SHAPE' for name in _quoted(open_))}"
            return f"{own}; give it with --input, for example --input 1,3,128,128"
        foreign = self._foreign(name)
        if foreign is not None:
            what = f"{foreign.op_type} of the domain '{foreign.domain}'" + (f" ({foreign.name})" if foreign.name else "")
            open_result = next(one for one in foreign.output if one and one not in self.shapes)
            return (
                f"{self.path} has the operator {what}, whose results ONNX cannot size; add the sizes of tensor '{open_result}' to its value_info "
                f"(onnx.helper.make_tensor_value_info)"
            )
        made = self.producers.get(name)
        where = f", which {made.name or 'a node'} ({made.op_type}) writes" if made is not None else ""
        advice = "simplify it with onnxsim, or export it with torch.onnx.export(..., dynamo=True)"
        return f"the sizes of tensor '{name}' in {self.path}{where}, depend on numbers that only an execution has; {advice}"

    def _foreign(self, name: str) -> onnx.NodeProto | None:
        """The first operator that ONNX does not know among those whose missing sizes leave those of `name` open."""
        left, seen = [name], set[str]()
        found = None
        while left:
            node = self.producers.get(left.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.domain not in ("", "ai.onnx"):
                found = node
            left += [one for one in (*node.input, *captured(node)) if one and one not in self.shapes]
        return found


def _quoted(descriptions: Sequence[str]) -> list[str]:
    """The names in `open_inputs`."""
    return [text.split("'")[1] for text in descriptions]


def _half_types() -> tuple[int, ...]:
    import onnx

    return onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def _types(graph: onnx.GraphProto) -> Mapping[str, int]:
    return {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
