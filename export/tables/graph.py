"""A file's graph on its way to the operator table: which tensors are views of which memory, which are constants, and which operators compute.

Tensors that a reader names are constants, or views of a value (a value is what one operator wrote). A view knows for each axis which strides of the
value it runs over, so that a chain of Reshape and Transpose, however a converter cuts it, is one movement: free where strides can say it, one copy (a
shuffle, where short runs are interleaved) where an operator reads what they cannot. PyTorch counts the same way.

Sizes are in PyTorch's order. A tensor that is `channels_last` has its channels at the end in the file only: the runtime of such a file has no other
order, so the transpositions that a converter puts between the two are bookkeeping, and cost nothing here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mcompress.compress.counting.rows import rows_of
from mcompress.compress.counting.steps import Step, Trace, assumed_macs, is_interleaved
from mcompress.errors import UsageError
from mcompress.targets.operators import Kind, OperatorTable
from mcompress.targets.speeds import PrecisionName

Shape = tuple[int, ...]
Atom = tuple[int, int]
"""Size and stride, in elements of the value."""


@dataclass(frozen=True)
class View:
    """A tensor of the file as a view of a value; `axes` has the atoms of each of its axes in the file's order."""

    value: int
    axes: tuple[tuple[Atom, ...], ...]
    part: str
    """Name of the tensor at which the view became a part of the value, empty for the whole."""
    channels_last: bool

    @property
    def shape(self) -> Shape:
        """In the file's order."""
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All of them in the file's order, those of size 1 left out."""
        return tuple(atom for axis in self.axes for atom in axis if atom[0] != 1)

    def needs_copy(self) -> bool:
        """Whether an axis runs over the value in steps that are not even."""
        for axis in self.axes:
            long = [atom for atom in axis if atom[0] != 1]
            if any(stride != size * below for (_, stride), (size, below) in itertools.pairwise(long)):
                return True
        return False


def table_of_graph(graph: Graph) -> tuple[OperatorTable, list[Step]]:
    """The operator table, and of each row the step that computes."""
    for step, precision in zip(graph.trace.steps, graph.precisions, strict=True):
        step.precision = precision
    return rows_of(graph.trace, sum(graph.weights.values()))


def to_channels_first(shape: Sequence[int]) -> Shape:
    """(N, ..., C) as (N, C, ...)."""
    return (shape[0], shape[-1], *shape[1:-1])


