"""Operator tables as arrays, so that thousands of candidates can be estimated at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from mcompress.targets.operators import ACTIVATIONS, CLAMPS, Kind, Operator, OperatorTable
from mcompress.targets.speeds import CLASSES, MULTIPLYING, STANDS_FOR, SpeedClass

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLASS_INDEX: dict[SpeedClass, int] = {name: index for index, name in enumerate(CLASSES)}
MULTIPLIES = np.array([name in MULTIPLYING for name in CLASSES])
OTHER = CLASS_INDEX["other"]
_DEPTHWISE = (CLASS_INDEX["depthwise_convolution"], CLASS_INDEX["large_depthwise_convolution"])


@dataclass(frozen=True)
class Columns:
    """One or several tables behind one another; every array but `starts` has one entry per operator."""

    starts: Integers
    """Index of each table's first operator."""
    classes: Integers
    """Index into `CLASSES`."""
    macs: Floats
    inputs: Floats
    """Input channels per group; the inner length of a matrix product."""
    outputs: Floats
    """Output channels per group; all channels of a depthwise convolution."""
    read_channels: Floats
    written_channels: Floats
    read: Floats
    """Activation elements."""
    written: Floats
    weights: Floats
    """Weight elements."""

    @property
    def tables(self) -> Integers:
        """Index of the table that each operator belongs to."""
        lengths = np.diff(np.append(self.starts, len(self.classes)))
        return np.repeat(np.arange(len(self.starts)), lengths)

    @property
    def first(self) -> NDArray[np.bool_]:
        """Whether an operator is the first of its table."""
        found = np.zeros(len(self.classes), bool)
        found[self.starts] = True
        return found

    def per_table(self, values: Floats) -> Floats:
        """Sums of an operator-wise array over each table."""
        return np.add.reduceat(values, self.starts)


def columns_of(tables: Sequence[OperatorTable]) -> Columns:
    """The arrays of one or more tables, none of them empty."""
    operators = [operator for table in tables for operator in table.operators]
    starts = np.cumsum([0, *(len(table.operators) for table in tables[:-1])])
    figures = np.array([_FIGURES(operator) for operator in operators], float).T
    macs, groups, read, written, weights = figures
    shapes = np.array([_classified(*_SHAPES(operator)) for operator in operators], float).T
    classes, read_channels, written_channels = shapes[0].astype(np.int64), shapes[1], shapes[2]
    return Columns(
        starts=starts,
        classes=classes,
        macs=macs,
        inputs=read_channels / groups,
        outputs=written_channels / np.where(np.isin(classes, _DEPTHWISE), 1.0, groups),
        read_channels=read_channels,
        written_channels=written_channels,
        read=read,
        written=written,
        weights=weights,
    )


def apart(tables: Sequence[OperatorTable], fuses: frozenset[str]) -> Integers:
    """Class of the activation that each operator leaves to a pass of its own, where it has one that is not in `fuses`; -1 for the others."""
    return np.array([_apart(operator.fused, fuses) for table in tables for operator in table.operators], np.int64)


def _apart(fused: tuple[str, ...], fuses: frozenset[str]) -> int:
    if fused:
        for name in fused:
            if name in ACTIVATIONS and name not in fuses:
                return CLASS_INDEX[_class_of("activation", name, (), False)]
    return -1


_FIGURES = attrgetter("macs", "groups", "elements_read", "elements_written", "weight_elements")
_SHAPES = attrgetter("kind", "operation", "kernel", "weight_elements", "input_shape", "output_shape")

MOST_TAPS = 25
"""Of a depthwise convolution that is not large."""
_OPERATIONS: dict[str, SpeedClass] = {
    **dict.fromkeys(("add", "sub", "rsub"), "add"),
    **dict.fromkeys(("mul", "div"), "multiply"),
    **dict.fromkeys(CLAMPS, "clamp"),
    "prelu": "prelu",
    "leaky_relu": "leaky_relu",
    **dict.fromkeys(("sigmoid", "tanh"), "sigmoid"),
    **dict.fromkeys(("hardswish", "hardsigmoid"), "hardswish"),
    **dict.fromkeys(("instance_norm", "group_norm"), "image_normalization"),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "softmax"), "softmax"),
}
"""Operation -> class, where its name alone tells."""
_BEGINNINGS: tuple[tuple[str, SpeedClass], ...] = (
    ("max_pool", "max_pool"),
    ("avg_pool", "average_pool"),
    ("upsample_bilinear", "bilinear"),
    ("upsample_nearest", "nearest"),
    ("constant_pad", "pad"),
    ("reflection_pad", "pad"),
    ("replication_pad", "pad"),
)


def class_of(operator: Operator) -> SpeedClass:
    """Whose speed an operator has."""
    return _class_of(operator.kind, operator.operation, operator.kernel, operator.weight_elements > 0)


@cache
def _class_of(kind: Kind, operation: str, kernel: tuple[int, ...], has_weights: bool) -> SpeedClass:
    found: SpeedClass = kind
    if kind == "convolution":
        found = "volumetric_convolution" if len(kernel) > 2 else "pointwise_convolution" if max(kernel, default=1) == 1 else kind
    elif kind == "depthwise_convolution":
        found = "large_depthwise_convolution" if math.prod(kernel) > MOST_TAPS else kind
    elif kind == "matmul":
        found = kind if has_weights else "batched_matmul"
    else:
        beginning: SpeedClass = next((name for start, name in _BEGINNINGS if operation.startswith(start)), kind)
        named: SpeedClass = _OPERATIONS.get(operation, beginning)
        found = named if STANDS_FOR.get(named) == kind else kind
    return found


def _classified(
    kind: Kind, operation: str, kernel: tuple[int, ...], weights: int, read: tuple[int, ...], written: tuple[int, ...]
) -> tuple[int, int, int]:
    """Class, channels read, channels written. Channels of matrix products come last, those of everything else second."""
    index = CLASS_INDEX[_class_of(kind, operation, kernel, weights > 0)]
    axis = -1 if kind in ("matmul", "attention") else 1
    return index, read[axis] if len(read) > 1 else 1, written[axis] if len(written) > 1 else 1
