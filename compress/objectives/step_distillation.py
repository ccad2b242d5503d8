"""Step distillation: a student learns to go as far in one DDIM step as its teacher goes in several.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) as SnapFusion has it (Li et al. 2023, arXiv 2306.00980): teacher and student are
compared without guidance or, now and then, both guided by the same scale, and the student keeps learning from the data. Everything is computed from
velocities; either may predict the noise, from which its velocity follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcompress.compress.diffusion import (
    NoiseSchedule,
    clean_of,
    clean_target,
    ddim_step,
    guided,
    noise_of,
    noisy,
    truncated_snr,
    velocity,
    velocity_of,
)
from mcompress.compress.losses import EPSILON
from mcompress.compress.models.spec import Prediction
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective

LEFT_OUT = 0.1
"""How often a caption is left out where there is no guidance, as in training (Ho & Salimans 2022, arXiv 2207.12598). SnapFusion does not say; without
it only the guided steps would teach the student what to predict without a caption."""

MOST_OF_NOISE = 5.0
"""Ours, as its use is: the paper's student predicts the velocity."""


@dataclass(frozen=True)
class StepLosses:
    """What step distillation is made of; the defaults are SnapFusion's."""

    batch_size: int
    guidance_range: tuple[float, float] = (2.0, 14.0)
    guidance_probability: float = 0.1
    original_weight: float = 0.2


@dataclass(frozen=True)
class VelocityModel:
    """A network as a model of the velocity, whatever it predicts."""

    network: nn.Module
    prediction: Prediction
    schedule: NoiseSchedule

    def conditional(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """v(z, t, c), (N, C, h, w), of noisy latents (N, C, h, w), timesteps (N,) and text states (N, L, D)."""
        predicted = self.network(latents, timesteps, text).float()
        return velocity_of(predicted, latents, *self.schedule.at(timesteps), self.prediction)

    def both(self, latents: Tensor, timesteps: Tensor, text: Tensor, no_caption: Tensor) -> tuple[Tensor, Tensor]:
        """v with the captions, and v with none, `no_caption` (1, L, D), from one call."""
        texts = torch.cat((text, no_caption.expand_as(text)))
        with_caption, without = self.conditional(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), texts).chunk(2)
        return with_caption, without


class StepDistillation(Objective):
    """L = L_dstl + gamma L_ori, with L_dstl = L_cfg with probability p and L_vani otherwise (SnapFusion), drawn once for each batch.

    The student's steps are those of `student_steps`, of each of which the teacher does `teacher_steps / student_steps`.
    """

    def __init__(
        self, student: VelocityModel, teacher: VelocityModel, data: Diffusion, losses: StepLosses, *, teacher_steps: int, student_steps: int
    ) -> None:
        """`teacher_steps` is a multiple of `student_steps`, or as many: then the student only learns to predict the velocity."""
        self.student, self.teacher, self.data, self.losses = student, teacher, data, losses
        within = teacher_steps // student_steps
        grid = [*data.schedule.steps(teacher_steps), -1]
        self.paths = torch.tensor([grid[first : first + within + 1] for first in range(0, teacher_steps, within)])

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student.network}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw latents with captions, noise, steps of the student, and whether they are guided and how much."""
        losses = self.losses
        clean, text = self.data.training.drawn(losses.batch_size, generator)
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator)
        path = self.paths[torch.randint(len(self.paths), (count,), generator=generator)]
        self.is_guided = bool(torch.rand((), generator=generator) < losses.guidance_probability)
        low, high = losses.guidance_range
        guidance = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
        without = torch.rand(count, 1, 1, generator=generator) < LEFT_OUT
        if not self.is_guided:
            text = torch.where(without, self.data.no_caption, text)
        self.clean, self.noise, self.path, self.text, self.guidance = (one.to(device) for one in (clean, noise, path, text, guidance))
        self.no_caption = self.data.no_caption.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`vanilla` or `guided`, and `original`, weights applied."""
        start = self.path[:, 0]
        alpha, sigma = self.data.schedule.at(start)
        latents = noisy(self.clean, self.noise, alpha, sigma)
        target = teacher_target(self.teacher, latents, self.path, self.text, self.no_caption, self.guidance if self.is_guided else None)
        if self.is_guided:
            conditional, unconditional = self.student.both(latents, start, self.text, self.no_caption)
            predicted = guided(conditional, unconditional, self.guidance)
        else:
            conditional = predicted = self.student.conditional(latents, start, self.text)
        distillation = clean_loss(predicted, latents, target, alpha, sigma, self.student.prediction)
        original = original_loss(conditional, self.clean, self.noise, alpha, sigma, self.student.prediction)
        return {
            "guided" if self.is_guided else "vanilla": distillation,
            "original": scaled_to(distillation, original, self.losses.original_weight),
        }


