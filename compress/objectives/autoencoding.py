"""How an autoencoder learns to give back pictures through few latents that are nearly normal (Rombach et al. 2022, arXiv 2112.10752, without its
perceptual and adversarial terms)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.train import Objective

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Autoencoding(Objective):
    """Mean absolute and squared error of what is decoded from a random draw of the latents, and `divergence` times their divergence from the normal
    distribution.
    """

    def __init__(self, autoencoder: AutoencoderKL, pictures: Callable[[torch.Generator], Tensor], divergence: float) -> None:
        """`pictures` draws a batch (N, 3, H, W) in [-1, 1]."""
        self.autoencoder, self.pictures, self.divergence = autoencoder, pictures, divergence

    def players(self) -> Mapping[str, nn.Module]:
        """The autoencoder."""
        return {"autoencoder": self.autoencoder}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw pictures and the noise of their latents."""
        self.batch = self.pictures(generator).to(device)
        self.seed = int(torch.randint(2**31, (1,), generator=generator))

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`absolute`, `squared` and `divergence`, weights applied."""
        posterior = self.autoencoder.encode(self.batch).latent_dist
        latents = posterior.sample(torch.Generator().manual_seed(self.seed))
        decoded = self.autoencoder.decode(latents).sample
        return {
            "absolute": functional.l1_loss(decoded, self.batch),
            "squared": functional.mse_loss(decoded, self.batch),
            "divergence": self.divergence * posterior.kl().mean() / latents[0].numel(),
        }
