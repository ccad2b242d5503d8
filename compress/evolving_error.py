"""What blocks of a diffusion network are valued by: the squared error of its prediction on fixed latents, noises and timesteps.

SnapFusion values them by the CLIP score of pictures, 2.5 GPU hours for each action. Here nothing is sampled: the error is that which training lowers,
or, as pictures are made under guidance, that of the guided prediction against the one of the network before it evolved
(`EvolveSearchConfig.measure`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.diffusion import guided, noisy, velocity
from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.targets.stages import EvolveSearchConfig


@dataclass(frozen=True)
class _Batch:
    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    wanted: Tensor


class PredictionError:
    """Mean squared error over validation latents, each at several noise levels, all of them drawn once."""

    def __init__(self, config: EvolveSearchConfig, diffusion: Diffusion, sampling: Sampling, seed: int, original: nn.Module) -> None:
        """`original` is asked at once where predictions are compared under guidance; it is not kept."""
        self._guidance = sampling.guidance if config.measure == "guided" else 1.0
        self._no_caption = diffusion.no_caption
        self._batches: list[_Batch] = []
        for batch in _drawn(config, diffusion, sampling, seed):
            wanted = self._predicted(original, batch) if config.measure == "guided" else batch.wanted
            self._batches.append(_Batch(batch.noisy, batch.timesteps, batch.text, wanted))

    def of(self, network: nn.Module) -> float:
        """Of a network in evaluation mode, in units of the prediction squared."""
        total = sum(float(functional.mse_loss(self._predicted(network, one), one.wanted)) * len(one.noisy) for one in self._batches)
        return total / sum(len(one.noisy) for one in self._batches)

    @torch.no_grad()
    def _predicted(self, network: nn.Module, batch: _Batch) -> Tensor:
        conditional: Tensor = network(batch.noisy, batch.timesteps, batch.text)
        if self._guidance == 1.0:
            return conditional
        return guided(conditional, network(batch.noisy, batch.timesteps, self._no_caption.expand_as(batch.text)), self._guidance)


def _drawn(config: EvolveSearchConfig, diffusion: Diffusion, sampling: Sampling, seed: int) -> Iterator[_Batch]:
    generator = torch.Generator().manual_seed(seed)
    latents, text = (whole[: config.evaluation_latents] for whole in diffusion.validation)
    # Every second of twice as many steps: the middles of equal parts of the schedule.
    for timestep in diffusion.schedule.steps(2 * config.evaluation_timesteps)[1::2]:
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.full((len(latents),), timestep)
        alpha, sigma = diffusion.schedule.at(timesteps)
        wanted = noise if sampling.prediction == "epsilon" else velocity(latents, noise, alpha, sigma)
        whole = (noisy(latents, noise, alpha, sigma), timesteps, text, wanted)
        for first in range(0, len(latents), config.batch_size):
            yield _Batch(*(one[first : first + config.batch_size] for one in whole))
