"""What can be done about an operator that leaves its tolerance: only what is known to help against what was seen."""

from __future__ import annotations

import torch
from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.export.divergence_reference import NOT_FINITE, Expected, Found

LARGEST_FP16 = torch.finfo(torch.float16).max
CLIPPED_SHARE = 0.01
"""Of the results; ranges that are chosen for the least error cut off fewer."""


def suggestion_for(found: Found, head: fx.Node, expected: Expected) -> str:
    """What to change, in the words of a target file."""
    if found.whole_file:
        return "the network, written again, gives something else than this file: it was changed or is another network's, export it again"
    precision, planned, kind = expected.stated(head.name), expected.planned(head.name), kinds.kind_of(head)
    largest = float(found.exact.abs().max()) if found.exact.numel() else 0.0
    if found.measure == NOT_FINITE and precision == "fp16":
        what = f"its results reach {largest:.4g}" if largest > LARGEST_FP16 else "what it reads or its weights go beyond"
        return f"FP16 ends at {LARGEST_FP16:g} and {what}: {_keep(head, 'fp32')}, or scale the network's values down"
    if found.measure == NOT_FINITE:
        return f"the converter computes something else for {kind}: replace it in the network"
    advice = [f"{_keep(head, 'fp16')} or fp32"] if precision == "int8" else [_keep(head, "fp32")] if precision == "fp16" else []
    clipped = _clipped(found, expected)
    if clipped >= CLIPPED_SHARE:
        advice.insert(0, f"{100 * clipped:.0f} % of its results lie beyond its range: widen it (in the quantize stage, range: minmax)")
    if planned is not None and planned != precision and found.alone is False:
        advice.append(f"it was planned {planned}, the file's fallbacks say why it is not")
    if precision == "fp32":
        advice.append(f"the converter computes something else for {kind}: replace it in the network")
    return "; or ".join(advice)


def _keep(head: fx.Node, precision: str) -> str:
    return f"keep it in {precision.upper()} (in the quantize stage, keep: {{{head.name}: {precision}}})"


def _clipped(found: Found, expected: Expected) -> float:
    """Share of the results in FP32 that lie outside the range that the plan has for them, by more than a step."""
    node = found.nodes[-1]
    bounds = expected.plan.ranges.get(node.name) if expected.plan is not None else None
    if bounds is None or not found.exact.numel():
        return 0.0
    low, high = bounds.bounds
    outside = (found.exact < low - bounds.scale) | (found.exact > high + bounds.scale)
    return float(outside.to(torch.float32).mean())
