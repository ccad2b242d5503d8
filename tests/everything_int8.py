"""The plan that makes everything INT8 that can be, without looking at what it costs: the hardest case for recovery, and what other quantizers do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from int8_plans import quiet
from torch import Tensor, fx

from mcompress.calibration.observers import Method
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.simulate import Simulated


def everything_int8(module: fx.GraphModule, inputs: Sequence[Tensor], method: Method = "mse") -> PrecisionPlan:
    """Ranges from these inputs, whose values are between 0 and 1; what has no INT8 kernel is FP32, and so are copies of what it makes."""
    ranges, _ = calibrate(module, ((one,) for one in inputs), method, [(0.0, 1.0)], len(inputs), quiet)
    int8: set[fx.Node] = set()
    operators = []
    for node in kinds.operators(module.graph):
        group, sources = kinds.group_of(node), kinds.activations(node)
        computes = group in ("weighted", "arithmetic")
        if computes or (group is not None and all(source.op == "placeholder" or source in int8 for source in sources)):
            int8.add(node)
        operators.append(PlannedOperator(node.name, kinds.module_of(node), kinds.kind_of(node), "int8" if node in int8 else "fp32", ""))
    needed = {node.name for node in int8} | {source.name for node in int8 for source in kinds.activations(node)}
    return PrecisionPlan(tuple(operators), {name: found for name, found in ranges.items() if name in needed})


def in_fp32(plan: PrecisionPlan, names: set[str]) -> PrecisionPlan:
    """The plan with these operators in FP32."""
    return replace(plan, operators=tuple(replace(o, precision="fp32") if o.name in names else o for o in plan.operators))


def simulated_db(reference: fx.GraphModule, module: fx.GraphModule, plan: PrecisionPlan, inputs: Sequence[Tensor]) -> float:
    """Output SQNR of `module` under `plan` against `reference` in float, dB."""
    simulated = Simulated(module, plan)
    with torch.no_grad():
        return sqnr_db(torch.cat([reference(value) for value in inputs]), torch.cat([simulated(value) for value in inputs]))