class Graph:
    """Takes the nodes of a file in their order and makes the steps of a `Trace`."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.views: dict[str, View] = {}
        self.constants: dict[str, Shape] = {}
        self.precisions: list[PrecisionName] = []
        """Of each step, in the order of the steps of the trace before anything is fused."""
        self.weights: dict[str, int] = {}
        """Constants that operators hold, and their elements."""
        self._shape_of: dict[int, Shape] = {}
        """Of each value, in PyTorch's order and as the row that wrote it has it."""

    def input(self, name: str, shape: Shape, *, channels_last: bool = False) -> None:
        """A tensor that enters the network; `shape` is in the file's order."""
        value = self._new(name, shape, channels_last=channels_last)
        self.trace.inputs.add(value)
        self._shape_of[value] = self.canonical(name)

    def output(self, name: str) -> None:
        """A tensor that leaves the network."""
        if name in self.views:
            if self.views[name].needs_copy():
                self._copy(name)
            self.trace.outputs.add(self.views[name].value)

    def constant(self, name: str, shape: Shape) -> None:
        """A tensor that depends on nothing that enters."""
        self.constants[name] = shape

    def is_constant(self, name: str) -> bool:
        """Whether nothing that enters decides what the tensor holds."""
        return name not in self.views

    def shape(self, name: str) -> Shape:
        """In the file's order."""
        if name in self.views:
            return self.views[name].shape
        return self.constants.get(name, ())

    def canonical(self, name: str) -> Shape:
        """In PyTorch's order."""
        shape = self.shape(name)
        return to_channels_first(shape) if self.is_channels_last(name) else shape

    def is_channels_last(self, name: str) -> bool:
        """Whether the channels are the last axis in the file only."""
        return name in self.views and self.views[name].channels_last

    def transpose(self, source: str, result: str, order: Sequence[int], *, channels_last: bool = False) -> None:
        """Axes in another order: a view. `channels_last` says whether the file has the channels at the end of the result only."""
        view = self._view(source)
        self.views[result] = replace(view, axes=tuple(view.axes[axis] for axis in order), channels_last=channels_last)

    def reshape(self, source: str, result: str, shape: Shape) -> None:
        """Other axes over the same elements: a view if the sizes can be taken apart, a copy before it if they cannot."""
        view = self._view(source)
        axes = _regrouped(view.atoms, shape)
        if axes is None:
            self._copy(source)
            view = self.views[source]
            axes = _regrouped(view.atoms, shape)
        if axes is None:
            raise UsageError(f"tensor '{result}' of shape {shape} is no reshaped {view.shape}; the file is damaged")
        keeps = view.channels_last and view.shape == shape
        self.views[result] = replace(view, axes=axes, channels_last=keeps)

    def lay_out(self, name: str) -> None:
        """Say that the channels of a tensor stand at the end in the file only."""
        self.views[name] = replace(self._view(name), channels_last=True)

    def part(self, source: str, result: str, shape: Shape) -> None:
        """A slice, or some axes at one index: a view of fewer elements. `shape` is in the file's order."""
        view = self._view(source)
        if len(shape) == len(view.axes) and not view.needs_copy():
            axes = tuple(_shrunk(axis, size) for axis, size in zip(view.axes, shape, strict=True))
        else:
            axes = tuple(((size, stride),) for size, stride in zip(shape, _strides(shape), strict=True))
        same = shape == view.shape
        self.views[result] = replace(
            view, axes=axes, part=view.part if same else result, channels_last=view.channels_last and len(shape) == len(view.axes)
        )

    def expand(self, source: str, result: str, shape: Shape) -> None:
        """Repeated without being copied."""
        view = self._view(source)
        aligned: list[tuple[Atom, ...]] = [((1, 0),)] * (len(shape) - len(view.axes)) + list(view.axes)
        axes = tuple(((size, 0),) if math.prod(s for s, _ in axis) == 1 and size != 1 else axis for axis, size in zip(aligned, shape, strict=True))
        self.views[result] = replace(view, axes=axes)

    def same(self, source: str, result: str) -> None:
        """Another name."""
        if source in self.views:
            self.views[result] = self.views[source]
        else:
            self.constants[result] = self.constants.get(source, ())

    def compute(
        self,
        step: Step,
        inputs: Sequence[str],
        outputs: Mapping[str, Shape],
        precision: PrecisionName,
        *,
        channels_last: bool = False,
    ) -> None:
        """Add `step`: fill in what it reads, writes and holds. Shapes of `outputs` are in the file's order."""
        parts: dict[int, dict[tuple[str, int], int]] = {}
        for name in dict.fromkeys(inputs):
            if name in self.views:
                if self.views[name].needs_copy():
                    self._copy(name, precision)
                view = self.views[name]
                elements = math.prod(size for size, stride in view.atoms if stride) if view.atoms else 1
                parts.setdefault(view.value, {})[view.part, elements] = elements
            elif name in self.constants:
                self.weights[name] = math.prod(self.constants[name])
                step.weight_elements += self.weights[name]
                step.held.add(name)
        step.reads = {value: min(sum(read.values()), self._elements(value)) for value, read in parts.items()}
        step.writes = {self._new(name, shape, channels_last=channels_last): math.prod(shape) for name, shape in outputs.items()}
        if step.kind == "other":
            step.macs = step.macs_output_convention = assumed_macs(step.reads.values(), step.weight_elements, step.output_shape)
        self._add(step, precision)

    def _view(self, name: str) -> View:
        """Raises `UsageError` for a tensor that is no view of anything."""
        if name in self.views:
            return self.views[name]
        what = "is a constant" if name in self.constants else "is read before anything writes it"
        raise UsageError(
            f"tensor '{name}' {what}, and an operator takes it apart as if the input decided what it holds; check the file, and simplify it"
        )

    def _add(self, step: Step, precision: PrecisionName) -> None:
        for value in step.writes:
            self._shape_of[value] = step.output_shape
        self.trace.steps.append(step)
        self.precisions.append(precision)

    def _copy(self, name: str, precision: PrecisionName = "fp32") -> None:
        """Write the view in the order of its axes."""
        view = self.views[name]
        atoms = replace(view, axes=(view.axes[0], view.axes[-1], *view.axes[1:-1])).atoms if view.channels_last else view.atoms
        by_stride = sorted(range(len(atoms)), key=lambda i: (-atoms[i][1], i))
        kind: Kind = "shuffle" if is_interleaved([atoms[i][0] for i in by_stride], [by_stride.index(i) for i in range(len(atoms))]) else "copy"
        shape, canonical = view.shape, self.canonical(name)
        source = self._shape_of[view.value]
        elements = math.prod(shape)
        step = Step("clone", kind, f"{name}_copy", True, {view.value: min(elements, self._elements(view.value))}, {}, 0, source, canonical)
        step.writes = {self._new(name, shape, channels_last=view.channels_last): elements}
        self._add(step, precision)

    def _new(self, name: str, shape: Shape, *, channels_last: bool) -> int:
        elements = math.prod(shape)
        self.trace.elements_of.append(elements)
        self.trace.buffer_of.append(len(self.trace.elements_of) - 1)
        value = len(self.trace.buffer_of) - 1
        strides: Sequence[int]
        if channels_last:
            first = to_channels_first(shape)
            of_first = _strides(first)
            strides = (of_first[0], *of_first[2:], of_first[1])
        else:
            strides = _strides(shape)
        self.views[name] = View(value, tuple(((size, stride),) for size, stride in zip(shape, strides, strict=True)), "", channels_last)
        return value

    def _elements(self, value: int) -> int:
        return self.trace.elements_of[self.trace.buffer_of[value]]


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _shrunk(axis: tuple[Atom, ...], size: int) -> tuple[Atom, ...]:
    if math.prod(s for s, _ in axis) == size:
        return axis
    return ((size, axis[-1][1]),)


def _regrouped(atoms: Sequence[Atom], shape: Shape) -> tuple[tuple[Atom, ...], ...] | None:
    """The atoms dealt out to axes of `shape`, taken apart where an axis ends inside one; None where sizes do not divide."""
    left = list(reversed(atoms))
    axes: list[tuple[Atom, ...]] = []
    for size in shape:
        axis: list[Atom] = []
        missing = size
        while missing > 1:
            if not left:
                return None
            length, stride = left.pop()
            if length == 0:
                return None
            if missing % length == 0:
                axis.append((length, stride))
                missing //= length
            elif length % missing == 0:
                axis.append((missing, stride * (length // missing)))
                left.append((length // missing, stride))
                missing = 1
            else:
                return None
        axes.append(tuple(axis) or ((1, 0),))
    return None if left else tuple(axes)
