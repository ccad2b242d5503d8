"""Robust training for architecture evolving (SnapFusion, Li et al. 2023, arXiv 2306.00980, section 3.1): stochastic depth (Huang et al. 2016, arXiv
1603.09382) over the blocks of a diffusion UNet, so that what is left computes something sensible when a block goes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import ModelSpec, Prediction
from mcompress.compress.models.unet_blocks import passed_by, standing
from mcompress.compress.objectives.denoising import Denoising
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective


class StochasticDepth(Objective):
    """Denoising in which each block that can go is executed with probability `keep`, and otherwise gives on what goes into it.

    One draw serves the whole batch, so a block that is passed by costs nothing. The paper does not give the probability.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, diffusion: Diffusion, prediction: Prediction, *, batch_size: int, keep: float) -> None:
        self.network, self.blocks, self.keep = network, standing(spec), keep
        self.denoising = Denoising(
            {"unet": network},
            self._run,
            diffusion.training,
            diffusion.no_caption,
            diffusion.schedule,
            prediction=prediction,
            batch_size=batch_size,
        )
        self.passed: list[str] = []

    def players(self) -> Mapping[str, nn.Module]:
        """The network, whole."""
        return self.denoising.players()

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw what denoising draws, then which blocks are passed by."""
        self.denoising.begin_step(generator, device)
        draws = torch.rand(len(self.blocks), generator=generator).tolist()
        self.passed = [name for name, draw in zip(self.blocks, draws, strict=True) if draw >= self.keep]

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """`squared`."""
        return self.denoising.terms(player)

    def _run(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        with passed_by(self.network, [(name, self.blocks[name]) for name in self.passed]):
            predicted: Tensor = self.network(latents, timesteps, text)
        return predicted
