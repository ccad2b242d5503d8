"""The residual and attention blocks of a diffusion UNet: where they stand and how often, and the network without one, with a copy, or with some
passed by for a moment.

A network is told by its arguments alone: `repeats` of `diffusion_unet` says how often a block stands in its place. Weights are inherited
(`mcompress.compress.models.unet_weights`), so a network that was changed here is rebuilt from its specification and its state dict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import Removed, removable
from mcompress.compress.models.unet_weights import inherited, repeats_of

NETWORK = "diffusion_unet"


@dataclass(frozen=True)
class UnetBlock:
    """One place of the network that nothing was left out of."""

    name: str
    """As in `repeats`, for example `down_blocks.0.attentions.1`."""
    attention: bool
    stage: str
    """As in SnapFusion's table 3: `Down-1` to `Up-3` by resolution; all that has the lowest one is `Mid`."""
    side: int
    """Rows of the latents there."""
    channels: int
    passed_channels: int | None
    """Channels that go on where it is left out; None where it cannot be, because only it brings about the next block's."""
    repeatable: bool
    """Whether it can stand behind itself."""


def blocks_of(spec: ModelSpec) -> tuple[UnetBlock, ...]:
    """All blocks in the order in which they run, whatever `repeats` of `spec` says. Raises `PlanError` like `build`."""
    return _blocks_of(plain(spec).to_json())


@lru_cache(maxsize=4)  # scoring asks again and again, and a network is built for every answer
def _blocks_of(whole: str) -> tuple[UnetBlock, ...]:
    spec = ModelSpec.from_json(whole)
    unet = build_meta(spec).get_submodule("unet")
    passed, stages = removable(unet), len(list(unet.get_submodule("down_blocks").children()))
    found = []
    for name, block in unet.named_modules():
        parts = name.split(".")
        if len(parts) < 2 or parts[-2] not in ("resnets", "attentions"):
            continue
        attention, level = parts[-2] == "attentions", _level(parts, stages)
        side, taken = -(-spec.input_shape[2] // 2**level), int(block.in_channels)
        given = taken if attention else int(block.out_channels)
        repeatable = name in passed and taken == given
        found.append(UnetBlock(name, attention, _stage(parts[0], level, stages), side, given, passed.get(name), repeatable))
    return tuple(sorted(found, key=lambda one: _order(one.name)))


def _level(parts: list[str], stages: int) -> int:
    """How often latents were halved there."""
    if parts[0] == "mid_block":
        return stages - 1
    return int(parts[1]) if parts[0] == "down_blocks" else stages - 1 - int(parts[1])


def _stage(part: str, level: int, stages: int) -> str:
    if level == stages - 1:
        return "Mid"
    return f"Down-{level + 1}" if part == "down_blocks" else f"Up-{stages - 1 - level}"


def _order(name: str) -> tuple[int, int, int, bool]:
    part, *stage, kind, place = name.split(".")
    return ("down_blocks", "mid_block", "up_blocks").index(part), int(stage[0]) if stage else 0, int(place), kind == "attentions"


def plain(spec: ModelSpec) -> ModelSpec:
    """The same network with every block in its place once."""
    return replace(spec, args={name: value for name, value in spec.args.items() if name != "repeats"})


def standing(spec: ModelSpec) -> dict[str, UnetBlock]:
    """The blocks that can go, as the network calls them: `down_blocks.0.attentions.1`, or where that stands twice `...attentions.1.0` and `.1`."""
    counts = repeats_of(spec)
    found: dict[str, UnetBlock] = {}
    for block in blocks_of(spec):
        if block.passed_channels is not None:
            count = counts.get(block.name, 1)
            found |= {block.name: block} if count == 1 else {f"{block.name}.{copy}": block for copy in range(count)}
    return found


def with_count(spec: ModelSpec, block: str, count: int) -> ModelSpec:
    """The specification in which `block` stands so often; what stands once is not listed, so that equal networks have equal specifications."""
    repeats = {name: value for name, value in {**repeats_of(spec), block: count}.items() if value != 1}
    named: dict[str, JsonValue] = {"repeats": cast("JsonValue", dict(sorted(repeats.items())))} if repeats else {}
    return replace(spec, args={**plain(spec).args, **named})


def without(spec: ModelSpec, called: Collection[str]) -> ModelSpec:
    """Without the blocks that `standing` calls so."""
    for block, kept in _kept(spec, called).items():
        spec = with_count(spec, block, len(kept))
    return spec


def doubled(spec: ModelSpec, block: str) -> ModelSpec:
    """With a copy of `block` behind it."""
    return with_count(spec, block, repeats_of(spec).get(block, 1) + 1)


def without_blocks(spec: ModelSpec, network: nn.Module, called: Collection[str]) -> tuple[ModelSpec, nn.Module]:
    """The network without the blocks that `standing` calls so, in evaluation mode; it shares its weights with `network`, which stays as it is."""
    return _remade(spec, network, without(spec, called), _kept(spec, called))


def with_copy(spec: ModelSpec, network: nn.Module, block: str) -> tuple[ModelSpec, nn.Module]:
    """The network with one more of `block`, of the weights of the last one there; all other weights are shared. Raises `PlanError` like `build`."""
    return _remade(spec, network, doubled(spec, block), {})


def _kept(spec: ModelSpec, called: Collection[str]) -> dict[str, list[int]]:
    """Of the places of these blocks, which of those that stand there stay."""
    blocks = standing(spec)
    named: dict[str, list[str]] = {}
    for name, block in blocks.items():
        named.setdefault(block.name, []).append(name)
    return {place: [copy for copy, name in enumerate(named[place]) if name not in called] for place in {blocks[name].name for name in called}}


def _remade(spec: ModelSpec, network: nn.Module, changed: ModelSpec, copies: dict[str, list[int]]) -> tuple[ModelSpec, nn.Module]:
    made = build_meta(changed)
    made.load_state_dict(inherited(network.state_dict(), spec, changed, copies), assign=True)
    return changed, made.eval()


@contextmanager
def passed_by(network: nn.Module, blocks: Iterable[tuple[str, UnetBlock]]) -> Iterator[None]:
    """Inside, `network` gives on what goes into these blocks, named as `standing` names them; afterwards it is what it was."""
    kept = []
    try:
        for called, block in blocks:
            parent, _, place = called.rpartition(".")
            modules = cast("nn.ModuleList", network.get_submodule(f"unet.{parent}"))
            kept.append((modules, int(place), modules[int(place)]))
            modules[int(place)] = Removed(block.passed_channels or block.channels, attention=block.attention)
        yield
    finally:
        for modules, index, module in kept:
            modules[index] = module
