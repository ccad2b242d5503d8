"""Configurations of a diffusers folder's networks, as the arguments of our builders, and which networks are refused.

Arguments are the fields that differ from diffusers' defaults, and the sizes. Left out is what only says how to load or to train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import JsonValue

from mcompress.compress.models.diffusers_folder.fields import Config, Fields, defaults_of
from mcompress.compress.models.stable_diffusion import LATENT_CHANNELS

UNET, VAE, TEXT = "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"
INPUTS = {
    5: "as networks for depth have",
    7: "as networks that enlarge pictures have",
    8: "as networks that edit pictures have",
    9: "as networks for inpainting have",
}
"""`in_channels` of published U-Nets that take more than latents."""
FROM_TEXT_ALONE: dict[str, tuple[JsonValue, str]] = {
    "out_channels": (LATENT_CHANNELS, "more or less than one value for each of the latents"),
    "class_embed_type": (None, "so it is told a class beside the text"),
    "num_class_embeds": (None, "so it is told a class beside the text"),
    "addition_embed_type": (None, "so it is told more than the text, as Stable Diffusion XL is"),
    "encoder_hid_dim": (None, "so it is told other states than a text encoder's"),
    "encoder_hid_dim_type": (None, "so it is told other states than a text encoder's"),
    "attention_type": ("default", "so it is told more than the text"),
}
"""Fields of the U-Net -> the one value with which it takes latents, a timestep and text alone, and what another one says."""
OF_STABLE_DIFFUSION: dict[str, tuple[JsonValue, str]] = {
    "in_channels": (3, "and pictures have three colours"),
    "out_channels": (3, "and pictures have three colours"),
    "latent_channels": (LATENT_CHANNELS, "and the U-Net's latents have others"),
    "shift_factor": (None, "and latents are scaled here, not shifted"),
    "latents_mean": (None, "and latents are scaled here, not shifted"),
    "latents_std": (None, "and latents are scaled by one factor here"),
    "use_quant_conv": (True, "and Stable Diffusion's autoencoder has this layer"),
    "use_post_quant_conv": (True, "and Stable Diffusion's autoencoder has this layer"),
}
"""The same of the autoencoder."""
NOT_BUILT = ("scaling_factor", "force_upcast")
"""Fields of the autoencoder that say how it is used."""
TEXT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
TEXT_DEFAULTS: Config = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""transformers' CLIPTextConfig's, for fields that a configuration leaves out."""
ACTIVATIONS = ("quick_gelu", "gelu")
"""OpenAI's CLIP has the first, OpenCLIP's models, as in Stable Diffusion 2, the second."""


@dataclass(frozen=True)
class UnetFacts:
    """Arguments of `diffusion_unet`; height and width of its latents; the width of its text states; whether it takes the guidance scale."""

    args: Config
    latent_size: tuple[int, int]
    text_width: JsonValue
    takes_guidance: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class VaeFacts:
    """Arguments of `latent_decoder`; what latents are multiplied by; a picture's side by that of its latents."""

    args: Config
    scaling_factor: float
    pixels_per_latent: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TextFacts:
    """Arguments of `clip_text`; tokens that it knows; the width of its states; tokens of a text."""

    args: Config
    vocabulary: int
    width: int
    longest: int
    notes: tuple[str, ...] = ()


def unet_facts(config: Fields) -> UnetFacts:
    """Raises `PlanError` for anything but a U-Net that makes pictures from text alone."""
    channels = config.values.get("in_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        as_known = f", {INPUTS[channels]}" if isinstance(channels, int) and channels in INPUTS else ""
        config.refuse(f"in_channels is {json.dumps(channels)}{as_known}; it must be {LATENT_CHANNELS}: give a network that makes pictures from text")
    for name, (allowed, why) in FROM_TEXT_ALONE.items():
        config.only(name, allowed, why)
    args, notes = config.differing(UNET, ("sample_size", "cross_attention_dim"))
    latent_size = _latent_size(config)
    config.finish()
    return UnetFacts(args, latent_size, args["cross_attention_dim"], config.values.get("time_cond_proj_dim") is not None, notes)


def _latent_size(config: Fields) -> tuple[int, int]:
    size = config.values.get("sample_size")
    sides = [side for side in (size if isinstance(size, list) else [size, size]) if isinstance(side, int) and not isinstance(side, bool) and side > 0]
    if len(sides) != 2:
        config.refuse(f"sample_size is {json.dumps(size)}; it must be the side of the latents, as 64, or their height and width, as [64, 96]")
        return 1, 1
    return sides[0], sides[1]


def vae_facts(config: Fields) -> VaeFacts:
    """Raises `PlanError` for anything but an autoencoder as Stable Diffusion's."""
    for name, (allowed, why) in OF_STABLE_DIFFUSION.items():
        config.only(name, allowed, why)
    args, notes = config.differing(VAE, ("sample_size", "block_out_channels"))
    if "scaling_factor" not in config.values:
        usual = defaults_of(VAE)["scaling_factor"]
        config.complete({"scaling_factor": usual})
        notes += (f"{config.path}: scaling_factor is missing; diffusers' {usual} is taken, Stable Diffusion 1 and 2's; give another one there",)
    scaling = config.number("scaling_factor")
    stages = args["block_out_channels"]
    if not isinstance(stages, list) or not stages:
        config.refuse(f"block_out_channels is {json.dumps(stages)}; it must be a list of widths")
    config.finish()
    args = {key: value for key, value in args.items() if key not in NOT_BUILT}
    return VaeFacts(args, scaling, 2 ** (len(stages) - 1) if isinstance(stages, list) else 1, notes)


def text_facts(config: Fields) -> TextFacts:
    """Raises `PlanError` for anything but a text encoder of CLIP's kind. The last layer's states are given, whatever the others are."""
    config.complete(TEXT_DEFAULTS)
    sizes = {name: config.whole(name, 1) for name in TEXT_SIZES}
    args: Config = {**sizes, "hidden_act": config.choice("hidden_act", ACTIVATIONS), "layer_norm_eps": config.number("layer_norm_eps")}
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if not config.problems and width % heads:
        config.refuse(f"hidden_size {width} is not a multiple of num_attention_heads {heads}; take the file again from where it was made")
    config.finish()
    return TextFacts(args, sizes["vocab_size"], width, sizes["max_position_embeddings"])
