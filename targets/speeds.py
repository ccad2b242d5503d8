"""How fast a compute unit is: records of constants, each with the source that it names.

Speeds are *effective*, fitted to measured latencies; marketing peaks are 10 to 30 times too high on some units. `mcompress.targets.latency` is the
model that they belong to.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mcompress.targets.operators import Kind

PrecisionName = Literal["int8", "w8a16", "fp16", "fp32"]
"""Of a file's operators, and of arithmetic: `w8a16` is INT8 weights with 16-bit integer activations, as Qualcomm's converter writes them."""
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
BYTES: dict[PrecisionName, int] = {"int8": 1, "w8a16": 2, "fp16": 2, "fp32": 4}
"""Bytes of one element."""

FinerClass = Literal[
    "pointwise_convolution",
    "volumetric_convolution",
    "large_depthwise_convolution",
    "batched_matmul",
    "add",
    "multiply",
    "clamp",
    "prelu",
    "leaky_relu",
    "sigmoid",
    "hardswish",
    "softmax",
    "image_normalization",
    "max_pool",
    "average_pool",
    "bilinear",
    "nearest",
    "pad",
]
SpeedClass = Literal[Kind, FinerClass]
"""What has a speed of its own: the kinds of operators, and what runtimes compute with kernels apart from the rest of its kind."""
KINDS: tuple[Kind, ...] = get_args(Kind)
STANDS_FOR: dict[SpeedClass, SpeedClass] = {
    "pointwise_convolution": "convolution",  # a plain matrix product
    "volumetric_convolution": "convolution",  # over time, height and width
    "large_depthwise_convolution": "depthwise_convolution",  # above 25 taps, for which XNNPACK has no kernel
    "batched_matmul": "matmul",  # of two computed matrices
    "add": "elementwise",
    "multiply": "elementwise",
    "clamp": "activation",
    "prelu": "activation",
    "leaky_relu": "activation",
    "sigmoid": "activation",
    "hardswish": "activation",
    "softmax": "normalization",
    "image_normalization": "normalization",  # with statistics of every channel or group over the image, not of every pixel over its channels
    "max_pool": "pooling",
    "average_pool": "pooling",
    "bilinear": "resize",
    "nearest": "resize",
    "pad": "copy",
}
"""Class -> the kind that it is part of, whose speed is taken where it has none."""
CLASSES: tuple[SpeedClass, ...] = get_args(SpeedClass)
MULTIPLYING: frozenset[SpeedClass] = frozenset(
    (
        "convolution", "pointwise_convolution", "volumetric_convolution", "depthwise_convolution", "large_depthwise_convolution",
        "grouped_convolution", "transposed_convolution", "matmul", "batched_matmul", "attention",
    )
)  # fmt: skip
"""Classes whose time depends on multiply-adds; all others move memory."""


def _day_or_month(value: object) -> object:
    text = value if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", value) else ""
    try:
        date.fromisoformat(text if len(text) == 10 else f"{text}-01")
    except ValueError:
        raise ValueError(f"it is {value!r}; write it as 2026-11-21, or as 2026-11 where the day is not known") from None
    return value


NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]*$"
LONGEST_NAME = 64
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)]
Day = Annotated[str, BeforeValidator(_day_or_month)]
"""`2026-11-21`, or `2026-11`."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Facts):
    """Where constants come from, and with which runtime they were seen."""

    text: str = Field(min_length=10)
    """A publication, a measurement, or what was assumed and why."""
    date: Day
    runtime: str = Field(min_length=2)
    """Name and version; `none` for a fact that no runtime is part of."""
    machine: str | None = Field(default=None, min_length=2)
    """The processor that was measured, as it names itself (`DeviceFacts.processor`); None for what mcompress did not measure."""
    threads: int | None = Field(default=None, ge=1)
    """Of the runtime that was measured; None for what mcompress did not measure."""
    cpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The processors that it was pinned to; empty where the system chose."""
    fitted_to: tuple[str, ...] = ()
    """The networks, or the suite, whose latencies decide the constants; empty for constants that were not fitted."""


class Record(Facts):
    """Constants that share one source."""

    source: Name
    """A key of the device's `sources`."""


class OperatorSpeed(Record):
    """Effective speed of one class of operators."""

    gmacs: Positive | None = None
    """10^9 multiply-adds per second that large operators reach; none for classes that multiply nothing."""
    ramp_inputs: NotNegative = 0.0
    """Input channels per group at which the rate is half of `gmacs`: what a kernel does once per tap or per product takes as long as so many."""
    ramp_outputs: NotNegative = 0.0
    """Output channels per group at which the rate is half of `gmacs`; for what multiplies nothing, channels at which the bandwidth is half."""
    slowdown: Positive = 1.0
    """So many times slower than the unit's memory; below 1 for operators that a runtime merges into their neighbours."""
    scores_gbs: Positive | None = None
    """Of attention: 10^9 bytes of the matrix of scores, of all queries and keys, that are made and used up per second, where a runtime computes that
    matrix as a whole; None where it never has it whole, or nothing is known of it."""


class MemorySpeed(Record):
    """Effective 10^9 bytes per second between operators: close by, and where the data does not fit in `cache_mb` (10^6 bytes)."""

    gbs: Positive
    cache_mb: Positive | None = None
    far_gbs: Positive | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> MemorySpeed:
        if (self.cache_mb is None) != (self.far_gbs is None):
            raise ValueError("give both cache_mb and far_gbs, or neither")
        return self


class Overhead(Record):
    """Fixed costs, microseconds: of one operator, and of one inference."""

    dispatch_us: NotNegative
    invoke_us: NotNegative


class Boundary(Record):
    """Fixed cost of going to another unit between two operators, microseconds; the tensor is moved in addition."""

    hop_us: NotNegative


class Alignment(Record):
    """Channels are processed in groups of so many; what is missing to the next multiple is computed for nothing."""

    outputs: int = Field(ge=1, le=256)
    inputs: int = Field(ge=1, le=256)
    pads_memory: bool = False
    """Whether tensors are also stored with channels rounded up to `outputs`."""


class Speeds(Facts):
    """Everything about one arithmetic precision of one unit."""

    alignment: Alignment
    memory: MemorySpeed
    overhead: Overhead
    operators: dict[SpeedClass, OperatorSpeed]
    """A class that moves memory and is not listed is as fast as the memory."""

    @model_validator(mode="after")
    def _multiplying_has_rates(self) -> Speeds:
        for name, speed in self.operators.items():
            if (name in MULTIPLYING) != (speed.gmacs is not None):
                raise ValueError(f"operators.{name} {'needs gmacs' if name in MULTIPLYING else 'multiplies nothing: give slowdown, not gmacs'}")
            if speed.scores_gbs is not None and name != "attention":
                raise ValueError(f"operators.{name} has no scores; scores_gbs belongs to attention")
        return self

    def speed(self, name: SpeedClass) -> OperatorSpeed | None:
        """The record of a class, or of the class that stands for it; None for one that is as fast as the memory, or cannot be computed."""
        found = self.operators.get(name)
        return found if found is not None or name not in STANDS_FOR else self.operators.get(STANDS_FOR[name])

    def records(self) -> dict[str, Record]:
        """Place in the file -> record."""
        fixed = {"alignment": self.alignment, "memory": self.memory, "overhead": self.overhead}
        return fixed | {f"operators.{name}": speed for name, speed in self.operators.items()}
