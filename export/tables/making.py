"""Steps out of nodes: the operators that ONNX and TFLite both have, with the shapes and the work that the operator table gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcompress.compress.counting.describing import Window, describe_attention, describe_convolution, describe_elementwise
from mcompress.compress.counting.steps import Step, as_matrices, as_matrix, with_kept_axes
from mcompress.export.tables.graph import Graph, Shape, to_channels_first
from mcompress.targets.operators import Kind
from mcompress.targets.speeds import PrecisionName


@dataclass(frozen=True)
class Node:
    """One node of a file: its name, tensors, and shapes of what it writes in the file's order."""

    name: str
    inputs: tuple[str, ...]
    """Of the operator: activations and weights; no shapes, axes or quantization parameters."""
    outputs: Mapping[str, Shape]
    precision: PrecisionName
    channels_last: bool = False
    """Whether the channels of the result stand at the end in the file only."""

    @property
    def result(self) -> Shape:
        """Shape of the first output in PyTorch's order."""
        shape = next(iter(self.outputs.values()))
        return to_channels_first(shape) if self.channels_last else shape


def plain(graph: Graph, node: Node, operation: str, kind: Kind) -> None:
    """An operator whose cost is the memory that it moves."""
    source = next((name for name in node.inputs if not graph.is_constant(name)), "")
    step = Step(operation, kind, node.name, True, {}, {}, 0, graph.canonical(source), node.result)
    graph.compute(step, node.inputs, node.outputs, node.precision, channels_last=node.channels_last)
    if kind in ("elementwise", "activation"):
        describe_elementwise(step, has_constant=len(node.inputs) == 2 and len(activations(graph, node)) == 1)


def activations(graph: Graph, node: Node) -> tuple[str, ...]:
    """The inputs that are no constants."""
    return tuple(name for name in node.inputs if not graph.is_constant(name))


def clamps(graph: Graph, node: Node) -> bool:
    """Whether the larger or the smaller of the inputs is that of one tensor and one number."""
    numbers = [name for name in node.inputs if graph.is_constant(name)]
    return len(node.inputs) == 2 and len(numbers) == 1 and math.prod(graph.shape(numbers[0])) == 1


def convolution(graph: Graph, node: Node, window: Window) -> None:
    """`node` has the input, the weight and, if it is held in the file and not all zeros, the bias."""
    step = Step("convolution", "convolution", node.name, True, {}, {}, 0, graph.canonical(node.inputs[0]), node.result)
    describe_convolution(step, window)
    graph.compute(step, node.inputs, node.outputs, node.precision, channels_last=node.channels_last)


def linear(graph: Graph, node: Node, inner: int, *, has_bias: bool) -> None:
    """The first input times a matrix; `inner` is the size of the axis that is summed over."""
    rows = as_matrix(graph.shape(node.inputs[0]))
    columns = next(iter(node.outputs.values()))
    step = Step("linear", "matmul", node.name, True, {}, {}, 0, (math.prod(rows) // inner, inner), as_matrix(columns))
    step.macs = step.macs_output_convention = math.prod(columns) * inner
    step.has_bias = has_bias
    graph.compute(step, node.inputs, node.outputs, node.precision)


def product(graph: Graph, node: Node, inner: int, left: Shape) -> None:
    """A batched product of two activations; `left` is the first factor as (batch, rows, inner)."""
    result = next(iter(node.outputs.values()))
    shape = as_matrices(result) if len(result) > 1 else (1, 1, *result)
    step = Step("bmm", "matmul", node.name, True, {}, {}, 0, left, shape)
    step.macs = step.macs_output_convention = math.prod(result) * inner
    graph.compute(step, node.inputs, node.outputs, node.precision)


def attention(graph: Graph, node: Node, heads: int = 1, past: int = 0) -> None:
    """Inputs are query, key, value and what else it reads; without an axis of heads, so many `heads` of queries stand side by side in the last.

    `past` keys and values come from calls before this one.
    """
    query, keys = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])[-2] + past
    result = next(iter(node.outputs.values()))
    step = Step("attention", "attention", node.name, True, {}, {}, 0, query, result)
    describe_attention(step, query, result, keys)
    if len(query) == 3 and heads > 1:
        step.input_shape, step.output_shape = ((s[0] * heads, s[1], s[2] // heads) for s in (query, result))
    graph.compute(step, node.inputs, node.outputs, node.precision)


def recurrent(graph: Graph, node: Node, operation: str, weights: Sequence[str]) -> None:
    """One layer of an LSTM, GRU or RNN: every number of its matrices is used once per element of the sequence."""
    source, result = graph.shape(node.inputs[0]), next(iter(node.outputs.values()))
    rows = math.prod(source[:-1])
    step = Step(operation, "matmul", node.name, True, {}, {}, 0, as_matrix(source), (rows, math.prod(result) // max(rows, 1)))
    step.macs = step.macs_output_convention = rows * sum(math.prod(graph.shape(name)) for name in weights)
    graph.compute(step, node.inputs, node.outputs, node.precision)


def reduction(graph: Graph, node: Node, operation: str, axes: Sequence[int]) -> None:
    """Sums or the like over `axes` of the file's order; all of them if none are named."""
    source = node.inputs[0]
    rank = len(graph.shape(source))
    place = {0: 0, rank - 1: 1, **{axis: axis + 1 for axis in range(1, rank - 1)}} if graph.is_channels_last(source) else dict(enumerate(range(rank)))
    shape = graph.canonical(source)
    step = Step(operation, "reduction", node.name, True, {}, {}, 0, shape, with_kept_axes(shape, [place[axis % rank] for axis in axes]))
    graph.compute(step, (source,), node.outputs, node.precision, channels_last=node.channels_last)


def padding(graph: Graph, node: Node, operation: str = "constant_pad_nd", *, zeros: bool) -> None:
    """A border around a tensor; a mirrored one is a `reflection_pad`, one of the outermost elements a `replication_pad`."""
    step = Step(operation, "copy", node.name, True, {}, {}, 0, graph.canonical(node.inputs[0]), node.result, pads_with_zeros=zeros)
    graph.compute(step, node.inputs[:1], node.outputs, node.precision, channels_last=node.channels_last)
