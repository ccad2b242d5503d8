"""A tiny pipeline of diffusers' and transformers' own classes, with weights that all tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH, WIDTH, VOCABULARY = 12, 16, 520
START, END = "<|startoftext|>", "<|endoftext|>"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
STAGES = {"block_out_channels": (8, 8), "norm_num_groups": 4}


def unet(**config: object) -> UNet2DConditionModel:
    small = {"sample_size": 8, "cross_attention_dim": WIDTH, "attention_head_dim": 4, "layers_per_block": 1, **STAGES}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return UNet2DConditionModel(**{**small, **blocks, **config}).eval()


def vae(**config: object) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**{"sample_size": 16, "scaling_factor": 0.25, **STAGES, **blocks, **config}).eval()


def text_encoder(**config: object) -> CLIPTextModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    return CLIPTextModel(CLIPTextConfig(**{**sizes, **ends, "max_position_embeddings": LENGTH, **config})).eval()


def tokenizer() -> CLIPTokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), "re", "red</w>", START, END]
    merges = [("r", "e"), ("re", "d</w>")]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(words)}, merges=merges, model_max_length=LENGTH)


def pipeline(scheduler: object | None = None, **parts: nn.Module) -> StableDiffusionPipeline:
    networks = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    torch.manual_seed(1)
    made = {name: parts.get(name) or make() for name, make in networks.items()}
    for network in made.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)  # biases and scales tell nothing where they are as they are made
    noise = scheduler or DDIMScheduler(steps_offset=1, timestep_spacing="trailing", clip_sample=False)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**made, tokenizer=tokenizer(), scheduler=noise, **nothing)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def rename(file: Path, renamed: Callable[[str], str], **more: torch.Tensor) -> None:
    save_file({**{renamed(name): value for name, value in load_file(file).items()}, **more}, file, {"format": "pt"})
