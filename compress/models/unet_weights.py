"""Weights of a diffusion UNet for a UNet of another layout: fewer blocks, other repeats, fewer stages.

BK-SDM (Kim et al. 2023, arXiv 2305.15798) removes the second of each pair of blocks on the way down and of each three on the way up (Base), then the
middle (Small), then the innermost stage (Tiny), and starts from the original's weights. What is left moves up in its list, and of the stages on the
way up the outermost ones correspond.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import OWN_ARGUMENTS, SD_15
from mcompress.errors import UsageError

BkSdmSize = Literal["base", "small", "tiny"]
LAYOUT = frozenset(
    ("sample_size", "layers_per_block", "down_block_types", "up_block_types", "mid_block_type", "block_out_channels", "_use_default_values")
)
"""Fields of diffusers' configuration that say which blocks there are; in all others the two networks must agree, or equal weights compute different
things."""
BY_STAGE = (
    "attention_head_dim", "num_attention_heads", "cross_attention_dim", "transformer_layers_per_block", "only_cross_attention",
)  # fmt: skip
"""Fields of diffusers' configuration that may have a value for each stage, from the outermost inwards."""
_BLOCK = re.compile(r"unet\.(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions)\.(\d+)\.(.+)")
_BETWEEN = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.((?:down|up)samplers\..+)")


def repeats_of(spec: ModelSpec) -> dict[str, int]:
    """How often blocks stand in their places, where that is not once."""
    return dict(cast("Mapping[str, int]", spec.args.get("repeats") or {}))


def bk_sdm(spec: ModelSpec, size: BkSdmSize) -> ModelSpec:
    """BK-SDM's layout of a network with two layers a stage, Stable Diffusion's for example. Raises `UsageError` for any other one."""
    if repeats_of(spec) or spec.edits:
        raise UsageError("BK-SDM's removals start from a whole network; this one has repeats or was pruned")
    config = _config(build_meta(spec))
    if config["layers_per_block"] != 2:
        raise UsageError(f"BK-SDM keeps the first of two layers of a stage; layers_per_block of this network is {config['layers_per_block']}")
    own = {name: value for name, value in spec.args.items() if name in OWN_ARGUMENTS}
    fields = {name: value for name, value in spec.args.items() if name not in OWN_ARGUMENTS} or SD_15
    args: dict[str, JsonValue] = {**fields, **own, "layers_per_block": 1}
    if size != "base":
        args["mid_block_type"] = None
    if size == "tiny":
        down, up, widths = (list(cast("Sequence[JsonValue]", config[name])) for name in ("down_block_types", "up_block_types", "block_out_channels"))
        if len(down) < 2:
            raise UsageError("BK-SDM Tiny leaves out the innermost stage; this network has one stage only")
        args |= {"down_block_types": down[:-1], "up_block_types": up[1:], "block_out_channels": widths[:-1]}
        by_stage = {name: value for name in BY_STAGE if isinstance(value := args.get(name), list)}
        args |= {name: value[: len(down) - 1] for name, value in by_stage.items()}
    return replace(spec, args=args)


def inherited(
    weights: Mapping[str, Tensor], source: ModelSpec, target: ModelSpec, copies: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Every weight of a network of `target` from the state dict `weights` of one of `source`.

    Stages correspond from the outermost inwards, blocks of a stage from the first on, the last of a stage on the way up to the last. `copies`: block
    -> which of those that stand there in the source stand there in the target; left out, the same ones, then the last again. What several weights
    come from is copied, everything else is shared. Raises `UsageError` where a weight has no source or another shape, or the networks are not of one
    kind.
    """
    made, origin = build_meta(target), build_meta(source)
    unlike = _differences(_config(origin), _config(made))
    if unlike:
        raise UsageError(f"weights cannot be inherited: {'; '.join(unlike)}. Only {', '.join(sorted(LAYOUT - {'_use_default_values'}))} may differ")
    places = _Places(origin, made, repeats_of(source), repeats_of(target), copies or {})
    found: dict[str, Tensor] = {}
    problems, taken = [], set[str]()
    for name, wanted in made.state_dict().items():
        origin_name = places.origin_of(name)
        value = None if origin_name is None else weights.get(origin_name)
        if value is None or origin_name is None:
            problems.append(f"nothing in the original corresponds to {name}")
        elif value.shape != wanted.shape:
            problems.append(f"{name} is {tuple(wanted.shape)}, and {origin_name} of the original is {tuple(value.shape)}")
        else:
            found[name] = value.clone() if origin_name in taken else value
            taken.add(origin_name)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UsageError(f"weights cannot be inherited: {problems[0]}{more}")
    return found


@dataclass(frozen=True)
class _Places:
    """Where the weights of `made` lie in `origin`."""

    origin: nn.Module
    made: nn.Module
    origin_repeats: Mapping[str, int]
    made_repeats: Mapping[str, int]
    copies: Mapping[str, Sequence[int]]

    def origin_of(self, name: str) -> str | None:
        """What the weight is called there; None where its block was left out there."""
        between = _BETWEEN.fullmatch(name)
        if between:
            part, stage, rest = between.groups()
            return f"unet.{part}_blocks.{self._stage(part, int(stage))}.{rest}"
        block = _BLOCK.fullmatch(name)
        return name if block is None else self._in_block(*block.groups())

    def _in_block(self, part: str | None, stage: str | None, kind: str, place: str, rest: str) -> str | None:
        ours, theirs = "mid_block", "mid_block"
        if part is not None and stage is not None:
            ours, theirs = f"{part}_blocks.{stage}", f"{part}_blocks.{self._stage(part, int(stage))}"
        here, there = _length(self.made, f"unet.{ours}.{kind}"), _length(self.origin, f"unet.{theirs}.{kind}")
        at_end = part == "up" and int(place) == here - 1
        block = f"{theirs}.{kind}.{there - 1 if at_end else place}"
        count, copy = self.origin_repeats.get(block, 1), 0
        if count == 0:
            return None
        if self.made_repeats.get(f"{ours}.{kind}.{place}", 1) > 1:
            number, _, rest = rest.partition(".")
            copy = int(number)
        chosen = self.copies.get(block, range(count))
        copy = chosen[min(copy, len(chosen) - 1)]
        return f"unet.{block}.{copy}.{rest}" if count > 1 else f"unet.{block}.{rest}"

    def _stage(self, part: str, stage: int) -> int:
        """The way up is counted from its end, the outermost stage."""
        blocks = f"unet.{part}_blocks"
        return stage + (_length(self.origin, blocks) - _length(self.made, blocks) if part == "up" else 0)


def _length(network: nn.Module, name: str) -> int:
    try:
        return len(list(network.get_submodule(name).children()))
    except AttributeError:  # the network has no such stage, or no such blocks in it
        return 0


def _config(network: nn.Module) -> Mapping[str, JsonValue]:
    return cast("Mapping[str, JsonValue]", network.get_submodule("unet").config)


def _differences(first: Mapping[str, JsonValue], second: Mapping[str, JsonValue]) -> list[str]:
    """Values stage by stage agree where one list begins with the other."""
    found = []
    for name in sorted((first.keys() | second.keys()) - LAYOUT):
        one, other = first.get(name), second.get(name)
        if isinstance(one, list | tuple) and isinstance(other, list | tuple):
            shared = min(len(one), len(other))
            one, other = list(one[:shared]), list(other[:shared])
        if one != other:
            found.append(f"{name} is {other} here and {one} in the original")
    return found
