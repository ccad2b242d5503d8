"""From noise to latents in a few steps, in numpy: DDIM, classifier-free guidance, and the steps of latent consistency models.

A noisy latent is z = sqrt(a) x + sqrt(1 - a) e, with the clean latent x, the noise e, and `alpha` a, what is left of the signal at a timestep. The
network predicts e (`epsilon`), or v = sqrt(a) e - sqrt(1 - a) x (`v_prediction`; Salimans & Ho 2022, arXiv 2202.00512, appendix D).

Needs numpy. This file is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

from math import cos, isfinite, pi, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Real = NDArray[np.float32]
    Exact = NDArray[np.float64]
    Predict = Callable[[Real, int], Real]
    """Noisy latents and their timestep to what the network predicts."""

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")
"""The names are diffusers'."""
COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999
"""Of `squaredcos_cap_v2` (Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.2)."""
SIGMA_DATA = 0.5
"""Spread of the data in the boundary condition of consistency models (Song et al. 2023, arXiv 2303.01469, appendix C)."""


class Schedule(NamedTuple):
    """What a network was trained with; the defaults are Stable Diffusion 1.5's."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"


class Consistency(NamedTuple):
    """What a latent consistency model was trained with (Luo et al. 2023, arXiv 2310.04378)."""

    grid_steps: int = 50
    timestep_scaling: float = 10.0


def check_schedule(schedule: Schedule) -> None:
    """Raises `ValueError` for values outside of what can be computed with."""
    train, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    if train < 1:
        raise ValueError(f"num_train_timesteps is {train}; it must be at least 1")
    if not (isfinite(start) and isfinite(end) and 0 < start <= end < 1):
        raise ValueError(f"beta_start is {start} and beta_end {end}; they must be above 0 and below 1, beta_start not above beta_end")
    if schedule.beta_schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule is {schedule.beta_schedule!r}; it must be one of {', '.join(BETA_SCHEDULES)}")
    if schedule.prediction_type not in PREDICTIONS:
        raise ValueError(f"prediction_type is {schedule.prediction_type!r}; it must be one of {', '.join(PREDICTIONS)}")


def alphas_of(schedule: Schedule) -> Exact:
    """What is left of the signal's power at each timestep, (num_train_timesteps,), falling from near 1. Raises `ValueError` like `check_schedule`."""
    check_schedule(schedule)
    train = schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        betas: Exact = np.linspace(schedule.beta_start, schedule.beta_end, train)
    elif schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(sqrt(schedule.beta_start), sqrt(schedule.beta_end), train) ** 2
    else:
        kept = [cos((step / train + COSINE_OFFSET) / (1 + COSINE_OFFSET) * pi / 2) ** 2 for step in range(train + 1)]
        betas = np.array([min(1 - kept[step + 1] / kept[step], LARGEST_BETA) for step in range(train)])
    alphas: Exact = np.cumprod(1 - betas, dtype=np.float64)
    return alphas


def trailing_timesteps(steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """The timesteps of `steps` steps, the noisiest first, spaced evenly back from the last one (diffusers' `trailing`).

    Those of half as many steps are among them, for halves are rounded to even numbers, exactly. diffusers multiplies a step that was rounded, so for
    some counts (48 of 1000, for example) a half falls on the other side there. Raises `ValueError` unless 1 <= steps <= num_train_timesteps.
    """
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"steps is {steps}; it must be from 1 to {num_train_timesteps}, the timesteps that the network was trained on")
    return [round(num_train_timesteps - step * num_train_timesteps / steps) - 1 for step in range(steps)]


