"""Search spaces: which arguments a network family may take, and how a candidate's weights are cut from the largest network.

Every family here is elastic by leading slices: each parameter of a candidate is the leading block of the parameter with the same name in the
largest network (once-for-all, Cai et al. 2020, arXiv 1908.09791, without its kernel transformations). Where a layer reads what several layers
gave, joined, it is the leading block of each part.

Spaces of image translation have batch normalization, whose statistics are taken again for every candidate (`supernet.gather_statistics`): once
exported it is part of the convolution, where instance normalization would cost phones more time than all convolutions together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from optuna.trial import BaseTrial
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.models.resnet_generator import GROUPS, MULTIPLES
from mcompress.errors import PlanError

Args = dict[str, JsonValue]


@dataclass(frozen=True)
class SearchSpace:
    """A family of networks: its largest and smallest member, a random member, and a member proposed by a search."""

    network: str
    largest: Args
    smallest: Args
    random: Callable[[torch.Generator], Args]
    suggest: Callable[[BaseTrial], Args]
    larger: Mapping[str, Callable[[Args, BaseTrial], Args]] = field(default_factory=dict)
    """Kind of teacher (`wider`, `deeper`) -> a proposal of a member that is larger than the given one in this way."""


@runtime_checkable
class Joining(Protocol):
    """A network some of whose layers read channels that several layers gave."""

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Such a layer -> the layers whose outputs it reads, in their order; all are convolutions."""
        ...


CHANNELS = (16, 24, 32, 40, 48)
DEPTHS = (1, 2, 3, 4, 5)
BRANCHES = (1, 2, 3)
WIDTHS = (16, 24, 32, 40, 48)  # the expansion: a block's inner width, independent of the trunk's


BASE_WIDTHS = (6, 8, 10, 12, 16, 20, 24)
"""Of the generators of image translation: channels at full resolution, times 2 and 4 (U-Net: up to 8) further in."""
RESNET_DEPTHS, TEACHER_DEPTHS = (1, 2, 3), (4, 5)
"""Residual blocks in each of the three groups, of students, and what a deeper teacher may have besides. The original has three in each."""
MOST_DOWNS, LEAST_DOWNS = 8, 2
WAV2LIP_WIDTHS = (2, 3, 4, 5)
"""Channels at full resolution; 4 at every stage, without residual blocks, is the compressed form that was published."""
WAV2LIP_MULTIPLES = (1, 2, 4, 8, 16, 32, 2, 4, 8, 16, 32, 32, 32, 32, 24, 16, 8, 4, 2)
"""Of the six stages of the face, the five of the audio, the seven of the decoder, and the output."""
WAV2LIP_STAGES, WAV2LIP_MOST_BLOCKS = 11, 2
"""Stages that may have a residual block, the five of the face and the six of the decoder, and how many of them at most: on accelerators that wait for
every layer, such as a Jetson's GPU, each costs as much as doubling all channels. The audio encoder counts its layers through and has none."""
WAV2LIP_PLACES = tuple(range(-2 * WAV2LIP_STAGES, WAV2LIP_STAGES))
"""Where a block may go; what is below 0 stands for none, so that it is a third of the proposals that have one."""


def _pick(options: Sequence[int], generator: torch.Generator) -> int:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def _random_mfagan(generator: torch.Generator) -> Args:
    def pick(options: tuple[int, ...]) -> int:
        return _pick(options, generator)

    return {"channels": pick(CHANNELS), "blocks": [[pick(BRANCHES), pick(WIDTHS)] for _ in range(pick(DEPTHS))]}


def _suggest_mfagan(trial: BaseTrial) -> Args:
    channels = trial.suggest_categorical("channels", CHANNELS)
    depth = trial.suggest_int("depth", DEPTHS[0], DEPTHS[-1])
    blocks: list[JsonValue] = [
        [trial.suggest_int(f"branches{i}", BRANCHES[0], BRANCHES[-1]), trial.suggest_int(f"width{i}", WIDTHS[0], WIDTHS[-1], step=8)]
        for i in range(depth)
    ]
    return {"channels": channels, "blocks": blocks}


def _suggest_widths(trial: BaseTrial, count: int) -> list[JsonValue]:
    # As positions in their list, because a sampler that knows their order needs fewer trials.
    return [BASE_WIDTHS[trial.suggest_int(f"width{i}", 0, len(BASE_WIDTHS) - 1)] for i in range(count)]


