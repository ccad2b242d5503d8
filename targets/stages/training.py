"""What the stages that train share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mcompress.targets.stages.stage import Stage


class LearningConfig(Stage):
    """What every stage that trains has, whatever it trains on."""

    batch_size: int = Field(default=8, ge=1, le=4096)
    learning_rate: float = Field(default=1e-3, gt=0, le=1.0)
    precision: Literal["no", "bf16"] = "no"
    """Automatic mixed precision of training, in accelerate's names; `no` is fp32."""
    checkpoint_every_s: float = Field(default=20.0, gt=0)

    def quick(self) -> Self:
        """Small batches."""
        return self.model_copy(update={"batch_size": min(self.batch_size, 4)})


class TrainingConfig(LearningConfig):
    """What the stages that train on crops of pictures share."""

    steps: int = Field(default=1000, ge=1, le=10_000_000)
    crop_size: int = Field(default=32, ge=8, le=512)
    """Side of the square low-resolution training crops, pixels."""

    def quick(self) -> Self:
        """A few steps on small crops."""
        return super().quick().model_copy(update={"steps": min(self.steps, 12), "crop_size": min(self.crop_size, 16)})


class TaughtConfig(TrainingConfig):
    """What the training stages with a teacher share."""

    teacher_batches: int | None = Field(default=None, ge=1, le=1_000_000)
    """Batches that the teacher answers; later steps reuse them, reoriented. Left out, it answers a new batch at each step."""
