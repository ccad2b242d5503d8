"""The gate: how much worse than its baseline a bundle may be. `gate:` in a target file; `mcompress check` reads it from the bundle."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
]


class Gate(BaseModel):
    """One tolerance per compared field. What is exactly as much worse as allowed passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_percent: Percent = 2.0
    """Estimated latency of a file on the target's device: so many per cent more."""
    measured_percent: Percent = 3.0
    """Latency of a file measured beside the baseline's in one run: so many per cent more. Where the noise of that run is higher, the noise counts."""
    macs_percent: Percent = 1.0
    """Multiply-adds of the network."""
    params_percent: Percent = 1.0
    """Parameters of the network."""
    peak_memory_percent: Percent = 1.0
    """Planned peak of live activations, fp32."""
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
    only_shown: tuple[GatedField, ...] = ()
    """Fields that are compared and shown, and never fail the gate."""
