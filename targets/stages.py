"""One configuration class per stage. The order in a target file is the order of execution."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Weight = Annotated[float, Field(ge=0, le=1e6)]


class Stage(BaseModel):
    """What every stage has: immutability, no unknown keys, and a quick form of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def quick(self) -> Self:
        """The same stage with a tiny budget, for `--quick`."""
        return self


class TrainingConfig(Stage):
    """What the training stages share."""

    steps: int = Field(default=1000, ge=1, le=10_000_000)
    batch_size: int = Field(default=8, ge=1, le=4096)
    crop_size: int = Field(default=32, ge=8, le=512)
    """Side of the square low-resolution training crops, pixels."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1.0)
    precision: Literal["no", "bf16"] = "no"
    """Automatic mixed precision of training, in accelerate's names; `no` is fp32."""
    checkpoint_every_s: float = Field(default=20.0, gt=0)

    def quick(self) -> Self:
        """A few steps on small crops."""
        return self.model_copy(update={"steps": min(self.steps, 12), "batch_size": min(self.batch_size, 4), "crop_size": min(self.crop_size, 16)})


class TaughtConfig(TrainingConfig):
    """What the training stages with a teacher share."""

    teacher_batches: int | None = Field(default=None, ge=1, le=1_000_000)
    """Batches that the teacher answers; later steps reuse them, reoriented. Left out, it answers a new batch at each step."""


class SearchConfig(TaughtConfig):
    """Train a weight-shared supernet, then pick the best candidate within the budget."""

    stage: Literal["search"] = "search"
    method: Literal["supernet"] = "supernet"
    space: Literal["mfagan"] | None = None
    """The search space; left out, the one that belongs to the teacher's network."""
    trials: int = Field(default=120, ge=4, le=100_000)
    """Candidates that are evaluated; candidates over budget do not count."""
    random_candidates: int = Field(default=1, ge=0, le=16)
    """Random sub-networks per step, besides the largest and the smallest (the sandwich rule)."""

    def quick(self) -> Self:
        """A few steps and trials."""
        return super().quick().model_copy(update={"trials": min(self.trials, 6)})


class PruneConfig(Stage):
    """Remove whole channels, the least important per millisecond saved first."""

    stage: Literal["prune"] = "prune"
    method: Literal["dependency_graph"] = "dependency_graph"
    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of channels to remove."""
    latency_ratio: float | None = Field(default=None, gt=0, le=1)
    """Stop when the estimated latency is at most this share of what it was."""
    round_to: int | None = Field(default=None, ge=1, le=256)
    """Channel counts are kept multiples of this; the device's alignment if left out."""
    importance_batches: int = Field(default=4, ge=1, le=1000)
    """Batches over which the first-order importance is accumulated."""

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.ratio is None) == (self.latency_ratio is None):
            raise ValueError("give exactly one goal: ratio or latency_ratio")
        return self

    def quick(self) -> Self:
        """One batch of importance."""
        return self.model_copy(update={"importance_batches": 1})


class DistillConfig(TaughtConfig):
    """Train the student from the teacher. A weight of 0 switches a term off, and with it everything that only the term needs."""

    stage: Literal["distill"] = "distill"
    method: Literal["online"] = "online"
    truth: Weight = 1.0
    """Mean absolute error to the ground truth."""
    output: Weight = 0.5
    """Mean absolute error to the teacher's output."""
    feature: Weight = 0.0
    """Mean squared error to the teacher's features, through a 1x1 adaptor."""
    kernel_alignment: Weight = 0.0
    """One minus the kernel alignment of features (CAT); no adaptor."""
    gram: Weight = 0.0
    """Mean absolute error of Gram matrices of the outputs' discriminator features."""
    ssim: Weight = 0.0
    """One minus the structural similarity to the teacher's output (OMGD, UGC, Wav2Lip)."""
    total_variation: Weight = 0.0
    """Mean absolute difference of neighbouring pixels of the output, against speckle (OMGD, UGC); a regulariser, it teaches nothing by itself."""
    adversarial: Weight = 0.0
    """GAN term against the student's discriminator."""
    adversarial_loss: Literal["least_squares", "relativistic"] = "least_squares"
    """The game that discriminators and student play: LSGAN, or ESRGAN's relativistic average form."""
    discriminator: Weight = 0.0
    """Feature distance of the student's discriminator to the teacher's, on real and generated images (MFAGAN-style)."""
    discriminator_features: int = Field(default=16, ge=4, le=256)
    """Base width of the PatchGAN discriminators."""
    discriminator_learning_rate: float = Field(default=2e-4, gt=0, le=1.0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any((self.truth, self.output, self.feature, self.kernel_alignment, self.gram, self.ssim, self.adversarial)):
            raise ValueError(
                "every weight is 0, so nothing would be learned; set truth, output, feature, kernel_alignment, gram, ssim or adversarial "
                "(total_variation alone only blurs)"
            )
        if self.discriminator and not self.adversarial:
            raise ValueError("discriminator has a weight but adversarial has none, so the discriminator would never reach the student")
        if self.teacher_batches is not None and (self.feature or self.kernel_alignment):
            raise ValueError("feature and kernel_alignment compare with the teacher's features at each step; remove teacher_batches or set both to 0")
        if self.kernel_alignment and self.batch_size < 2:
            raise ValueError("kernel_alignment compares the samples of a batch with each other; batch_size must be at least 2")
        return self


class QuantizeConfig(Stage):
    """INT8 post-training quantization; operators whose quantization costs too much stay FP16."""

    stage: Literal["quantize"] = "quantize"
    method: Literal["ptq"] = "ptq"
    samples: int = Field(default=32, ge=1, le=100_000)
    """Calibration crops from the training data, streamed one at a time."""
    range: Literal["minmax", "percentile", "mse"] = "mse"
    """How an activation's range is chosen from its histogram."""
    keep_float_below_db: float = Field(default=40.0, ge=0, le=120)
    """An operator stays FP16 if quantizing it alone leaves the output's SQNR (dB) below this."""

    def quick(self) -> Self:
        """Few samples."""
        return self.model_copy(update={"samples": min(self.samples, 4)})


StageConfig = Annotated[SearchConfig | PruneConfig | DistillConfig | QuantizeConfig, Field(discriminator="stage")]
