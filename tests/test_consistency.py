"""Latent consistency distillation: the scale of guidance as an input, what is computed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from closed_form import DATA, NO_CAPTION, NOISE_UNET, SCHEDULE, SLIM_UNET, VELOCITY_UNET, GuidedPoint, OnePoint, diffusion_context, unet
from conftest import MemoryCheckpoints, silent
from diffusers import DDIMScheduler, LatentConsistencyModelPipeline, LCMScheduler
from pydantic import ValidationError

from mcompress.compress.losses import pseudo_huber
from mcompress.compress.models.build import build, example_inputs
from mcompress.compress.models.spec import InputSpec, ModelSpec, Prediction, Sampling
from mcompress.compress.models.stable_diffusion import SD_15, GuidedUnet, with_guidance
from mcompress.compress.objectives.consistency import ConsistencyDistillation, ConsistencyLosses, consistent, follow, guided_step
from mcompress.compress.objectives.step_distillation import VelocityModel
from mcompress.compress.sampling import further_noises, sample
from mcompress.compress.stage import StageContext
from mcompress.compress.step_distillation import distill_consistency, taking_guidance
from mcompress.compress.train import TrainSettings, step_generator, train
from mcompress.errors import PlanError, UsageError
from mcompress.targets.stages import ConsistencyDistillConfig

RANGE = (2.0, 14.0)
SHORT = ConsistencyDistillConfig(batch_size=2, steps=3, learning_rate=1e-3, checkpoint_every_s=1e-9)
CPU = torch.device("cpu")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(student: GuidedPoint, *, predicts: Prediction = "v_prediction", decay: float = 0.95, ddim_steps: int = 50) -> ConsistencyDistillation:
    losses = ConsistencyLosses(16, RANGE, ddim_steps, decay)
    return ConsistencyDistillation(student, student.predicts, VelocityModel(OnePoint(predicts), predicts, SCHEDULE), DATA, losses)


def test_the_scale_of_guidance_is_embedded_as_diffusers_does_which_subtracts_1() -> None:
    network = unet(with_guidance(NOISE_UNET, RANGE), 0)
    assert isinstance(network, GuidedUnet)
    scales = torch.tensor([1.0, 7.5, 14.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1.0, embedding_dim=256)
    assert (network.guidance_proj(1000.0 * (scales - 1.0)) - theirs).abs().max() < 2e-3  # of angles up to 13000 fp32 leaves that much
    inputs = [tensor.repeat(3, *[1] * (tensor.dim() - 1)) for tensor in example_inputs(NOISE_UNET)]
    with torch.no_grad():
        made = network(*inputs, scales)
        assert torch.allclose(made, network.unet(*inputs, timestep_cond=theirs).sample, atol=1e-4)
    assert not torch.allclose(made[0], made[1], atol=1e-4)


@pytest.mark.parametrize("spec", [NOISE_UNET, SLIM_UNET], ids=["whole", "slim"])
def test_a_network_that_is_given_the_input_does_what_it_did(spec: ModelSpec) -> None:
    network = unet(spec, 0)
    wanted, made = taking_guidance(spec, network, RANGE)
    assert wanted.inputs == (*spec.inputs, InputSpec("guidance", (1,), RANGE))
    assert sum(one.numel() for one in made.parameters()) == sum(one.numel() for one in network.parameters()) + 256 * 16
    inputs = example_inputs(spec)
    with torch.no_grad():
        for scale in (2.0, 14.0):
            assert torch.equal(made(*inputs, torch.tensor([scale])), network(*inputs))
    assert taking_guidance(wanted, made, (1.0, 2.0)) == (wanted, made)


def test_a_network_without_arguments_stays_stable_diffusions() -> None:
    spec = with_guidance(ModelSpec("diffusion_unet"), RANGE)
    assert spec.args == {**SD_15, "time_cond_proj_dim": 256}
    with pytest.raises(UsageError, match="network 'rrdb' has no place for the scale of guidance"):
        with_guidance(ModelSpec("rrdb"), RANGE)


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_a_student_that_knows_where_the_teacher_leads_loses_nothing(predicts: Prediction) -> None:
    made = objective(GuidedPoint(predicts), predicts=predicts)
    for step in range(5):
        made.begin_step(step_generator(0, step), CPU)
        assert float(made.terms("student")["consistency"].detach()) < 1e-6
    wrong = objective(GuidedPoint(predicts, shift=0.5), predicts=predicts)
    wrong.pair["target"] = GuidedPoint(predicts)
    wrong.losses = replace(wrong.losses, target_decay=1.0)
    wrong.begin_step(step_generator(0, 0), CPU)
    assert float(wrong.terms("student")["consistency"].detach()) == pytest.approx(float(pseudo_huber(torch.tensor(0.5), torch.tensor(0.0))), abs=1e-4)


def test_the_teacher_takes_a_guided_step_of_diffusers() -> None:
    network = unet(NOISE_UNET, 0)
    z, text, guidance = normal(1, 1, 4, 4, 4), normal(2, 1, 3, 16), torch.tensor([5.0])
    scheduler = DDIMScheduler(**vars(SCHEDULE.settings), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    for start, end in ((999, 979), (519, 499), (19, -1)):
        times = torch.tensor([start])
        with torch.no_grad():
            made = guided_step(VelocityModel(network, "epsilon", SCHEDULE), z, times, torch.tensor([end]), text, NO_CAPTION, guidance)
            with_caption, without = network(z, times, text), network(z, times, NO_CAPTION)
        theirs = scheduler.step(with_caption + 4.0 * (with_caption - without), start, z).prev_sample
        assert (made - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_the_consistency_function_is_that_of_diffusers_and_without_noise_the_input(predicts: Prediction) -> None:
    student, z, text, guidance = GuidedPoint(predicts, shift=0.3), normal(1, 1, 4, 4, 4), normal(2, 1, 3, 16), torch.tensor([5.0])
    scheduler = LCMScheduler(**vars(SCHEDULE.settings), prediction_type=predicts)
    scheduler.set_timesteps(50)
    for timestep in (19, 499, 999):
        times = torch.tensor([timestep])
        theirs = scheduler.step(student(z, times, text, guidance).detach(), timestep, z).denoised
        made = consistent(student, predicts, SCHEDULE, z, times, text, guidance)
        assert (made - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert torch.equal(consistent(student, predicts, SCHEDULE, z, torch.tensor([-1]), text, guidance), z)


def test_the_target_is_the_running_mean_of_the_students_weights_and_is_not_learned() -> None:
    student, target = GuidedPoint(shift=1.0), GuidedPoint(shift=0.0)
    follow(target, student, 0.9)
    assert float(target.shift.detach()) == pytest.approx(0.1)
    made = objective(student, decay=0.5)
    with torch.no_grad():
        made.pair["target"].shift.fill_(0.0)
    made.begin_step(step_generator(0, 0), CPU)
    assert float(made.pair["target"].shift.detach()) == pytest.approx(0.5)
    made.terms("student")["consistency"].backward()
    assert made.pair["target"].shift.grad is None
    assert student.shift.grad is not None


def test_steps_and_scales_are_drawn_from_everything_that_there_is() -> None:
    made = objective(GuidedPoint(), ddim_steps=20)
    starts, scales = set(), []
    for step in range(100):
        made.begin_step(step_generator(0, step), CPU)
        starts |= set(zip(made.start.tolist(), made.end.tolist(), strict=True))
        scales.append(made.guidance)
    grid = [*SCHEDULE.steps(20), -1]
    assert starts == set(pairwise(grid))
    drawn = torch.cat(scales)
    assert 2.0 <= float(drawn.min()) < 2.1
    assert 13.9 < float(drawn.max()) <= 14.0


def test_what_is_known_at_the_end_without_noise_is_learned_everywhere() -> None:
    student = GuidedPoint(shift=0.5)
    made = objective(student, decay=0.5, ddim_steps=10)
    made.losses = replace(made.losses, huber=1.0)  # with a small one the targets of the other steps hold on to the error they have
    train(made, TrainSettings(300, 2e-2, 0, warmup_steps=0, average=0.9), MemoryCheckpoints(), silent)
    assert abs(float(student.shift.detach())) < 0.05


@pytest.mark.parametrize("original", [NOISE_UNET, VELOCITY_UNET], ids=["epsilon", "velocity"])
def test_the_result_is_a_network_of_one_call_a_step(original: ModelSpec, make_context: Callable[..., StageContext]) -> None:
    context = diffusion_context(make_context, original, replace(SLIM_UNET, sampling=original.sampling))
    before = {name: value.clone() for name, value in context.teacher.state_dict().items()}
    config = SHORT.model_copy(update={"ddim_steps": 20})
    output = distill_consistency(config, context)
    sampling = output.spec.sampling
    assert sampling == Sampling(original.sampling.prediction, 4, 3.0, "lcm", 20)
    assert output.spec.inputs == (*context.spec.inputs, InputSpec("guidance", (1,), RANGE))
    build(output.spec).load_state_dict(output.model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in context.teacher.state_dict().items())
    assert [(leg["name"], leg["what"]) for leg in output.details["legs"]] == [("consistency", "20 steps to 4")]
    further = [normal(index, 1, 4, 4, 4) for index in range(further_noises(sampling))]
    made = sample(output.model, sampling, SCHEDULE, normal(9, 1, 4, 4, 4), NO_CAPTION, NO_CAPTION, further)
    assert torch.isfinite(made).all()


def test_a_killed_training_continues_to_the_same_weights_with_its_target(make_context: Callable[..., StageContext]) -> None:
    undisturbed = distill_consistency(SHORT, diffusion_context(make_context)).model.state_dict()
    store = MemoryCheckpoints(kill_after=2)
    context = replace(diffusion_context(make_context), checkpoints=lambda _name: store)
    with pytest.raises(KeyboardInterrupt):
        distill_consistency(SHORT, context)
    context = replace(diffusion_context(make_context), checkpoints=lambda _name: store)
    resumed = distill_consistency(SHORT, context).model.state_dict()
    assert all(torch.equal(value, undisturbed[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student_steps": 51}, "student_steps is 51; it must be at most ddim_steps, 50"),
        ({"ddim_steps": 30}, "ddim_steps is 30; its steps are equally long on the 1000 timesteps of training only if it divides them"),
        ({"guidance_range": (14, 2)}, "the second must not be below the first"),
        ({"guidance_range": (0, 2)}, "guidance_range starts with 0; a scale must be at least 1"),
        ({"target_decay": 1.0}, "less than 1"),
        ({"huber": 0.0}, "greater than 0"),
        ({"guidance_probability": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ConsistencyDistillConfig.model_validate({"stage": "distill", "method": "consistency", **given})


def test_networks_that_cannot_become_consistency_models_are_refused(make_context: Callable[..., StageContext]) -> None:
    context = diffusion_context(make_context)
    own = replace(SLIM_UNET, network="my_networks:build")
    with pytest.raises(PlanError, match="network 'my_networks:build' has no input for the scale of guidance; diffusion_unet can be given one"):
        distill_consistency(SHORT, replace(context, spec=own))
    with pytest.raises(PlanError, match=r"guidance_range is \[2, 14\], and the network is sampled with guidance 1, .* widen the range"):
        distill_consistency(SHORT, replace(context, spec=replace(SLIM_UNET, sampling=Sampling("epsilon", 32, 1.0))))
    with pytest.raises(PlanError, match="the original takes the scale of guidance as an input"):
        distill_consistency(SHORT, replace(context, teacher_spec=with_guidance(NOISE_UNET, RANGE)))
