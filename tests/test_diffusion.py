"""The notation of diffusion: identities against diffusers, grids that nest, the step that stands for several."""

from __future__ import annotations

import pytest
import torch
from closed_form import LATENTS, SCHEDULE
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcompress.compress.diffusion import (
    boundary_scalings,
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
from mcompress.compress.models.spec import Prediction

BOTH = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
TIMES = torch.tensor([0, 61, 499, 999])


def latents(seed: int, count: int = len(TIMES)) -> Tensor:
    return torch.randn(count, *LATENTS, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor) -> bool:
    """Within 1e-6 of the largest number, which is what fp32 can hold."""
    return bool((one - other).abs().max() <= 1e-6 * other.abs().max().clamp(min=1.0))


def scheduler(prediction: Prediction, steps: int) -> DDIMScheduler:
    made = DDIMScheduler(**vars(SCHEDULE.settings), clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    made.set_timesteps(steps)
    return made


def test_noise_and_velocity_are_added_as_diffusers_does() -> None:
    clean, noise, theirs = latents(1), latents(2), scheduler("epsilon", 8)
    alpha, sigma = SCHEDULE.at(TIMES)
    assert close(noisy(clean, noise, alpha, sigma), theirs.add_noise(clean, noise, TIMES))
    assert close(velocity(clean, noise, alpha, sigma), theirs.get_velocity(clean, noise, TIMES))


@BOTH
@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_ddim_step_is_diffusers(prediction: Prediction, position: int) -> None:
    theirs, grid = scheduler(prediction, 8), [*SCHEDULE.steps(8), -1]
    start, end = (torch.tensor(grid[place : place + 1]) for place in (position, position + 1))
    alpha, sigma = SCHEDULE.at(start)
    z, predicted = latents(1, 1), latents(2, 1)
    made = theirs.step(predicted, int(start), z)
    clean, noise = (find(predicted, z, alpha, sigma, prediction) for find in (clean_of, noise_of))
    assert close(clean, made.pred_original_sample)
    assert close(ddim_step(clean, noise, *SCHEDULE.at(end)), made.prev_sample)


@BOTH
def test_what_is_predicted_can_be_turned_into_everything_else(prediction: Prediction) -> None:
    clean, noise = latents(1), latents(2)
    alpha, sigma = SCHEDULE.at(TIMES)
    z, v = noisy(clean, noise, alpha, sigma), velocity(clean, noise, alpha, sigma)
    predicted = noise if prediction == "epsilon" else v
    assert torch.allclose(alpha * clean_of(predicted, z, alpha, sigma, prediction), alpha * clean, atol=1e-6)
    assert close(noise_of(predicted, z, alpha, sigma, prediction), noise)
    assert torch.allclose(alpha * velocity_of(predicted, z, alpha, sigma, prediction), alpha * v, atol=1e-6)


def test_guidance_of_1_is_none_and_that_of_0_leaves_the_caption_out() -> None:
    with_caption, without = latents(1), latents(2)
    assert torch.allclose(guided(with_caption, without, 1.0), with_caption, atol=1e-6)
    assert torch.equal(guided(with_caption, without, 0.0), without)
    assert torch.allclose(guided(with_caption, without, 7.5), 7.5 * with_caption - 6.5 * without, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=st.integers(1, 250), times=st.integers(1, 4))
def test_the_timesteps_of_fewer_steps_are_among_those_of_a_multiple_of_them(steps: int, times: int) -> None:
    assert SCHEDULE.steps(steps * times)[::times] == SCHEDULE.steps(steps)
    assert SCHEDULE.steps(steps)[0] == 999
    assert min(SCHEDULE.steps(steps)) >= 0


def test_diffusers_spaces_these_steps_alike() -> None:
    for steps in (1, 2, 4, 8, 16, 32, 50):
        assert scheduler("epsilon", steps).timesteps.tolist() == SCHEDULE.steps(steps)


@pytest.mark.parametrize("last", [-1, 250])
def test_one_step_with_the_target_goes_where_two_steps_go(last: int) -> None:
    z, first, second = latents(1, 1), latents(2, 1), latents(3, 1)
    levels = [SCHEDULE.at(torch.tensor([timestep])) for timestep in (800, 500, last)]
    after = z
    for predicted, level, to in zip((first, second), levels, levels[1:], strict=False):
        after = ddim_step(clean_of(predicted, after, *level, "v_prediction"), noise_of(predicted, after, *level, "v_prediction"), *to)
    (alpha, sigma), end = levels[0], levels[-1]
    target = clean_target(after, z, alpha, sigma, *end)
    assert close(ddim_step(target, (z - alpha * target) / sigma, *end), after)
    if last == -1:
        assert torch.equal(target, after)


def test_the_weight_is_the_ratio_of_signal_to_noise_but_at_least_1() -> None:
    alpha, sigma = SCHEDULE.at(torch.arange(1000))
    weight, ratio = truncated_snr(alpha, sigma).flatten(), (alpha**2 / sigma**2).flatten()
    assert torch.allclose(weight[ratio > 1], ratio[ratio > 1])
    assert (weight[ratio <= 1] == 1).all()
    assert 0 < int((ratio > 1).sum()) < 1000


def test_the_boundary_is_that_of_diffusers_and_without_noise_the_input_itself() -> None:
    theirs = LCMScheduler()
    for timestep in (0, 19, 999):
        skip, out = boundary_scalings(torch.tensor([timestep]))
        assert (float(skip), float(out)) == pytest.approx(theirs.get_scalings_for_boundary_condition_discrete(timestep), rel=1e-6)
    assert [float(one) for one in boundary_scalings(torch.tensor([-1]))] == [1.0, 0.0]
