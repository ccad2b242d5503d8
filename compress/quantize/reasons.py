"""Why every operator has the precision that it has, in words that a reader can check against the table of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import Precision
from mcompress.compress.quantize.sensitivity import Sensitivity, decibels

NEGLIGIBLE_MS = 1e-6


def reasons_for(module: fx.GraphModule, problem: Problem, chosen: Sequence[Precision], sensitivity: Sensitivity) -> list[str]:
    """One reason for each decision."""
    nodes = {node.name: node for node in module.graph.nodes}
    here_ms, here_db = problem.latency_ms(chosen), decibels(problem.noise_of(chosen))
    found = []
    for position, (decision, precision) in enumerate(zip(problem.decisions, chosen, strict=True)):
        head = nodes[decision.nodes[0]]
        if decision.kept:
            found.append(f"the target keeps it in {precision}")
            continue
        if "int8" not in decision.allowed:
            found.append(kinds.why_float(head) or f"{_units(problem)} cannot run {kinds.kind_of(head)} in INT8")
            continue
        other: Precision = "int8" if precision != "int8" else _widest(decision.allowed)
        changed = (*chosen[:position], other, *chosen[position + 1 :])
        saved_ms = problem.latency_ms(changed) - here_ms
        if precision == "int8":
            alone = sensitivity.sqnr_db(head.name, "int8")
            cost = "" if alone is None else f"; alone it leaves {alone:.1f} dB"
            even = f"no slower than {other}" if saved_ms >= -NEGLIGIBLE_MS else "between INT8 operators"
            gain = f"{saved_ms:.3g} ms faster than {other}" if saved_ms > NEGLIGIBLE_MS else even
            found.append(f"{gain}{cost}")
        elif saved_ms >= -NEGLIGIBLE_MS:
            found.append(f"INT8 would not be faster on {_units(problem)} ({saved_ms:+.3g} ms with its conversions)")
        else:
            then_db = decibels(problem.noise_of(changed))
            found.append(f"INT8 would save {-saved_ms:.3g} ms and take the predicted output from {_db(here_db)} to {_db(then_db)}")
    return found


def _widest(allowed: Sequence[Precision]) -> Precision:
    return next(precision for precision in ("fp16", "fp32", "int8") if precision in allowed)


def _units(problem: Problem) -> str:
    return " and ".join(unit.unit for unit in problem.units)


def _db(value: float | None) -> str:
    return "no noise" if value is None else f"{value:.1f} dB"
