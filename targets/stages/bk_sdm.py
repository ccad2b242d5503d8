"""BK-SDM for diffusion UNets: its fixed removals, and the distillation with features that heals them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.stage import Stage, Weight
from mcompress.targets.stages.training import LearningConfig

QUICK_STEPS = 4


class BkSdmSearchConfig(Stage):
    """Leave out the blocks of a diffusion UNet that BK-SDM leaves out, whatever the budget is; the others keep the original's weights. Nothing is
    trained, so put a distill stage of method features behind it.
    """

    stage: Literal["search"] = "search"
    method: Literal["bk_sdm"] = "bk_sdm"
    size: Literal["base", "small", "tiny"] = "base"
    """`base`: without the second of the two layers of each stage on the way down, and the middle one of the three on the way up; `small`: without the
    middle as well; `tiny`: without the innermost stage as well."""


class FeatureDistillConfig(LearningConfig):
    """Distil a diffusion UNet with fewer blocks from its original stage by stage (BK-SDM): it learns to denoise, to predict what the original
    predicts, and to have the original's features behind each of its stages.
    """

    stage: Literal["distill"] = "distill"
    method: Literal["features"] = "features"
    steps: int = Field(default=2000, ge=1, le=10_000_000)
    """Training steps."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    learning_rate: float = Field(default=3e-4, gt=0, le=1.0)
    """BK-SDM: 5e-5, constant, over 50,000 steps of 256."""
    task: Weight = 1.0
    """Mean squared error of the noise or the velocity, whichever the network predicts."""
    output: Weight = 1.0
    """Mean squared error to the original's prediction."""
    features: Weight = 1.0
    """Mean squared error to the original's features, summed over the stages down, the middle and the stages up."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.task or self.output or self.features):
            raise ValueError("task, output and features are all 0, so nothing would be learned; set one of them")
        return self

    def quick(self) -> Self:
        """A few training steps."""
        return super().quick().model_copy(update={"steps": min(self.steps, QUICK_STEPS)})
