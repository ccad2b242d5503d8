"""From noise to latents: diffusers' pipelines, the identities of DDIM, and how often the network is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from closed_form import DATA, LATENTS, NO_CAPTION, NOISE_UNET, SCHEDULE, TEXT, GuidedPoint, OnePoint, unet
from diffusers import AutoencoderKL, DDIMScheduler, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

from mcompress.compress.diffusion import clean_of, ddim_step, guided, noise_of
from mcompress.compress.models.spec import Prediction, Sampling
from mcompress.compress.models.stable_diffusion import with_guidance
from mcompress.compress.sampling import further_noises, sample, timesteps_of
from mcompress.errors import UsageError


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder() -> AutoencoderKL:
    """The pipelines ask it how many pixels a latent stands for, here 2."""
    both = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=4, **both)


NOISE, WORDS = normal(1, 2, *LATENTS), normal(2, 2, *TEXT)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1.0))


def smooth(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Some prediction of about unit size."""
    return torch.tanh(0.7 * latents + timesteps[:, None, None, None] / 1000 + text.mean((1, 2))[:, None, None, None])


class Counted:
    """Counts the calls of a network."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.calls = network, []

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls.append(inputs)
        return self.network(*inputs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 6, 8, 16, 32])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ddim_takes_the_steps_of_the_identities(steps: int, guidance: float, prediction: Prediction) -> None:
    latents = NOISE
    grid = [*SCHEDULE.steps(steps), -1]
    for start, end in pairwise(grid):
        times = torch.full((2,), float(start))
        predicted = guided(smooth(latents, times, WORDS), smooth(latents, times, NO_CAPTION.expand_as(WORDS)), guidance)
        level = SCHEDULE.at(times)
        clean, noise = (find(predicted, latents, *level, prediction) for find in (clean_of, noise_of))
        latents = ddim_step(clean, noise, *SCHEDULE.at(torch.tensor([end])))
    made = sample(smooth, Sampling(prediction, steps, guidance), SCHEDULE, NOISE, WORDS, NO_CAPTION)
    assert close(made, latents, 2e-6)  # two roundings, each to 1e-6


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_of_1_calls_the_network_once_a_step_and_any_other_twice(guidance: float) -> None:
    network = Counted(smooth)
    sample(network, Sampling("v_prediction", 8, guidance), SCHEDULE, NOISE, WORDS, NO_CAPTION)
    assert len(network.calls) == (8 if guidance == 1 else 16)
    assert [float(times[0]) for _, times, _ in network.calls[:: 1 if guidance == 1 else 2]] == SCHEDULE.steps(8)
    for latents, times, text in network.calls:
        assert {latents.dtype, times.dtype, text.dtype} == {torch.float32}
        assert (latents.shape, times.shape, text.shape) == (NOISE.shape, (2,), WORDS.shape)


@pytest.mark.parametrize("steps", [1, 8, 32])
def test_a_network_that_knows_the_point_finds_it_in_any_number_of_steps(steps: int) -> None:
    made = sample(OnePoint(), Sampling("v_prediction", steps, 4.0), SCHEDULE, NOISE, WORDS, NO_CAPTION)
    point = OnePoint().clean(WORDS)
    assert close(made, 4.0 * point - 3.0 * OnePoint().clean(NO_CAPTION), 1e-5)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_it_is_what_the_stable_diffusion_pipeline_makes(guidance: float) -> None:
    network = unet(NOISE_UNET, 0)
    # The pipeline insists on the offset, which `trailing` does not use.
    scheduler = DDIMScheduler(**vars(SCHEDULE.settings), clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    pipeline = StableDiffusionPipeline(autoencoder(), None, None, network.unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=WORDS, negative_prompt_embeds=NO_CAPTION.expand_as(WORDS), guidance_scale=guidance, num_inference_steps=8, latents=NOISE,
        height=8, width=8, output_type="latent",
    ).images  # fmt: skip
    made = sample(network, Sampling("epsilon", 8, guidance), SCHEDULE, NOISE, WORDS, NO_CAPTION)
    assert close(made, theirs, 1e-5)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_latent_consistency_is_what_its_pipeline_makes_and_takes_the_scale_as_it_is(steps: int) -> None:
    """The pipeline draws the noises of its steps from a generator; they are drawn alike here."""
    network = unet(with_guidance(NOISE_UNET, (2.0, 14.0)), 0)
    pipeline = LatentConsistencyModelPipeline(
        autoencoder(), None, None, network.unet, LCMScheduler(**vars(SCHEDULE.settings)), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=WORDS, guidance_scale=7.5, num_inference_steps=steps, latents=NOISE, generator=torch.Generator().manual_seed(5),
        height=8, width=8, output_type="latent",
    ).images  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    further = [torch.randn(NOISE.shape, generator=generator) for _ in range(steps - 1)]
    counted = Counted(network)
    made = sample(counted, Sampling("epsilon", steps, 7.5, "lcm"), SCHEDULE, NOISE, WORDS, NO_CAPTION, further)
    assert close(made, theirs, 1e-5)
    assert len(counted.calls) == steps


@pytest.mark.parametrize(("steps", "grid_steps"), [(1, 50), (4, 50), (4, 20), (8, 25), (50, 50)])
def test_consistency_models_are_called_at_timesteps_that_they_were_distilled_on(steps: int, grid_steps: int) -> None:
    sampling = Sampling("epsilon", steps, 3.0, "lcm", grid_steps)
    theirs = LCMScheduler(original_inference_steps=grid_steps)
    theirs.set_timesteps(steps)
    found = timesteps_of(sampling, SCHEDULE)
    assert found == theirs.timesteps.tolist()
    assert set(found) <= set(SCHEDULE.steps(grid_steps))


def test_a_consistency_model_that_knows_the_point_finds_it_at_once() -> None:
    wanted = 4.0 * OnePoint().clean(WORDS) - 3.0 * OnePoint().clean(NO_CAPTION)
    for steps in (1, 4):
        sampling = Sampling("v_prediction", steps, 4.0, "lcm")
        further = [normal(9 + index, 2, *LATENTS) for index in range(further_noises(sampling))]
        assert close(sample(GuidedPoint(), sampling, SCHEDULE, NOISE, WORDS, NO_CAPTION, further), wanted, 1e-4)


def test_the_same_noise_gives_the_same_latents_and_leaves_the_random_state_alone() -> None:
    sampling = Sampling("v_prediction", 4, 4.0, "lcm")
    further = [normal(9 + index, 2, *LATENTS) for index in range(3)]
    before = torch.get_rng_state()
    first, second = (sample(GuidedPoint(), sampling, SCHEDULE, NOISE, WORDS, NO_CAPTION, further) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    other = sample(GuidedPoint(), sampling, SCHEDULE, NOISE, WORDS, NO_CAPTION, [*further[:2], -further[2]])
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("sampling", "further", "said"),
    [
        (Sampling("epsilon", 4, 3.0, "lcm"), 0, "0 further noises were given; 4 steps of lcm take 3"),
        (Sampling("epsilon", 8, 3.0), 1, "1 further noises were given; 8 steps of ddim take 0"),
        (Sampling("epsilon", 0, 3.0), 0, "steps is 0; with ddim it must be from 1 to 1000"),
        (Sampling("epsilon", 51, 3.0, "lcm"), 50, "steps is 51; with lcm it must be from 1 to 50"),
    ],
)
def test_other_numbers_of_noises_or_steps_are_refused(sampling: Sampling, further: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sample(smooth, sampling, SCHEDULE, NOISE, WORDS, NO_CAPTION, [NOISE] * further)


def test_a_specification_keeps_its_sampling_and_the_grid() -> None:
    spec = replace(NOISE_UNET, sampling=Sampling("v_prediction", 4, 3.0, "lcm", 25))
    assert type(spec).from_json(spec.to_json()) == spec
    assert DATA.no_caption.shape == (1, *TEXT)
