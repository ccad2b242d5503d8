"""The small layers through which a student's feature map is compared with a wider one; they are trained along and thrown away."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def adaptors(widths: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Per feature map a 1x1 convolution from the student's width to the teacher's (FitNets, GAN Compression)."""
    return nn.ModuleList(nn.Conv2d(narrow, wide, 1) for narrow, wide in widths)


def rectified_adaptors(widths: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Per feature map a 1x1 convolution, batch normalization and ReLU (OMGD's channel distillation, DCD)."""
    return nn.ModuleList(nn.Sequential(nn.Conv2d(narrow, wide, 1), nn.BatchNorm2d(wide), nn.ReLU()) for narrow, wide in widths)


def adapted(layers: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """Each feature map through its own layer of `adaptors` or `rectified_adaptors`."""
    return [layer(feature) for layer, feature in zip(layers, features, strict=True)]  # type: ignore[call-overload]
