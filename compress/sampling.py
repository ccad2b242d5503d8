"""From noise to latents with a diffusion network, through diffusers' schedulers.

DDIM's steps are taken by `DPMSolverMultistepScheduler` of order 1, which is DDIM (Lu et al. 2022, arXiv 2206.00927) and goes from each timestep of
the grid to the next one. `DDIMScheduler` goes back by 1000 // steps instead. Where the number of steps divides 1000 both are the same; of 16 or 32
steps it hands the network latents of another noise level than the timestep says, and after the last of 6 some noise is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mcompress.compress.diffusion import NoiseSchedule, guided
from mcompress.compress.models.hugging_face import class_of
from mcompress.compress.models.spec import Sampling
from mcompress.errors import UsageError

Network = Callable[..., Tensor]
"""Latents (N, C, h, w), timesteps (N,), text states (N, L, D), for the method `lcm` the scale of guidance (N,), all float32 -> what is predicted."""


@torch.no_grad()
def sample(
    network: Network,
    sampling: Sampling,
    schedule: NoiseSchedule,
    noise: Tensor,
    text: Tensor,
    no_caption: Tensor,
    further_noise: Sequence[Tensor] = (),
) -> Tensor:
    """Clean latents (N, C, h, w) from `noise` of that shape and the text states (N, L, D), `no_caption` (1, L, D) those of the empty caption.

    With DDIM the network is called twice in each step, with and without the caption, once where guidance is 1; with the method `lcm` always once.
    `lcm` adds noise between its steps: `further_noise`, as many as `further_noises` says. Raises `UsageError` for another number of them, or for
    more steps than there are.
    """
    wanted = further_noises(sampling)
    if len(further_noise) != wanted:
        raise UsageError(f"sampling: {len(further_noise)} further noises were given; {sampling.steps} steps of {sampling.method} take {wanted}")
    if sampling.method == "lcm":
        return _consistency(network, sampling, schedule, noise, text, further_noise)
    return _ddim(network, sampling, schedule, noise, text, no_caption)


def further_noises(sampling: Sampling) -> int:
    """How often noise is added on the way, besides that at the beginning."""
    return sampling.steps - 1 if sampling.method == "lcm" else 0


def timesteps_of(sampling: Sampling, schedule: NoiseSchedule) -> list[int]:
    """The timesteps at which the network is called, the noisiest first. Raises `UsageError`."""
    most = sampling.grid_steps if sampling.method == "lcm" else schedule.settings.num_train_timesteps
    if not 1 <= sampling.steps <= most:
        raise UsageError(f"sampling: steps is {sampling.steps}; with {sampling.method} it must be from 1 to {most}")
    if sampling.method == "ddim":
        return schedule.steps(sampling.steps)
    grid = schedule.steps(sampling.grid_steps)
    return [grid[index * sampling.grid_steps // sampling.steps] for index in range(sampling.steps)]


def _ddim(network: Network, sampling: Sampling, schedule: NoiseSchedule, noise: Tensor, text: Tensor, no_caption: Tensor) -> Tensor:
    scheduler = class_of("diffusers", "DPMSolverMultistepScheduler")(
        **vars(schedule.settings), prediction_type=sampling.prediction, solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy 2 has one for how diffusers makes an array of a tensor
        scheduler.set_timesteps(timesteps=timesteps_of(sampling, schedule))
    latents, without = noise, no_caption.expand_as(text)
    for timestep, times in _each(scheduler.timesteps, noise):
        predicted = network(latents, times, text)
        if sampling.guidance != 1:
            predicted = guided(predicted, network(latents, times, without), sampling.guidance)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def _consistency(
    network: Network, sampling: Sampling, schedule: NoiseSchedule, noise: Tensor, text: Tensor, further_noise: Sequence[Tensor]
) -> Tensor:
    scheduler = class_of("diffusers", "LCMScheduler")(
        **vars(schedule.settings), prediction_type=sampling.prediction, original_inference_steps=sampling.grid_steps
    )
    timesteps = timesteps_of(sampling, schedule)
    scheduler.set_timesteps(timesteps=timesteps)
    guidance = torch.full((len(noise),), sampling.guidance)
    latents = noise
    for index, (timestep, times) in enumerate(_each(scheduler.timesteps, noise)):
        predicted = network(latents, times, text, guidance)
        # The scheduler draws noise to add to the clean latents; they get the given one instead, so that every machine draws the same picture.
        latents = scheduler.step(predicted, timestep, latents, torch.Generator().manual_seed(0)).denoised
        if index < len(further_noise):
            latents = scheduler.add_noise(latents, further_noise[index], scheduler.timesteps[index + 1])
    return latents


def _each(timesteps: Tensor, noise: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each timestep, and as the network takes it."""
    for timestep in timesteps:
        yield timestep, timestep.float().expand(len(noise))
