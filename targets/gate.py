"""The gate: how much worse than its baseline a bundle may be. `gate:` in a target file; `mcompress check` reads it from the bundle."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LEAST_NOISE_PERCENT = 1.0
"""Two loads of one file in one process differ by up to 1 %, by where their memory lies, however long they are timed."""

ALIKE_DB = 60.0
"""Pictures that are as like as that differ by a quarter of an 8-bit step (root mean square), which no screen shows; beyond it is only rounding."""

Percent = Annotated[float, Field(ge=0, le=1000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Decibels = Annotated[float, Field(ge=0, le=200)]
GatedField = Literal[
    "latency_percent",
    "measured_percent",
    "macs_percent",
    "params_percent",
    "peak_memory_percent",
    "size_percent",
    "fallbacks",
    "wider_operators",
    "parity_db",
    "parity_limit_percent",
    "quality",
    "worst_picture",
    "float_psnr_db",
    "teacher_psnr_db",
    "ssim",
    "colour_shift",
]


class Gate(BaseModel):
    """One tolerance per compared field; of those of two bundles the stricter one counts. What is exactly as much worse as allowed passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_percent: Percent = 2.0
    """Estimated latency of a file on the target's device: so many per cent more."""
    measured_percent: Percent = 3.0
    """Latency of a file measured beside the baseline's in one run: so many per cent more. Where the noise of that run is higher, the noise counts;
    below `LEAST_NOISE_PERCENT` nothing could ever be decided."""
    macs_percent: Percent = 1.0
    """Multiply-adds of the network."""
    params_percent: Percent = 1.0
    """Parameters of the network."""
    peak_memory_percent: Percent = 1.0
    """Planned peak of live activations of the network, in fp32 whatever a file computes in: one number for all files."""
    size_percent: Percent = 1.0
    """Bytes of a file."""
    fallbacks: Count = 0
    """So many more operators of a file that run elsewhere, or in another precision, than planned."""
    wider_operators: Count = 0
    """So many more operators of a file that compute wider than the narrowest precision of the baseline's file (fp16 and fp32 beside int8)."""
    parity_db: Decibels = 1.0
    """Signal to noise against the reference: so many dB less."""
    parity_limit_percent: Percent = 10.0
    """Difference from the reference: so much more, in per cent of the limit that it must keep anyway."""
    quality: Annotated[float, Field(ge=0, le=1000)] = 0.05
    """Quality on held-out data: so much less, in the metric's own unit (dB for PSNR)."""
    worst_picture: Annotated[float, Field(ge=0, le=1000)] = 0.5
    """Quality of any one held-out picture: so much less, in the metric's own unit. One that is ruined among many hardly moves their mean."""
    float_psnr_db: Decibels = 1.0
    """PSNR of any one held-out picture against the float student's, which is what writing and quantizing the file cost: so many dB less. What is
    above `ALIKE_DB` in both bundles is equal."""
    teacher_psnr_db: Decibels = 1.0
    """The same against the teacher's picture."""
    ssim: Annotated[float, Field(ge=0, le=2)] = 0.005
    """Structural similarity of any one held-out picture to the teacher's and to the float student's: so much less."""
    colour_shift: Annotated[float, Field(ge=0, le=255)] = 0.25
    """Mean difference of any one channel of any one held-out picture from the teacher's and from the float student's: so many 8-bit steps more."""
    only_shown: tuple[GatedField, ...] = ()
    """Fields that are compared and shown, and never fail the gate."""
    measured_required: bool = False
    """Whether a file fails the gate if measuring it decides nothing: more noise than `measured_percent`, no time left, or it could not be run."""

    @field_validator("measured_percent")
    @classmethod
    def _can_be_decided(cls, value: float) -> float:
        if value < LEAST_NOISE_PERCENT:
            why = "two loads of one file differ by as much, so less can never be decided"
            raise ValueError(f"it is {value:g}; it must be at least {LEAST_NOISE_PERCENT:g}, because {why}")
        return value

    @model_validator(mode="after")
    def _required_is_not_only_shown(self) -> Self:
        if self.measured_required and "measured_percent" in self.only_shown:
            raise ValueError("measured_required is true, but only_shown holds measured_percent, which then fails nothing; leave one of them out")
        return self


def stricter(one: Gate, other: Gate) -> Gate:
    """Field by field what allows less: only shown is what both only show, required what either requires."""
    allowed: dict[str, object] = {name: min(float(getattr(one, name)), float(getattr(other, name))) for name in get_args(GatedField)}
    shown = tuple(name for name in one.only_shown if name in other.only_shown)
    required = one.measured_required or other.measured_required
    return Gate.model_validate({**allowed, "only_shown": shown, "measured_required": required})
