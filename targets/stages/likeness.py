"""How a network is taught to be like larger ones, with or without the truth: the distillation terms of OMGD and UGC."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.stage import Weight
from mcompress.targets.stages.training import TrainingConfig


class LikenessConfig(TrainingConfig):
    """Weights of the terms between a student's and a teacher's picture of one input, and of the game that larger networks play on labelled pairs.

    OMGD's proportions are 10 (ssim), 10^4 (gram), 10 (feature) with VGG16 features, which mcompress cannot ship. Here the features are those of the
    discriminator that is trained along, so the weights are ours.
    """

    output: Weight = 1.0
    """Mean absolute error to the teacher's output."""
    ssim: Weight = 0.3
    """One minus the structural similarity to it."""
    gram: Weight = 0.0
    """Mean absolute error of Gram matrices of discriminator features."""
    feature: Weight = 0.1
    """Mean absolute error of discriminator features."""
    total_variation: Weight = 0.0
    """Mean absolute difference of neighbouring pixels of the student's output, against speckle."""
    truth: Weight = 1.0
    """Of the networks that see the truth: mean absolute error to it."""
    adversarial: Weight = 0.01
    """Of the networks that see the truth: GAN term; pix2pix and OMGD have 1 for 100 of truth."""
    adversarial_loss: Literal["hinge", "least_squares", "relativistic"] = "hinge"
    """The game; OMGD's is the hinge form."""
    discriminator_features: int = Field(default=16, ge=4, le=256)
    """Base width of the PatchGAN discriminator."""
    discriminator_learning_rate: float = Field(default=2e-4, gt=0, le=1.0)

    @property
    def with_learning_teachers(self) -> bool:
        """Whether larger networks learn along, from the truth."""
        return True

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.with_learning_teachers:
            return self
        if not any((self.output, self.ssim, self.gram, self.feature)):
            raise ValueError("output, ssim, gram and feature are all 0, so nothing would be learned from the larger networks; set one of them")
        if not self.truth:
            raise ValueError("truth is 0, so the larger networks would learn from nothing but their discriminator; set it")
        return self

    @property
    def with_discriminator(self) -> bool:
        """Whether any term needs one."""
        return bool(self.adversarial or self.gram or self.feature)
