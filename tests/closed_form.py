"""Diffusion networks whose exact answers are known, a tiny UNet, and data for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.diffusion import NoiseSchedule, velocity_of
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import InputSpec, ModelSpec, Prediction, Sampling
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks.diffusing import Diffusion

LATENTS, TEXT = (4, 4, 4), (3, 16)
SCHEDULE = NoiseSchedule()
TINY = {
    "sample_size": 4, "cross_attention_dim": 16, "attention_head_dim": 4, "block_out_channels": [16, 16], "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
INPUTS = (InputSpec("latents", (1, *LATENTS), (-4.0, 4.0)), InputSpec("timestep", (1,), (0.0, 999.0)), InputSpec("text", (1, *TEXT), (-4.0, 4.0)))
NOISE_UNET = replace(ModelSpec.taking(INPUTS, "diffusion_unet", {**TINY}), sampling=Sampling("epsilon", 32, 3.0))
VELOCITY_UNET = replace(NOISE_UNET, sampling=Sampling("v_prediction", 32, 3.0))
SLIM_UNET = replace(NOISE_UNET, args={**TINY, "repeats": {"down_blocks.0.attentions.0": 0}})


class OnePoint(nn.Module):
    """Where each caption has a single latent x(c), the noise in z is known: (z - alpha x(c)) / sigma. `shift` makes x(c) wrong by as much."""

    def __init__(self, predicts: Prediction = "v_prediction", shift: float = 0.0) -> None:
        super().__init__()
        self.predicts, self.shift = predicts, nn.Parameter(torch.tensor(shift))
        self.register_buffer("maps", torch.randn(TEXT[1], LATENTS[0] * LATENTS[1] * LATENTS[2], generator=torch.Generator().manual_seed(1)) / 4)

    def clean(self, text: Tensor) -> Tensor:
        return (text.mean(1) @ self.maps).reshape(-1, *LATENTS)

    def predicted(self, latents: Tensor, timesteps: Tensor, clean: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(timesteps)
        noise = (latents - alpha * (clean + self.shift)) / sigma
        return noise if self.predicts == "epsilon" else velocity_of(noise, latents, alpha, sigma, "epsilon")

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return self.predicted(latents, timesteps, self.clean(text))


class GuidedPoint(OnePoint):
    """The same under guidance, whose scale it takes: its latent is w x(c) - (w - 1) x(nothing)."""

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, guidance: Tensor) -> Tensor:  # type: ignore[override]
        scale = guidance[:, None, None, None]
        return self.predicted(latents, timesteps, scale * self.clean(text) - (scale - 1) * self.clean(NO_CAPTION))


NO_CAPTION = torch.randn(1, *TEXT, generator=torch.Generator().manual_seed(2))


class Points:
    """Captions with the latent that belongs to each."""

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        text = torch.randn(count, *TEXT, generator=generator)
        return OnePoint().clean(text), text


DATA = Diffusion(Points(), Points().drawn(2, torch.Generator().manual_seed(3)), NO_CAPTION, SCHEDULE)


class DiffusionTask:
    """As much of a task as the stage asks for."""

    name = "text_to_image"

    def __init__(self, data: Diffusion | None = DATA) -> None:
        self.data = data

    def diffusion(self) -> Diffusion | None:
        return self.data


SPREAD = 0.25
ANY_KIND = torch.full((1, 1, 3), 1 / 3)


class Blobs(nn.Module):
    """Three kinds of points in the plane, each around three centres, of which the text states say the share of each kind: the noise is known exactly,
    but many small steps lead elsewhere than few large ones. What is learned is added to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", 0.8 * torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(4)))
        torch.manual_seed(0)
        self.learned = nn.Sequential(nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        nn.init.zeros_(self.learned[-1].weight)
        nn.init.zeros_(self.learned[-1].bias)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        flat, (alpha, sigma) = latents.flatten(1), (one[:, :, 0, 0] for one in SCHEDULE.at(timesteps))
        variance = (alpha * SPREAD) ** 2 + sigma**2
        centres = self.centres.reshape(1, 9, 2)
        away = flat[:, None] - alpha[:, None] * centres
        share = text[:, 0].repeat_interleave(3, 1).clamp(min=1e-9)
        belongs = (share.log() - away.square().sum(2) / (2 * variance)).softmax(1)
        clean = (belongs[:, :, None] * (centres + (alpha * SPREAD**2 / variance)[:, None] * away)).sum(1)
        learned = self.learned(torch.cat((flat, alpha, sigma, text[:, 0]), 1))
        return ((alpha * flat - clean) / sigma + learned)[:, :, None, None]


class BlobPoints:
    """Points of the kinds that their text states say."""

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kinds, centres = (torch.randint(3, (count,), generator=generator) for _ in range(2))
        points = Blobs().centres[kinds, centres] + SPREAD * torch.randn(count, 2, generator=generator)
        return points[:, :, None, None], functional.one_hot(kinds, 3).float()[:, None]


BLOB_DATA = Diffusion(BlobPoints(), BlobPoints().drawn(2, torch.Generator().manual_seed(3)), ANY_KIND, SCHEDULE)


def unet(spec: ModelSpec, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(spec).eval()


def diffusion_context(make_context: Callable[..., StageContext], original: ModelSpec = NOISE_UNET, present: ModelSpec = SLIM_UNET) -> StageContext:
    """Of a UNet that was taken from the original; where the two are alike it is the original."""
    made = make_context(present)
    return replace(made, task=DiffusionTask(), teacher=unet(original, 0), teacher_spec=original, model=unet(present, 0))
