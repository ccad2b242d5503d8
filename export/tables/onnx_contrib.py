"""Operators of ONNX Runtime's own domain, com.microsoft: the sizes of their results, which ONNX does not infer, and the steps that attention is.

Sources: docs/ContribOperators.md of ONNX Runtime, and the shape functions in its contrib_defs.cc and bert_defs.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mcompress.export.tables.graph import Graph, Shape
from mcompress.export.tables.making import Node, attention, linear
from mcompress.export.tables.onnx_attributes import word

if TYPE_CHECKING:
    import onnx

DOMAIN = "com.microsoft"
ATTENTION = ("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention")
PACKED_WEIGHTS = ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4")
"""Products whose weights are so packed that only attributes say their sizes: K and N, and the bits of each in the first."""
PACKED_BITS = 4
"""Where nothing says otherwise."""
_AS_FIRST = frozenset(
    ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasAdd", "BiasSoftmax", "LayerNormalization", "SimplifiedLayerNormalization",
     "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNorm", "SkipGroupNorm", "RotaryEmbedding", "QLinearSigmoid",
     "QLinearLeakyRelu", "QLinearSoftmax", "QuantizeLinear", "DequantizeLinear")
)  # fmt: skip
"""Their first result has the sizes of their first input."""
_PRODUCTS = {
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedGemm"), 1),
    "QGemm": 3,
}
"""Product -> position of its second factor."""
_WINDOWS = {"FusedConv": 1, "QLinearConv": 3, "QLinearAveragePool": -1}
"""Operator over windows -> position of its weight; -1 where an attribute has the kernel."""
_AROUND = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
"""What auto_pad can be."""
_PACKED_QKV, _PACKED_KV = 5, 5
_KEYS_WITH_HEADS = 4


@dataclass(frozen=True)
class Call:
    """A node as this module looks at it."""

    kind: str
    inputs: tuple[str, ...]
    """All positions, empty where an input was left out."""
    numbers: Mapping[str, tuple[int, ...]]
    """Attributes that are whole numbers, or several."""
    words: Mapping[str, str]
    """Attributes that are text."""

    def input(self, position: int) -> str:
        """The name of an input, empty if it was left out."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def number(self, name: str, default: int) -> int:
        """An attribute that is one number."""
        return next(iter(self.numbers.get(name, ())), default)


def call_of(node: onnx.NodeProto) -> Call:
    """A node without what is not asked of it here."""
    from onnx import AttributeProto

    whole = {item.name: tuple(item.ints) or (int(item.i),) for item in node.attribute if item.type in (AttributeProto.INT, AttributeProto.INTS)}
    words = {item.name: word(node, item.name) for item in node.attribute if item.type == AttributeProto.STRING}
    return Call(node.op_type, tuple(node.input), whole, words)


