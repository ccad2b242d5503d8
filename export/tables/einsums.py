"""Einsum as PyTorch takes it apart: one tensor is permuted and summed, several are contracted in pairs, in batched products or element by element.

PyTorch gives every operand the axes of the result and behind them those that are summed, takes pairs from left to right, or in the order that
opt_einsum finds for three or more where it is installed, and sums an axis as soon as no other operand has it (aten/src/ATen/native/Linear.cpp,
torch/functional.py). ONNX Runtime always goes from left to right.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from mcompress.compress.counting.steps import Step, as_matrices, as_matrix, with_kept_axes
from mcompress.export.tables.graph import Graph, Shape
from mcompress.export.tables.making import Node, plain, reduction

if TYPE_CHECKING:
    from collections.abc import Callable

    Path = list[tuple[int, int]]

_BOTH = 2
"""Operands of a pair."""
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


@dataclass(frozen=True)
class Equation:
    """What each operand's axes are called, each once; an ellipsis is taken apart into axes called by digits."""

    taken: tuple[str, ...]
    result: str

    @property
    def axes(self) -> str:
        """Those of the result, and behind them those that are summed."""
        return self.result + "".join(sorted(set("".join(self.taken)) - set(self.result)))


@dataclass(frozen=True)
class Operand:
    """A tensor with all axes of the equation, 1 where it has none."""

    name: str
    shape: Shape

    def has(self, axis: int) -> bool:
        """Whether it has more than one element along the axis."""
        return self.shape[axis] != 1


def einsum(graph: Graph, node: Node, text: str) -> None:
    """What `text` says, as steps; an operator that is not known where it takes a diagonal, or does not fit the operands."""
    shapes = [graph.shape(name) for name in node.inputs]
    equation = equation_of(text, [len(shape) for shape in shapes])
    if equation is None:
        plain(graph, node, f"einsum {text}", "other")
        return
    (name,) = node.outputs
    operands = [
        _aligned(graph, one, term, equation.axes, f"{name}/{i}") for i, (one, term) in enumerate(zip(node.inputs, equation.taken, strict=True))
    ]
    summed = range(len(equation.result), len(equation.axes))
    if len(operands) > 1:
        last = _contracted(graph, node, operands, summed, _order(text, shapes))
    elif summed:
        last = _summed(graph, node, operands[0], summed)
    else:
        last = operands[0]
    if graph.is_constant(last.name):
        graph.constant(name, last.shape[: len(equation.result)])
    else:
        graph.reshape(last.name, name, last.shape[: len(equation.result)])


def equation_of(text: str, ranks: Sequence[int]) -> Equation | None:
    """`text` for operands of so many axes; None if it names an axis of an operand twice, or does not fit."""
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks) or not all(_TERM.fullmatch(term) for term in (*terms, right)):
        return None
    behind = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(count < 0 or (count and "..." not in term) for term, count in zip(terms, behind, strict=True)):
        return None
    most = max(behind)
    ellipsis = "0123456789"[:most]
    taken = tuple(term.replace("...", ellipsis[most - count :]) for term, count in zip(terms, behind, strict=True))
    counted = Counter("".join(terms).replace(".", ""))
    result = right.replace("...", ellipsis) if arrow else ellipsis + "".join(sorted(name for name, count in counted.items() if count == 1))
    fits = set(result) <= set("".join(taken)) and all(len(set(term)) == len(term) for term in (*taken, result))
    return Equation(taken, result) if fits and most == len(ellipsis) else None


def _order(text: str, shapes: Sequence[Shape]) -> Path | None:
    """The pairs of places that opt_einsum finds, as PyTorch asks it; None from left to right."""
    if len(shapes) <= _BOTH:
        return None
    try:
        found = cast("Callable[..., tuple[Path, object]]", importlib.import_module("opt_einsum").contract_path)
    except ImportError:
        return None
    return found(text, *shapes, shapes=True, optimize="auto")[0]


def _aligned(graph: Graph, source: str, term: str, axes: str, name: str) -> Operand:
    shape = tuple(graph.shape(source)[term.index(axis)] if axis in term else 1 for axis in axes)
    if graph.is_constant(source):
        return Operand(source, shape)
    graph.transpose(source, name, [term.index(axis) for axis in axes if axis in term])
    graph.reshape(name, name, shape)
    return Operand(name, shape)


