"""Where the quantize stage did otherwise than was hoped for, each with its reason: recorded, so that nobody has to find out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.choosing import Choice, Floor, Tried
from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.targets.device import Unit
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import QuantizeConfig


def doubts_about_plan(config: QuantizeConfig, module: fx.GraphModule, problem: Problem, plan: PrecisionPlan, choice: Choice) -> Iterator[Fallback]:
    """What cannot be INT8, whatever it would cost; INT8 that does not pay at all; and a plan without a proof."""
    nodes = {node.name: node for node in module.graph.nodes}
    for operator in plan.operators:
        if operator.precision != "int8" and kinds.why_float(nodes[operator.name]) is not None:
            yield Fallback(where="quantize", what=operator.name, reason=operator.reason)
    if not plan.counts()["int8"]:
        yield Fallback(where="quantize", what="no operator is INT8", reason=_why_none(config, problem))
    if choice.beaten is not None:
        reason = (
            f"of the plans within {config.latency_ms:g} ms the greedy choice has {choice.taken.sqnr_db:.1f} dB when it is run, and the one that is "
            f"proven to have the least predicted noise {choice.beaten.sqnr_db:.1f} dB, so the greedy choice was taken: nothing is proven of it"
        )
        yield Fallback(where="quantize", what="proof of the precision plan", reason=reason)
    elif not math.isfinite(choice.taken.solution.gap):
        yield Fallback(where="quantize", what="proof of the precision plan", reason="the solver was stopped before it had any bound to prove it with")


def doubts_about_activations(plan: PrecisionPlan, unit: Unit) -> Iterator[Fallback]:
    """Zero points that the unit's runtime does not take."""
    moved = [name for name, found in plan.ranges.items() if found.zero_point]
    if unit.activations == "symmetric" and plan.counts()["int8"] and moved:
        reason = (
            f"{unit.title} takes INT8 with zero points of 0 only, and {len(moved)} of the plan's {len(plan.ranges)} tensors have others: its runtime "
            "refuses the mixed file. Leave activations, or plan, out of the quantize stage"
        )
        yield Fallback(where="quantize", what="zero points", reason=reason)


def doubt_about_recovery(config: QuantizeConfig, before: Tried, after: Tried) -> Fallback | None:
    """Why what recovery made of the chosen plan is not used, but the network `before` it; None where it can be used.

    Steps are kept by the output's SQNR on calibration inputs; the plan was chosen by the task's metric on others.
    """
    floor = Floor(config.within, config.least_sqnr_db)
    figures = f"with it {after}; without it {before}"
    if config.goal == "latency" and not after.keeps(floor):
        return Fallback(where="quantize", what="recovery of the plan", reason=f"it breaks the floor ({floor}) and was undone: {figures}")
    if config.goal == "quality" and not after.sqnr_db >= before.sqnr_db:
        return Fallback(where="quantize", what="recovery of the plan", reason=f"it makes the plan noisier and was undone: {figures}")
    return None


def _why_none(config: QuantizeConfig, problem: Problem) -> str:
    int8, plain = problem.uniform("int8"), problem.uniform("fp16")
    if "int8" not in int8:
        return "no operator can be INT8"
    both = ((unit.unit, problem.latency_on(unit, int8), problem.latency_on(unit, plain)) for unit in problem.units)
    found = " and ".join(f"{quantized:.3g} ms on {unit} against {in_float:.3g} ms in float" for unit, quantized, in_float in both)
    if problem.latency_ms(int8) >= problem.latency_ms(plain):
        return f"{found}: INT8 throughout does not pay there"
    if config.goal == "quality":
        return f"{found}: without INT8 it is within {config.latency_ms:g} ms too, with less noise"
    return f"{found}: what INT8 would save costs more quality than the floor allows"
