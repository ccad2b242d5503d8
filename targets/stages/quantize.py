"""The quantize stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.activations import Activations
from mcompress.targets.stages.stage import Stage


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
    activations: Activations | None = None
    """Of all INT8 activations, inputs and outputs included; None takes what the device declares for its unit (`int8_activations`)."""
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
        if self.plan is not None and self.activations is not None:
            raise ValueError("plan is applied as it is, so activations would change nothing; remove activations, or plan")
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
