"""The names under which weights have been published, and the arguments of the network that they belong to, from their shapes.

ESRGAN's generator has been published under three sets of names; all load:

- the original of 2018: `model.0`, `model.1.sub.0.RDB1.conv1.0`, `model.1.sub.23` (behind 23 blocks), `model.3`, `model.6`, `model.8`,
  `model.10`
- the ESRGAN repository since 2019: `conv_first`, `RRDB_trunk.0.RDB1.conv1`, `trunk_conv`, `upconv1`, `upconv2`, `HRconv`, `conv_last`
- BasicSR and Real-ESRGAN, inside `params` or `params_ema`: `conv_first`, `body.0.rdb1.conv1`,
  `conv_body`, `conv_up1`, `conv_up2`, `conv_hr`, `conv_last`

The generators of image translation load under the names of the public pix2pix and CycleGAN code, where each is one list of layers:

- ResNet: `model.1`, `model.4`, `model.7`, nine blocks `model.10.conv_block.1` and `.5` (trained with dropout `.6`), `model.19`, `model.22`,
  `model.26`; in GAN Compression's mobile family a block's convolution is `model.10.conv_block.1.conv.0` (depthwise), `.1` and `.2` (1x1)
- U-Net: `model.model.0`, `model.model.1.model.1`, `model.model.1.model.3.model.1` and so on inwards; outwards `.model.5`, innermost `.model.3`,
  and `model.model.3`

Wav2Lip's networks are named here as in its public files; `lip_checkpoints` says what their shapes tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from pydantic import JsonValue
from torch import Tensor

from mcompress.compress.models import lip_checkpoints
from mcompress.compress.models.checkpoint_messages import check_layers, first_names
from mcompress.compress.models.resnet_generator import GROUPS, MULTIPLES
from mcompress.compress.models.unet_generator import multiples
from mcompress.errors import CheckpointError

Args = dict[str, JsonValue]
PUBLIC_TRANSLATION = "pix2pix and CycleGAN"
A_RESNET, A_UNET = "a ResNet generator (pix2pix, CycleGAN)", "a U-Net generator (pix2pix, CycleGAN)"
OWN = "as the network's own"
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass(frozen=True)
class Renamed:
    """Tensors under the names of mcompress's network, the naming that they came in, and what was left out."""

    naming: str
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def own_names(network: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Renamed:
    """Published names turned into those of `network`, whose state is `own`. A name that belongs to no naming stays."""
    if network == "rrdb":
        return Renamed(*_rrdb_names(tensors))
    if network == "resnet_generator":
        return _translation_names(tensors, lambda kept: _resnet_names(kept, _depths(own)))
    if network == "unet_generator":
        return _translation_names(tensors, _unet_names)
    return Renamed(OWN, dict(tensors))


def args_of(network: str, state_dict: Mapping[str, Tensor]) -> Args | None:
    """The arguments of `network` with which these weights fit, under any of its names; None where weights do not tell them.

    Raises `CheckpointError` when these are not weights of such a network.
    """
    return _ARGS_OF[network](state_dict) if network in _ARGS_OF else None


def rrdb_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `rrdb` (features, blocks, growth) with which these weights fit, from the shapes; any of the three namings.

    Raises `CheckpointError` when these are not the weights of an RRDBNet x4.
    """
    _, tensors = _rrdb_names(state_dict)
    missing = [name for name in ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.weight") if name not in tensors]
    if missing:
        raise CheckpointError(
            f"these are not the weights of ESRGAN's generator x4 (RRDBNet): '{missing[0]}' is missing; the first keys are {first_names(state_dict)}"
        )
    first, inner, last = tensors["conv_first.weight"], tensors["body.0.rdb1.conv1.weight"], tensors["conv_last.weight"]
    if first.dim() != 4 or inner.dim() != 4 or first.shape[1] != 3 or last.shape[0] != 3:
        raise CheckpointError(
            f"conv_first.weight is {tuple(first.shape)} and conv_last.weight is {tuple(last.shape)}; the generator x4 takes and gives 3 channels. "
            "(Real-ESRGAN's x2 and x1 models take 12 and 48.)"
        )
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    return {"features": int(first.shape[0]), "blocks": blocks, "growth": int(inner.shape[0])}


def resnet_generator_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `resnet_generator` with which these weights fit.

    Public files do not say where a group of blocks ends: thirds, the last longest. Raises `CheckpointError` when these are not such weights.
    """
    blocks = {name.split(".")[1] for name in state_dict if re.match(r"model\.\d+\.conv_block\.", name)}
    third = len(blocks) // GROUPS
    tensors = _translation_names(state_dict, lambda kept: _resnet_names(kept, (third, third, len(blocks) - 2 * third))).tensors
    check_layers(A_RESNET, tensors, ("head.conv", "downs.0.conv", "downs.1.conv", "ups.0.conv", "ups.1.conv", "tail"), state_dict)
    depths = _depths(tensors)
    separable = any(name.endswith(".conv1.depthwise.weight") for name in tensors)
    trunk = int(tensors["downs.1.conv.weight"].shape[0])
    inner = []
    for group, depth in enumerate(depths):
        layers = [f"groups.{group}.{block}.conv1{'.pointwise' if separable else ''}" for block in range(depth)]
        check_layers(A_RESNET, tensors, layers, state_dict)
        found = {int(tensors[f"{layer}.weight"].shape[0]) for layer in layers} or {trunk}
        if len(found) > 1:
            raise CheckpointError(f"the blocks of group {group} have {sorted(found)} channels inside; resnet_generator has one width per group")
        inner += sorted(found)
    ups = [int(tensors[f"ups.{up}.conv.weight"].shape[1]) for up in range(2)]
    channels = [int(tensors["head.conv.weight"].shape[0]), int(tensors["downs.0.conv.weight"].shape[0]), trunk, *inner, *ups]
    return {
        **_widths("resnet_generator", channels, MULTIPLES),
        "depths": list(depths),
        "convolutions": "separable" if separable else "plain",
        "normalization": "batch" if "head.norm.weight" in tensors else "instance",
        "in_channels": int(tensors["head.conv.weight"].shape[1]),
        "out_channels": int(tensors["tail.weight"].shape[0]),
    }


def unet_generator_args_of(state_dict: Mapping[str, Tensor]) -> Args:
    """The arguments of `unet_generator` with which these weights fit. Raises `CheckpointError` when these are not the weights of one."""
    tensors = _translation_names(state_dict, _unet_names).tensors
    downs = next(level for level in count() if f"downs.{level}.conv.weight" not in tensors)
    layers = [f"{way}.{level}.conv" for level in range(max(downs, 2)) for way in ("downs", "ups")]
    check_layers(A_UNET, tensors, layers, state_dict)
    channels = [int(tensors[f"downs.{level}.conv.weight"].shape[0]) for level in range(downs)]
    return {
        **_widths("unet_generator", channels, multiples(downs)),
        "downs": downs,
        "normalization": "batch" if "ups.1.norm.weight" in tensors else "instance",
        "in_channels": int(tensors["downs.0.conv.weight"].shape[1]),
        "out_channels": int(tensors["ups.0.conv.weight"].shape[1]),
    }


_ARGS_OF: dict[str, Callable[[Mapping[str, Tensor]], Args]] = {
    "rrdb": rrdb_args_of,
    "resnet_generator": resnet_generator_args_of,
    "unet_generator": unet_generator_args_of,
    **lip_checkpoints.ARGS_OF,
}
CALLED = {"rrdb": "an RRDBNet", "resnet_generator": "a ResNet generator", "unet_generator": "a U-Net generator", **lip_checkpoints.CALLED}
"""What messages call a network whose arguments its weights tell."""

_BLOCK = r"(\d+)\.(?:RDB|rdb)([123])\.conv([1-5])"
_LAYERS_2018 = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
_LAYERS_2019 = {"trunk_conv": "conv_body", "upconv1": "conv_up1", "upconv2": "conv_up2", "HRconv": "conv_hr"}


def _rrdb_names(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Which naming it is, and the tensors under BasicSR's names. Names that belong to none stay, and are then said to be unexpected."""
    if any(name.startswith("model.1.sub.") for name in tensors):
        return "ESRGAN 2018", {_from_2018(name): value for name, value in tensors.items()}
    if any(name.startswith("RRDB_trunk.") for name in tensors):
        return "ESRGAN 2019", {_from_2019(name): value for name, value in tensors.items()}
    return "BasicSR", dict(tensors)


def _from_2018(name: str) -> str:
    if block := re.fullmatch(rf"model\.1\.sub\.{_BLOCK}\.0\.(weight|bias)", name):
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    if trunk := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", name):
        return f"conv_body.{trunk[1]}"
    layer = re.fullmatch(r"model\.(\d+)\.(weight|bias)", name)
    return f"{_LAYERS_2018[layer[1]]}.{layer[2]}" if layer and layer[1] in _LAYERS_2018 else name


def _from_2019(name: str) -> str:
    if block := re.fullmatch(rf"RRDB_trunk\.{_BLOCK}\.(weight|bias)", name):
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    layer, _, kind = name.rpartition(".")
    return f"{_LAYERS_2019.get(layer, layer)}.{kind}"


def _translation_names(tensors: Mapping[str, Tensor], rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Renamed:
    """Without the statistics that instance normalization kept in old files: it does not use them, and has neither scale nor shift."""
    kept = {name: value for name, value in tensors.items() if not name.endswith(STATISTICS) or f"{name.rpartition('.')[0]}.weight" in tensors}
    left = len(tensors) - len(kept)
    notes = (f"left out {left} running statistics of instance normalization, which does not use them",) if left else ()
    public = any(name.startswith("model.") for name in kept)
    return Renamed(PUBLIC_TRANSLATION if public else OWN, rename(kept) if public else kept, notes)


_SEPARABLE = {"0": "depthwise", "1": "norm", "2": "pointwise"}
_BLOCK_LAYERS = {"1": "conv1", "2": "norm1", "5": "conv2", "6": "norm2"}
_BLOCK_LAYERS_DROPOUT = {"1": "conv1", "2": "norm1", "6": "conv2", "7": "norm2"}


def _resnet_names(tensors: Mapping[str, Tensor], depths: Sequence[int]) -> dict[str, Tensor]:
    blocks = sorted({int(block[1]) for name in tensors if (block := re.match(r"model\.(\d+)\.conv_block\.", name))})
    after = 10 + len(blocks)
    numbered = {1: "head.conv", 2: "head.norm", 4: "downs.0.conv", 5: "downs.0.norm", 7: "downs.1.conv", 8: "downs.1.norm"}
    numbered |= {after: "ups.0.conv", after + 1: "ups.0.norm", after + 3: "ups.1.conv", after + 4: "ups.1.norm", after + 7: "tail"}
    places = [(group, block) for group, depth in enumerate(depths) for block in range(depth)]
    # More blocks than the network has: they are named behind its last one, where they are said to be unexpected.
    places += [(GROUPS - 1, depths[-1] + extra) for extra in range(len(blocks) - len(places))]
    place_of = dict(zip(blocks, places, strict=False))
    second = [value for name, value in tensors.items() if re.match(r"model\.\d+\.conv_block\.6\.(conv\.0\.)?weight$", name)]
    inside = _BLOCK_LAYERS_DROPOUT if any(value.dim() == 4 for value in second) else _BLOCK_LAYERS

    def renamed(name: str) -> str:
        if (layer := re.fullmatch(r"model\.(\d+)\.(\w+)", name)) and int(layer[1]) in numbered:
            return f"{numbered[int(layer[1])]}.{layer[2]}"
        if (part := re.fullmatch(r"model\.(\d+)\.conv_block\.(\d+)\.(?:conv\.([012])\.)?(\w+)", name)) and part[2] in inside:
            group, block = place_of[int(part[1])]
            return ".".join(filter(None, (f"groups.{group}.{block}", inside[part[2]], _SEPARABLE.get(part[3] or ""), part[4])))
        return name

    return {renamed(name): value for name, value in tensors.items()}


_LEVEL_LAYERS = {"1": "downs.{}.conv", "2": "downs.{}.norm", "3": "ups.{}.conv", "4": "ups.{}.norm", "5": "ups.{}.conv", "6": "ups.{}.norm"}
"""Inside a level: the innermost, which has no normalization inwards, has 3 and 4 where the others have 5 and 6."""
_OUTERMOST_LAYERS = {"0": "downs.0.conv", "3": "ups.0.conv"}


def _unet_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def renamed(name: str) -> str:
        if (outer := re.fullmatch(r"model\.model\.(\d+)\.(\w+)", name)) and outer[1] in _OUTERMOST_LAYERS:
            return f"{_OUTERMOST_LAYERS[outer[1]]}.{outer[2]}"
        if (inner := re.fullmatch(r"model\.model\.1((?:\.model\.3)*)\.model\.(\d+)\.(\w+)", name)) and inner[2] in _LEVEL_LAYERS:
            return f"{_LEVEL_LAYERS[inner[2]].format(1 + inner[1].count('.model.3'))}.{inner[3]}"
        return name

    return {renamed(name): value for name, value in tensors.items()}


def _depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Residual blocks per group, from the network's own names."""
    found = [re.match(r"groups\.([012])\.(\d+)\.", name) for name in tensors]
    return tuple(max((int(block[2]) + 1 for block in found if block and int(block[1]) == group), default=0) for group in range(GROUPS))


def _widths(network: str, channels: Sequence[int], times: Sequence[int]) -> Args:
    """`features` where one number says all widths, else `widths`."""
    if any(width % multiple for width, multiple in zip(channels, times, strict=True)):
        raise CheckpointError(
            f"the channels are {', '.join(map(str, channels))}; those of {network} are multiples of {', '.join(map(str, times))}. "
            "Weights of a pruned network cannot be loaded without its edits."
        )
    base = [width // multiple for width, multiple in zip(channels, times, strict=True)]
    return {"features": base[0]} if len(set(base)) == 1 else {"widths": list(base)}