@torch.no_grad()
def teacher_target(teacher: VelocityModel, latents: Tensor, path: Tensor, text: Tensor, no_caption: Tensor, guidance: Tensor | None) -> Tensor:
    """x-target (N, C, h, w), to which one step takes the latents as far as the teacher's steps along `path` (N, K + 1) do (SnapFusion).

    With v = v(z_t, t, c), or under `guidance` (N, 1, 1, 1) v = w v(z_t, t, c) - (w - 1) v(z_t, t, nothing), each step is
    x = alpha_t z_t - sigma_t v, z_t' = alpha_t' x + sigma_t' (sigma_t z_t + alpha_t v), and in the end
    x-target = (z_t'' - (sigma_t''/sigma_t) z_t) / (alpha_t'' - (sigma_t''/sigma_t) alpha_t).
    """
    levels = [teacher.schedule.at(timesteps) for timesteps in path.unbind(1)]
    after = latents
    for position, timesteps in enumerate(path.unbind(1)[:-1]):
        if guidance is None:
            predicted = teacher.conditional(after, timesteps, text)
        else:
            predicted = guided(*teacher.both(after, timesteps, text, no_caption), guidance)
        alpha, sigma = levels[position]
        clean = clean_of(predicted, after, alpha, sigma, "v_prediction")
        noise = noise_of(predicted, after, alpha, sigma, "v_prediction")
        after = ddim_step(clean, noise, *levels[position + 1])
    return clean_target(after, latents, *levels[0], *levels[-1])


def clean_loss(predicted: Tensor, latents: Tensor, target: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction = "v_prediction") -> Tensor:
    """L = max(alpha_t^2 / sigma_t^2, 1) |x - x-target|^2, x = alpha_t z_t - sigma_t v, mean over everything.

    It is SnapFusion's L_vani where v is the student's velocity with the caption, and L_cfg where v and the target are both guided by one scale. Of a
    student that itself predicts the noise, x is off by sigma_t / alpha_t times the error of the noise, by 15 times it in the first step of Stable
    Diffusion's schedule, and that step would drown all others: there the weight ends where a squared error of the noise counts `MOST_OF_NOISE` times.
    """
    made = clean_of(predicted, latents, alpha, sigma, "v_prediction")
    weight = truncated_snr(alpha, sigma)
    if prediction == "epsilon":
        weight = torch.minimum(weight, MOST_OF_NOISE * (alpha / sigma).square())
    return (weight * (made - target).square()).mean()


def original_loss(predicted: Tensor, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction = "v_prediction") -> Tensor:
    """L_ori = |v(z_t, t, c) - v|^2, v = alpha_t eps - sigma_t x (SnapFusion), mean over everything.

    Of a student that itself predicts the noise it is the squared error of the noise, by which it was trained: its velocity is off by 1 / alpha_t
    times that, and the first step would drown all others here as well.
    """
    difference = predicted - velocity(clean, noise, alpha, sigma)
    return (alpha * difference if prediction == "epsilon" else difference).square().mean()


def scaled_to(distillation: Tensor, original: Tensor, weight: float) -> Tensor:
    """gamma L_ori, with gamma = `weight` [L_dstl / L_ori]: `weight` times as large as the distillation loss, whatever its own size.

    No gradient goes through the brackets: only the direction in which L_ori pulls is its own.
    """
    scale = distillation.detach() / original.detach().clamp(min=EPSILON)
    return weight * scale * original
