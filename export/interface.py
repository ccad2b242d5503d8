"""What an app must know about a tensor of an exported file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mcompress.export.backend import Port
from mcompress.export.replay import IMAGE_AXES, PLAIN


class TensorFacts(BaseModel):
    """One input or output of an exported file, as the runtime sees it. real = scale * (q - zero_point) where `scale` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    shape: tuple[int, ...] = Field(min_length=1)
    """In the file's own layout."""
    dtype: Literal["float32", "float16", "int8", "uint8"]
    layout: Literal["NCHW", "NHWC", "ND"] = "NCHW"
    """`ND`: another number of axes than four, in the network's order."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Of the real values."""
    picture: bool = True
    """Whether it holds a picture, which is made of 8-bit pixels or becomes them."""
    colour_order: Literal["RGB", "BGR"] | None = "RGB"
    """None where the channels are not colours. Six channels are two pictures, one behind the other, each in this order."""
    scale: float | None = Field(default=None, gt=0)
    zero_point: int | None = None

    @model_validator(mode="after")
    def _integers_have_a_scale(self) -> TensorFacts:
        quantized = self.dtype in ("int8", "uint8")
        if quantized != (self.scale is not None) or quantized != (self.zero_point is not None):
            raise ValueError(f"{self.name}: {self.dtype} {'needs' if quantized else 'takes no'} scale and zero_point")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"{self.name}: value_range {self.value_range} is empty")
        return self

    @model_validator(mode="after")
    def _pictures_have_a_layout(self) -> TensorFacts:
        of_image = len(self.shape) == IMAGE_AXES
        if of_image != (self.layout != PLAIN):
            raise ValueError(f"{self.name}: layout {self.layout} does not go with {len(self.shape)} axes; four have NCHW or NHWC, all others {PLAIN}")
        if self.picture and not of_image:
            raise ValueError(f"{self.name}: shape {self.shape} is no picture's; a picture has four axes, and `picture` is false for anything else")
        if self.colour_order is not None and not self.picture:
            raise ValueError(f"{self.name}: colour_order is {self.colour_order}, and it is no picture; it must be None")
        return self


def facts_of(
    port: Port, *, value_range: tuple[float, float] = (0.0, 1.0), picture: bool = True, colour_order: Literal["RGB", "BGR"] | None = "RGB"
) -> TensorFacts:
    """What the file states about a tensor, and what only the task knows: the range of its values, whether it is a picture, and its colours' order.

    Raises pydantic's `ValidationError`, a `ValueError`, for what contradicts itself, such as a picture of three axes.
    """
    return TensorFacts.model_validate(
        {
            "name": port.name,
            "shape": port.shape,
            "dtype": port.dtype,
            "layout": port.layout,
            "scale": port.scale,
            "zero_point": port.zero_point,
            "value_range": value_range,
            "picture": picture,
            "colour_order": colour_order,
        }
    )
