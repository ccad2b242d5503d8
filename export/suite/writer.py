"""Writes small TFLite files directly, operator by operator: what the microbenchmark suite is made of.

A converter takes seconds per file and decides itself what comes out; the suite needs hundreds of files with exactly one known operator each. The
writer uses the schema classes that ship with LiteRT. Tensors are NHWC, as the format wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Number = Literal["fp32", "int8"]
SCALE, ZERO_POINT = 0.05, -7
"""Of every INT8 activation of the suite that has no fixed ones: speed does not depend on the numbers, but some kernels take no zero point but 0."""
IDENTIFIER = b"TFL3"


@dataclass
class Graph:
    """One subgraph under construction; methods return tensor indices."""

    number: Number
    tensors: list[schema.TensorT] = field(default_factory=list)
    buffers: list[schema.BufferT] = field(default_factory=lambda: [schema.BufferT()])
    operators: list[schema.OperatorT] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self.tensors[tensor].shape)

    def activation(self, shape: Sequence[int], scale: float = SCALE, zero: int = ZERO_POINT) -> int:
        """A tensor that is computed or fed; `scale` and `zero` hold for INT8."""
        kind = schema.TensorType.INT8 if self.number == "int8" else schema.TensorType.FLOAT32
        return self._tensor(shape, kind, 0, _quantization([scale], 0, zero) if self.number == "int8" else None)

    def weights(self, shape: Sequence[int], channel_axis: int) -> int:
        """Random weights: float, or INT8 with one scale per output channel."""
        if self.number == "fp32":
            return self._constant(self.random.normal(0, 0.05, shape).astype(np.float32), schema.TensorType.FLOAT32)
        values = self.random.integers(-127, 128, shape, dtype=np.int8)
        return self._constant(values, schema.TensorType.INT8, _quantization([0.01] * shape[channel_axis], channel_axis))

    def bias(self, channels: int) -> int:
        """Zeros: float, or INT32 at the accumulator's scale."""
        if self.number == "fp32":
            return self._constant(np.zeros(channels, np.float32), schema.TensorType.FLOAT32)
        return self._constant(np.zeros(channels, np.int32), schema.TensorType.INT32, _quantization([SCALE * 0.01] * channels, 0))

    def integers(self, values: Sequence[int]) -> int:
        """A constant INT32 vector, such as a new shape."""
        return self._constant(np.asarray(values, np.int32), schema.TensorType.INT32)

    def integers_table(self, values: Sequence[Sequence[int]]) -> int:
        """A constant INT32 matrix, such as paddings."""
        return self._constant(np.asarray(values, np.int32), schema.TensorType.INT32)

    def least(self) -> int:
        """A single value, the least that the number type has."""
        if self.number == "fp32":
            return self._constant(np.full((), np.finfo(np.float32).min, np.float32), schema.TensorType.FLOAT32)
        return self._constant(np.full((), -128, np.int8), schema.TensorType.INT8, _quantization([SCALE], 0, ZERO_POINT))

    def slopes(self, shape: Sequence[int]) -> int:
        """Slopes of a PReLU."""
        if self.number == "fp32":
            return self._constant(np.full(shape, 0.25, np.float32), schema.TensorType.FLOAT32)
        return self._constant(np.full(shape, 64, np.int8), schema.TensorType.INT8, _quantization([1 / 256], 0))

    def add(
        self,
        code: int,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: object = None,
        kind: int = 0,
        *,
        scale: float = SCALE,
        zero: int = ZERO_POINT,
    ) -> int:
        """An operator with one output of `shape`; `options` is an object of the schema, `kind` its number in the union."""
        out = self.activation(shape, scale, zero)
        operator = schema.OperatorT()
        if code not in self.codes:
            self.codes.append(code)
        operator.opcodeIndex, operator.inputs, operator.outputs = self.codes.index(code), list(inputs), [out]
        operator.builtinOptions, operator.builtinOptionsType = options, kind
        self.operators.append(operator)
        return out

    def file(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The finished file."""
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.inputs, subgraph.outputs, subgraph.operators = self.tensors, list(inputs), list(outputs), self.operators
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [subgraph], self.buffers, [_code(code) for code in self.codes]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _constant(self, values: NDArray[np.generic], kind: int, quantization: schema.QuantizationParametersT | None = None) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.buffers.append(buffer)
        return self._tensor(values.shape, kind, len(self.buffers) - 1, quantization)

    def _tensor(self, shape: Sequence[int], kind: int, buffer: int, quantization: schema.QuantizationParametersT | None) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer, tensor.name, tensor.quantization = list(shape), kind, buffer, f"t{len(self.tensors)}", quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def _quantization(scales: Sequence[float], axis: int, zero: int = 0) -> schema.QuantizationParametersT:
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint, found.quantizedDimension = list(scales), [zero] * len(scales), axis
    return found


def _code(code: int) -> schema.OperatorCodeT:
    found = schema.OperatorCodeT()
    found.builtinCode, found.deprecatedBuiltinCode, found.version = code, min(code, 127), VERSIONS.get(code, 1)
    return found


VERSIONS = {
    schema.BuiltinOperator.CONV_2D: 3,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3,
    schema.BuiltinOperator.FULLY_CONNECTED: 4,
    schema.BuiltinOperator.TRANSPOSE_CONV: 3,
    schema.BuiltinOperator.ADD: 2,
    schema.BuiltinOperator.MUL: 2,
    schema.BuiltinOperator.SUB: 2,
    schema.BuiltinOperator.CONCATENATION: 2,
    schema.BuiltinOperator.MAX_POOL_2D: 2,
    schema.BuiltinOperator.AVERAGE_POOL_2D: 2,
    schema.BuiltinOperator.LOGISTIC: 2,
    schema.BuiltinOperator.TANH: 2,
    schema.BuiltinOperator.SOFTMAX: 2,
    schema.BuiltinOperator.MEAN: 2,
    schema.BuiltinOperator.RESIZE_BILINEAR: 3,
    schema.BuiltinOperator.RESIZE_NEAREST_NEIGHBOR: 3,
    schema.BuiltinOperator.DEPTH_TO_SPACE: 2,
    schema.BuiltinOperator.PADV2: 2,
    schema.BuiltinOperator.TRANSPOSE: 2,
    schema.BuiltinOperator.BATCH_MATMUL: 2,
}
"""Least operator versions that take INT8; 1 for all others."""
