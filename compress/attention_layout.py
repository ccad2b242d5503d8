"""Which layout of attention a device runs fastest, by the estimator; the weights are the same in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.split_attention import LAYOUTS, Layout, attention_of
from mcompress.compress.models.stable_diffusion import OWN_ARGUMENTS, SD_15
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import PrecisionName

NETWORK = "diffusion_unet"
"""The only one whose attention can be laid out in several ways."""


def fastest_attention(spec: ModelSpec, device: Device, unit: Unit, precision: PrecisionName) -> tuple[ModelSpec, dict[Layout, float]]:
    """The network in the layout that the unit is estimated to run fastest, and the milliseconds of one call in each; `whole` where they are equal.

    A network that has no layouts comes back as it is, with nothing. Raises `PlanError` and `UsageError` like `build` and `estimate`.
    """
    if spec.network != NETWORK:
        return spec, {}
    tables = {layout: operator_table(build_meta(with_attention(spec, layout)), *spec.input_shapes) for layout in LAYOUTS}
    milliseconds = {layout: estimate(table, device, unit.name, precision).value for layout, table in tables.items()}
    return with_attention(spec, min(LAYOUTS, key=lambda layout: milliseconds[layout])), milliseconds


def with_attention(spec: ModelSpec, layout: Layout) -> ModelSpec:
    """The same network in a layout; `whole` is not listed, so that equal networks have equal specifications."""
    args = {name: value for name, value in spec.args.items() if name != "attention"}
    if layout == "whole":
        return replace(spec, args=args)
    config = {} if any(name not in OWN_ARGUMENTS for name in args) else SD_15
    return replace(spec, args={**config, **args, "attention": layout})


def layout_of(spec: ModelSpec) -> Layout:
    """The layout that the network has. Raises `UsageError` for one that there is not."""
    return attention_of(spec.args.get("attention", "whole"))


def original_by_heads(original: ModelSpec, start: ModelSpec) -> ModelSpec | None:
    """The original with attention head by head, where what begins as `start` computes so and the original as it was published does not."""
    if original.network != NETWORK or start.network != NETWORK or layout_of(original) == "heads" or layout_of(start) != "heads":
        return None
    return with_attention(original, "heads")


def layout_note(spec: ModelSpec, milliseconds: Mapping[Layout, float], where: str) -> str:
    """What was chosen and what each would take, as a sentence; nothing where there was no choice."""
    if not milliseconds:
        return ""
    each = ", ".join(f"{layout} {value:.3g} ms" for layout, value in milliseconds.items())
    return f"attention is laid out as '{layout_of(spec)}', which is the fastest by the estimate of one call on {where}: {each}"
