"""The normalization that a network of image translation is built with: instance or batch."""

from __future__ import annotations

from typing import Literal

from torch import nn

Normalization = Literal["instance", "batch"]
NORMALIZATIONS: tuple[Normalization, ...] = ("instance", "batch")


def normalization_of(kind: Normalization, channels: int) -> nn.Module:
    """Instance normalization without parameters, or batch normalization with a scale and a shift."""
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.BatchNorm2d(channels)
