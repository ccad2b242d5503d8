"""What a task owes the stages that know of diffusion: latents with the text states of their captions, and the noise that they learn to remove."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mcompress.compress.diffusion import NoiseSchedule


class CaptionedLatents(Protocol):
    """Training data of a diffusion network."""

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents (N, C, h, w), scaled to a standard deviation of about 1, and the text states (N, L, D) of their captions."""


@dataclass(frozen=True)
class Diffusion:
    """A diffusion task's data and noise."""

    training: CaptionedLatents
    validation: tuple[Tensor, Tensor]
    """Clean latents and text states, fixed, that are not trained on and not held out."""
    no_caption: Tensor
    """Text states (1, L, D) of the empty caption, for classifier-free guidance."""
    schedule: NoiseSchedule
