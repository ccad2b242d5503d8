"""The networks of Stable Diffusion, of diffusers' and transformers' own classes: the UNet, the decoder of the latents, and CLIP's text model.

They are built from the configurations that their published folders carry, and take and give tensors alone, so that everything else treats them like
any other network. What SnapFusion (Li et al. 2023, arXiv 2306.00980) evolves, and BK-SDM (Kim et al. 2023, arXiv 2305.15798) removes, are the
residual and the attention blocks of the UNet: `repeats` says how often each stands in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.hugging_face import class_of
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.split_attention import attention_of, split_attention
from mcompress.errors import UsageError

LATENT_CHANNELS = 4
GUIDANCE = "guidance"
"""Name of the input of networks that take the scale of guidance."""
GUIDANCE_CHANNELS = 256
"""Of its embedding, in latent consistency models."""
SD_15: dict[str, JsonValue] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD_2: dict[str, JsonValue] = {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
"""Fields of diffusers' configuration that differ from its defaults; BK-SDM's are made from `SD_15`."""
BK_SDM_BASE: dict[str, JsonValue] = {**SD_15, "layers_per_block": 1}
BK_SDM_SMALL: dict[str, JsonValue] = {**BK_SDM_BASE, "mid_block_type": None}
BK_SDM_TINY: dict[str, JsonValue] = {
    **BK_SDM_SMALL,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280],
}
SNAPFUSION_REPEATS: dict[str, int] = {
    **{f"down_blocks.0.attentions.{place}": 0 for place in range(2)},
    **{f"up_blocks.3.attentions.{place}": 0 for place in range(3)},
    **{f"{block}.resnets.{place}": 0 for block, place in (("down_blocks.2", 1), ("down_blocks.3", 1), ("mid_block", 1), ("up_blocks.0", 2))},
    "up_blocks.1.resnets.2": 0,
    **{f"up_blocks.1.attentions.{place}": 2 for place in range(3)},
}
"""SnapFusion's table 3 in blocks of `SD_15`; which ones of a stage are gone is not published. The paper's 848 M parameters do not follow from its
table, of which every reading has 723 to 786 M.
"""
OWN_ARGUMENTS = ("repeats", "attention")
"""Of `diffusion_unet`: those that are no fields of diffusers' configuration."""
CLIP_L: dict[str, JsonValue] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 77,
}  # fmt: skip
DECODER: dict[str, JsonValue] = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2, "latent_channels": LATENT_CHANNELS, "sample_size": 512,
}  # fmt: skip


class Removed(nn.Module):
    """Stands where a block stood: it gives its input on, of a residual block that joins a skip connection the part that is not the skip."""

    def __init__(self, channels: int, *, attention: bool) -> None:
        super().__init__()
        self.channels, self.attention = channels, attention

    def forward(self, hidden: Tensor, *_given: object, **_more: object) -> Tensor | tuple[Tensor]:
        """`hidden` (N, C, H, W), its first `channels`; as a tuple where an attention block would give one."""
        kept = hidden[:, : self.channels]
        return (kept,) if self.attention else kept


class Repeated(nn.ModuleList):
    """Blocks behind one another in the place of one; the further ones take what the first gives."""

    def forward(self, hidden: Tensor, *given: object, **more: object) -> Tensor | tuple[Tensor]:
        """Like one block."""
        out: object = hidden
        for block in self:
            out = block(out[0] if isinstance(out, tuple) else out, *given, **more)
        return cast("Tensor | tuple[Tensor]", out)


