"""A latent diffusion model as it was published: its three networks, what turns pictures into latents and words into tokens, and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.diffusion import NoiseSchedule
from mcompress.compress.models.spec import InputSpec, ModelSpec, Prediction, Sampling
from mcompress.errors import PlanError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

AT_ONCE = 32
"""Captions that are encoded together."""
PIXELS_AT_ONCE = 48 * 32 * 32
"""Of pictures that are drawn, encoded or decoded together: the decoder of Stable Diffusion takes 0.7 GB for one of 512 x 512."""
LATENT_RANGE = (-6.0, 6.0)
"""Of latents and of noise, scaled to a standard deviation of 1. A normal variable leaves it once in 500 million times; what guidance drives further
is clipped before it is decoded."""
LEAST_STATE_BOUND, STATE_MARGIN = 32.0, 1.5
"""Text states are normalised but for a few large ones, which most often are those of the start, the same in every text: CLIP's reach 33."""


@dataclass(frozen=True)
class Part:
    """One of the networks: its name in `MODELS`, its arguments, itself."""

    network: str
    args: dict[str, JsonValue]
    module: nn.Module


@dataclass(frozen=True)
class Original:
    """The networks take and give tensors alone (`mcompress.compress.models.stable_diffusion`)."""

    unet: Part
    decoder: Part
    text_encoder: Part
    autoencoder: AutoencoderKL = field(repr=False)
    """Whose encoder makes latents of pictures."""
    tokenizer: CLIPTokenizer
    tokenizer_folder: Path
    schedule: NoiseSchedule
    prediction: Prediction
    scaling: float
    """Latents of the autoencoder times this have a standard deviation of about 1."""
    longest: int
    """Tokens of a text."""
    latents: tuple[int, ...]
    """(1, C, h, w), as the networks were trained."""
    enlarged: int
    """Sides of a picture in sides of its latents."""
    digest: str
    """SHA-256 of its files."""
    notes: tuple[str, ...] = ()

    @cached_property
    def no_caption(self) -> Tensor:
        """States (1, L, D) of the empty text."""
        return self.states([""])

    @cached_property
    def state_range(self) -> tuple[float, float]:
        """That states of texts are in: beyond those of the empty text by a margin."""
        bound = max(LEAST_STATE_BOUND, float(ceil(STATE_MARGIN * float(self.no_caption.abs().max()))))
        return -bound, bound

    @property
    def pictures_at_once(self) -> int:
        """So many pictures, or their latents, go through a network together."""
        _, _, height, width = self.latents
        return max(1, PIXELS_AT_ONCE // (height * width * self.enlarged**2))

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as it is, with start and end."""
        return [len(one) for one in self.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(N, L), float32 as the text encoder's file takes them, filled up with the tokenizer's padding. Raises `PlanError` for longer texts."""
        found = self.tokenizer(list(texts), padding="max_length", max_length=self.longest)["input_ids"]
        over = next((place for place, one in enumerate(found) if len(one) > self.longest), None)
        if over is not None:
            raise PlanError([f"the caption '{texts[over]}' has {len(found[over])} tokens; the text encoder takes {self.longest}, so make it shorter"])
        return torch.tensor(found, dtype=torch.float32)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """(N, L, D)."""
        tokens = self.tokens(texts)
        return torch.cat([self.text_encoder.module(some) for some in torch.split(tokens, AT_ONCE)])

    @torch.no_grad()
    def encoded(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, 8 h, 8 w) in [-1, 1] -> scaled latents (N, C, h, w), the means of what the encoder gives."""
        found = [self._latents_of(some) for some in torch.split(pictures, self.pictures_at_once)]
        return torch.cat(found) * self.scaling

    def _latents_of(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self.autoencoder.encode(pictures).latent_dist.mean
        return latents

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pictures, clipped to [-1, 1]."""
        found = [self.decoder.module(self.for_decoder(some)) for some in torch.split(latents, self.pictures_at_once)]
        return torch.cat(found).clamp(-1.0, 1.0)

    def for_decoder(self, latents: Tensor) -> Tensor:
        """Scaled latents as the decoder takes them: clipped to their range, and not scaled."""
        return latents.clamp(*LATENT_RANGE) / self.scaling

    def unet_inputs(self, latents: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """What the U-Net takes for latents of this shape."""
        last = float(self.schedule.settings.num_train_timesteps - 1)
        return (
            InputSpec("latents", latents, LATENT_RANGE),
            InputSpec("timestep", latents[:1], (0.0, last)),
            InputSpec("text", (latents[0], *self.no_caption.shape[1:]), self.state_range),
        )

    def decoder_inputs(self, latents: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """Latents of the autoencoder, not scaled."""
        low, high = LATENT_RANGE
        return (InputSpec("latents", latents, (low / self.scaling, high / self.scaling)),)

    def text_inputs(self) -> tuple[InputSpec, ...]:
        """Tokens."""
        return (InputSpec("tokens", (1, self.longest), (0.0, float(len(self.tokenizer) - 1))),)

    def spec(self, part: Part, inputs: tuple[InputSpec, ...], sampling: Sampling | None = None) -> ModelSpec:
        """The specification of one of the networks."""
        first, *further = inputs
        return ModelSpec(part.network, part.args, (), first.shape, first.value_range, first.name, tuple(further), sampling)
