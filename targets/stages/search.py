"""The search stage: a weight-shared supernet, and what is searched in it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mcompress.targets.stages.likeness import LikenessConfig
from mcompress.targets.stages.training import TaughtConfig, TrainingConfig


class SearchConfig(TrainingConfig):
    """What every search has: the space, how many candidates are evaluated, and how they are proposed."""

    stage: Literal["search"] = "search"
    space: Literal["mfagan", "resnet_generator", "unet_generator", "wav2lip"] | None = None
    """The search space; left out, the one that belongs to the teacher's network."""
    sampler: Literal["tpe", "evolution"] = "tpe"
    """How candidates are proposed: Optuna's tree-structured Parzen estimator, or mutation and crossover of the best (GAN Compression)."""
    trials: int = Field(default=120, ge=4, le=100_000)
    """Candidates that are evaluated; candidates over budget do not count."""
    random_candidates: int = Field(default=1, ge=0, le=16)
    """Random sub-networks per step, besides the largest and the smallest (the sandwich rule)."""

    def quick(self) -> Self:
        """A few steps and trials."""
        return super().quick().model_copy(update={"trials": min(self.trials, 6)})


class SupernetSearchConfig(SearchConfig, TaughtConfig):
    """Train a weight-shared supernet on labelled pairs and the original's answers, then pick the best candidate within the budget."""

    method: Literal["supernet"] = "supernet"


class SemiSupervisedSearchConfig(SearchConfig, LikenessConfig):
    """UGC-style: labelled pairs train the largest network, and on images with and without a label the others learn to be like it. The search finds
    the student within the budget, and a wider and a deeper network that can teach it.

    The original is not asked, so nothing that it learned from other labels comes in.
    """

    method: Literal["semi_supervised"] = "semi_supervised"
    sampler: Literal["tpe", "evolution"] = "evolution"
    teacher_cost: float = Field(default=4.0, gt=1, le=1000)
    """A teacher may need this many times the student's multiply-adds."""
    teacher_trials: int = Field(default=24, ge=1, le=100_000)
    """Candidates that are evaluated for each of the two teachers."""

    def quick(self) -> Self:
        """A few steps and trials."""
        return super().quick().model_copy(update={"teacher_trials": min(self.teacher_trials, 3)})
