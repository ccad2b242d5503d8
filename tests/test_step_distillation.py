"""Step distillation: what is computed, who learns from whom, what a killed training ends with, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from closed_form import (
    ANY_KIND,
    BLOB_DATA,
    DATA,
    NO_CAPTION,
    NOISE_UNET,
    SCHEDULE,
    SLIM_UNET,
    VELOCITY_UNET,
    Blobs,
    DiffusionTask,
    OnePoint,
    diffusion_context,
    unet,
)
from conftest import MemoryCheckpoints, silent
from diffusers import DDIMScheduler
from pydantic import ValidationError

from mcompress.compress.diffusion import NoiseSchedule, ScheduleSettings, clean_of, ddim_step, noisy, truncated_snr, velocity_of
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec, Prediction, Sampling
from mcompress.compress.models.stable_diffusion import with_guidance
from mcompress.compress.objectives.step_distillation import (
    LEFT_OUT,
    StepDistillation,
    StepLosses,
    VelocityModel,
    clean_loss,
    original_loss,
    scaled_to,
    teacher_target,
)
from mcompress.compress.sampling import sample
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.step_distillation import distill_steps
from mcompress.compress.train import TrainSettings, step_generator, train
from mcompress.errors import PlanError, TargetError
from mcompress.targets.load import load_target
from mcompress.targets.stages import StepDistillConfig

SHORT = StepDistillConfig(
    teacher_steps=8, middle_steps=4, student_steps=2, batch_size=2, learning_rate=1e-3, guidance_probability=0.5, checkpoint_every_s=1e-9,
    original_velocity_training_steps=1, student_velocity_training_steps=2, original_middle_training_steps=1, student_middle_training_steps=2,
    student_training_steps=2,
)  # fmt: skip
LEGS = ("original velocity", "student velocity", "original middle", "student middle", "student")
CPU = torch.device("cpu")


def objective(
    student: OnePoint, *, probability: float = 0.0, predicts: Prediction = "v_prediction", steps: tuple[int, int] = (32, 16)
) -> StepDistillation:
    teacher = VelocityModel(OnePoint(predicts), predicts, SCHEDULE)
    losses = StepLosses(16, (2.0, 14.0), probability)
    return StepDistillation(VelocityModel(student, "v_prediction", SCHEDULE), teacher, DATA, losses, teacher_steps=steps[0], student_steps=steps[1])


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("steps", [(32, 16), (16, 8), (16, 4)])
def test_a_student_whose_step_is_the_teachers_steps_loses_nothing(predicts: Prediction, probability: float, steps: tuple[int, int]) -> None:
    made = objective(OnePoint(), probability=probability, predicts=predicts, steps=steps)
    for step in range(5):
        made.begin_step(step_generator(0, step), CPU)
        terms = made.terms("student")
        assert set(terms) == {"guided" if probability else "vanilla", "original"}
        assert all(float(value.detach()) < 1e-6 for value in terms.values())


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_an_error_of_x_counts_by_the_truncated_ratio_of_signal_to_noise(probability: float) -> None:
    """The guided x is off by w d - (w - 1) d = d, so the guided loss is the same."""
    made = objective(OnePoint(shift=0.5), probability=probability)
    made.begin_step(step_generator(0, 0), CPU)
    expected = (0.25 * truncated_snr(*SCHEDULE.at(made.path[:, 0]))).mean()
    terms = {name: value.detach() for name, value in made.terms("student").items()}
    assert float(terms["guided" if probability else "vanilla"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(terms["original"]) == pytest.approx(0.2 * float(expected), rel=1e-4)


def test_an_error_of_the_noise_counts_five_times_at_most() -> None:
    alpha, sigma = SCHEDULE.at(torch.tensor(SCHEDULE.steps(16)))
    noise_target, off = torch.zeros(16, 2, 1, 1), 0.1
    latents = torch.randn(16, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    target = clean_of(noise_target, latents, alpha, sigma, "epsilon")
    predicted = velocity_of(noise_target + off, latents, alpha, sigma, "epsilon")
    each = [float(clean_loss(*(one[[at]] for one in (predicted, latents, target, alpha, sigma)), "epsilon")) / off**2 for at in range(16)]
    snr = (alpha / sigma).square().flatten()
    assert each == pytest.approx((truncated_snr(alpha, sigma).flatten() / snr).clamp(max=5.0).tolist(), rel=1e-3)
    assert each[0] == pytest.approx(5.0, rel=1e-3)
    assert each[-1] == pytest.approx(1.0, rel=1e-3)
    whole = clean_loss(predicted, latents, target, alpha, sigma)
    assert float(whole) > 5 * float(clean_loss(predicted, latents, target, alpha, sigma, "epsilon")), "which is what it would be for a velocity"


def test_the_original_loss_of_who_predicts_the_noise_is_that_of_the_noise() -> None:
    alpha, sigma = SCHEDULE.at(torch.tensor(SCHEDULE.steps(16)))
    draw = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(16, 2, 1, 1, generator=draw) for _ in range(2))
    predicted = velocity_of(noise + 0.1, noisy(clean, noise, alpha, sigma), alpha, sigma, "epsilon")
    for at in range(16):
        one = tuple(some[[at]] for some in (predicted, clean, noise, alpha, sigma))
        assert float(original_loss(*one, "epsilon")) == pytest.approx(0.01, rel=1e-2)
        assert float(original_loss(*one)) == pytest.approx(0.01 / float(alpha[at]) ** 2, rel=1e-2)


def test_the_original_loss_is_brought_to_the_size_of_the_distillation_loss_and_pulls_its_own_way() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    distillation, original = (weight[0] - 4).square(), 1000 * weight[1].square()
    term = scaled_to(distillation, original, 0.2)
    assert float(term.detach()) == pytest.approx(0.2 * 9.0)
    term.backward()
    assert weight.grad.tolist() == pytest.approx([0.0, 0.2 * 9.0 / 4000.0 * 4000.0])


def test_the_teacher_takes_diffusers_steps_and_its_target_leads_where_they_end() -> None:
    network, generator = unet(NOISE_UNET, 0), torch.Generator().manual_seed(0)
    scheduler = DDIMScheduler(**vars(SCHEDULE.settings), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    grid = SCHEDULE.steps(8)
    z, text = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 3, 16, generator=generator)
    after = z
    with torch.no_grad():
        for timestep in grid[2:4]:
            times = torch.tensor([timestep])
            with_caption, without = network(after, times, text), network(after, times, NO_CAPTION)
            after = scheduler.step(without + 5.0 * (with_caption - without), timestep, after).prev_sample
    guidance = torch.full((1, 1, 1, 1), 5.0)
    target = teacher_target(VelocityModel(network, "epsilon", SCHEDULE), z, torch.tensor([grid[2:5]]), text, NO_CAPTION, guidance)
    alpha, sigma = SCHEDULE.at(torch.tensor(grid[2:3]))
    made = ddim_step(target, (z - alpha * target) / sigma, *SCHEDULE.at(torch.tensor(grid[4:5])))
    assert (made - after).abs().max() < 1e-5 * after.abs().max()


def test_paths_are_the_students_steps_with_the_teachers_between_and_end_without_noise() -> None:
    paths = objective(OnePoint(), steps=(32, 16)).paths
    assert paths[:, 0].tolist() == SCHEDULE.steps(16)
    assert paths[:, :2].flatten().tolist() == SCHEDULE.steps(32)
    assert paths[1:, 0].tolist() == paths[:-1, 2].tolist()
    assert int(paths[-1, -1]) == -1


def test_batches_are_guided_as_often_as_asked_by_scales_from_the_whole_range() -> None:
    made = objective(OnePoint(), probability=0.1)
    is_guided, scales, without, starts = [], [], [], set()
    for step in range(1500):
        made.begin_step(step_generator(0, step), CPU)
        is_guided.append(made.is_guided)
        left_out = (made.text == NO_CAPTION).all(2).all(1)
        if made.is_guided:
            scales.append(made.guidance.flatten())
            assert not left_out.any()
        else:
            without.append(left_out.float().mean())
        starts |= set(made.path[:, 0].tolist())
    assert sum(is_guided) / len(is_guided) == pytest.approx(0.1, abs=0.025)
    drawn = torch.cat(scales)
    assert 2.0 <= float(drawn.min()) < 2.1
    assert 13.9 < float(drawn.max()) <= 14.0
    assert float(drawn.mean()) == pytest.approx(8.0, abs=0.25)
    assert float(torch.stack(without).mean()) == pytest.approx(LEFT_OUT, abs=0.01)
    assert starts == set(SCHEDULE.steps(16))


def test_a_student_learns_its_teachers_latents() -> None:
    student = OnePoint(shift=0.5)
    made = objective(student, probability=0.1)
    result = train(made, TrainSettings(150, 2e-2, 0, warmup_steps=0, average=0.9), MemoryCheckpoints(), silent)
    assert abs(float(student.shift.detach())) < 0.02
    assert {"student/vanilla", "student/guided", "student/original"} == {name for _, means in result.curve for name in means}


def test_few_distilled_steps_lead_nearer_to_where_many_do_and_guided_ones_if_guidance_was_seen() -> None:
    generator = torch.Generator().manual_seed(9)
    noise, text = torch.randn(150, 2, 1, 1, generator=generator), torch.eye(3).repeat(50, 1)[:, None]
    teacher = VelocityModel(Blobs(), "v_prediction", SCHEDULE)

    def drawn(network: Blobs, steps: int, guidance: float) -> torch.Tensor:
        return sample(network, Sampling("v_prediction", steps, guidance), SCHEDULE, noise, text, ANY_KIND)

    def distances(network: Blobs) -> tuple[float, float]:
        plain, guided = (float((drawn(network, 4, scale) - drawn(teacher.network, 16, scale)).square().mean().sqrt()) for scale in (1.0, 3.0))
        return plain, guided

    def distilled(probability: float) -> tuple[float, float]:
        student = Blobs()
        taught = VelocityModel(student, "v_prediction", SCHEDULE)
        made = StepDistillation(taught, teacher, BLOB_DATA, StepLosses(64, (1.0, 5.0), probability), teacher_steps=16, student_steps=4)
        train(made, TrainSettings(200, 5e-3, 0, warmup_steps=10, average=0.95), MemoryCheckpoints(), silent)
        return distances(student)

    before, plain, mixed = distances(Blobs()), distilled(0.0), distilled(0.2)
    assert plain[0] < 0.75 * before[0]
    assert mixed[0] < 0.8 * before[0]
    assert mixed[1] < 0.95 * plain[1]
    assert mixed[1] < before[1]


def weights(output: StageOutput) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in output.model.state_dict().items()}


def test_the_ladder_ends_with_a_velocity_network_of_few_steps_and_leaves_the_original_alone(make_context: Callable[..., StageContext]) -> None:
    context = diffusion_context(make_context)
    before, start = (copy.deepcopy(network.state_dict()) for network in (context.teacher, context.model))
    output = distill_steps(SHORT, context)
    assert output.spec == replace(SLIM_UNET, sampling=Sampling("v_prediction", 2, 3.0))
    build(output.spec).load_state_dict(output.model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in context.teacher.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in output.model.state_dict().items())
    legs = output.details["legs"]
    assert [leg["name"] for leg in legs] == list(LEGS)
    assert [leg["what"] for leg in legs] == [*["from noise to velocity"] * 2, *["8 steps to 4"] * 2, "4 steps to 2"]
    assert [leg["train_steps"] for leg in legs] == [1, 2, 1, 2, 2]
    assert output.details["train_seconds"] == pytest.approx(sum(leg["train_seconds"] for leg in legs))
    players = dict.fromkeys(name.split("/")[0] for _, means in output.details["curve"] for name in means)
    assert list(players) == list(LEGS)


def test_who_predicts_the_velocity_does_not_learn_it(make_context: Callable[..., StageContext]) -> None:
    asked: list[str] = []
    context = diffusion_context(make_context, VELOCITY_UNET, replace(SLIM_UNET, sampling=VELOCITY_UNET.sampling))
    stores = context.checkpoints
    context.teacher.requires_grad_(False)  # as who only evaluates it leaves it
    context = replace(context, checkpoints=lambda name: (asked.append(name), stores(name))[1])
    legs = distill_steps(SHORT, context).details["legs"]
    assert [leg.get("skipped") for leg in legs[:2]] == ["it predicts the velocity already"] * 2
    assert asked == ["original-middle", "student-middle", "student"]


def test_a_ladder_without_velocity_goes_on_predicting_the_noise(make_context: Callable[..., StageContext]) -> None:
    output = distill_steps(SHORT.model_copy(update={"to_velocity": False}), diffusion_context(make_context))
    assert output.spec == replace(SLIM_UNET, sampling=Sampling("epsilon", 2, 3.0))
    assert [leg["name"] for leg in output.details["legs"]] == list(LEGS[2:])
    assert not any("skipped" in leg for leg in output.details["legs"])


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_who_learns_the_velocity_learns_what_the_original_predicts(predicts: Prediction) -> None:
    """As many steps of the student as of the teacher: an exact student, whatever the two predict, has nothing to learn."""
    student, teacher = (VelocityModel(OnePoint(kind), kind, SCHEDULE) for kind in (predicts, "epsilon"))
    made = StepDistillation(student, teacher, DATA, StepLosses(16, (2.0, 14.0), 0.5), teacher_steps=32, student_steps=32)
    assert made.paths.shape == (32, 2)
    for step in range(4):
        made.begin_step(step_generator(0, step), CPU)
        assert all(float(value.detach()) < 1e-6 for value in made.terms("student").values())


def test_a_network_that_is_the_original_takes_its_legs_over(make_context: Callable[..., StageContext]) -> None:
    config = SHORT.model_copy(update={"student_velocity_training_steps": 1, "student_middle_training_steps": 1})
    output = distill_steps(config, diffusion_context(make_context, NOISE_UNET, NOISE_UNET))
    assert [leg["name"] for leg in output.details["legs"] if "skipped" in leg] == ["student velocity", "student middle"]
    other = diffusion_context(make_context, NOISE_UNET, NOISE_UNET)
    in_full = distill_steps(config, replace(other, spec=replace(other.spec, sampling=Sampling("epsilon", 31, 3.0))))
    assert [leg["name"] for leg in in_full.details["legs"] if "skipped" in leg] == []
    assert output.spec == in_full.spec


def test_a_killed_ladder_continues_in_its_leg_to_the_same_weights(make_context: Callable[..., StageContext]) -> None:
    undisturbed = weights(distill_steps(SHORT, diffusion_context(make_context)))
    stores: dict[str, MemoryCheckpoints] = {}
    killed = 0
    while True:
        context = replace(diffusion_context(make_context), checkpoints=lambda name: stores.setdefault(name, MemoryCheckpoints(kill_after=1)))
        try:
            output = distill_steps(SHORT, context)
            break
        except KeyboardInterrupt:
            killed += 1
    assert killed == len(LEGS) == len(stores)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(output).items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student_steps": 5}, "student_steps is 5, and middle_steps 16; one step must stand for two or more whole ones"),
        ({"middle_steps": 12}, "middle_steps is 12, and teacher_steps 32;.*Make teacher_steps a multiple of middle_steps"),
        ({"student_steps": 16}, "student_steps is 16, and middle_steps 16; one step must stand for two or more"),
        ({"student_steps": 0}, "greater than or equal to 1"),
        ({"teacher_steps": 2000}, "less than or equal to 1000"),
        ({"guidance_range": (14, 2)}, r"guidance_range is \[14, 2\]; the second must not be below the first, so write \[2, 14\]"),
        ({"guidance_range": (0.5, 2)}, "guidance_range starts with 0.5; a scale must be at least 1, which is no guidance"),
        ({"guidance_range": (2,)}, "guidance_range"),
        ({"guidance_probability": 1.1}, "less than or equal to 1"),
        ({"student_training_steps": 0}, "greater than or equal to 1"),
        ({"crop_size": 32}, "Extra inputs are not permitted"),
    ],
)
def test_ladders_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StepDistillConfig.model_validate({"stage": "distill", "method": "steps", **given})


def test_a_method_that_is_called_like_another_ones_field_is_found_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndevice: snapdragon865\nstages:\n  - {stage: distill, method: steps, steps: 3, batch_size: 0}\n"
        "  - {stage: distill, method: steps, student_steps: 5}\n  - {stage: distill, method: consistency, steps: 0}\nexports: [{backend: onnx}]\n"
    )
    with pytest.raises(TargetError) as error:
        load_target(path)
    said = sorted(str(error.value).splitlines())
    assert "x.yaml:4: stages[0].batch_size is 0; it must be at least 1" in said[0]
    assert "x.yaml:4: stages[0].steps is not known; stages[0] takes batch_size" in said[1]
    assert "x.yaml:5: stages[1].student_steps is 5, and middle_steps 16" in said[2]
    assert "x.yaml:6: stages[2].steps is 0; it must be at least 1" in said[3]


def test_the_quick_form_keeps_the_ladder_and_trains_a_few_steps() -> None:
    quick = StepDistillConfig().quick()
    assert (quick.teacher_steps, quick.middle_steps, quick.student_steps) == (32, 16, 8)
    assert {value for name, value in quick.model_dump().items() if name.endswith("_training_steps")} == {4}
    assert quick.batch_size == 4


GUIDED = with_guidance(NOISE_UNET, (2.0, 14.0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": DiffusionTask(None)}, "method steps is for diffusion networks, and the task has none; use method online"),
        ({"teacher_spec": replace(NOISE_UNET, sampling=None)}, "how the original 'diffusion_unet' is sampled"),
        ({"spec": replace(SLIM_UNET, sampling=None)}, "how the network 'diffusion_unet' is sampled"),
        ({"teacher_spec": GUIDED}, "the original takes the scale of guidance as an input"),
        ({"spec": GUIDED}, "the network takes the scale of guidance as an input, so it is called once a step; use method consistency"),
        (
            {"task": DiffusionTask(replace(DATA, schedule=NoiseSchedule(ScheduleSettings(num_train_timesteps=4))))},
            "teacher_steps is 8, and the noise schedule has 4 timesteps",
        ),
    ],
)
def test_networks_that_cannot_be_taught_so_are_refused(changed: dict[str, ModelSpec], said: str, make_context: Callable[..., StageContext]) -> None:
    with pytest.raises(PlanError, match=said):
        distill_steps(SHORT, replace(diffusion_context(make_context), **changed))
