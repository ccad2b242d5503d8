"""The form in which a network is counted, whatever it was read from: steps over numbered values, each a version of one buffer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mcompress.targets.operators import Kind
from mcompress.targets.speeds import PrecisionName

WEIGHTED: frozenset[Kind] = frozenset(("convolution", "depthwise_convolution", "grouped_convolution", "transposed_convolution", "matmul"))
IMAGE_RANK = 4
"""Tensors of so many axes or more are images (batch, channels, height, width), where nothing says otherwise."""
ROW_LOOKUPS = frozenset(("embedding", "gather", "index_select", "index", "_unsafe_index"))
"""With a table as their weight: rows of it, found by number."""
LOOKUPS = ROW_LOOKUPS | {"take", "slice"}
"""The same, and what picks other parts of it: what one inference reads of the weight is no more than what it writes."""
BAGS = frozenset(("_embedding_bag", "_embedding_bag_forward_only"))
"""Rows of a table that are found by number and added up."""
INTERLEAVED_AXES = 4
"""A copy that moves at least so many axes against each other reads single elements or short runs (pixel shuffle): a shuffle, not a copy."""


@dataclass
class Step:
    """One operator of a network, before fusion. Values are numbered; a value is one version of one buffer."""

    operation: str
    kind: Kind
    module: str
    module_is_leaf: bool
    reads: dict[int, int]
    """Value -> elements read."""
    writes: dict[int, int]
    """Value -> elements written; the first is the result."""
    weight_elements: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: int = 1
    macs: int = 0
    macs_output_convention: int = 0
    foldable: bool = False
    """A per-channel scale or shift with constants: batch normalization in evaluation, a bias, a factor."""
    takes_over_bias: bool = False
    """Batch normalization: once it is folded, its shift is the bias of the operator before it, and its own numbers are gone."""
    has_bias: bool = False
    pads_with_zeros: bool = False
    axis: int | None = None
    """Of a softmax: the axis of `input_shape` that it is over, where that is known."""
    precision: PrecisionName = "fp32"
    """In which a file has it; a module says nothing about that."""
    held: set[int | str] = field(default_factory=set)
    """Which weights these are: what is held by two steps is one and the same."""
    absorbed: tuple[str, ...] = ()
    """Operators before this one that run inside it."""
    scratch_elements: int = 0
    """What exists while it runs besides what it reads and writes: of attention, the matrix of scores and its softmax."""


@dataclass
class Trace:
    """One forward pass: its steps in the order of execution, and the buffers that they share."""

    steps: list[Step] = field(default_factory=list)
    buffer_of: list[int] = field(default_factory=list)
    """Value -> buffer."""
    elements_of: list[int] = field(default_factory=list)
    """Buffer -> elements."""
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    """Values that leave the network."""
    looked_at: set[int] = field(default_factory=set)
    """Values whose numbers the forward pass itself reads, to find its way."""

    def readers(self) -> dict[int, int]:
        """Value -> steps that read it; leaving the network counts as one."""
        counted: dict[int, int] = dict.fromkeys(self.outputs, 1)
        for step in self.steps:
            for value in step.reads:
                counted[value] = counted.get(value, 0) + 1
        return counted

    def drop_unread(self) -> None:
        """Leave out the steps whose results never come to an output, nor are looked at: no exported file holds them. Who reads one version of a
        buffer reads what all earlier ones wrote.
        """
        read = {self.buffer_of[value] for value in self.outputs | self.looked_at}
        kept = []
        for step in reversed(self.steps):
            if any(self.buffer_of[value] in read for value in step.writes):
                read.update(self.buffer_of[value] for value in step.reads)
                kept.append(step)
        self.steps = kept[::-1]


def is_interleaved(sizes: Sequence[int], order: Sequence[int]) -> bool:
    """Whether writing the axes of `sizes` in `order` is a shuffle: leading axes that stay where they are do not count, nor do axes of size 1."""
    long = [axis for axis in order if sizes[axis] != 1]
    fixed = sorted(long)
    while long and long[0] == fixed[0]:
        long, fixed = long[1:], fixed[1:]
    return len(long) >= INTERLEAVED_AXES


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of what a linear layer reads or writes: all leading axes are one."""
    return math.prod(shape[:-1]), (shape[-1] if shape else 1)


def as_matrices(shape: Sequence[int]) -> tuple[int, int, int]:
    """Batch, rows and columns of a factor of a batched product: all leading axes are one."""
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def with_kept_axes(shape: Sequence[int], reduced: Iterable[int]) -> tuple[int, ...]:
    """The result's shape of a reduction over the axes `reduced` (all of them if there are none named), each kept with size 1."""
    axes = {axis % len(shape) for axis in reduced} if shape else set()
    return tuple(1 if axis in axes or not axes else size for axis, size in enumerate(shape))


def assumed_macs(reads: Iterable[int], weight_elements: int, output_shape: Sequence[int], channel_axis: int | None = None) -> int:
    """Multiply-adds that an unknown operator is charged with: as many as a dense operator over the same memory would do, and never zero.

    With weights, each is used once per output position (a convolution, a linear layer); `channel_axis` of the output holds the features at one
    position, and is 1 for images and the last of tokens where it is not given. Without, the operator counts as a matrix product of its two
    largest operands: a product of an m x k and a k x n matrix does exactly sqrt(mk * kn * mn) multiply-adds, and no bilinear operator does more in
    which two of the three indices of a product determine the third (Loomis and Whitney, 1949).
    """
    sizes = sorted(reads, reverse=True)
    written = max(math.prod(output_shape), 1)
    if weight_elements:
        axis = channel_axis if channel_axis is not None else 1 if len(output_shape) >= IMAGE_RANK else -1
        features = output_shape[axis] if len(output_shape) > 1 else written
        return max(weight_elements * max(written // max(features, 1), 1), written)
    left = sizes[0] if sizes else written
    return max(math.isqrt(left * (sizes[1] if len(sizes) > 1 else left) * written), written)
