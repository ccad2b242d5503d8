"""Whole residual blocks that a network can do without: which they are, and the network without one of them.

A block adds to its input, so where it is left out its input goes on as it is. Blocks stand in sequences: what stands behind the one that goes moves
up by one place, and the arguments say one block fewer, so the shorter network is built from its arguments like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.build import build_meta
from mcompress.compress.models.resnet_generator import GROUPS
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.wav2lip import AUDIO_STRIDES, Block
from mcompress.errors import PlanError

Places = Mapping[str, Sequence[Sequence[str]]]
"""Argument that counts blocks -> stage by stage, in its order, the names of the blocks that stand there."""


def _wav2lip(network: nn.Module) -> Places:
    def residual(stage: str) -> list[str]:
        return [f"{stage}.{k}" for k, one in network.get_submodule(stage).named_children() if isinstance(one, Block) and one.residual]

    def middle(part: str, ends: int) -> list[list[str]]:
        count = sum(1 for _ in network.get_submodule(part).children())
        return [residual(f"{part}.{stage}") for stage in range(1, count - ends)]

    stages = {"face_blocks": middle("face_encoder_blocks", 1), "decoder_blocks": middle("face_decoder_blocks", 0)}
    # The audio encoder is one sequence, in which every layer that is no residual block begins a stage; the two at its end have no blocks.
    heard: list[list[str]] = []
    blocks = set(residual("audio_encoder"))
    for place, _ in network.get_submodule("audio_encoder").named_children():
        name = f"audio_encoder.{place}"
        if name in blocks:
            heard[-1].append(name)
        else:
            heard.append([])
    return {**stages, "audio_blocks": heard[: len(AUDIO_STRIDES)]}


def _resnet_generator(network: nn.Module) -> Places:
    groups = [f"groups.{group}" for group in range(GROUPS)]
    return {"depths": [[f"{group}.{place}" for place, _ in network.get_submodule(group).named_children()] for group in groups]}


REMOVABLE: Mapping[str, Callable[[nn.Module], Places]] = {"wav2lip": _wav2lip, "resnet_generator": _resnet_generator}
"""Network -> where its residual blocks stand. All of them can go: none changes a shape."""


def removable_blocks(spec: ModelSpec, network: nn.Module) -> dict[str, ModelSpec]:
    """Name of each residual block of `network`, in its order -> the specification without it.

    Raises `PlanError` for a network of which it is not known which blocks can go, and for one that was pruned (`block_problem`).
    """
    problem = block_problem(spec)
    if problem:
        raise PlanError([problem])
    found: dict[str, ModelSpec] = {}
    for argument, stages in REMOVABLE[spec.network](network).items():
        for stage, names in enumerate(stages):
            fewer: list[JsonValue] = [len(others) - (position == stage) for position, others in enumerate(stages)]
            found |= dict.fromkeys(names, replace(spec, args={**spec.args, argument: fewer}))
    return found


def block_problem(spec: ModelSpec) -> str | None:
    """Why no blocks can be removed from networks of this specification; None where they can."""
    if spec.network not in REMOVABLE:
        return f"of the network '{spec.network}' it is not known which blocks can be left out; networks of which it is: {', '.join(REMOVABLE)}"
    if spec.edits:
        return f"the network '{spec.network}' was pruned already, and its {len(spec.edits)} edits name layers that would move; remove blocks first"
    return None


def without_block(spec: ModelSpec, network: nn.Module, block: str) -> tuple[ModelSpec, nn.Module]:
    """The network without one of its `removable_blocks`, in evaluation mode; it shares its weights with `network`, which stays as it is."""
    shorter = removable_blocks(spec, network)[block]
    made = build_meta(shorter)
    moved = {moved_up(name, block): value for name, value in network.state_dict().items()}
    made.load_state_dict({name: value for name, value in moved.items() if name is not None}, assign=True)
    return shorter, made.eval()


def moved_up(name: str, block: str) -> str | None:
    """What a module or weight is called once `block` is gone from its sequence; None if it is gone with it."""
    sequence, _, place = block.rpartition(".")
    if not name.startswith(f"{sequence}."):
        return name
    own, *inside = name.removeprefix(f"{sequence}.").split(".")
    if own == place:
        return None
    return ".".join((sequence, str(int(own) - (int(own) > int(place))), *inside))
