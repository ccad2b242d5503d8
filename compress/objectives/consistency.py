"""Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378): a student that gives the clean latents from any noise level at once.

f(z, t, c, w) = c_skip z + c_out x, with the x of what the network predicts, is taught to be the same at both ends of each DDIM step of the guided
teacher. The scale of guidance w is an input of the student, so that it needs no second call. Of all scales here 1 is none; the paper's are one less.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcompress.compress.diffusion import NoiseSchedule, boundary_scalings, clean_of, ddim_step, guided, noise_of, noisy
from mcompress.compress.losses import pseudo_huber
from mcompress.compress.models.spec import Prediction
from mcompress.compress.objectives.step_distillation import VelocityModel
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective


@dataclass(frozen=True)
class ConsistencyLosses:
    """What consistency distillation is made of; the defaults are the paper's, but for the range of guidance, which is SnapFusion's."""

    batch_size: int
    guidance_range: tuple[float, float] = (2.0, 14.0)
    ddim_steps: int = 50
    target_decay: float = 0.95
    huber: float = 1e-3


class ConsistencyDistillation(Objective):
    """L = d(f(z_t, t, c, w), f-(z_t', t', c, w)), d the pseudo-Huber distance, t and t' neighbours on the teacher's grid, w drawn evenly.

    f- is the student with the running mean of its weights. The teacher takes no guidance as an input, the student does; both take noisy latents,
    timesteps and text states before it.
    """

    def __init__(self, student: nn.Module, predicts: Prediction, teacher: VelocityModel, data: Diffusion, losses: ConsistencyLosses) -> None:
        """The student `predicts`."""
        self.pair, self.predicts = nn.ModuleDict({"student": student, "target": copy.deepcopy(student)}), predicts
        self.teacher, self.data, self.losses = teacher, data, losses
        self.grid = torch.tensor([*data.schedule.steps(losses.ddim_steps), -1])

    def players(self) -> Mapping[str, nn.Module]:
        """The student; with it the mean of its weights, which no gradient reaches, so that a training that is continued has it."""
        return {"student": self.pair}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw latents with captions, noise, steps of the teacher and scales of guidance; move the target after the student's last step."""
        clean, text = self.data.training.drawn(self.losses.batch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        position = torch.randint(len(self.grid) - 1, (len(clean),), generator=generator)
        low, high = self.losses.guidance_range
        guidance = low + (high - low) * torch.rand(len(clean), generator=generator)
        start, end = self.grid[position], self.grid[position + 1]
        self.clean, self.noise, self.text, self.start, self.end, self.guidance, self.no_caption = (
            one.to(device) for one in (clean, noise, text, start, end, guidance, self.data.no_caption)
        )
        follow(self.pair["target"], self.pair["student"], self.losses.target_decay)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`consistency`."""
        schedule = self.data.schedule
        latents = noisy(self.clean, self.noise, *schedule.at(self.start))
        with torch.no_grad():
            after = guided_step(self.teacher, latents, self.start, self.end, self.text, self.no_caption, self.guidance)
            wanted = consistent(self.pair["target"], self.predicts, schedule, after, self.end, self.text, self.guidance)
        made = consistent(self.pair["student"], self.predicts, schedule, latents, self.start, self.text, self.guidance)
        return {"consistency": pseudo_huber(made, wanted, self.losses.huber)}


def guided_step(teacher: VelocityModel, latents: Tensor, start: Tensor, end: Tensor, text: Tensor, no_caption: Tensor, guidance: Tensor) -> Tensor:
    """z_t' (N, C, h, w): one DDIM step of the teacher from timesteps `start` (N,) to `end` (N,) under `guidance` (N,).

    z_t' = alpha_t' x + sigma_t' eps, x = x(c) + (w - 1) (x(c) - x(nothing)), and eps alike (Luo et al. 2023, with w one above theirs).
    """
    alpha, sigma = teacher.schedule.at(start)
    predicted = guided(*teacher.both(latents, start, text, no_caption), guidance[:, None, None, None])
    clean = clean_of(predicted, latents, alpha, sigma, "v_prediction")
    noise = noise_of(predicted, latents, alpha, sigma, "v_prediction")
    return ddim_step(clean, noise, *teacher.schedule.at(end))


def consistent(
    network: nn.Module, predicts: Prediction, schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor, text: Tensor, guidance: Tensor
) -> Tensor:
    """f(z, t, c, w) = c_skip z + c_out x (N, C, h, w), the consistency function; z itself at timestep -1, where there is no noise."""
    predicted = network(latents, timesteps.clamp(min=0), text, guidance).float()
    clean = clean_of(predicted, latents, *schedule.at(timesteps), predicts)
    skip, out = boundary_scalings(timesteps)
    return skip * latents + out * clean


@torch.no_grad()
def follow(target: nn.Module, student: nn.Module, decay: float) -> None:
    """Weights of the target <- decay target + (1 - decay) student."""
    targets = target.state_dict()
    for name, value in student.state_dict().items():
        kept = targets[name]
        kept.lerp_(value, 1.0 - decay) if kept.is_floating_point() else kept.copy_(value)