def results_of(call: Call, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """Sizes of the first results of an operator of `DOMAIN`; none where it is not known, or what it needs is not."""
    given = [shapes.get(name) for name in call.inputs]
    first = given[0] if given else None
    if first is None:
        return ()
    if call.kind in _AS_FIRST:
        return (first,)
    if call.kind in PACKED_WEIGHTS:
        return ((*first[:-1], call.number("N", 1)),)
    if call.kind in ATTENTION:
        return _attended(call, shapes)
    if call.kind in ("QLinearAdd", "QLinearMul"):
        second = shapes.get(call.input(3))
        return () if second is None else (_broadcast(first, second),)
    if call.kind == "QLinearGlobalAveragePool":
        ones = (1,) * (len(first) - 2)
        return ((first[0], *ones, first[-1]) if call.number("channels_last", 0) else (*first[:2], *ones),)
    if call.kind == "QLinearConcat":
        return _joined(call, shapes)
    if call.kind in _PRODUCTS:
        second = shapes.get(call.input(_PRODUCTS[call.kind]))
        return () if second is None else (_multiplied(call, first, second),)
    if call.kind in _WINDOWS:
        return _moved(call, first, shapes)
    return ()


def attend(graph: Graph, node: Node, call: Call) -> None:
    """Attention, behind the product that makes queries, keys and values of one input where the operator does that too."""
    heads = call.number("num_heads", 1)
    result = next(iter(node.outputs))
    past, rest = "", tuple[str, ...]()
    if call.kind in ("Attention", "QAttention"):
        past = call.input(8 if call.kind == "QAttention" else 4)
        rest = tuple(filter(None, (call.input(3), call.input(5)) if call.kind == "Attention" else (call.input(5),)))
        weight, whole = call.input(1), f"{result}/qkv"
        shape = (*graph.shape(call.input(0))[:-1], graph.shape(weight)[-1])
        projection = Node(f"{node.name}/projection", tuple(filter(None, call.inputs[:3])), {whole: shape}, node.precision)
        linear(graph, projection, graph.shape(weight)[0], has_bias=bool(call.input(2)))
        names = _parts(graph, whole, result, _widths(call, shape[-1]))
    elif call.kind == "MultiHeadAttention":
        past, rest = call.input(6), tuple(filter(None, call.inputs[3:6]))
        names = _given(graph, call, result)
    else:
        past = call.input(3)
        query = call.input(0)
        if call.input(1):
            names = (query, call.input(1), call.input(2))
        else:
            keys = call.number("kv_num_heads", heads)
            head = graph.shape(query)[-1] // (heads + 2 * keys)
            names = _parts(graph, query, result, (heads * head, keys * head, keys * head))
    kept = (past, *(call.input(call.inputs.index(past) + 1),)) if past and call.kind not in ("Attention", "QAttention") else (past,)
    length = graph.shape(past)[-2] if past else 0
    used = replace(node, inputs=(*names, *rest, *filter(None, kept)))
    attention(graph, used, heads, past=length)


def _given(graph: Graph, call: Call, result: str) -> tuple[str, ...]:
    query, key, value = (call.input(position) for position in range(3))
    shape = graph.shape(query)
    if not key and len(shape) == _PACKED_QKV:
        return _parts(graph, query, result, (shape[2] * shape[4],) * 3)
    if not value and len(graph.shape(key)) == _PACKED_KV:
        heads, width = graph.shape(key)[2], graph.shape(key)[4]
        return (query, *_parts(graph, key, result, (heads * width,) * 2))
    return query, key, value


def _parts(graph: Graph, whole: str, result: str, widths: tuple[int, ...]) -> tuple[str, ...]:
    """Side by side in the last axes of one tensor."""
    rows = graph.shape(whole)[:2]
    names = tuple(f"{result}/part/{index}" for index in range(len(widths)))
    for name, width in zip(names, widths, strict=True):
        if graph.is_constant(whole):
            graph.constant(name, (*rows, width))
        else:
            graph.part(whole, name, (*rows, width))
    return names


def _widths(call: Call, total: int) -> tuple[int, ...]:
    return call.numbers.get("qkv_hidden_sizes") or (total // 3,) * 3


def _attended(call: Call, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """The result, and the keys (and values) that are kept for the next call."""
    first, heads = shapes[call.input(0)], call.number("num_heads", 1)
    batch, rows = first[:2]
    if call.kind in ("Attention", "QAttention"):
        weight = shapes.get(call.input(1))
        if weight is None:
            return ()
        width = _widths(call, weight[-1])[2]
        before = shapes.get(call.input(8 if call.kind == "QAttention" else 4), (2, batch, heads, 0, width // heads))
        return (batch, rows, width), (2, batch, heads, before[3] + rows, width // heads)
    if call.kind == "GroupQueryAttention":
        keys = call.number("kv_num_heads", heads)
        width = first[-1] if call.input(1) else first[-1] // (heads + 2 * keys) * heads
        position = 3
    else:
        keys = heads
        width = first[2] * first[4] if len(first) == _PACKED_QKV else first[-1]
        position = 6
        value = shapes.get(call.input(2))
        if value is not None:
            width = value[1] * value[3] if len(value) == _KEYS_WITH_HEADS else value[-1]
    key = shapes.get(call.input(1))
    now = rows if key is None else key[2] if len(key) == _KEYS_WITH_HEADS else key[1]
    past = shapes.get(call.input(position), (batch, keys, 0, width // heads))
    kept = (batch, keys, past[2] + now, width // heads)
    return (batch, rows, width), kept, kept


def _multiplied(call: Call, left: Shape, right: Shape) -> Shape:
    if call.number("transA", 0) and len(left) > 1:
        left = (*left[:-2], left[-1], left[-2])
    if call.number("transB", 0) and len(right) > 1:
        right = (*right[:-2], right[-1], right[-2])
    return (*_broadcast(left[:-2], right[:-2]), *left[-2:-1], *right[-1:])


def _moved(call: Call, first: Shape, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    position = _WINDOWS[call.kind]
    weight = shapes.get(call.input(position)) if position >= 0 else (first[1], 1, *call.numbers.get("kernel_shape", ()))
    rank, around = len(first) - 2, call.words.get("auto_pad", "NOTSET")
    if weight is None or len(weight) != len(first) or call.number("channels_last", 0) or around not in _AROUND:
        return ()
    pads, strides, spread = (
        call.numbers.get(name) or one for name, one in (("pads", (0,) * 2 * rank), ("strides", (1,) * rank), ("dilations", (1,) * rank))
    )
    sizes = []
    for i in range(rank):
        size, stride = first[2 + i], strides[i]
        if around.startswith("SAME"):
            sizes.append(-(-size // stride))
            continue
        before, after = (0, 0) if around == "VALID" else (pads[i], pads[rank + i])
        room = size + before + after - spread[i] * (weight[2 + i] - 1) - 1
        steps = room // stride
        # A window that would begin behind the input and what stands before it is left out.
        if call.number("ceil_mode", 0) and room % stride and (steps + 1) * stride < size + before:
            steps += 1
        sizes.append(steps + 1)
    return ((first[0], weight[0], *sizes),)


def _joined(call: Call, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    """Inputs are scale and zero point of the result, then tensor, scale and zero point of each part."""
    parts = [shapes.get(name) for name in call.inputs[2::3]]
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts):
        return ()
    axis = call.number("axis", 1) % len(known[0])
    return ((*known[0][:axis], sum(part[axis] for part in known), *known[0][axis + 1 :]),)


def _broadcast(one: Shape, other: Shape) -> Shape:
    rank = max(len(one), len(other))
    wide = [(1,) * (rank - len(shape)) + shape for shape in (one, other)]
    return tuple(max(pair) for pair in zip(*wide, strict=True))
