"""The exporter's graph in the form that TensorRT takes INT8 in: zero points of 0, floats for whatever is no activation.

For a plan with symmetric activations. TensorRT 8.5 is the last version for Volta boards (JetPack 5); what it refuses is in `onnx_tensorrt`. So
activations stay int8 (onnxruntime's fast kernels would like uint8); weights are fp32 behind a pair of QuantizeLinear and DequantizeLinear, at values
that the pair reproduces exactly, so that the file holds the plan's INT8 weights in four times the bytes; biases and single factors are fp32.

A transposed convolution has one scale for all of its weights: TensorRT has no kernels for one per output channel (NVIDIA/TensorRT issue 2380, an
answer of 2022-12-02), and computed something else with them (issue 1694). The plan's integers are kept: an output channel is its integers times its
scale, so it is computed with the largest scale, and multiplied behind the convolution by its own share of that. Such chains of pointwise operators
TensorRT fuses into one, as its documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.onnx_naming import PREFIX, STEP
from mcompress.export.onnx_rewriting import WEIGHTED, drop_unused
from mcompress.export.tables.onnx_attributes import number

if TYPE_CHECKING:
    import onnx

MULTIPLIED = {*WEIGHTED, "MatMul"}
_TRANSPOSED = "ConvTranspose"
FloatArray = NDArray[np.float32]


def for_zero_points_of_0(graph: onnx.GraphProto) -> None:
    """Rewrite a graph whose quantized constants are dequantized, each by a node of its own (`unshare`), in place."""
    nodes = list(_Symmetric(graph).rewritten())
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    del graph.value_info[:]


class _Symmetric:
    """One pass over the nodes in their order."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {item.name: item for item in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers = {name: node for node in graph.node for name in node.input}
        self.shares: dict[str, FloatArray] = {}
        """Weights of a transposed convolution -> what its output channels are multiplied by."""

    def rewritten(self) -> Iterator[onnx.NodeProto]:
        for node in self.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                yield from self._dequantized(node)
            elif node.op_type == _TRANSPOSED and node.input[1] in self.shares:
                yield from self._multiplied(node)
            else:
                yield node

    def _dequantized(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        from onnx import helper

        values, scale = self._value(node.input[0]), self._value(node.input[1]).astype(np.float32)
        result, reader = node.output[0], self.readers[node.output[0]]
        axis = number(node, "axis", 1) % max(values.ndim, 1)
        if reader.op_type not in MULTIPLIED:
            self._store(_along(scale, values.ndim, axis) * values.astype(np.float32), result)
            return
        if reader.op_type == _TRANSPOSED and scale.size > 1:
            largest = scale.max()
            self.shares[result] = scale / largest
            scale = np.asarray(largest, np.float32)
        kept = self._store(_along(scale, values.ndim, axis) * values.astype(np.float32), f"{result}_float")
        taken = [self._store(scale, f"{result}_step"), self._store(np.zeros(scale.shape, np.int8), f"{result}_zero")]
        placed = {"axis": axis} if scale.size > 1 else {}
        yield helper.make_node("QuantizeLinear", [kept, *taken], [f"{result}_int8"], name=f"{node.name}_quantize", **placed)
        yield helper.make_node("DequantizeLinear", [f"{result}_int8", *taken], [result], name=node.name, **placed)

    def _multiplied(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The transposed convolution without its bias, times the shares, plus the bias."""
        from onnx import helper

        result, shares = node.output[0], self.shares[node.input[1]]
        shares = np.tile(shares, number(node, "group", 1))
        dimensions = len(self._value(f"{node.input[1]}_float").shape) - 2
        name = node.name.split(STEP)[0] if node.name.startswith(PREFIX) else node.name
        bias = self._value(node.input[2]).astype(np.float32) if len(node.input) > 2 and node.input[2] else None
        del node.input[2:]
        node.name, node.output[0] = f"{name}{STEP}{_TRANSPOSED}", f"{result}_even"
        yield node
        scaled = result if bias is None else f"{result}_scaled"
        factor = self._store(shares.reshape(1, -1, *[1] * dimensions), f"{result}_shares")
        yield helper.make_node("Mul", [f"{result}_even", factor], [scaled], name=f"{name}{STEP}Mul")
        if bias is not None:
            added = self._store(bias.reshape(1, -1, *[1] * dimensions), f"{result}_bias")
            yield helper.make_node("Add", [scaled, added], [result], name=f"{name}{STEP}Add")

    def _value(self, name: str) -> NDArray[np.generic]:
        from onnx import numpy_helper

        value: NDArray[np.generic] = numpy_helper.to_array(self.constants[name])
        return value

    def _store(self, value: NDArray[np.generic], name: str) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        self.graph.initializer.append(self.constants[name])
        return name


def _along(scale: FloatArray, dimensions: int, axis: int) -> FloatArray:
    """Scales in the shape that multiplies what they belong to."""
    return scale if scale.size == 1 else scale.reshape([-1 if place == axis else 1 for place in range(dimensions)])
