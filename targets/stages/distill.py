"""The distill stage: from a teacher that stays as it is, or from teachers that keep learning."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.likeness import LikenessConfig
from mcompress.targets.stages.stage import Weight
from mcompress.targets.stages.training import TaughtConfig

OF_LEARNING_TEACHERS = (
    "channel", "gram", "feature", "truth", "adversarial", "adversarial_loss", "discriminator_features", "discriminator_learning_rate",
    "weighting", "teachers_every", "shared_blocks",
)  # fmt: skip
"""Fields of adaptive distillation that act on teachers that learn, or on their discriminators."""


class DistillConfig(TaughtConfig):
    """Train the student from the teacher. A weight of 0 switches a term off, and with it everything that only the term needs."""

    stage: Literal["distill"] = "distill"
    method: Literal["online"] = "online"
    truth: Weight = 1.0
    """Mean absolute error to the ground truth."""
    squared: Weight = 0.0
    """Mean squared error to the ground truth, which is what PSNR is of."""
    output: Weight = 0.5
    """Mean absolute error to the teacher's output."""
    feature: Weight = 0.0
    """Mean squared error to the teacher's features, through 1x1 adaptors (GAN Compression)."""
    kernel_alignment: Weight = 0.0
    """One minus the kernel alignment of features (CAT); no adaptor."""
    channel: Weight = 0.0
    """Mean squared error of the means of feature maps, through 1x1 adaptors (OMGD's channel distillation)."""
    discriminator_feature: Weight = 0.0
    """Distance of what the teacher's discriminator sees in the feature maps of both, through 1x1 adaptors (DCD)."""
    gram: Weight = 0.0
    """Mean absolute error of Gram matrices of the outputs' discriminator features."""
    ssim: Weight = 0.0
    """One minus the structural similarity to the teacher's output (OMGD, UGC, Wav2Lip)."""
    total_variation: Weight = 0.0
    """Mean absolute difference of neighbouring pixels of the output, against speckle (OMGD, UGC); a regulariser, it teaches nothing by itself."""
    expert: Weight = 0.0
    """What the task's frozen expert says against the output: of talking faces the lip-sync loss (Wav2Lip: 0.01 without a discriminator) of five
    neighbouring frames in each batch; the other frames are drawn alone."""
    adversarial: Weight = 0.0
    """GAN term against the student's discriminator."""
    adversarial_loss: Literal["least_squares", "relativistic", "hinge"] = "least_squares"
    """The game that discriminators and student play: LSGAN, ESRGAN's relativistic average form, or the hinge form."""
    discriminator: Weight = 0.0
    """Feature distance of the student's discriminator to the teacher's, on real and generated images (MFAGAN-style)."""
    discriminator_features: int = Field(default=16, ge=4, le=256)
    """Base width of the PatchGAN discriminators."""
    discriminator_learning_rate: float = Field(default=2e-4, gt=0, le=1.0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any(
            (
                self.truth,
                self.squared,
                self.output,
                self.feature,
                self.kernel_alignment,
                self.channel,
                self.discriminator_feature,
                self.gram,
                self.ssim,
                self.expert,
                self.adversarial,
            )
        ):
            raise ValueError(
                "every weight is 0, so nothing would be learned; set truth, squared, output, feature, kernel_alignment, channel, "
                "discriminator_feature, gram, ssim, expert or adversarial (total_variation alone only blurs)"
            )
        if self.discriminator and not self.adversarial:
            raise ValueError("discriminator has a weight but adversarial has none, so the discriminator would never reach the student")
        of_features = [name for name in ("feature", "kernel_alignment", "channel", "discriminator_feature") if getattr(self, name)]
        if self.teacher_batches is not None and of_features:
            named = " and ".join(of_features)
            raise ValueError(f"teacher_batches keeps pictures, and {named} needs the teacher's features; remove teacher_batches, or set {named} to 0")
        if self.kernel_alignment and self.batch_size < 2:
            raise ValueError("kernel_alignment compares the samples of a batch with each other; batch_size must be at least 2")
        return self


class AdaptiveDistillConfig(LikenessConfig):
    """UGC-style adaptive online distillation: teachers keep learning from labelled pairs while the student, which sees neither truth nor game, learns
    from all of them on images with and without a label. The better a teacher is at present, the more it counts.
    """

    stage: Literal["distill"] = "distill"
    method: Literal["adaptive"] = "adaptive"
    channel: Weight = 0.1
    """Mean squared error of the means of feature maps to the wider teacher's, through a 1x1 adaptor (OMGD)."""
    weighting: Literal["quality", "equal"] = "quality"
    """How much each teacher counts: by the inverse of its mean squared error on labelled pairs that nothing is trained on, or all alike."""
    original: bool | Literal["alone"] = False
    """Whether the original teaches as well, as it is; what it learned from other labels then comes in. `alone`: the teachers of the search do not
    teach. Of an original of many more labels the student then learns more, and in a third of the time."""
    teachers_every: int = Field(default=1, ge=1, le=1000)
    """The teachers and their discriminators learn in every so-manieth step (OMGD: 1 to 4), the student in each."""
    shared_blocks: int = Field(default=3, ge=0, le=4)
    """So many blocks of the discriminator serve all teachers (OMGD: 3 to 5 of 5); the rest is each teacher's own."""

    @property
    def with_learning_teachers(self) -> bool:
        """Whether the search's teachers learn here."""
        return self.original != "alone"

    @model_validator(mode="after")
    def _original_alone(self) -> Self:
        """What only learning teachers use has defaults, which then rest; another value must be possible."""
        if self.with_learning_teachers:
            return self
        weights = ("channel", "gram", "feature", "truth", "adversarial")
        other = [name for name in OF_LEARNING_TEACHERS if getattr(self, name) != type(self).model_fields[name].default]
        asked = [name for name in other if getattr(self, name) or name not in weights]
        if asked:
            raise ValueError(f"original is alone, so no teacher learns, and {' and '.join(asked)} would do nothing; remove it, or set original: true")
        if not (self.output or self.ssim):
            raise ValueError("original is alone, and output and ssim are 0, so nothing would be learned; set one of them")
        return self
