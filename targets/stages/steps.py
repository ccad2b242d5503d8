"""The distill stage of diffusion networks: fewer steps from noise to latents."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.stage import Weight
from mcompress.targets.stages.training import LearningConfig

MOST_STEPS = 1000
"""Timesteps of the noise schedules in use."""
QUICK_STEPS = 4
SamplingSteps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
TrainingSteps = Annotated[int, Field(ge=1, le=10_000_000)]


class FewerStepsConfig(LearningConfig):
    """What the methods that save steps share."""

    stage: Literal["distill"] = "distill"
    batch_size: int = Field(default=32, ge=1, le=4096)
    learning_rate: float = Field(default=3e-4, gt=0, le=1.0)
    guidance_range: tuple[float, float] = (2.0, 14.0)
    """Scales of classifier-free guidance that are drawn, evenly; 1 is none."""

    @model_validator(mode="after")
    def _guidance_from_low_to_high(self) -> Self:
        low, high = self.guidance_range
        if low < 1:
            raise ValueError(f"guidance_range starts with {low:g}; a scale must be at least 1, which is no guidance")
        if high < low:
            raise ValueError(f"guidance_range is [{low:g}, {high:g}]; the second must not be below the first, so write [{high:g}, {low:g}]")
        return self


class StepDistillConfig(FewerStepsConfig):
    """Step distillation (SnapFusion): from many DDIM steps to few, the network learns to go as far in one step as the original goes in several.

    First a copy of the original and the network learn to predict the velocity, unless they do. Then the original, with `teacher_steps`, teaches both
    to do with `middle_steps`; at last the copy teaches the network to do with `student_steps`.
    """

    method: Literal["steps"] = "steps"
    teacher_steps: SamplingSteps = 32
    """DDIM steps of the original."""
    middle_steps: SamplingSteps = 16
    """Those of the original's copy that teaches last, and of the network meanwhile."""
    student_steps: SamplingSteps = 8
    """Those of the result."""
    to_velocity: bool = True
    """Whether they learn to predict the velocity. Without it they go on predicting what they do, and the legs that would teach it are left out: much
    shorter, and enough for steps as long as those of 8. In the long steps of a handful, from pure noise, a prediction of the noise says little."""
    original_velocity_training_steps: TrainingSteps = 1000
    """Training steps in which the original's copy learns to predict the velocity."""
    student_velocity_training_steps: TrainingSteps = 1000
    """The same of the network."""
    original_middle_training_steps: TrainingSteps = 1000
    """Training steps in which the original's copy learns to do with `middle_steps`."""
    student_middle_training_steps: TrainingSteps = 1000
    """The same of the network."""
    student_training_steps: TrainingSteps = 2000
    """Training steps in which the network learns to do with `student_steps`."""
    guidance_probability: float = Field(default=0.1, ge=0, le=1)
    """How often teacher and student are compared as guided by a scale from `guidance_range`, instead of without guidance."""
    original_weight: Weight = 0.2
    """Weight of the error of the velocity itself, scaled to the size of the distillation loss."""

    @model_validator(mode="after")
    def _each_step_stands_for_several(self) -> Self:
        for name, more, fewer in (("middle_steps", "teacher_steps", self.middle_steps), ("student_steps", "middle_steps", self.student_steps)):
            before = int(getattr(self, more))
            if fewer >= before or before % fewer:
                raise ValueError(
                    f"{name} is {fewer}, and {more} {before}; one step must stand for two or more whole ones of the teacher, as 8 of 16 do. "
                    f"Make {more} a multiple of {name}"
                )
        return self

    def quick(self) -> Self:
        """A few training steps of each kind."""
        names = [name for name in type(self).model_fields if name.endswith("_training_steps")]
        return super().quick().model_copy(update={name: min(getattr(self, name), QUICK_STEPS) for name in names})


class ConsistencyDistillConfig(FewerStepsConfig):
    """Latent consistency distillation (LCM): the network learns to give the clean latents from any noise level at once, with guidance as an input.

    The original teaches, by single DDIM steps of a grid of `ddim_steps`.
    """

    method: Literal["consistency"] = "consistency"
    student_steps: SamplingSteps = 4
    """Sampling steps of the result; 1 gives the latents in a single call."""
    steps: TrainingSteps = 2000
    """Training steps."""
    ddim_steps: SamplingSteps = 50
    """Of the original's grid, on which neighbours are made to agree."""
    target_decay: float = Field(default=0.95, ge=0, lt=1)
    """How much of the running mean of weights that gives the targets stays in each training step."""
    huber: float = Field(default=1e-3, gt=0, le=1e3)
    """c of the pseudo-Huber loss: errors far below it count squared, errors far above it as they are."""

    @model_validator(mode="after")
    def _steps_of_the_grid(self) -> Self:
        if self.student_steps > self.ddim_steps:
            raise ValueError(f"student_steps is {self.student_steps}; it must be at most ddim_steps, {self.ddim_steps}, the steps that are distilled")
        if MOST_STEPS % self.ddim_steps:
            raise ValueError(
                f"ddim_steps is {self.ddim_steps}; its steps are equally long on the {MOST_STEPS} timesteps of training only if it divides them, "
                "as 20, 25, 40, 50 and 100 do"
            )
        return self

    def quick(self) -> Self:
        """A few training steps."""
        return super().quick().model_copy(update={"steps": min(self.steps, QUICK_STEPS)})
