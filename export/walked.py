"""What an ONNX file costs, counted from the file alone: the second opinion on the operator table.

`mcompress.compress.cost` counts the PyTorch network, this module the graph that was exported from it. The two share no code on purpose, so that they
agree only if both are right. The rules are the same:

- Multiply-adds are exact work: a transposed convolution by its input size.
- What only depends on constants is folded and costs nothing. Weights are not counted as activations; the input is.
- Reshape, Split, Slice and their like are views: they cost nothing and keep what they show alive. A Transpose is one until a Reshape needs the new
  order. Quantize and dequantize belong to the integer kernels at their sides and cost nothing.
- An activation runs inside the operator that produces its input if nothing else reads that; a constant bias or a batch normalization behind a
  convolution likewise. Everything else writes memory of its own, DepthToSpace (pixel shuffle) and Concat included.
- Memory is live from the node that writes it to the last node that reads it, in the order of the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, require
from mcompress.export.onnx_large import graph_file
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
WITH_PAST = 5
"""Inputs of an Attention node that continues an earlier pass: query, key, value, mask, past keys, ..."""
RESHAPES = {"Reshape", "Flatten"}
"""Views unless what they read was transposed: then they copy."""
VIEWS = {"Squeeze", "Unsqueeze", "Identity", "Dropout", "Expand", "Split", "Slice", "Transpose", *RESHAPES, *CONVERSIONS}
FROM_SHAPES = {"Shape", "Size"}
ACTIVATIONS = {
    *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Softplus"),
    *("HardSigmoid", "HardSwish"),
}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
NORMALIZATIONS = {
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "Softmax", "LogSoftmax"),
}
FOLDABLE = {"Add", "BatchNormalization"}
"""With constants, behind a weighted operator."""
ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Log", "Erf", "Max", "Min", "Where", "Sign", "Round", "Floor"),
}
UNCOUNTED = {
    *("Einsum", "RNN", "LSTM", "GRU", "If", "Loop", "Scan", "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "DeformConv", "DFT"),
}
"""Operators that multiply, or hold graphs that do, and are not counted here: a file with one of them has no second opinion."""
STANDARD_DOMAINS = {"", "ai.onnx"}
MACS_AGREE, PEAK_AGREES = 0.001, 0.05
"""Shares by which the two counts may differ: work is work, but an exporter may split an operator or copy where PyTorch views."""


@dataclass(frozen=True)
class WalkedCost:
    """One forward pass of a file."""

    macs: int
    """Multiply-adds, exact work."""
    peak_activation_elements: int
    """Largest number of activation elements that exist at once."""
    peak_at: str
    """The first node at which they exist, as `name (operator)`; empty for a graph that computes nothing."""


def walk(path: Path) -> WalkedCost:
    """Count the ONNX file at `path`, float or with quantize and dequantize nodes; weights are not read.

    Raises `ExportError` for a file that cannot be read, has shapes that are not static, or operators whose work is not known here;
    `MissingBackendError` without the onnx package.
    """
    require("onnx", {"onnx": "onnx"}, "It runs on Linux, macOS and Windows.")
    with BackendCall("onnx", f"walk {path.name}", "Check the file with onnx.checker, or export it again with static shapes."):
        import onnx

        model = onnx.load(str(graph_file(path)), load_external_data=False)
        for node in model.graph.node:
            continued = node.op_type == "Attention" and len(node.input) >= WITH_PAST
            if node.domain not in STANDARD_DOMAINS or node.op_type in UNCOUNTED or continued:
                raise ExportError(f"{path.name} has {_name(node)}, whose work is not counted from a file; its cost is known from the network only")
        walked = _Walk(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph)
    return walked.cost()


def confirm(path: Path, table: OperatorTable) -> tuple[WalkedCost | None, tuple[Fallback, ...]]:
    """Walk the file that was exported from the network of `table`, and tell where the two counts differ beyond an exporter's choices.

    A file that cannot be counted is a fallback, not an error; then there is no cost.
    """
    where, what = "export onnx", f"second count of {path.name}"
    try:
        walked = walk(path)
    except ExportError as error:
        return None, (Fallback(where=where, what=what, reason=str(error)),)
    return walked, tuple(Fallback(where=where, what=what, reason=reason) for reason in _differences(walked, table))


def _differences(walked: WalkedCost, table: OperatorTable) -> Iterator[str]:
    if abs(walked.macs - table.macs) > MACS_AGREE * table.macs:
        yield f"the file does {walked.macs:,} multiply-adds, the operator table counts {table.macs:,}"
    in_file, in_table = walked.peak_activation_elements, table.peak_activation_elements
    if abs(in_file - in_table) > PEAK_AGREES * in_table:
        yield (
            f"activations peak at {in_file:,} elements in the file, at {walked.peak_at}, and at {in_table:,} in the operator table: "
            "the exporter may have split or joined operators there, or copied what PyTorch only views"
        )


class _Walk:
    """Goes over the nodes in order and decides for each: a constant, another name for memory that exists, or a step that writes memory."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.shapes = _shapes(graph)
        self.constants = {item.name for item in graph.initializer}
        self.outputs = [item.name for item in graph.output]
        nodes = _with_swish(graph.node, self.outputs)
        self.readers = Counter(name for node in nodes for name in set(node.input))
        self.steps: list[str] = []
        self.macs = 0
        self.buffer_of: dict[str, str] = {}
        """Tensor -> the tensor that first stood in the memory that it stands in."""
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.transposed: set[str] = set()
        self.takes_bias: set[str] = set()
        self.takes_activation: set[str] = set()
        for item in graph.input:
            if item.name not in self.constants:
                self._write(item.name)
        for node in nodes:
            self._visit(node)
        for name in self.outputs:
            self.last[self.buffer_of.get(name, name)] = max(len(self.steps) - 1, 0)

    def cost(self) -> WalkedCost:
        """The sums, once all nodes were visited."""
        change = [0] * (len(self.steps) + 2)
        for buffer, step in self.first.items():
            change[step] += self._elements(buffer)
            change[self.last[buffer] + 1] -= self._elements(buffer)
        live = list(accumulate(change))[: len(self.steps)]
        peak = max(live, default=0)
        return WalkedCost(self.macs, peak, self.steps[live.index(peak)] if live else "")

    def _visit(self, node: onnx.NodeProto) -> None:
        given = list(dict.fromkeys(name for name in node.input if name and name not in self.constants))
        if not given or node.op_type in FROM_SHAPES:
            self.constants.update(node.output)
        elif node.op_type in VIEWS and not (node.op_type in RESHAPES and given[0] in self.transposed):
            self._view(node, given[0])
        elif len(given) == 1 and self._runs_inside(node, given[0]):
            self.buffer_of[node.output[0]] = self.buffer_of[given[0]]
        else:
            self._compute(node, given)

    def _view(self, node: onnx.NodeProto, source: str) -> None:
        for name in node.output:
            self.buffer_of[name] = self.buffer_of[source]
        if source in self.transposed or (node.op_type == "Transpose" and _moves(node, self._shape(source))):
            self.transposed.update(node.output)
        if self._read_here_only(source) and self._elements(node.output[0]) == self._elements(source):
            for takes in (self.takes_bias, self.takes_activation):
                takes.update(node.output[:1] if source in takes else ())

    def _runs_inside(self, node: onnx.NodeProto, source: str) -> bool:
        """Whether the operator that produces `source` takes `node` in; what may follow it then is noted."""
        if not self._read_here_only(source) or self._shape(node.output[0]) != self._shape(source):
            return False
        if node.op_type in FOLDABLE and source in self.takes_bias:
            self.takes_bias.add(node.output[0])
            self.takes_activation.add(node.output[0])
            return True
        return node.op_type in ACTIVATIONS and source in self.takes_activation

    def _compute(self, node: onnx.NodeProto, given: list[str]) -> None:
        for name in given:
            self.last[self.buffer_of[name]] = len(self.steps)
        result = node.output[0]
        for name in node.output:
            if name and (name == result or self.readers[name] or name in self.outputs):
                self._write(name)
        if node.op_type in WEIGHTED:
            self.takes_bias.add(result)
        if node.op_type in WEIGHTED | NORMALIZATIONS | ELEMENTWISE:
            self.takes_activation.add(result)
        self.macs += self._work(node)
        self.steps.append(_name(node))

    def _work(self, node: onnx.NodeProto) -> int:
        """Multiply-adds of one node."""
        if node.op_type == "Conv":
            return self._elements(node.output[0]) * math.prod(self._shape(node.input[1])[1:])
        if node.op_type == "ConvTranspose":
            return self._elements(node.input[0]) * math.prod(self._shape(node.input[1])[1:])
        if node.op_type == "MatMul":
            return self._elements(node.output[0]) * self._shape(node.input[0])[-1]
        if node.op_type == "Gemm":
            transposed = next((item.i for item in node.attribute if item.name == "transA"), 0)
            return self._elements(node.output[0]) * self._shape(node.input[0])[0 if transposed else 1]
        if node.op_type == "Attention":
            query, key, value = node.input[:3]
            # Query times key transposed, and the weights times value: both for every query and every key.
            return self._elements(query) * self._shape(key)[-2] + self._elements(node.output[0]) * self._shape(value)[-2]
        return 0

    def _write(self, tensor: str) -> None:
        self.buffer_of[tensor] = tensor
        self.first[tensor] = self.last[tensor] = len(self.steps)

    def _read_here_only(self, tensor: str) -> bool:
        return self.readers[tensor] == 1 and tensor not in self.outputs

    def _elements(self, tensor: str) -> int:
        return math.prod(self._shape(tensor))

    def _shape(self, tensor: str) -> Shape:
        shape = self.shapes.get(tensor)
        if shape is None:
            raise ExportError(f"tensor '{tensor}' has no static shape in the file; export it for one input shape")
        return shape


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Every tensor whose sizes are all known."""
    found = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            found[item.name] = tuple(size.dim_value for size in kind.shape.dim)
    return found


def _with_swish(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes with each x * Sigmoid(x) as the one activation that it is in the network: below opset 24, ONNX has no name for it."""
    import onnx

    readers = Counter((*outputs, *(name for node in nodes for name in set(node.input))))
    sigmoid_of = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sigmoid" and readers[node.output[0]] == 1}
    products = {gate: node for node in nodes if node.op_type == "Mul" for gate in node.input if sigmoid_of.get(gate) in node.input}
    swish = {p.output[0]: onnx.helper.make_node("Swish", [sigmoid_of[gate]], p.output, name=p.name) for gate, p in products.items()}
    return [swish.get(node.output[0], node) for node in nodes if node.output[0] not in products]


def _moves(node: onnx.NodeProto, shape: Shape) -> bool:
    """Whether a Transpose changes the order of the elements: of the axes with more than one entry."""
    order = next((list(item.ints) for item in node.attribute if item.name == "perm"), list(reversed(range(len(shape)))))
    long = [axis for axis in order if shape[axis] != 1]
    return long != sorted(long)


def _name(node: onnx.NodeProto) -> str:
    return f"{node.name or node.output[0]} ({node.op_type})"
