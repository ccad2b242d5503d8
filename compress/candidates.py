"""What a candidate of a search costs on the target, known from its operator table before it has any weights."""

from __future__ import annotations

from dataclasses import dataclass

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.space import SPACE_OF_NETWORK, SPACES, Args, SearchSpace, space_for
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import PlanError
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Budget, Measurement
from mcompress.targets.speeds import BYTES, PrecisionName
from mcompress.targets.stages import SearchConfig


@dataclass(frozen=True)
class CandidateCost:
    """What a candidate costs on the target."""

    latency: Measurement
    macs: int
    peak_memory_mb: float
    size_mb: float

    def exceeded(self, budget: Budget) -> dict[str, float]:
        """The limits that it is over: name -> by how much relative to the limit (0.5 is half as much again)."""
        pairs = (
            ("latency_ms", self.latency.value, budget.latency_ms),
            ("macs_g", self.macs / 1e9, budget.macs_g),
            ("peak_memory_mb", self.peak_memory_mb, budget.peak_memory_mb),
            ("size_mb", self.size_mb, budget.size_mb),
        )
        return {name: value / limit - 1.0 for name, value, limit in pairs if limit is not None and value / limit > 1.0}


def table_cost(table: OperatorTable, device: Device, unit: Unit, precision: PrecisionName) -> CandidateCost:
    """The cost of a network as it will ship: latency and weights at `precision`, peak memory as fp32 activations."""
    latency = estimate(table, device, unit.name, precision)
    return CandidateCost(latency, table.macs, table.peak_activation_elements * BYTES["fp32"] / 1e6, table.params * BYTES[precision] / 1e6)


def candidate_cost(spec: ModelSpec, device: Device, unit: Unit, precision: PrecisionName) -> CandidateCost:
    """Cost of a network that is never given weights."""
    return table_cost(operator_table(build_meta(spec), *spec.input_shapes), device, unit, precision)


def smallest_cost(config: SearchConfig, teacher: ModelSpec, device: Device, unit: Unit, precision: PrecisionName) -> CandidateCost:
    """The cheapest network of the space; a budget below it cannot be met by any candidate."""
    space = space_of(config, teacher)
    return candidate_cost(spec_of(space, space.smallest, teacher), device, unit, precision)


def space_of(config: SearchConfig, teacher: ModelSpec) -> SearchSpace:
    """The search space that a target asks for. Raises `PlanError` when there is none for its network, or for images of its size."""
    name = config.space or SPACE_OF_NETWORK.get(teacher.network)
    if name is None:
        allowed = ", ".join(sorted(SPACES))
        raise PlanError(
            [f"stage search: the network '{teacher.network}' has no search space; set space to one of: {allowed}, or remove the search stage"]
        )
    return space_for(name, (*teacher.input_shape[2:], config.crop_size))


def spec_of(space: SearchSpace, args: Args, teacher: ModelSpec) -> ModelSpec:
    """A member of the space, for the teacher's input."""
    return ModelSpec.taking(teacher.inputs, space.network, args)