class Unet(nn.Module):
    """Predicts the noise, or the velocity, of latents (N, 4, H, W) at timesteps (N,) with text states (N, 77, D)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """(N, 4, H, W)."""
        predicted: Tensor = self.unet(latents, timestep, text, return_dict=False)[0]
        return predicted


class GuidedUnet(nn.Module):
    """A UNet that was taught guidance, so that one call does the work of two: it takes the scale as a fourth input.

    The scale is the usual one, of which 1 is none. What is embedded, as in latent consistency models (Luo et al. 2023, arXiv 2310.04378), is
    1000 (scale - 1): diffusers' pipelines subtract the 1 before they embed.
    """

    def __init__(self, unet: nn.Module, channels: int) -> None:
        super().__init__()
        self.unet = unet
        self.guidance_proj = class_of("diffusers.models.embeddings", "Timesteps")(channels, flip_sin_to_cos=False, downscale_freq_shift=1)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, guidance: Tensor) -> Tensor:
        """Like `Unet`; `guidance` (N,)."""
        embedded = self.guidance_proj(1000.0 * (guidance - 1.0)).to(latents.dtype)
        predicted: Tensor = self.unet(latents, timestep, text, timestep_cond=embedded, return_dict=False)[0]
        return predicted


class Enlarged(nn.Module):
    """What diffusers' Upsample2D of a decoder does, for any number of channels: that one insists on those that it was made with."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:  # noqa: ARG002  (decoders give none)
        """(N, C, H, W) -> (N, C', 2 H, 2 W), each value four times, then convolved."""
        made: Tensor = self.conv(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return made


class Decoder(nn.Module):
    """Latents (N, 4, H, W), divided by the scaling factor -> pictures (N, 3, 8 H, 8 W) in about [-1, 1]."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = (autoencoder.get_submodule(name) for name in ("post_quant_conv", "decoder"))
        for block in self.decoder.get_submodule("up_blocks").children():
            samplers = getattr(block, "upsamplers", None)
            if samplers is not None:
                block.upsamplers = nn.ModuleList(Enlarged(one.conv) for one in samplers)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures."""
        picture: Tensor = self.decoder(self.post_quant_conv(latents))
        return picture


class TextEncoder(nn.Module):
    """Tokens (N, 77), whole numbers of any type -> their states (N, 77, D).

    Exported files take them as float32, as Apple's own conversion of Stable Diffusion does: so every input of every file has one type.
    """

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model

    def forward(self, tokens: Tensor) -> Tensor:
        """The last layer's, normalised."""
        states: Tensor = self.text_model(tokens.long(), return_dict=False)[0]
        return states


def diffusion_unet(*, repeats: Mapping[str, int] | None = None, attention: JsonValue = "whole", **config: JsonValue) -> nn.Module:
    """diffusers' UNet2DConditionModel from fields of its configuration, Stable Diffusion 1.5's where none is given.

    `repeats`: name of a residual or attention block, such as `down_blocks.0.attentions.1` -> how often it stands there; 0 leaves it out, 2 doubles
    it. `attention`: its layout (`split_attention.Layout`); weights and their names are those of `whole` in every one. With `time_cond_proj_dim` it
    takes the scale of guidance as well (`GuidedUnet`). Raises `UsageError`.
    """
    layout = attention_of(attention)
    unet = _made("diffusers", "UNet2DConditionModel", config or SD_15)
    known = removable(unet) if repeats else {}
    for name, count in (repeats or {}).items():
        _repeat(unet, known, name, count)
    if layout == "heads":
        split_attention(unet)
    channels = config.get("time_cond_proj_dim")
    return GuidedUnet(unet, channels) if isinstance(channels, int) else Unet(unet)


def with_guidance(spec: ModelSpec, value_range: tuple[float, float]) -> ModelSpec:
    """The same UNet taking the scale of guidance, from `value_range`, as its last input; itself if it does. Raises `UsageError` for another one."""
    if any(one.name == GUIDANCE for one in spec.further_inputs):
        return spec
    if spec.network != "diffusion_unet":
        raise UsageError(f"network '{spec.network}' has no place for the scale of guidance; diffusion_unet has")
    own = {name: value for name, value in spec.args.items() if name in OWN_ARGUMENTS}
    config = {name: value for name, value in spec.args.items() if name not in OWN_ARGUMENTS} or SD_15
    scale = InputSpec(GUIDANCE, (spec.input_shape[0],), value_range)
    return replace(spec, args={**config, **own, "time_cond_proj_dim": GUIDANCE_CHANNELS}, further_inputs=(*spec.further_inputs, scale))


def latent_decoder(**config: JsonValue) -> nn.Module:
    """The decoding half of diffusers' AutoencoderKL, Stable Diffusion's where nothing is given."""
    return Decoder(_made("diffusers", "AutoencoderKL", config or DECODER))


def clip_text(**config: JsonValue) -> nn.Module:
    """transformers' CLIPTextModel, CLIP ViT-L/14's where nothing is given."""
    given = config or CLIP_L
    last = int(str(given.get("vocab_size", CLIP_L["vocab_size"]))) - 1  # CLIP's vocabularies end with the tokens of beginning and end
    settings = class_of("transformers", "CLIPTextConfig")(**{"bos_token_id": last - 1, "eos_token_id": last, **given})
    return TextEncoder(class_of("transformers", "CLIPTextModel")(settings))


def removable(unet: nn.Module) -> dict[str, int]:
    """Blocks that can be left out -> the channels that then go on: every attention block, and residual blocks that do not change the channels, or
    only join a skip connection.
    """
    found = {}
    rising = int(unet.get_submodule("down_blocks")[-1].resnets[-1].out_channels)  # type: ignore[index]  # channels of what comes from below, not skips
    for name, block in unet.named_modules():
        parts = name.split(".")
        if len(parts) < 2 or parts[-2] not in ("resnets", "attentions"):
            continue
        if parts[-2] == "attentions":
            found[name] = int(block.in_channels)
            continue
        joins = parts[0] == "up_blocks"
        if (rising if joins else block.in_channels) == block.out_channels:
            found[name] = int(block.out_channels)
        if joins:
            rising = int(block.out_channels)
    return found


def _repeat(unet: nn.Module, known: Mapping[str, int], name: str, count: int) -> None:
    if name not in known:
        raise UsageError(f"repeats: '{name}' is no block that can be left out or doubled; these can: {', '.join(known)}")
    if count < 0:
        raise UsageError(f"repeats: {name} stands {count} times; 0 leaves it out")
    block = unet.get_submodule(name)
    if count == 0:
        made: nn.Module = Removed(known[name], attention=".attentions." in name)
    elif count == 1:
        return
    elif ".resnets." in name and block.in_channels != block.out_channels:
        raise UsageError(f"repeats: {name} takes {block.in_channels} channels and gives {block.out_channels}, so it cannot stand behind itself")
    else:
        made = Repeated([block, *(copy.deepcopy(block) for _ in range(count - 1))])
    parent, _, last = name.rpartition(".")
    unet.get_submodule(parent)[int(last)] = made  # type: ignore[operator]  # a ModuleList


def _made(package: str, name: str, config: Mapping[str, JsonValue]) -> nn.Module:
    kind = class_of(package, name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return cast("nn.Module", kind.from_config(given))  # type: ignore[attr-defined]  # diffusers' ConfigMixin
