"""What a bundle of text to image is told besides its files: tokenizer, noise, sampling, and one picture as PyTorch draws it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from mcompress.artifact import Artifact
from mcompress.checks_text_to_image import token_problems
from mcompress.compress.models.spec import Sampling
from mcompress.compress.sampling import further_noises, sample, timesteps_of
from mcompress.compress.tasks.text_to_image.original import LATENT_RANGE, Original
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.errors import ExportError
from mcompress.export.diffusion_steps import Schedule
from mcompress.export.drawing import DrawingFacts
from mcompress.export.manifest_drawing import DECODER, TEXT_ENCODER, UNET
from mcompress.planning import Plan

SEED = 41
"""Of the noise."""


def drawing_facts(made: Plan, final: Artifact, beside: Mapping[str, Artifact]) -> DrawingFacts | None:
    """`final` is the compressed U-Net, `beside` the networks that go along, by name; None for other tasks, and for a U-Net that goes alone.

    Raises `ExportError` for a tokenizer that the bundle cannot do without transformers.
    """
    if not isinstance(made.task, TextToImage) or not {TEXT_ENCODER, DECODER} <= set(beside):
        return None
    captions = made.task.held_out_pictures.captions
    check_tokens(made.task.original, captions)
    networks = {name: one.network() for name, one in {UNET: final, **beside}.items()}
    return facts_of(made.task.original, networks, final.spec.input_shape, final.spec.sampling or made.task.sampling, captions[0])


def facts_of(original: Original, networks: Mapping[str, nn.Module], latents: tuple[int, ...], sampling: Sampling, prompt: str) -> DrawingFacts:
    """Draws the prompt in PyTorch; `networks` are the three of them, by name."""
    noise = torch.randn((1 + further_noises(sampling), *latents[1:]), generator=torch.Generator().manual_seed(SEED))
    text_encoder, unet, decoder = (networks[name].eval() for name in (TEXT_ENCODER, UNET, DECODER))
    with torch.no_grad():
        text, nothing = (text_encoder(original.tokens([words])) for words in (prompt, ""))
        drawn = sample(unet, sampling, original.schedule, noise[:1], text, nothing, [one[None] for one in noise[1:]])
        picture = decoder(original.for_decoder(drawn))[0].clamp(-1.0, 1.0)
    return DrawingFacts(
        tokenizer_folder=original.tokenizer_folder,
        longest=original.longest,
        schedule=Schedule(**vars(original.schedule.settings), prediction_type=sampling.prediction),
        sampling=sampling,
        timesteps=tuple(timesteps_of(sampling, original.schedule)),
        latents=latents,
        latent_range=LATENT_RANGE,
        scaling=original.scaling,
        prompt=prompt,
        noise=noise.numpy(),
        picture=((picture + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy().astype(np.uint8),
    )


def check_tokens(original: Original, captions: tuple[str, ...]) -> None:
    """Raises `ExportError` unless the bundle's own tokenizer gives what transformers gives for these captions and the empty one."""
    found = token_problems(original, captions)
    if found:
        raise ExportError(found[0])
