"""The search stage, method `bk_sdm`: the fixed removals of BK-SDM (Kim et al. 2023, arXiv 2305.15798). What is left keeps the original's weights."""

from __future__ import annotations

from pydantic import JsonValue

from mcompress.compress.candidates import table_cost
from mcompress.compress.cost import operator_table
from mcompress.compress.evolving import block_map
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.unet_blocks import NETWORK
from mcompress.compress.models.unet_weights import bk_sdm, inherited
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.errors import PlanError, UsageError
from mcompress.targets.schema import Measurement
from mcompress.targets.stages import BkSdmSearchConfig


def remove_as_bk_sdm(config: BkSdmSearchConfig, context: StageContext) -> StageOutput:
    """The network without what BK-SDM of that size leaves out; nothing is trained, and the budget is not asked. Raises `PlanError`."""
    problems = bk_sdm_problems(config, context.spec)
    if problems:
        raise PlanError(problems)
    spec = bk_sdm(context.spec, config.size)
    made = build_meta(spec)
    made.load_state_dict(inherited(context.model.state_dict(), context.spec, spec), assign=True)
    before, after = (_figures(one, context) for one in (context.spec, spec))
    details: dict[str, JsonValue] = {
        "removed_as": f"BK-SDM {config.size.capitalize()}",
        "block_map": block_map(context.spec, spec),
        "before": before[1],
        "after": after[1],
    }
    return StageOutput(made.eval(), spec, None, (after[0],), (), details)


def bk_sdm_problems(config: BkSdmSearchConfig, spec: ModelSpec) -> list[str]:
    """Why BK-SDM's removals cannot be done to the network; empty where they can."""
    where = "stage search, method bk_sdm"
    if spec.network != NETWORK:
        return [f"{where}: removes blocks of the network '{NETWORK}', and this one is '{spec.network}'; use another method, or remove the stage"]
    try:
        bk_sdm(spec, config.size)
    except UsageError as error:
        return [f"{where}: {error}. Use method evolve, which removes single blocks of any diffusion UNet, or remove the stage"]
    return []


def _figures(spec: ModelSpec, context: StageContext) -> tuple[Measurement, dict[str, JsonValue]]:
    """The estimated latency of one call, and with it what else the report shows."""
    table = operator_table(build_meta(spec), *spec.input_shapes)
    cost = table_cost(table, context.device, context.unit, context.ships_as)
    return cost.latency, {"latency_ms": cost.latency.value, "params": table.params, "macs": cost.macs, "size_mb": cost.size_mb}