def _resnet_args(widths: list[JsonValue], depths: list[JsonValue]) -> Args:
    return {"widths": widths, "depths": depths, "convolutions": "separable", "normalization": "batch"}


def _random_resnet(generator: torch.Generator) -> Args:
    widths: list[JsonValue] = [_pick(BASE_WIDTHS, generator) for _ in range(len(MULTIPLES))]
    return _resnet_args(widths, [_pick(RESNET_DEPTHS, generator) for _ in range(GROUPS)])


def _suggest_resnet(trial: BaseTrial) -> Args:
    depths: list[JsonValue] = [trial.suggest_int(f"depth{i}", RESNET_DEPTHS[0], RESNET_DEPTHS[-1]) for i in range(GROUPS)]
    return _resnet_args(_suggest_widths(trial, len(MULTIPLES)), depths)


def _at_least(trial: BaseTrial, name: str, options: Sequence[int], least: JsonValue) -> int:
    return trial.suggest_categorical(name, [option for option in options if isinstance(least, int) and option >= least])


def _wider(student: Args, trial: BaseTrial) -> Args:
    widths = student["widths"]
    assert isinstance(widths, list)  # noqa: S101  (as `suggest` gave it)
    return {**student, "widths": [_at_least(trial, f"width{i}", BASE_WIDTHS, width) for i, width in enumerate(widths)]}


def _deeper_resnet(student: Args, trial: BaseTrial) -> Args:
    depths = student["depths"]
    assert isinstance(depths, list)  # noqa: S101  (as `suggest` gave it)
    return {**student, "depths": [_at_least(trial, f"depth{i}", (*RESNET_DEPTHS, *TEACHER_DEPTHS), depth) for i, depth in enumerate(depths)]}


def _unet_space(downs: int) -> SearchSpace:
    def args(widths: list[JsonValue]) -> Args:
        return {"widths": widths, "downs": downs, "normalization": "batch"}

    return SearchSpace(
        network="unet_generator",
        largest=args([BASE_WIDTHS[-1]] * downs),
        smallest=args([BASE_WIDTHS[0]] * downs),
        random=lambda generator: args([_pick(BASE_WIDTHS, generator) for _ in range(downs)]),
        suggest=lambda trial: args(_suggest_widths(trial, downs)),
        larger={"wider": _wider},
    )


def _wav2lip_args(widths: Sequence[int], blocks: Sequence[int]) -> Args:
    """From one number for each stage, which counts at full resolution, and the residual blocks of each stage of face and decoder."""
    channels: list[JsonValue] = [width * multiple for width, multiple in zip(widths, WAV2LIP_MULTIPLES, strict=True)]
    counts: list[JsonValue] = list(blocks)
    return {
        "face_widths": channels[:6], "audio_widths": channels[6:11], "decoder_widths": channels[11:18], "output_width": channels[18],
        "face_blocks": counts[:5], "audio_blocks": [0] * 4, "decoder_blocks": counts[5:],
    }  # fmt: skip


def _with_blocks(stages: Sequence[int]) -> list[int]:
    """One residual block in each of these stages; what is no stage adds none."""
    return [int(stage in stages) for stage in range(WAV2LIP_STAGES)]


def _random_wav2lip(generator: torch.Generator) -> Args:
    widths = [_pick(WAV2LIP_WIDTHS, generator) for _ in WAV2LIP_MULTIPLES]
    return _wav2lip_args(widths, _with_blocks([_pick(WAV2LIP_PLACES, generator) for _ in range(WAV2LIP_MOST_BLOCKS)]))


def _suggest_wav2lip(trial: BaseTrial) -> Args:
    widths = [WAV2LIP_WIDTHS[trial.suggest_int(f"width{i}", 0, len(WAV2LIP_WIDTHS) - 1)] for i in range(len(WAV2LIP_MULTIPLES))]
    stages = [trial.suggest_int(f"block{i}", WAV2LIP_PLACES[0], WAV2LIP_PLACES[-1]) for i in range(WAV2LIP_MOST_BLOCKS)]
    return _wav2lip_args(widths, _with_blocks(stages))


