"""Diffusion in the notation of its papers: a noisy latent is z = alpha x + sigma eps, with alpha^2 + sigma^2 = 1 (variance preserving).

A network predicts the noise eps, or the velocity v = alpha eps - sigma x (Salimans & Ho 2022, arXiv 2202.00512, appendix D). From either, with z,
follow the other one and the clean latent x. Steps are DDIM's (Song et al. 2021, arXiv 2010.02502) without added noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mcompress.compress.models.hugging_face import class_of
from mcompress.compress.models.spec import Prediction


@dataclass(frozen=True)
class ScheduleSettings:
    """What the noise at each timestep follows from; the fields are those of diffusers' schedulers, the defaults Stable Diffusion 1.5's."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha and sigma at every timestep, (T,) each, from diffusers' own scheduler; before the first one, where there is no noise, 1 and 0."""

    settings: ScheduleSettings = field(default_factory=ScheduleSettings)
    alphas: Tensor = field(init=False)
    sigmas: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Ask diffusers."""
        cumulative = class_of("diffusers", "DDIMScheduler")(**vars(self.settings)).alphas_cumprod.double()
        object.__setattr__(self, "alphas", cumulative.sqrt().float())
        object.__setattr__(self, "sigmas", (1.0 - cumulative).sqrt().float())

    def at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, each (N, 1, 1, 1), at timesteps (N,), whole numbers of any type; -1 stands for no noise at all."""
        places = timesteps.long()
        clean = places < 0
        alpha = torch.where(clean, 1.0, self.alphas.to(timesteps.device)[places.clamp(min=0)])
        sigma = torch.where(clean, 0.0, self.sigmas.to(timesteps.device)[places.clamp(min=0)])
        return alpha[:, None, None, None], sigma[:, None, None, None]

    def steps(self, count: int) -> list[int]:
        """The timesteps of `count` steps, the noisiest first, spaced from the end (diffusers' `trailing`): those of half as many are among them."""
        total = self.settings.num_train_timesteps
        return [round(total - index * total / count) - 1 for index in range(count)]


def noisy(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = alpha x + sigma eps."""
    return alpha * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x."""
    return alpha * noise - sigma * clean


def clean_of(predicted: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """x from what a network predicts for z: (z - sigma eps) / alpha, or alpha z - sigma v."""
    if prediction == "epsilon":
        return (noisy - sigma * predicted) / alpha
    return alpha * noisy - sigma * predicted


def noise_of(predicted: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """eps from what a network predicts for z: itself, or sigma z + alpha v."""
    return predicted if prediction == "epsilon" else sigma * noisy + alpha * predicted


def velocity_of(predicted: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """v from what a network predicts for z: (eps - sigma z) / alpha, or itself."""
    return (predicted - sigma * noisy) / alpha if prediction == "epsilon" else predicted


def ddim_step(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z at the noise level (alpha, sigma) on the line through x and eps (DDIM, eta 0)."""
    return alpha * clean + sigma * noise


def clean_target(after: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, alpha_after: Tensor, sigma_after: Tensor) -> Tensor:
    """The x that takes one DDIM step from z at (alpha, sigma) to `after` at (alpha_after, sigma_after), where there is less noise.

    x = (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha) (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2); at alpha'' = 1 it is z''.
    """
    ratio = sigma_after / sigma
    return (after - ratio * noisy) / (alpha_after - ratio * alpha)


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """max(alpha^2 / sigma^2, 1), the weight of a squared error of x (Salimans & Ho 2022, section 4)."""
    return (alpha / sigma).square().clamp(min=1.0)


def boundary_scalings(timesteps: Tensor, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, each (N, 1, 1, 1), of a consistency model f = c_skip z + c_out x, which must give z itself where there is no noise.

    With s = timestep_scaling t: c_skip = sigma_data^2 / (s^2 + sigma_data^2), c_out = s / sqrt(s^2 + sigma_data^2) (latent consistency models,
    Luo et al. 2023, arXiv 2310.04378; the numbers are theirs). -1, as in `NoiseSchedule.at`, is as 0.
    """
    scaled = timestep_scaling * timesteps.clamp(min=0).float()[:, None, None, None]
    both = scaled.square() + sigma_data**2
    return sigma_data**2 / both, scaled / both.sqrt()


def guided(conditional: Tensor, unconditional: Tensor, guidance: Tensor | float) -> Tensor:
    """w f(c) - (w - 1) f(nothing): classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) in the convention in which 1 is none."""
    return unconditional + guidance * (conditional - unconditional)
