"""The distill stage of diffusion networks: fewer steps, by step distillation (SnapFusion) or by latent consistency distillation (LCM).

SnapFusion's ladder (Li et al. 2023, arXiv 2306.00980, section 4), a leg being one training:

    original velocity   a copy of the original learns to predict the velocity
    student velocity    so does the network
    original middle     the original with 32 steps teaches the copy to do with 16
    student middle      and the network
    student             the copy with 16 steps teaches the network to do with 8

What is another way here: velocities are learned from the original itself, whose prediction of the noise is one of the velocity as well
(`velocity_of`), step for step on its grid, with the objective of all other legs; in the paper the original is trained on the data first, and what has
become of it teaches. The original teaches in both middle legs; the paper says of the network's only that it is like the other. The paper trains with
AdamW and a weight decay of 0.01, here it is Adam, as in every training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.compress.attention_layout import with_attention
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec, Sampling
from mcompress.compress.models.stable_diffusion import GUIDANCE, with_guidance
from mcompress.compress.objectives.consistency import ConsistencyDistillation, ConsistencyLosses
from mcompress.compress.objectives.step_distillation import StepDistillation, StepLosses, VelocityModel
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective, TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.stages import ConsistencyDistillConfig, StepDistillConfig

ORIGINAL_VELOCITY, STUDENT_VELOCITY = "original velocity", "student velocity"
ORIGINAL_MIDDLE, STUDENT_MIDDLE, STUDENT = "original middle", "student middle", "student"
CONSISTENCY = "consistency"
LEGS, MOST_LEGS = (CONSISTENCY, ORIGINAL_VELOCITY, STUDENT_VELOCITY, ORIGINAL_MIDDLE, STUDENT_MIDDLE, STUDENT), 7
"""All of them, and a prime above their number; trainings of different legs and seeds then draw different batches."""


def distill_steps(config: StepDistillConfig, context: StageContext) -> StageOutput:
    """Take the present model to `student_steps` of DDIM; with `to_velocity` it then predicts the velocity. The original stays as it is.

    Raises `PlanError` for what is no diffusion network, or takes guidance as an input, `TrainingDiverged`.
    """
    data, sampling, of_original = _diffusion(config, context)
    legs, steps = _Legs(config, context, data), (config.teacher_steps, config.middle_steps, config.student_steps)
    original = VelocityModel(context.teacher, of_original.prediction, data.schedule)
    copied = replace(original, network=_trainable_copy(context.teacher))
    student = VelocityModel(context.model, sampling.prediction, data.schedule)
    repeated = copied if _repeats_the_original(config, context) else None
    if config.to_velocity:
        copied = legs.to_velocity(ORIGINAL_VELOCITY, copied, original, config.original_velocity_training_steps)
        student = legs.to_velocity(STUDENT_VELOCITY, student, original, config.student_velocity_training_steps, repeated)
    legs.to_fewer(ORIGINAL_MIDDLE, copied, original, steps[:2], config.original_middle_training_steps)
    legs.to_fewer(STUDENT_MIDDLE, student, original, steps[:2], config.student_middle_training_steps, repeated)
    legs.to_fewer(STUDENT, student, copied, steps[1:], config.student_training_steps)
    spec = replace(context.spec, sampling=Sampling(student.prediction, config.student_steps, sampling.guidance))
    return StageOutput(student.network.eval(), spec, None, (), (), legs.details())


def distill_consistency(config: ConsistencyDistillConfig, context: StageContext) -> StageOutput:
    """Make the present model a latent consistency model, taught by the original; it then takes the scale of guidance as its last input.

    Raises `PlanError` for what is no diffusion network or cannot take guidance, `TrainingDiverged`.
    """
    data, sampling, of_original = _diffusion(config, context)
    legs = _Legs(config, context, data)
    spec, student = taking_guidance(context.spec, context.model, config.guidance_range)
    losses = ConsistencyLosses(config.batch_size, config.guidance_range, config.ddim_steps, config.target_decay, config.huber)
    teacher = VelocityModel(context.teacher, of_original.prediction, data.schedule)
    objective = ConsistencyDistillation(student, sampling.prediction, teacher, data, losses)
    legs.train(CONSISTENCY, f"{config.ddim_steps} steps to {config.student_steps}", objective, config.steps)
    after = Sampling(sampling.prediction, config.student_steps, sampling.guidance, "lcm", config.ddim_steps)
    return StageOutput(student.eval(), replace(spec, sampling=after), None, (), (), legs.details())


def fewer_steps_problems(
    config: StepDistillConfig | ConsistencyDistillConfig, data: Diffusion | None, original: ModelSpec, present: ModelSpec
) -> list[str]:
    """Why these networks, with these data, cannot be taught to do with fewer steps; what is known before anything is trained."""
    where = f"stage distill: method {config.method}"
    if data is None:
        return [f"{where} is for diffusion networks, and the task has none; use method online, which distils networks of one call"]
    problems = []
    for what, spec in (("original", original), ("network", present)):
        if spec.sampling is None:
            problems.append(f"{where} must know how the {what} '{spec.network}' is sampled, and its specification has no `sampling`")
    if _takes_guidance(original):
        problems.append(f"{where}: the original takes the scale of guidance as an input; one that is called with and without the caption must teach")
    elif isinstance(config, StepDistillConfig) and _takes_guidance(present):
        problems.append(f"{where}: the network takes the scale of guidance as an input, so it is called once a step; use method consistency")
    most = data.schedule.settings.num_train_timesteps
    if isinstance(config, ConsistencyDistillConfig):
        problems += _consistency_problems(config, present, most, where)
    elif config.teacher_steps > most:
        problems.append(f"{where}: teacher_steps is {config.teacher_steps}, and the noise schedule has {most} timesteps; lower teacher_steps")
    return problems


def taking_guidance(spec: ModelSpec, network: nn.Module, value_range: tuple[float, float]) -> tuple[ModelSpec, nn.Module]:
    """`with_guidance`, and that network with the weights of `network`, whose output it gives, whatever the scale, until it is trained."""
    wanted = with_guidance(spec, value_range)
    if wanted is spec:
        return spec, network
    made = build(wanted)
    for name in made.load_state_dict(network.state_dict(), strict=False).missing_keys:
        nn.init.zeros_(made.get_parameter(name))
    return wanted, made.eval()


@dataclass
class _Legs:
    """Trainings behind one another, each with a checkpoint of its own, so that one that was killed continues in the leg where it was."""

    config: StepDistillConfig | ConsistencyDistillConfig
    context: StageContext
    data: Diffusion
    done: list[dict[str, JsonValue]] = field(default_factory=list)
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def to_velocity(
        self, name: str, student: VelocityModel, teacher: VelocityModel, training_steps: int, repeated: VelocityModel | None = None
    ) -> VelocityModel:
        """`student` as one that predicts the velocity, taught to do step for step what `teacher` does, unless it does predict it."""
        steps = self._of_steps().teacher_steps
        if student.prediction == "v_prediction":
            self.done.append({"name": name, "skipped": "it predicts the velocity already"})
            return student
        student = replace(student, prediction="v_prediction")
        self._taught(name, "from noise to velocity", student, teacher, (steps, steps), training_steps, repeated)
        return student

    def to_fewer(
        self,
        name: str,
        student: VelocityModel,
        teacher: VelocityModel,
        steps: tuple[int, int],
        training_steps: int,
        repeated: VelocityModel | None = None,
    ) -> None:
        """Teach `student` to do with the second number of `steps` what `teacher` does with the first."""
        self._taught(name, f"{steps[0]} steps to {steps[1]}", student, teacher, steps, training_steps, repeated)

    def _taught(
        self,
        name: str,
        what: str,
        student: VelocityModel,
        teacher: VelocityModel,
        steps: tuple[int, int],
        training_steps: int,
        repeated: VelocityModel | None,
    ) -> None:
        """`repeated` is who has had the same training, whose weights are then what it would give."""
        if repeated is not None:
            student.network.load_state_dict(repeated.network.state_dict())
            self.done.append({"name": name, "skipped": "the network is the original, whose training this would repeat"})
            return
        config = self._of_steps()
        losses = StepLosses(config.batch_size, config.guidance_range, config.guidance_probability, config.original_weight)
        objective = StepDistillation(student, teacher, self.data, losses, teacher_steps=steps[0], student_steps=steps[1])
        self.train(name, what, objective, training_steps)

    def _of_steps(self) -> StepDistillConfig:
        if not isinstance(self.config, StepDistillConfig):
            raise TypeError(f"steps are distilled with {StepDistillConfig.__name__}, not {type(self.config).__name__}")
        return self.config

    def train(self, name: str, what: str, objective: Objective, steps: int) -> None:
        """One leg; the players of its curve are named after it."""
        config, context = self.config, self.context
        seed = context.seed * MOST_LEGS + LEGS.index(name)  # batches of its own
        settings = TrainSettings(steps, config.learning_rate, seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s)
        trained = train(objective, settings, context.checkpoints(name.replace(" ", "-")), context.progress(f"distill: {name}, {what}"))
        self.done.append({"name": name, "what": what, "train_steps": steps, "train_seconds": trained.seconds})
        self.curve += [(step, {f"{name}/{term.partition('/')[2]}": value for term, value in means.items()}) for step, means in trained.curve]

    def details(self) -> dict[str, JsonValue]:
        """What the report shows: the legs, and the curves of all of them."""
        seconds = sum(cast("float", leg.get("train_seconds", 0.0)) for leg in self.done)
        return {"legs": cast("JsonValue", self.done), "curve": cast("JsonValue", self.curve), "train_seconds": seconds}


def _diffusion(config: StepDistillConfig | ConsistencyDistillConfig, context: StageContext) -> tuple[Diffusion, Sampling, Sampling]:
    """The data, how the present model is sampled, and how the original is. Raises `PlanError`."""
    data = context.task.diffusion()
    problems = fewer_steps_problems(config, data, context.teacher_spec, context.spec)
    present, original = context.spec.sampling, context.teacher_spec.sampling
    if problems or data is None or present is None or original is None:
        raise PlanError(problems)
    return data, present, original


def _consistency_problems(config: ConsistencyDistillConfig, present: ModelSpec, timesteps: int, where: str) -> list[str]:
    problems = []
    if not _takes_guidance(present) and present.network != "diffusion_unet":
        problems.append(f"{where}: network '{present.network}' has no input for the scale of guidance; diffusion_unet can be given one")
    low, high = config.guidance_range
    if present.sampling is not None and not low <= present.sampling.guidance <= high:
        problems.append(
            f"{where}: guidance_range is [{low:g}, {high:g}], and the network is sampled with guidance {present.sampling.guidance:g}, which it would "
            "then not have learned; widen the range"
        )
    if timesteps % config.ddim_steps:
        problems.append(f"{where}: ddim_steps is {config.ddim_steps}; it must divide the {timesteps} timesteps of the noise schedule")
    return problems


def _takes_guidance(spec: ModelSpec) -> bool:
    return any(one.name == GUIDANCE for one in spec.further_inputs)


def _trainable_copy(network: nn.Module) -> nn.Module:
    """A copy whose weights can all be trained, also where those of the network are frozen."""
    return copy.deepcopy(network).requires_grad_(True)


def _repeats_the_original(config: StepDistillConfig, context: StageContext) -> bool:
    """Whether the network's first legs would repeat the original's: it is the original, weight by weight, and they are as long."""
    ours, theirs = context.model.state_dict(), context.teacher.state_dict()
    return (
        with_attention(context.spec, "whole") == with_attention(context.teacher_spec, "whole")
        and config.student_velocity_training_steps == config.original_velocity_training_steps
        and config.student_middle_training_steps == config.original_middle_training_steps
        and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    )