SPACES = {
    "mfagan": SearchSpace(
        network="mfagan",
        largest={"channels": CHANNELS[-1], "blocks": [[BRANCHES[-1], WIDTHS[-1]]] * DEPTHS[-1]},
        smallest={"channels": CHANNELS[0], "blocks": [[BRANCHES[0], WIDTHS[0]]] * DEPTHS[0]},
        random=_random_mfagan,
        suggest=_suggest_mfagan,
    ),
    "resnet_generator": SearchSpace(
        network="resnet_generator",
        largest=_resnet_args([BASE_WIDTHS[-1]] * len(MULTIPLES), [TEACHER_DEPTHS[-1]] * GROUPS),
        smallest=_resnet_args([BASE_WIDTHS[0]] * len(MULTIPLES), [RESNET_DEPTHS[0]] * GROUPS),
        random=_random_resnet,
        suggest=_suggest_resnet,
        larger={"wider": _wider, "deeper": _deeper_resnet},
    ),
    "unet_generator": _unet_space(MOST_DOWNS),
    "wav2lip": SearchSpace(
        network="wav2lip",
        largest=_wav2lip_args([WAV2LIP_WIDTHS[-1]] * len(WAV2LIP_MULTIPLES), [1] * WAV2LIP_STAGES),
        smallest=_wav2lip_args([WAV2LIP_WIDTHS[0]] * len(WAV2LIP_MULTIPLES), [0] * WAV2LIP_STAGES),
        random=_random_wav2lip,
        suggest=_suggest_wav2lip,
    ),
}
"""Name -> space. The U-Net's is for images whose sides are multiples of 256; `space_for` gives the one for others."""

SPACE_OF_NETWORK = {
    "rrdb": "mfagan",
    "mfagan": "mfagan",
    "imdn": "mfagan",
    "resnet_generator": "resnet_generator",
    "unet_generator": "unet_generator",
    "wav2lip": "wav2lip",
}
"""The space in which a student for a teacher of this family is searched, unless the target names one."""


def space_for(name: str, sides: Sequence[int]) -> SearchSpace:
    """The space `name` for images with these `sides` (pixels), of input and training crops: a U-Net gets as many levels as all of them can be halved,
    at most 8.

    Raises `PlanError` where that is fewer than 2.
    """
    if name != "unet_generator":
        return SPACES[name]
    downs = max((d for d in range(MOST_DOWNS + 1) if all(side % 2**d == 0 for side in sides)), default=0)
    if downs < LEAST_DOWNS:
        raise PlanError(
            [
                f"stage search: images with sides of {', '.join(map(str, sides))} pixels can be halved {downs} times; the space 'unet_generator' "
                f"needs {LEAST_DOWNS}. Make crop_size and both sides of model.input_shape multiples of {2**LEAST_DOWNS}, better of 32 or more"
            ]
        )
    return _unet_space(downs)


def cut(weights: Mapping[str, Tensor], candidate: nn.Module) -> dict[str, Tensor]:
    """The leading block of each weight, in the shapes of `candidate` (which may be on the meta device); gradients flow to `weights`.

    Along inputs that are joined from several layers, the leading block of each layer's share.
    """
    joined = candidate.joined() if isinstance(candidate, Joining) else {}
    parts = {
        f"{layer}.weight": tuple(_Part(f"{source}.weight", _axis(candidate, source, 0)) for source in sources) for layer, sources in joined.items()
    }
    own = candidate.state_dict()
    found = {}
    for name, shape in own.items():
        block, start, pieces = weights[name], 0, []
        axis = _axis(candidate, name.rpartition(".")[0], 1) if name in parts else 0
        for part in parts.get(name, ()):
            pieces.append(block.narrow(axis, start, own[part.weight].shape[part.axis]))
            start += weights[part.weight].shape[part.axis]
        block = torch.cat(pieces, axis) if pieces else block
        found[name] = block[tuple(slice(size) for size in shape.shape)]
    return found


@dataclass(frozen=True)
class _Part:
    """One of the layers whose outputs are joined: its weight, and which of the weight's axes counts these outputs."""

    weight: str
    axis: int


def _axis(network: nn.Module, layer: str, conv_axis: int) -> int:
    """The axis of a weight that is 0 (outputs) or 1 (inputs) in a convolution; a transposed one has them the other way round."""
    return 1 - conv_axis if isinstance(network.get_submodule(layer), nn.ConvTranspose2d) else conv_axis
