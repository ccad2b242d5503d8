"""What TensorRT is documented to refuse of a quantized ONNX file, found from the file alone: TensorRT needs an NVIDIA GPU.

The rules are those of TensorRT 8.5, the last for Volta boards (JetPack 5); later versions refuse no more of them. Sources, in the order of the rules:

- onnx-tensorrt, release/8.5-GA, docs/operators.md: opset 17 and below; no kernel for the operators below; `zero_point must be 0`; types.
- onnx-tensorrt, release/8.5-GA, builtin_op_importers.cpp, `QuantDequantLinearHelper`: three inputs; scales fp32 and positive, as many as zero points;
  one scale for an activation, one for each channel of weights.
- NVIDIA/TensorRT issues 2774 and 4698 (zero points), 1749 (no uint8), 3360 with microsoft/onnxruntime 14229 (int32 biases and int8 constants:
  "only activation types allowed as input to this layer"), 1694 and 2380 (transposed convolutions with a scale per output channel).

Constant scales are asked for although `QuantDequantLinearHelper` reads others as tensors: what it checks of a scale, it checks of constants only.
fp16: onnx's QuantizeLinear takes fp16 scales from opset 19 on, and this version reads every scale as fp32; values between fp16 and fp32 are cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.onnx_halving import element_kinds, opset_of
from mcompress.export.onnx_large import graph_file
from mcompress.export.tables.onnx_attributes import OWN, number
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    import onnx

LAST_OPSET = 17
NOT_BUILT = (
    "not built with TensorRT here, which needs an NVIDIA GPU: the file was held against its documented rules, and executed by onnxruntime. Build it "
    "on the device (trtexec --onnx=FILE --int8 --fp16)"
)
UNKNOWN = frozenset(
    (
        "Bernoulli", "BitShift", "BlackmanWindow", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "Hardmax",
        "HammingWindow", "HannWindow", "IsInf", "LayerNormalization", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
        "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "STFT", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
        "SplitToSequence", "StringNormalizer", "TfIdfVectorizer", "Unique",
    )
)  # fmt: skip
"""Operators that the table of release/8.5-GA has with an N."""
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CONVERSIONS = (_QUANTIZE, _DEQUANTIZE)
_UINT8, _INT8, _INT32 = 2, 3, 6
"""TensorProto's numbers."""
_NAMED = 3

OPSET = "the file is written in opset {}; TensorRT 8.5 takes opsets up to {}. Set opset: {} of the onnx export"
OPERATOR = "TensorRT 8.5 does not have the operator"
INPUTS = "TensorRT 8.5 wants a scale and a zero point"
UNSIGNED = "its numbers are uint8; TensorRT takes int8"
WIDE = "its numbers are int32, as of a bias; TensorRT takes int8, and biases in float"
OTHER = "its numbers are not int8, which is all that TensorRT 8.5 takes"
MOVED = "its zero point is not 0, which is the only one that TensorRT takes. Quantize with activations: symmetric"
COMPUTED = "its scale or zero point is no constant of the file, which TensorRT could not check"
SCALES = "its scales are not fp32 and above 0, one for each zero point, as TensorRT 8.5 reads them"
STORED = "it dequantizes int8 constants; TensorRT 8.5 takes constants in float, behind a QuantizeLinear"
CHANNELS = "an activation has a scale for each channel; TensorRT takes one for the whole tensor"
TURNED = "its weights have a scale for each output channel, for which TensorRT has no kernel of transposed convolutions"
AXIS = "its weights have scales along another axis than that of the output channels, 0"
INTEGERS = "it computes on quantized numbers as they are; TensorRT wants it between DequantizeLinear and QuantizeLinear"


def doubts(path: Path) -> tuple[Fallback, ...]:
    """One for each rule that the file breaks, naming the first nodes that do; none for a file that breaks none.

    A file without INT8 is only asked for its opset and operators. Raises onnx's `InferenceError` where types or shapes contradict one another.
    """
    import onnx

    model = onnx.load(str(graph_file(path)))
    found: dict[str, list[str]] = {}
    for name, rule in _broken(model):
        found.setdefault(rule, []).append(name)
    return tuple(Fallback(where=f"export {path.name}", what=f"TensorRT, {_these(names)}", reason=rule) for rule, names in found.items())


def _these(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _broken(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Node and rule."""
    opset = opset_of(model)
    if opset > LAST_OPSET:
        yield "the whole file", OPSET.format(opset, LAST_OPSET, LAST_OPSET)
    checker = _Checker(model)
    for node in model.graph.node:
        name = f"{node.op_type} {node.name or node.output[0]}"
        if node.domain not in OWN or node.op_type in UNKNOWN:
            yield name, OPERATOR
        for rule in checker.conversion(node) if node.op_type in _CONVERSIONS else checker.operator(node):
            yield name, rule


class _Checker:
    """The nodes of one graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.kinds = element_kinds(model)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def conversion(self, node: onnx.NodeProto) -> Iterator[str]:
        """The rules that a QuantizeLinear or DequantizeLinear breaks."""
        numbers = self.kinds.get(node.output[0] if node.op_type == _QUANTIZE else node.input[0], _INT8)
        if numbers != _INT8:
            yield {_UINT8: UNSIGNED, _INT32: WIDE}.get(numbers, OTHER)
        if len(node.input) < 3 or not node.input[2]:
            yield INPUTS
            return
        scale, zero = (self.constants.get(name) for name in node.input[1:3])
        if scale is None or zero is None:
            yield COMPUTED
            return
        if np.any(zero != 0):
            yield MOVED
        if scale.dtype != np.float32 or not np.all(scale > 0) or scale.size != zero.size:
            yield SCALES
        if node.op_type == _DEQUANTIZE and node.input[0] in self.constants and numbers == _INT8:
            yield STORED
        if scale.size > 1 and numbers != _INT32 and self._behind(node.input[0]) is None:
            yield CHANNELS

    def operator(self, node: onnx.NodeProto) -> Iterator[str]:
        """The rules that any other node breaks."""
        if any(self.kinds.get(name) in (_INT8, _UINT8) for name in node.input if name):
            yield INTEGERS
        if node.op_type not in ("Conv", "ConvTranspose"):
            return
        weights = self.producers.get(node.input[1])
        scale = self.constants.get(weights.input[1]) if weights is not None and weights.op_type == _DEQUANTIZE else None
        if weights is None or scale is None or scale.size == 1:
            return
        axis = number(weights, "axis", 1)
        if node.op_type == "ConvTranspose" and axis != 0:
            yield TURNED
        elif axis != 0:
            yield AXIS

    def _behind(self, name: str) -> NDArray[np.generic] | None:
        """The constant that a tensor is, or that it was quantized from."""
        producer = self.producers.get(name)
        return self._behind(producer.input[0]) if producer is not None and producer.op_type in _CONVERSIONS else self.constants.get(name)