def consistency_timesteps(steps: int, grid: int, num_train_timesteps: int = 1000) -> list[int]:
    """`steps` of the `grid` timesteps that a latent consistency model was distilled on, spread evenly, the noisiest first.

    The grid is that of `trailing_timesteps`. diffusers rounds its spacing down, which is the same where `grid` divides num_train_timesteps. Raises
    `ValueError` for more steps than it was distilled on, and like `trailing_timesteps`.
    """
    taught = trailing_timesteps(grid, num_train_timesteps)
    if not 1 <= steps <= grid:
        raise ValueError(f"steps is {steps}; it must be from 1 to {grid}, the steps that the network was distilled on")
    return [taught[step * grid // steps] for step in range(steps)]


def clean_and_noise(prediction: Real, noisy: Real, alpha: float, prediction_type: str) -> tuple[Real, Real]:
    """x and e, of the shape and type of `noisy`, from what a network predicts for it where the schedule has `alpha`; (0, 1] for `epsilon`."""
    signal, noise = sqrt(alpha), sqrt(1 - alpha)
    if prediction_type == "epsilon":
        return ((noisy - noise * prediction) / signal).astype(noisy.dtype, copy=False), prediction
    return signal * noisy - noise * prediction, signal * prediction + noise * noisy


def ddim_step(prediction: Real, noisy: Real, alpha: float, next_alpha: float, prediction_type: str) -> Real:
    """The latents where the schedule has `next_alpha`, without added noise (Song et al. 2021, arXiv 2010.02502, eq. 12, sigma 0)."""
    clean, noise = clean_and_noise(prediction, noisy, alpha, prediction_type)
    return sqrt(next_alpha) * clean + sqrt(1 - next_alpha) * noise


def ddim(predict: Predict, noise: Real, schedule: Schedule, steps: int) -> Real:
    """Latents from noise in `steps` steps; the last one goes to alpha 1, where no noise is left.

    Each step goes to the next timestep of the grid. diffusers' DDIM goes back by num_train_timesteps // steps instead: the same where `steps` divides
    num_train_timesteps. Raises `ValueError` like `alphas_of` and `trailing_timesteps`.
    """
    alphas = alphas_of(schedule)
    timesteps = trailing_timesteps(steps, schedule.num_train_timesteps)
    after = [*(float(alphas[timestep]) for timestep in timesteps[1:]), 1.0]
    latents = noise
    for timestep, next_alpha in zip(timesteps, after):  # noqa: B905  (one each; Python 3.8)
        latents = ddim_step(predict(latents, timestep), latents, float(alphas[timestep]), next_alpha, schedule.prediction_type)
    return latents


def guided(predict: Callable[[Real], Real], conditional: Real, unconditional: Real | None, guidance: float) -> Real:
    """w cond - (w - 1) uncond, of what `predict` gives for the text states of the prompt and of the empty prompt.

    Ho & Salimans 2022, arXiv 2207.12598, with w one above theirs. With guidance 1 the empty prompt weighs nothing: the network runs once, and
    `unconditional` may be None. Raises `ValueError` for a guidance that is not finite, and where the states are needed and not given.
    """
    if not isfinite(guidance):
        raise ValueError(f"guidance is {guidance}; it must be a finite number, 1 for none")
    if guidance == 1:
        return predict(conditional)
    if unconditional is None:
        raise ValueError(f"guidance is {guidance}; only 1 does without the text states of the empty prompt, so give them")
    return guidance * predict(conditional) - (guidance - 1) * predict(unconditional)


def boundary_scalings(timestep: int, timestep_scaling: float) -> tuple[float, float]:
    """c_skip and c_out: how much of the noisy latents and of x a consistency model gives, so that it gives its input where no noise is."""
    scaled = timestep * timestep_scaling
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / sqrt(scaled**2 + SIGMA_DATA**2)


def consistency_clean(prediction: Real, noisy: Real, timestep: int, alpha: float, prediction_type: str, timestep_scaling: float) -> Real:
    """The clean latents that a latent consistency model gives in one step."""
    clean, _ = clean_and_noise(prediction, noisy, alpha, prediction_type)
    skip, out = boundary_scalings(timestep, timestep_scaling)
    return out * clean + skip * noisy


def consistency_steps(
    predict: Predict,
    noise: Real,
    draw: Callable[[], Real],
    schedule: Schedule,
    consistency: Consistency,
    steps: int,
) -> Real:
    """Latents from noise in `steps` steps of a latent consistency model: each gives clean latents, and all but the last get fresh noise, by `draw`.

    Raises `ValueError` like `alphas_of` and `consistency_timesteps`.
    """
    alphas = alphas_of(schedule)
    timesteps = consistency_timesteps(steps, consistency.grid_steps, schedule.num_train_timesteps)
    latents = noise
    for position, timestep in enumerate(timesteps):
        alpha = float(alphas[timestep])
        prediction = predict(latents, timestep)
        latents = consistency_clean(prediction, latents, timestep, alpha, schedule.prediction_type, consistency.timestep_scaling)
        if position + 1 < steps:
            after = float(alphas[timesteps[position + 1]])
            latents = sqrt(after) * latents + sqrt(1 - after) * draw()
    return latents
