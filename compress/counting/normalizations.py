"""Normalizations that are written out, made one row: over channels, groups, positions of an image, and by the root of the mean square.

LiteRT has no operator for any of them, ONNX before opset 21 none for group normalization, so converters write statistics and arithmetic; models do it
by hand too. They cost what a normalization costs: Core ML (fuse_layernorm_or_instancenorm) and ONNX Runtime (LayerNormFusion) make one kernel of
them; LiteRT executes each operator, and the speed of the class is fitted there to files that are written so (`mcompress.export.suite`).

A normalization is recognised by what its values are, in whatever order a converter computes them: with the mean m of the input x,

    d = x - m,  v = mean(d^2) + epsilon,  r = 1 / sqrt(v),  result = d r  or  x r - m r,

times a factor, plus a shift; and only if nothing else reads what is between.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mcompress.compress.counting.links import Links, drop
from mcompress.compress.counting.steps import IMAGE_RANK, Step, Trace

_SQUARES = ("mul", "pow", "square")
_Rule = tuple[str, frozenset[str], bool]
"""Operation, what its operands are, and whether a constant is one of them."""
_Rules = Mapping[_Rule, str]


def _rules(*lines: str) -> _Rules:
    """`result: operation operand operand`; the operand `c` is a constant, and several operations have bars between them."""
    found: dict[_Rule, str] = {}
    for line in lines:
        made, operations, *operands = line.replace(":", "").split()
        found.update(dict.fromkeys(((name, frozenset(operands) - {"c"}, "c" in operands) for name in operations.split("|")), made))
    return found


_STATISTICS = _rules(
    "square: mul|pow|square d",
    "square: squared_difference x m",
    "variance: mean square",
    "variance: var x",
    "variance: add|mul|div variance c",
    "root: sqrt variance",
    "inverse: rsqrt variance",
    "inverse: reciprocal root",
    "inverse: div root c",
    "inverse: mul inverse c",
)
_AROUND_MEAN = _rules(
    "d: sub x m",
    "m: mul m c",
    "m: neg m",
    "scaled_mean: mul m inverse",
    "scaled_mean: div m root",
    "shift: add|sub scaled_mean c",
    "shift: neg|rsub scaled_mean",
    "scaled: mul x inverse",
    "scaled: div x root",
    "normal: mul d inverse",
    "normal: div d root",
    "normal: add scaled shift",
    "normal: add|sub scaled scaled_mean",
)
_AROUND_ZERO = _rules("normal: mul x inverse", "normal: div x root")
_AFFINE = _rules("stretched: mul|div normal c", "done: add|sub normal c", "done: add|sub stretched c")
"""At most one factor and one shift behind it; more are not part of a normalization."""
_SPREAD = ("m", "variance", "root", "inverse", "scaled_mean", "shift")
_RESULTS = ("normal", "stretched", "done")


@dataclass(frozen=True)
class _Start:
    """What tells that a normalization may begin: what it reads, and its first steps with what they make of it."""

    source: int
    steps: tuple[int, ...]
    names: Mapping[int, str]
    rules: _Rules


def normalizations(trace: Trace) -> None:
    """Rewrite the steps of `trace` in place."""
    operations = {step.operation for step in trace.steps}
    if "mean" in operations:
        _written_out(trace)
    if "instance_norm" in operations:
        _of_groups(trace)


def _written_out(trace: Trace) -> None:
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        start = _start(links, index) if step.operation == "mean" and len(step.reads) == 1 and index not in dropped else None
        inside = _followed(links, start) if start is not None else None
        if start is None or inside is None:
            continue
        reads = {start.source: max(trace.steps[i].reads.get(start.source, 0) for i in inside)}
        operation, shape = _described(step, trace.steps[inside[-1]].output_shape, links, start)
        trace.steps[inside[-1]] = replace(_as_row(trace, inside, operation), reads=reads, input_shape=shape, output_shape=shape)
        dropped.update(inside[:-1])
    drop(trace, dropped)


def _start(links: Links, index: int) -> _Start:
    """A mean: that of the squares of what is normalized by their root, or that of what is normalized around it."""
    (source,) = links.steps[index].reads
    square = links.producer.get(source)
    if square is not None and links.only_reader(square) == index and _is_square(links.steps[square]):
        (squared,) = links.steps[square].reads
        names = {squared: "x", source: "square", links.result(index): "variance"}
        return _Start(squared, (square, index), names, {**_STATISTICS, **_AROUND_ZERO, **_AFFINE})
    return _Start(source, (index,), {source: "x", links.result(index): "m"}, {**_STATISTICS, **_AROUND_MEAN, **_AFFINE})


def _is_square(step: Step) -> bool:
    return step.operation in _SQUARES and len(step.reads) == 1 and not _has_constant(step)


def _followed(links: Links, start: _Start) -> list[int] | None:
    """The steps from `start` to a normalized tensor, in their order: all that use what is between, as far as there is a rule for each."""
    steps, names, inside = links.steps, dict(start.names), set(start.steps)
    apart = {index for index in links.readers[start.source] if steps[index].operation == "var"}
    left = sorted(apart.union(*(links.readers.get(value, ()) for value in names if value != start.source)))
    result: int | None = None
    while left:
        index = heapq.heappop(left)
        step = steps[index]
        if index in inside:
            continue
        made = _copied(step, names) or start.rules.get((step.operation, frozenset(names.get(value, "") for value in step.reads), _has_constant(step)))
        if made is None or step.precision != steps[start.steps[0]].precision:
            if result in step.reads or index in apart:
                continue  # what reads the normalized tensor is behind it, and a variance may be somebody else's
            return None
        if made in _RESULTS:
            if result is not None and not links.are_private((result,), (index,)):
                continue  # the normalized tensor is read as it is
            # A factor that was multiplied into 1 / sqrt(v) is the one there may be.
            made = "done" if made == "normal" and any(steps[i].weight_elements for i in inside) else made
            result = links.result(index)
        names[links.result(index)] = made
        inside.add(index)
        for reader in links.readers.get(links.result(index), ()):
            heapq.heappush(left, reader)
    if result is None or links.producer[result] != max(inside) or not _one_set_of_statistics(steps, inside):
        return None
    return sorted(inside) if links.are_private([links.result(i) for i in inside if links.result(i) != result], inside) else None


def _copied(step: Step, names: Mapping[int, str]) -> str | None:
    """What a statistic is that was written once more, from groups to their channels."""
    (name,) = {names.get(value, "") for value in step.reads} if len(step.reads) == 1 else ("",)
    return name if step.operation == "clone" and name in _SPREAD else None


def _one_set_of_statistics(steps: list[Step], inside: Iterable[int]) -> bool:
    """Whether mean and variance are over the same axes."""
    return len({math.prod(steps[i].output_shape) for i in inside if steps[i].operation in ("mean", "var")}) == 1


def _described(statistics: Step, shape: tuple[int, ...], links: Links, start: _Start) -> tuple[str, tuple[int, ...]]:
    """Its name, and the shape of what is normalized: that of the result, or of the input where the result still has an axis of groups."""
    if len(start.steps) > 1:
        return "rms_norm", shape
    given, kept = statistics.input_shape, statistics.output_shape
    if len(given) < IMAGE_RANK or kept != (*given[:2], *(1 for _ in given[2:])):
        return "layer_norm", shape
    made = links.producer.get(start.source)
    whole = links.steps[made].output_shape if made is not None and shape == given else shape
    return ("instance_norm", shape) if whole[1:2] == given[1:2] else ("group_norm", whole)


def _as_row(trace: Trace, inside: list[int], operation: str) -> Step:
    """The last step as the row of all of them."""
    last = trace.steps[inside[-1]]
    held = sum(trace.steps[i].weight_elements for i in inside)
    return replace(last, operation=operation, kind="normalization", weight_elements=held, input_shape=last.output_shape, foldable=False)


def _of_groups(trace: Trace) -> None:
    """ONNX's way to write group normalization: instance normalization of what was reshaped to groups, then a factor and a shift per real channel.

    The groups' own factor and shift, ones and zeros, fold into those.
    """
    links, dropped = Links(trace), set[int]()
    for index, step in enumerate(trace.steps):
        factor = links.only_reader(index) if step.operation == "instance_norm" else None
        shift = links.only_reader(factor) if factor is not None else None
        if factor is None or shift is None or (trace.steps[factor].operation, trace.steps[shift].operation) != ("mul", "add"):
            continue
        chain = (trace.steps[factor], trace.steps[shift])
        if all(one.foldable and len(one.reads) == 1 and one.output_shape != step.input_shape for one in chain):
            trace.steps[shift] = replace(_as_row(trace, [factor, shift], "group_norm"), reads=dict(step.reads))
            dropped |= {index, factor}
    drop(trace, dropped)


def _has_constant(step: Step) -> bool:
    return step.foldable or step.weight_elements > 0
