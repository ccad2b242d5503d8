"""How a diffusion network learns: from a noisy latent, a timestep and a caption to what was added, or to the velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.diffusion import NoiseSchedule, noisy, velocity
from mcompress.compress.models.spec import Prediction
from mcompress.compress.train import Objective


class CaptionedBatches(Protocol):
    """Where the latents of captioned pictures come from."""

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (N, C, h, w) and the tokens of their captions (N, L), or what a text encoder makes of them (N, L, D)."""


class Denoising(Objective):
    """Mean squared error of the noise (Ho et al. 2020, arXiv 2006.11239) or of the velocity, at timesteps drawn evenly.

    So that one network serves classifier-free guidance, captions are left out as often as `left_out` says (Ho & Salimans 2022, arXiv 2207.12598).
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Module],
        run: Callable[[Tensor, Tensor, Tensor], Tensor],
        examples: CaptionedBatches,
        no_caption: Tensor,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction,
        batch_size: int,
        left_out: float = 0.1,
    ) -> None:
        """`run(latents, timesteps, tokens)` predicts with the `trained` modules.

        `no_caption` are the tokens (L,), or the states (1, L, D), of the empty caption.
        """
        self.network, self.run, self.examples, self.no_caption = nn.ModuleDict(dict(trained)), run, examples, no_caption
        self.schedule, self.prediction, self.batch_size, self.left_out = schedule, prediction, batch_size, left_out

    def players(self) -> Mapping[str, nn.Module]:
        """All that is trained, as one."""
        return {"denoiser": self.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw latents with captions, noise and timesteps."""
        clean, tokens = self.examples.drawn(self.batch_size, generator)
        without = torch.rand(len(tokens), generator=generator) < self.left_out
        tokens = torch.where(without.reshape(-1, *[1] * (tokens.dim() - 1)), self.no_caption, tokens)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(self.schedule.settings.num_train_timesteps, (len(clean),), generator=generator)
        alpha, sigma = self.schedule.at(timesteps)
        wanted = noise if self.prediction == "epsilon" else velocity(clean, noise, alpha, sigma)
        self.inputs = tuple(one.to(device) for one in (noisy(clean, noise, alpha, sigma), timesteps, tokens))
        self.wanted = wanted.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`squared`."""
        return {"squared": functional.mse_loss(self.run(*self.inputs).float(), self.wanted)}