def _contracted(graph: Graph, node: Node, operands: list[Operand], summed: Sequence[int], order: Path | None) -> Operand:
    """Pair by pair to one; `summed` are the axes that the result has not."""
    left = list(operands)
    for first, second in order or [(0, 1)] * (len(operands) - 1):
        having = {axis: sum(one.has(axis) for one in left) for axis in summed}
        one, other = left[min(first, second)], left[max(first, second)]
        left = [operand for place, operand in enumerate(left) if place not in (first, second)]
        inner = [axis for axis in summed if one.has(axis) and other.has(axis) and having[axis] == _BOTH]
        alone = [axis for axis in summed if having[axis] == 1]
        pair = tuple(_summed(graph, node, each, [axis for axis in alone if each.has(axis)]) for each in (one, other))
        name = f"{next(iter(node.outputs))}/pair{len(left)}"
        made = _product(graph, node, pair, inner, name) if inner else _multiplied(graph, node, pair, name)
        left = [*left, made] if order else [made, *left]
    return left[0]


def _summed(graph: Graph, node: Node, operand: Operand, axes: Sequence[int]) -> Operand:
    """Summed over `axes`, which stay with the size 1."""
    if not axes:
        return operand
    result = Operand(f"{operand.name}/sum", with_kept_axes(operand.shape, axes))
    if graph.is_constant(operand.name):
        graph.constant(result.name, result.shape)
    else:
        reduction(graph, replace(node, inputs=(operand.name,), outputs={result.name: result.shape}), "sum", axes)
    return result


def _multiplied(graph: Graph, node: Node, pair: Sequence[Operand], name: str) -> Operand:
    """Element times element."""
    shape = tuple(max(sizes) for sizes in zip(*(one.shape for one in pair), strict=True))
    if all(graph.is_constant(one.name) for one in pair):
        graph.constant(name, shape)
    else:
        plain(graph, replace(node, inputs=tuple(one.name for one in pair), outputs={name: shape}), "mul", "elementwise")
    return Operand(name, shape)


def _product(graph: Graph, node: Node, pair: Sequence[Operand], inner: Sequence[int], name: str) -> Operand:
    """A batched product, in which the `inner` axes are summed."""
    left, right = pair
    axes = [axis for axis in range(len(left.shape)) if axis not in inner]
    batch = [axis for axis in axes if left.has(axis) and right.has(axis)]
    rows = [axis for axis in axes if left.has(axis) and not right.has(axis)]
    columns = [axis for axis in axes if not left.has(axis)]
    if rows and columns and columns[-1] < rows[0]:
        left, right, rows, columns = right, left, columns, rows  # so that the result lies in memory as it is wanted
    shape = tuple(1 if axis in inner else max(sizes) for axis, sizes in enumerate(zip(left.shape, right.shape, strict=True)))
    if graph.is_constant(left.name) and graph.is_constant(right.name):
        graph.constant(name, shape)
        return Operand(name, shape)
    factors = _grouped(graph, left, (batch, rows, inner), f"{name}/left"), _grouped(graph, right, (batch, inner, columns), f"{name}/right")
    result = (factors[0].shape[0], factors[0].shape[1], factors[1].shape[2])
    weighted = any(graph.is_constant(one.name) for one in factors)
    shown = as_matrix if weighted else as_matrices
    step = Step("bmm", "matmul", node.name, True, {}, {}, 0, shown(factors[0].shape), shown(result))
    step.macs = step.macs_output_convention = math.prod(result) * factors[0].shape[2]
    graph.compute(step, tuple(one.name for one in factors), {name: result}, node.precision)
    order = [*batch, *rows, *columns]
    graph.reshape(name, name, tuple(shape[axis] for axis in order))
    graph.transpose(name, name, [order.index(axis) for axis in axes])
    graph.reshape(name, name, shape)
    return Operand(name, shape)


def _grouped(graph: Graph, operand: Operand, groups: Sequence[Sequence[int]], name: str) -> Operand:
    """As a batch of matrices: one axis for each group of axes, and what has one element left out."""
    shape = tuple(math.prod(operand.shape[axis] for axis in group) for group in groups)
    if graph.is_constant(operand.name):
        return Operand(operand.name, shape)
    order = [axis for group in groups for axis in group]
    graph.transpose(operand.name, name, [*order, *(axis for axis in range(len(operand.shape)) if axis not in order)])
    graph.reshape(name, name, shape)
    return Operand(name, shape)
