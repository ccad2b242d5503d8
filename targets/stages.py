"""One configuration class per stage. The order in a target file is the order of execution."""

from __future__ import annotations

from pathlib import Path
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
    """A precision for every operator, INT8, FP16 or FP32: the fastest plan that keeps the quality floor, or the best one within a latency."""

    stage: Literal["quantize"] = "quantize"
    method: Literal["ptq"] = "ptq"
    goal: Literal["latency", "quality"] = "latency"
    """What is optimised: the least estimated latency within the quality floor, or the least noise within `latency_ms`."""
    within: float = Field(default=0.1, ge=0, le=1000)
    """So much of the task's metric (dB for PSNR) may be lost against the float network, on training samples that nothing was fitted to."""
    least_sqnr_db: float = Field(default=0.0, ge=0, le=120)
    """The output's SQNR against the float network must be at least this, dB."""
    latency_ms: float | None = Field(default=None, gt=0)
    """Of the goal `quality`: estimated latency, the sum over the units that the target's files reach."""
    samples: int = Field(default=32, ge=1, le=100_000)
    """Calibration samples from the training data, streamed one at a time."""
    sensitivity_samples: int = Field(default=4, ge=1, le=100_000)
    """For how many of them every operator is quantized alone."""
    sensitivity_size: int = Field(default=48, ge=8, le=8192)
    """Side of these samples, pixels, if the network takes images of any size; the target's own where it does not, or where that is smaller."""
    verify_samples: int = Field(default=4, ge=1, le=100_000)
    """Further samples, on which plans are run and compared with the floor."""
    range: Literal["minmax", "percentile", "mse"] = "mse"
    """How an activation's range is chosen from its histogram."""
    recover: tuple[Literal["equalize", "round_weights", "correct_biases"], ...] = ("equalize", "round_weights", "correct_biases")
    """Steps that change the network of the mixed files so that less is lost in INT8; each is kept only if it helps."""
    distill_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Training steps of the mixed files' network towards the float network, under the plan that was chosen; 0 leaves training out."""
    keep: dict[Annotated[str, Field(min_length=1)], Literal["fp16", "fp32"]] = Field(default_factory=dict)
    """Operators that get this precision whatever the planner would choose, by name (`conv2d_3`), module (`blocks.0`) or pattern (`blocks.*.add`)."""
    plan: Path | None = None
    """A precision plan to apply instead of making one, for example `precision_plan.json` of a bundle; its content counts, not its name."""

    @model_validator(mode="after")
    def _goal_has_its_limit(self) -> Self:
        if self.plan is not None and (self.goal == "quality" or self.latency_ms is not None):
            raise ValueError("plan is applied as it is, so there is nothing to choose; remove goal: quality and latency_ms, or plan")
        if self.plan is not None and self.keep:
            raise ValueError("plan is applied as it is, so keep would change nothing; change the precisions in the plan, or remove one of the two")
        if (self.goal == "quality") != (self.latency_ms is not None):
            raise ValueError("latency_ms belongs to goal: quality; give both, or neither")
        fields = type(self).model_fields
        if self.goal == "quality" and (self.within != fields["within"].default or self.least_sqnr_db != fields["least_sqnr_db"].default):
            raise ValueError("goal: quality takes the least noise within latency_ms, whatever is lost; remove within and least_sqnr_db")
        return self

    def quick(self) -> Self:
        """Few samples."""
        few = {name: min(getattr(self, name), most) for name, most in (("samples", 4), ("sensitivity_samples", 1), ("verify_samples", 2))}
        return self.model_copy(update={**few, "distill_steps": min(self.distill_steps, 2)})


StageConfig = Annotated[SearchConfig | PruneConfig | DistillConfig | QuantizeConfig, Field(discriminator="stage")]
