"""Which axis of a row's shapes holds the channels: 1 in images and in what is computed on them, the last in tokens.

A convolution, a pooling or a normalization of images says it; a matrix product and a normalization of rows say the other. Everything else takes it
from what it reads, seen through the views between the two: a row knows the shape that it reads, and the producer how many channels it wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mcompress.compress.counting.steps import IMAGE_RANK, ROW_LOOKUPS, WEIGHTED, Step
from mcompress.targets.operators import Kind

Shape = tuple[int, ...]
IMAGE, LAST = 1, -1
_OF_IMAGES: frozenset[Kind] = (WEIGHTED - {"matmul"}) | {"pooling", "resize"}
_OF_ROWS: frozenset[Kind] = frozenset(("matmul", "attention"))
_NORMS_OF_IMAGES = frozenset(("native_batch_norm", "instance_norm", "group_norm"))
_NORMS_OF_ROWS = frozenset(("layer_norm", "rms_norm"))
_MOVES: frozenset[Kind] = frozenset(("copy", "shuffle"))


def channel_axes(groups: Sequence[Sequence[Step]]) -> list[tuple[int, int]]:
    """Of each group, the axis of the channels in the shape that it reads, and in the shape that it writes; 1 or -1."""
    maker = {value: index for index, group in enumerate(groups) for step in group for value in step.writes}
    found: list[tuple[int, int]] = []
    for index, group in enumerate(groups):
        head = group[0]
        axis = _own(head)
        if axis is not None:
            found.append((axis, axis))
            continue
        sources = [(elements, maker[value]) for value, elements in head.reads.items() if value in maker]
        if sources:
            source = max(sources, key=lambda pair: pair[0])[1]
            made, before = groups[source][0].output_shape, found[source][1]
        else:
            made, before = _read_next(head, groups[index + 1 :])
        if head.kind in _MOVES:
            # What a copy reads is shown as it was written.
            found.append((_seen(head.input_shape, made, before), _seen(head.output_shape, made, before)))
        else:
            # Behind a broadcast stands the whole result; a reduction and a gate have all channels in what they read.
            shape = head.output_shape if head.kind in ("elementwise", "concatenate") else head.input_shape
            found.append((_seen(shape, made, before),) * 2)
    return found


def with_channels_moved(shape: Shape, axis: int) -> Shape:
    """`shape`, which has its channels at `axis`, with them in the other of the two places."""
    if len(shape) < 2:
        return shape
    return (shape[0], *shape[2:], shape[1]) if axis == IMAGE else (shape[0], shape[-1], *shape[1:-1])


def _own(head: Step) -> int | None:
    """The axis where the operator itself says it."""
    if head.kind in _OF_IMAGES:
        return IMAGE
    if head.kind in _OF_ROWS:
        return LAST
    if head.axis is not None and head.input_shape:
        return IMAGE if head.axis % len(head.input_shape) == 1 else LAST
    if head.operation in _NORMS_OF_IMAGES:
        return IMAGE
    # Of rank 4 it may be over the channels of an image, which a file has in the one or the other place.
    rows = head.operation in _NORMS_OF_ROWS and len(head.input_shape) < IMAGE_RANK
    return LAST if rows or _finds_rows(head) else None


def _finds_rows(head: Step) -> bool:
    """Whether it writes a row of its weight behind each number that it reads; in an image it may repeat lines and columns instead."""
    numbers = head.input_shape
    found = len(head.output_shape) > len(numbers) and head.output_shape[: len(numbers)] == numbers
    return found and head.operation in ROW_LOOKUPS and head.weight_elements > 0


def _read_next(head: Step, later: Sequence[Sequence[Step]]) -> tuple[Shape, int]:
    """What the first operator that says it behind a row that reads the network's input reads: its shape, and its axis."""
    reached = set(head.writes)
    for group in later:
        if reached.isdisjoint(group[0].reads):
            continue
        axis = _own(group[0])
        if axis is not None:
            shape = group[0].input_shape
            images = len(head.input_shape) >= IMAGE_RANK and _fits(head.input_shape, shape, axis) is None
            return (head.input_shape, IMAGE) if images else (shape, axis)
        reached.update(value for step in group for value in step.writes)
    return head.input_shape, IMAGE if len(head.input_shape) >= IMAGE_RANK else LAST


def _seen(shape: Shape, made: Shape, axis: int) -> int:
    """The axis of the channels in `shape`, a view of what was written as `made` with its channels at `axis`."""
    found = _fits(shape, made, axis)
    return axis if found is None else found


def _fits(shape: Shape, made: Shape, axis: int) -> int | None:
    """The same; None where neither place can hold them."""
    if len(shape) < 2 or len(made) < 2:
        return axis
    channels, other = made[axis], LAST if axis == IMAGE else IMAGE
    if shape[axis] == channels or (axis == IMAGE and _is_scaled(shape, made)):
        return axis
    if shape[other] == channels and math.prod(shape) == math.prod(made):
        return other
    # A part of the channels, or more of them: everything else is as it was.
    positions = math.prod(made) // max(channels, 1)
    for place in (axis, other):
        if math.prod(shape) // max(shape[place], 1) == positions:
            return place
    return other if shape[other] == channels else None


def _is_scaled(shape: Shape, made: Shape) -> bool:
    """Whether one image was made of the other by moving pixels into channels, or back."""
    if len(shape) != len(made) or shape[:1] != made[:1] or len(shape) < 3 or 0 in shape or 0 in made:
        return False
    ratios = {(a // math.gcd(a, b), b // math.gcd(a, b)) for a, b in zip(shape[2:], made[2:], strict=True)}
    return len(ratios) == 1 and 1 in next(iter(ratios)) and math.prod(shape) == math.prod(made)
