"""One precision for everything that can have it: the plan that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, Precision, PrecisionPlan
from mcompress.targets.activations import Activations


def uniform_plan(
    module: fx.GraphModule, ranges: Mapping[str, ActivationRange], otherwise: Precision = "fp16", activations: Activations = "asymmetric"
) -> PrecisionPlan:
    """INT8 for every operator of `module` that can be INT8 and whose tensors all have a range; `otherwise` for the others.

    `ranges` were calibrated for `activations`.
    """
    planned, needed = [], set[str]()
    for node in kinds.operators(module.graph):
        head = node.all_input_nodes[0] if kinds.is_fused(node) else node
        tensors = {node.name for node in (*kinds.activations(head), kinds.fused_activation(head) or head)}
        why = kinds.why_float(head) or (None if tensors <= ranges.keys() else "one of its tensors has no range")
        precision: Precision = "int8" if why is None else otherwise
        planned.append(PlannedOperator(node.name, kinds.module_of(node), kinds.kind_of(node), precision, why or "everything that can be"))
        if why is None:
            needed |= tensors | {node.name}
    return PrecisionPlan(tuple(planned), {name: found for name, found in ranges.items() if name in needed}, activations)
