"""Which operators of a QDQ file onnxruntime's CPU provider computes in integers: one rule, for files that this project writes and for those it reads.

A QDQ file says what is quantized: an operator between DequantizeLinear and QuantizeLinear. Whether integers are computed is for the runtime: it has
integer kernels for some operators, in some forms, and runs the others in float between two conversions. The sets below are what onnxruntime 1.31.1
does, read from the graphs that it optimizes (ORT_ENABLE_EXTENDED and up; opsets 10 to 26); `tests/test_tables_files_precision.py` repeats that for
every operator with the runtime that is installed. The rule needs neither the runtime nor weights, so it holds for files with operators that no
runtime here knows and for files of any size, and is the same on every machine.

Where processors differ, the rule is that of Arm. They differ for signed 8-bit activations, which x86 has no kernels for: there the runtime makes them
unsigned where one operator reads them, and computes in float what reads those that several do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.tables.onnx_attributes import OWN, Numbers, constant_of, element_types, number, word
from mcompress.export.tables.onnx_folding import short_constants

if TYPE_CHECKING:
    import onnx

MULTIPLIED = {"Conv", "Gemm"}
"""Computed in integers with weights that are quantized, or with float ones, which the runtime then quantizes itself; likewise the bias."""
WITHOUT_QUANTIZED_RESULT = {"MatMul", "Gemm"}
"""They have kernels that read integers and write floats."""
UNARY = {"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"}
BINARY = {"Add", "Mul"}
VARIADIC = {"Concat"}
CHOSEN = {"Where"}
PARTED = {"Split"}
MOVED = {
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""They give numbers that they read, so that they run on the quantized ones where scale and zero point are the same on both sides."""
FOUND = {"ArgMax"}
"""Run on quantized numbers without giving such."""
PASSED = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""Of those moved: the runtime carries a conversion from one of their sides to the other."""
CLAMPED = {"Relu", "Clip"}
"""Left out before a QuantizeLinear whose range ends where theirs does."""
BIAS_SCALE_MISMATCH = 0.02
"""By so much of it the scale of a convolution's bias may differ from the product of the other two."""
VANISHING = {"Identity", "Dropout"}
MAX_POOL_FROM = 12
"""Opset from which on MaxPool takes integers."""
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_UINT8, _INT8, _INT32 = 2, 3, 6
"""TensorProto's numbers."""
_BYTES = {_UINT8, _INT8}
_LEAST = {_UINT8: 0, _INT8: -128}
_FAR = 2**20
"""Steps of a scale, from which on a limit is none."""


def integer_nodes(graph: onnx.GraphProto, opset: int) -> set[str]:
    """First outputs of the nodes that are computed in integers because of the conversions around them, clamps that vanish there included.

    Operators that are integer ones as they stand (QLinearConv, ConvInteger, ...) are not among them. `opset` is the version of ONNX's own operators.
    """
    if not any(node.op_type == _DEQUANTIZE for node in graph.node):
        return set()
    return _Rule(graph, opset).found


@dataclass(frozen=True)
class _Scaled:
    """How a conversion scales: its zero point's type, and what tells it from others."""

    kind: int
    """Type of the quantized numbers, as TensorProto numbers types; 0 where the file does not say it."""
    scale: bytes
    zero: bytes
    """Numbers where they are known and single, else names; empty where there is no zero point."""
    single: bool
    """Whether one constant scale is that of the whole tensor."""

    def carries(self, other: _Scaled) -> bool:
        """Whether numbers quantized so are those quantized in the other way too."""
        return self == other and self.single and bool(self.zero)


