"""Building blocks that several reference networks share: convolution with normalization, residual block, squeeze and excitation, classifier head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Activation = type[nn.Module] | None


def conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: Activation = nn.ReLU, dilation: int = 1, *, bias: bool = False
) -> nn.Sequential:
    """Convolution padded to keep the size, batch normalization, activation."""
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, dilation=dilation, bias=bias),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def divisible(channels: float, by: int = 8) -> int:
    """`channels` rounded to a multiple of `by`, at most a tenth below (MobileNet's rule)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


class Residual(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, grouped 3x3, 1x1) residual block of ResNet, ResNeXt and RegNet-X."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, width: int, groups: int = 1, dilation: int = 1, *, bottleneck: bool, final: bool = True
    ) -> None:
        super().__init__()
        self.body = (
            nn.Sequential(conv(inputs, width), conv(width, width, 3, stride, groups, dilation=dilation), conv(width, outputs, act=None))
            if bottleneck
            else nn.Sequential(conv(inputs, width, 3, stride), conv(width, outputs, 3, act=None))
        )
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else conv(inputs, outputs, 1, stride, act=None)
        self.activation = nn.ReLU() if final else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.skip(x))
        return out


class Excitation(nn.Module):
    """Squeeze and excitation: the channels weighted by a gate that sees their averages."""

    def __init__(self, channels: int, squeezed: int, act: type[nn.Module] = nn.ReLU, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), act(), nn.Conv2d(squeezed, channels, 1), gate())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class Classifier(nn.Module):
    """Features, global average, linear layer."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 1000) -> None:
        super().__init__()
        self.features, self.pool, self.classifier = features, nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return out


class Normalized(nn.Module):
    """The image normalized inside the file: mean subtracted, divided by the deviation, as two operators over the channels."""

    def __init__(self, network: nn.Module, channels: int, dimensions: int) -> None:
        super().__init__()
        self.network = network
        shape = (1, channels, *(1,) * (dimensions - 2))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self.mean: Tensor
        self.deviation: Tensor

    def forward(self, x: Tensor) -> object:
        return self.network((x - self.mean) / self.deviation)
