"""Operator tables as arrays, so that thousands of candidates can be estimated at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, starmap
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from mcompress.targets.operators import ACTIVATIONS, CLAMPS, FUSES, Kind, Operator, OperatorTable, Runtime
from mcompress.targets.speeds import CLASSES, MULTIPLYING, STANDS_FOR, PrecisionName, SpeedClass

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
    """Weight elements that one inference reads."""

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


@dataclass(frozen=True)
class Edges:
    """Every activation that an operator reads from another one, in the order of the readers."""

    made_by: Integers
    """Index of the operator that makes it, in `Columns`."""
    read_by: Integers
    elements: Floats


def columns_of(tables: Sequence[OperatorTable]) -> Columns:
    """The arrays of one or more tables, none of them empty."""
    operators = [operator for table in tables for operator in table.operators]
    starts = np.cumsum([0, *(len(table.operators) for table in tables[:-1])])
    classes, *figures = _by_column(starmap(_figures, map(_FIELDS, operators)), 8, len(operators))
    inputs, outputs, macs, groups, read, written, weights = (figure.astype(float) for figure in figures)
    return Columns(
        starts=starts,
        classes=classes,
        macs=macs,
        inputs=inputs / groups,
        outputs=outputs / np.where(np.isin(classes, _DEPTHWISE), 1.0, groups),
        read_channels=inputs,
        written_channels=outputs,
        read=read,
        written=written,
        weights=weights,
    )


def edges_of(tables: Sequence[OperatorTable], columns: Columns) -> Edges:
    """The edges of the tables that `columns` were made of; tables without sources are chains."""
    found = [operator.sources for table in tables for operator in table.operators]
    given = [sources or () for sources in found]
    lengths = np.fromiter(map(len, given), np.int64, len(given))
    made_by, elements = _by_column(chain.from_iterable(given), 2, int(lengths.sum()))
    read_by = np.repeat(np.arange(len(given)), lengths)
    made_by = made_by + columns.starts[columns.tables[read_by]]
    if None in found:
        chained = np.flatnonzero(np.fromiter((sources is None for sources in found), bool, len(found)) & ~columns.first)
        made_by, read_by = np.append(made_by, chained - 1), np.append(read_by, chained)
        elements = np.append(elements, columns.read[chained])
        order = np.argsort(read_by, kind="stable")
        made_by, read_by, elements = made_by[order], read_by[order], elements[order]
    return Edges(made_by, read_by, elements.astype(float))


def _by_column(rows: Iterable[tuple[int, ...]], columns: int, count: int) -> Integers:
    """`count` rows of whole numbers as an array, columns x rows."""
    return np.fromiter(chain.from_iterable(rows), np.int64, columns * count).reshape(count, columns).T


def apart(tables: Sequence[OperatorTable], runtime: Runtime, computed: PrecisionName) -> Integers:
    """Class of the activation that each operator leaves to a pass of its own on a runtime that computes in `computed`; -1 where it leaves none."""
    clamps = CLAMPS if computed in QUANTIZED else frozenset[str]()
    return np.array([_apart(operator, runtime, clamps) if operator.fused else -1 for table in tables for operator in table.operators], np.int64)


def _apart(operator: Operator, runtime: Runtime, clamps: frozenset[str]) -> int:
    fuses = FUSES.get((runtime, operator.kind), frozenset())
    for name in operator.fused:
        if name in ACTIVATIONS and name not in fuses and name not in clamps:
            return _index_of("activation", name, (), False)
    return -1


QUANTIZED: frozenset[PrecisionName] = frozenset(("int8", "w8a16"))
"""Where a clamp is the range in which the result is written, and no work behind any operator."""
_FIELDS = attrgetter(
    "kind", "operation", "kernel", "input_shape", "output_shape", "channel_axis", "macs", "groups", "elements_read", "elements_written",
    "weight_elements", "weights_read",
)  # fmt: skip

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
    ("circular_pad", "pad"),
)


def class_of(operator: Operator) -> SpeedClass:
    """Whose speed an operator has."""
    return _class_of(operator.kind, operator.operation, operator.kernel, operator.weight_elements > 0)


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


@cache
def _index_of(kind: Kind, operation: str, kernel: tuple[int, ...], has_weights: bool) -> int:
    return CLASS_INDEX[_class_of(kind, operation, kernel, has_weights)]


def _figures(
    kind: Kind, operation: str, kernel: tuple[int, ...], read_shape: tuple[int, ...], written_shape: tuple[int, ...], axis: int,
    macs: int, groups: int, read: int, written: int, weights: int, weights_read: int | None,
) -> tuple[int, ...]:  # fmt: skip
    """Class, channels read, channels written, and the rest as it is; a shape that has no such axis has one channel."""
    index = _index_of(kind, operation, kernel, weights > 0)
    inputs, outputs = read_shape[axis] if len(read_shape) > 1 else 1, written_shape[axis] if len(written_shape) > 1 else 1
    return index, inputs, outputs, macs, groups, read, written, weights if weights_read is None else weights_read