class _Rule:
    """One graph. What reads a tensor and what wrote it are asked as if nodes that vanish were not there."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self.opset = opset
        self.known: Mapping[str, Numbers] = short_constants(graph)
        self.held = {item.name: item.data_type for item in graph.initializer}
        self.held |= {made.name: made.data_type for made in map(constant_of, graph.node) if made is not None}
        self.sizes = {item.name: tuple(item.dims) for item in graph.initializer}
        self.types = element_types(graph)
        self.outputs = {item.name for item in graph.output}
        self.same: dict[str, str] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if node.op_type in VANISHING and node.output[0] not in self.outputs:
                self.same[node.output[0]] = self._source(node.input[0])
                continue
            self.producers |= dict.fromkeys(node.output, node)
            for name in node.input:
                self.readers.setdefault(self._source(name), []).append(node)
        self._incoming: dict[str, _Scaled | None] = {}
        self._outgoing: dict[str, _Scaled | None] = {}
        self.found: set[str] = set()
        for node in graph.node:
            if node.domain in OWN and node.op_type not in VANISHING:
                self._judge(node)
        self.found |= {new for new, old in self.same.items() if old in self.found}

    def _judge(self, node: onnx.NodeProto) -> None:
        kind, result = node.op_type, node.output[0]
        if kind in MULTIPLIED or kind == "MatMul":
            clamps = self._multiplied(node)
            if clamps is not None:
                self.found |= {result, *clamps}
        elif kind in CLAMPED:
            before, after = self.before(node.input[0]), self.behind(result)
            if before is not None and after is not None and self._vanishes(node, after):
                self.found.add(result)
        elif kind in MOVED or kind in PARTED:
            if self._moved(node):
                self.found.add(result)
        elif kind in FOUND:
            before = self.before(node.input[0])
            if before is not None and before.kind in _BYTES and before.single and before.zero:
                self.found.add(result)
        elif kind in UNARY or kind in BINARY or kind in VARIADIC or kind in CHOSEN:
            data = node.input[:1] if kind in UNARY else node.input[1:] if kind in CHOSEN else node.input
            given = [self.before(name) for name in data]
            after, clamps = self._ended(result)
            if after is not None and after.kind in _BYTES and all(one is not None and one.kind == after.kind for one in given):
                self.found |= {result, *clamps}

    def _multiplied(self, node: onnx.NodeProto) -> list[str] | None:
        """Further nodes that the integer kernel takes over; None where there is none for the node."""
        kind, before = node.op_type, self.before(node.input[0])
        end, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        merged: list[str] = []
        added = self._added_bias(node) if kind == "MatMul" else None
        if added is not None:
            kind, end, bias = "Gemm", added[0], added[1]
            merged.append(end)
        if before is None and kind == "Conv":
            before = self._before_padding(node.input[0], merged)
        if kind == "Conv" and self._is_float(node.input[1]):
            end = self._normalized(end, merged)
        after, clamps = self._ended(end)
        if before is None or before.kind not in _BYTES:
            return None
        weight = self.before(node.input[1])
        may_quantize = kind in MULTIPLIED and after is not None and before.single
        if weight is None and not (may_quantize and self._is_float(node.input[1])):
            return None
        if weight is not None and weight.kind not in ({_INT8} if before.kind == _INT8 else _BYTES):
            return None
        # The runtime quantizes float weights together with the bias, or neither.
        if bias and not (self._is_float(bias) if weight is None else self._takes_bias(node, bias, may_quantize=may_quantize)):
            return None
        if after is None:
            return merged if kind in WITHOUT_QUANTIZED_RESULT and not self._leads_to_quantize(end) else None
        return [*merged, *clamps] if after.kind == before.kind else None

    def _normalized(self, name: str, merged: list[str]) -> str:
        """The tensor behind a batch norm, which the runtime takes into the float weights of a convolution before it."""
        readers = self._reading(name)
        if len(readers) != 1 or readers[0].op_type != "BatchNormalization" or not all(map(self._is_float, readers[0].input[1:])):
            return name
        merged.append(readers[0].output[0])
        return merged[-1]

    def _takes_bias(self, node: onnx.NodeProto, bias: str, *, may_quantize: bool) -> bool:
        if node.op_type == "Gemm" and any(item.name == "beta" and item.f != 1 for item in node.attribute):
            return False
        found = self.before(bias)
        if found is None:
            return may_quantize and self._is_float(bias)
        return found.kind == _INT32 and (node.op_type != "Conv" or self._is_scaled_like_product(node))

    def _is_scaled_like_product(self, conv: onnx.NodeProto) -> bool:
        """Whether the scale of a bias is the product of the other two, as integer sums have it; so too where the file does not hold them."""
        given = [self.producers.get(self._source(name)) for name in conv.input[:3]]
        scales = [self.known.get(one.input[1]) for one in given if one is not None and one.op_type == _DEQUANTIZE]
        known = [scale.reshape(-1) for scale in scales if scale is not None]
        if len(known) < 3 or len({one.size for one in known} - {1}) > 1:
            return True
        return bool(np.allclose(known[2], np.multiply(known[0], known[1]), rtol=BIAS_SCALE_MISMATCH, atol=0))

    def _added_bias(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """The result of the addition of a constant row behind a product, and the row: the runtime makes a Gemm of the two."""
        readers = self._reading(node.output[0])
        sizes = self.sizes.get(self._matrix(node.input[1]), ())
        if len(readers) != 1 or readers[0].op_type != "Add" or len(sizes) != 2:
            return None
        row = next((name for name in readers[0].input if self._is_float(name) and self.sizes.get(name, ())[-1:] == sizes[1:]), "")
        return (readers[0].output[0], row) if row and np.prod(self.sizes[row]) == sizes[1] else None

    def _matrix(self, name: str) -> str:
        """The constant that a weight is dequantized from."""
        producer = self.producers.get(self._source(name))
        return self._matrix(producer.input[0]) if producer is not None and producer.op_type in (_QUANTIZE, _DEQUANTIZE) else name

    def _before_padding(self, name: str, merged: list[str]) -> _Scaled | None:
        """What dequantizes the input of a convolution through zeros around it, which the runtime takes into the convolution."""
        pad = self.producers.get(self._source(name))
        if pad is None or pad.op_type != "Pad" or word(pad, "mode", "constant") != "constant" or len(self._reading(pad.output[0])) != 1:
            return None
        value = pad.input[2] if len(pad.input) > 2 else ""
        sizes = self.known.get(pad.input[1]) if len(pad.input) > 1 else None
        if len(pad.input) > 3 or sizes is None or (value and (value not in self.known or self.known[value].any())):
            return None
        around = sizes.reshape(2, -1)
        if around[:, :2].any() or np.less(around, 0).any():
            return None
        merged.append(pad.output[0])
        return self.before(pad.input[0])

    def _moved(self, node: onnx.NodeProto) -> bool:
        if not self._takes_integers(node):
            return False
        before = self.before(node.input[0])
        if before is None and node.op_type in PASSED and self._source(node.input[0]) not in self.producers:
            before = self.behind(node.output[0])
        if before is None or before.kind not in _BYTES:
            return False
        if node.op_type in PARTED:
            return all((after := self._ended(name)[0]) is not None and before.carries(after) for name in node.output if name)
        result = node.output[0]
        after = self.behind(result)
        if after is None and node.op_type in PASSED and before.single and not any(reader.op_type == _QUANTIZE for reader in self._reading(result)):
            return bool(before.zero) and self._is_passed(result)
        after = self._ended(result)[0]
        return after is not None and before.carries(after)

    def _takes_integers(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Resize":
            return word(node, "mode", "nearest") == "nearest"
        return node.op_type != "MaxPool" or self.opset >= MAX_POOL_FROM

    def _is_passed(self, result: str) -> bool:
        """Whether a conversion is carried on from before a node to behind it: its result is read in the graph, or leaves it, not both."""
        return (result in self.outputs) != bool(self.readers.get(result))

    def before(self, name: str) -> _Scaled | None:
        """What dequantizes the tensor, directly or carried there by the runtime; None where nothing does."""
        name = self._source(name)
        if name not in self._incoming:
            self._incoming[name] = None
            self._incoming[name] = self._before(name)
        return self._incoming[name]

    def _before(self, name: str) -> _Scaled | None:
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == _DEQUANTIZE:
            return self._scaled(producer)
        reached = self.behind(name)
        if reached is not None and not any(reader.op_type == _QUANTIZE for reader in self._reading(name)):
            return reached
        if producer is None or producer.op_type not in PASSED or not self._carries(producer):
            return None
        found = self.before(producer.input[0])
        return found if found is not None and found.single and self._is_passed(name) else None

    def behind(self, name: str) -> _Scaled | None:
        """What quantizes the tensor and alone reads it, directly or carried there by the runtime; None where nothing does."""
        name = self._source(name)
        if name not in self._outgoing:
            self._outgoing[name] = None
            self._outgoing[name] = self._behind(name)
        return self._outgoing[name]

    def _behind(self, name: str) -> _Scaled | None:
        readers = self.readers.get(name, [])
        if name in self.outputs or not readers:
            return None
        if all(reader.op_type == _QUANTIZE and self._source(reader.input[0]) == name for reader in readers):
            found = {self._scaled(reader) for reader in readers}
            return found.pop() if len(found) == 1 else None
        if len(readers) != 1 or readers[0].op_type not in PASSED or self._source(readers[0].input[0]) != name or not self._carries(readers[0]):
            return None
        reached = self.behind(readers[0].output[0])
        return reached if reached is not None and reached.single else None

    def _carries(self, node: onnx.NodeProto) -> bool:
        return node.op_type != "MaxPool" or self.opset >= MAX_POOL_FROM

    def _ended(self, name: str) -> tuple[_Scaled | None, list[str]]:
        """What quantizes the tensor behind clamps that vanish there, and the clamps."""
        clamps: list[onnx.NodeProto] = []
        after = self.behind(name)
        while after is None and len(readers := self._reading(name)) == 1 and readers[0].op_type in CLAMPED:
            clamps.append(readers[0])
            name = readers[0].output[0]
            after = self.behind(name)
        if after is None or not all(self._vanishes(clamp, after) for clamp in clamps):
            return None, []
        return after, [clamp.output[0] for clamp in clamps]

    def _leads_to_quantize(self, name: str) -> bool:
        """Whether the runtime has no kernel that writes floats: where a conversion reads the tensor, or one node reads what a clamp makes of it."""
        readers = self.readers.get(self._source(name), [])
        if len(readers) == 1 and readers[0].op_type in CLAMPED:
            return len(self._reading(readers[0].output[0])) == 1
        return any(reader.op_type == _QUANTIZE for reader in readers)

    def _vanishes(self, clamp: onnx.NodeProto, after: _Scaled) -> bool:
        """Whether the range of the quantized numbers is within that of the clamp; where the file does not hold them, what calibration gives."""
        if after.kind not in _BYTES:
            return False
        least = _LEAST[after.kind]
        zero = int.from_bytes(after.zero, "little", signed=after.kind == _INT8) if len(after.zero) == 1 else None if after.zero else 0
        if clamp.op_type == "Relu":
            return zero is None or zero == least
        scale = float(np.frombuffer(after.scale, np.float32)[0]) if len(after.scale) == 4 else None
        low, high = self._limits(clamp)
        if zero is None or scale is None:
            return True
        lowest, highest = (round(min(max(limit / scale, -_FAR), _FAR)) + zero for limit in (low, high))
        return lowest <= least and highest >= least + 255

    def _limits(self, clip: onnx.NodeProto) -> tuple[float, float]:
        limits = [-math.inf, math.inf]
        for at, name in enumerate(("min", "max")):
            given = next((item.f for item in clip.attribute if item.name == name), None)
            if given is not None:
                limits[at] = float(given)
            elif len(clip.input) > at + 1 and clip.input[at + 1]:
                value = self.known.get(clip.input[at + 1])
                limits[at] = float(value.reshape(-1)[0]) if value is not None and value.size else 0.0
        return limits[0], limits[1]

    def _scaled(self, node: onnx.NodeProto) -> _Scaled:
        names = [name for name in node.input[1:3] if name]
        values = [self.known.get(name) for name in names]
        # Of constants that lie outside of the file only the sizes are known.
        single = names[0] in self.held and (values[0].size if values[0] is not None else np.prod(self.sizes[names[0]])) == 1
        texts = [f"name {name}".encode() if held is None or held.size != 1 else held.tobytes() for name, held in zip(names, values, strict=True)]
        return _Scaled(self._kind(node, names), texts[0], texts[1] if len(texts) > 1 else b"", single)

    def _kind(self, node: onnx.NodeProto, names: list[str]) -> int:
        """Type of the quantized side; 0 where the other side is no float32, for which there are no integer kernels."""
        if self.held.get(names[0], 1) != 1:
            return 0
        if len(names) > 1:
            return self.held.get(names[1]) or self.types.get(names[1], 0)
        if node.op_type == _QUANTIZE:
            return number(node, "output_dtype", 0) or _UINT8
        source = self.producers.get(self._source(node.input[0]))
        if source is not None and source.op_type == _QUANTIZE:
            return self._kind(source, [name for name in source.input[1:3] if name])
        return self.held.get(node.input[0]) or self.types.get(node.input[0], 0)

    def _is_float(self, name: str) -> bool:
        """Whether the tensor is a constant of float32."""
        return self.held.get(name) == 1

    def _reading(self, name: str) -> list[onnx.NodeProto]:
        """What reads a tensor that does not leave the graph."""
        name = self._source(name)
        return [] if name in self.outputs else self.readers.get(name, [])

    def _source(self, name: str) -> str:
        return self.same.get(name, name)
