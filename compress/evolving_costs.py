"""What a diffusion UNet costs while it evolves, and whether a budget can be met at all: everything that is known before any weights are."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcompress.compress.candidates import CandidateCost, candidate_cost, table_cost
from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.unet_blocks import NETWORK, standing, without
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import operator_latencies
from mcompress.targets.schema import Budget
from mcompress.targets.speeds import PrecisionName

INPUTS = 3
"""Latents, timestep and text states."""


@dataclass(frozen=True)
class UnetCosts:
    """Costs of networks on one unit, as `candidate_cost` has them; each network is counted once."""

    device: Device
    unit: Unit
    precision: PrecisionName
    _known: dict[str, CandidateCost] = field(default_factory=dict, repr=False, compare=False)
    _blocks: dict[str, dict[str, float]] = field(default_factory=dict, repr=False, compare=False)

    def of(self, spec: ModelSpec) -> CandidateCost:
        """Of the whole network."""
        name = spec.to_json()
        if name not in self._known:
            self._known[name] = candidate_cost(spec, self.device, self.unit, self.precision)
        return self._known[name]

    def by_block(self, spec: ModelSpec) -> tuple[CandidateCost, dict[str, float]]:
        """Of the whole, and SnapFusion's lookup table: the milliseconds of each block that can go, named as `standing` names it.

        A block's are those of the rows of the operator table that carry its name.
        """
        known = spec.to_json()
        if known not in self._blocks:
            table = operator_table(build_meta(spec), *spec.input_shapes)
            rows = operator_latencies(table, self.device, self.unit.name, self.precision)
            self._blocks[known] = {name: sum(row.latency_ms for row in rows if row.name.startswith(f"unet.{name}.")) for name in standing(spec)}
            self._known[known] = table_cost(table, self.device, self.unit, self.precision)
        return self._known[known], dict(self._blocks[known])


def evolve_problems(spec: ModelSpec, budget: Budget, device: Device, unit: Unit, precision: PrecisionName) -> list[str]:
    """Why the network cannot evolve, or why evolving cannot reach the budget; empty where it can."""
    if spec.network != NETWORK:
        return [
            f"stage search, method evolve: evolves the network '{NETWORK}', and this one is '{spec.network}'; use another method, or remove the stage"
        ]
    problems = []
    if spec.edits:
        problems.append(f"stage search, method evolve: the network was pruned already ({len(spec.edits)} edits); evolve it before it is pruned")
    if spec.sampling is None:
        problems.append("stage search, method evolve: it is not known what the network predicts; its specification needs sampling")
    if len(spec.inputs) != INPUTS:
        named = ", ".join(one.name for one in spec.inputs)
        problems.append(
            f"stage search, method evolve: the network takes {named}; it must take latents, a timestep and text states. "
            "Evolve it before guidance becomes an input"
        )
    if budget.latency_ms is None:
        problems.append("stage search, method evolve: budget.latency_ms is not set; blocks go until one call of the network meets it, so set it")
    return problems or _out_of_reach(spec, budget, UnetCosts(device, unit, precision))


def _out_of_reach(spec: ModelSpec, budget: Budget, costs: UnetCosts) -> list[str]:
    least = costs.of(without(spec, standing(spec)))
    reached = {
        "latency_ms": f"{least.latency.value:.3g} ms ({least.latency.how}, {least.latency.band})",
        "macs_g": f"{least.macs / 1e9:.3g} GMACs",
        "peak_memory_mb": f"{least.peak_memory_mb:.3g} MB",
        "size_mb": f"{least.size_mb:.3g} MB",
    }
    return [
        f"budget.{name} is {getattr(budget, name):g}; the network without any of its {len(standing(spec))} blocks that can go needs {reached[name]} "
        f"on {costs.device.name} {costs.unit.name}, which is the nearest that evolving reaches. Raise the limit, or take a smaller original"
        for name in least.exceeded(budget)
    ]
