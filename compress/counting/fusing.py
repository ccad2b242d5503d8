"""Which operators a runtime executes as one: an activation, a bias or a folded normalization runs inside what produces its input.

What runs inside a weighted operator on every runtime: constants per channel (bias, batch normalization, a factor), which are folded into the weights
when the file is made or loaded (LiteRT's converter, ONNX Runtime's Conv+Add/Mul/BatchNormalization fusions, Core ML's and ExecuTorch's passes).

An activation runs inside on GPUs and NPUs (Core ML, QNN, LiteRT's GPU delegate), whichever it is. On CPUs it depends: XNNPACK and LiteRT's own
kernels only clamp (ReLU, ReLU6, hardtanh) on their way out, ONNX Runtime also has sigmoid, tanh, leaky ReLU and hard sigmoid (FusedConv). The row is
one in either case and names what runs inside; the estimator adds a pass for what the unit's runtime does not fuse (`Unit.fuses`).
"""

from __future__ import annotations

from collections.abc import Mapping

from mcompress.compress.counting.steps import BAGS, LOOKUPS, WEIGHTED, Step, Trace
from mcompress.targets.operators import CLAMPS, Kind

_TAKES_ACTIVATION: frozenset[Kind] = WEIGHTED | {"normalization", "elementwise"}


def fused(trace: Trace) -> list[list[Step]]:
    """The steps in groups: the first of a group computes, the others run on its result before it is written."""
    readers = trace.readers()
    group_of: dict[int, list[Step]] = {}
    groups: list[list[Step]] = []
    for step in trace.steps:
        group = _producer(step, group_of, readers)
        if group is None:
            group = []
            groups.append(group)
        group.append(step)
        for value in step.writes:
            group_of[value] = group
    return groups


def weight_elements(group: list[Step]) -> int:
    """Numbers that the group's kernel holds once everything is folded: behind a convolution, batch normalization leaves a bias and nothing else."""
    head = group[0]
    folded = [step for step in group[1:] if step.foldable]
    if head.kind not in WEIGHTED:
        return sum(step.weight_elements for step in group)
    shifts = any(step.takes_over_bias or step.operation in ("add", "sub") for step in folded)
    channels = max((step.weight_elements // (2 if step.takes_over_bias else 1) for step in folded), default=0)
    return head.weight_elements + (channels if shifts and not head.has_bias else 0) + sum(s.weight_elements for s in group[1:] if not s.foldable)


def weights_read(group: list[Step]) -> int | None:
    """How many of them one inference reads, where those are not all of them."""
    head, held = group[0], weight_elements(group)
    if head.operation in BAGS:
        found = sum(head.reads.values()) * head.output_shape[-1]
    else:
        found = sum(head.writes.values()) if head.operation in LOOKUPS else held
    return found if found < held else None


def _producer(step: Step, group_of: Mapping[int, list[Step]], readers: Mapping[int, int]) -> list[Step] | None:
    """The group that `step` can run inside, if any."""
    if len(step.reads) != 1 or not (step.kind == "activation" or step.foldable):
        return None
    value, elements = next(iter(step.reads.items()))
    group = group_of.get(value)
    if group is None or value != next(iter(group[-1].writes)) or readers[value] != 1 or elements != group[-1].writes[value]:
        return None
    if any(earlier.kind == "activation" for earlier in group):
        return None
    if step.precision != group[0].precision:
        return None  # a file that computes it in another precision has it behind a conversion
    kind = group[0].kind
    if step.foldable:
        return group if kind in WEIGHTED else None
    # Poolings only clamp: LiteRT's and XNNPACK's have an output range, other activations are operators of their own.
    return group if kind in _TAKES_ACTIVATION or (kind == "pooling" and step.operation in CLAMPS) else None
