"""Convolutional image classifiers: ResNet and its kin, RegNet-X, SqueezeNet, DenseNet, MobileNet v1-v3, ShuffleNet v2, EfficientNet v2, ConvNeXt.

Layers from the papers' tables; where a paper leaves something open (paddings, biases), as in torchvision, whose parameter counts are expected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcompress.compress.networks.layers import Classifier, Excitation, Residual, conv, divisible


def resnet_features(
    depths: Sequence[int], *, bottleneck: bool, groups: int = 1, base: int = 64, dilated_stages: int = 0
) -> tuple[list[nn.Module], int]:
    """Stem and four stages, and the channels at their end; the last `dilated_stages` keep the size and dilate instead."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs, dilation = 64, 1
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        outputs, width = (planes * 4, planes * base // 64 * groups) if bottleneck else (planes, planes)
        dilates = stage >= 4 - dilated_stages
        blocks: list[nn.Module] = []
        for index in range(depth):
            stride = 2 if index == 0 and stage > 0 and not dilates else 1
            # The first block of a dilated stage still dilates as the stage before it.
            if index == 1 and dilates:
                dilation *= 2
            blocks.append(Residual(inputs, outputs, stride, width, groups, dilation, bottleneck=bottleneck))
            inputs = outputs
        layers.append(nn.Sequential(*blocks))
    return layers, inputs


def resnet(depths: Sequence[int], *, bottleneck: bool, groups: int = 1, base: int = 64) -> nn.Module:
    """ResNet (arXiv 1512.03385), Wide ResNet (1605.07146), ResNeXt (1611.05431)."""
    layers, channels = resnet_features(depths, bottleneck=bottleneck, groups=groups, base=base)
    return Classifier(nn.Sequential(*layers), channels)


def regnet_x_3_2gf() -> nn.Module:
    """RegNetX-3.2GF (arXiv 2003.13678)."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    inputs = 32
    for width, depth in ((96, 2), (192, 6), (432, 15), (1008, 2)):
        for index in range(depth):
            layers.append(Residual(inputs, width, 2 if index == 0 else 1, width, width // 48, bottleneck=True))
            inputs = width
    return Classifier(nn.Sequential(*layers), inputs)


class Fire(nn.Module):
    """Squeeze, then two expansions side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(inputs, squeeze, 1), nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.one(x).relu(), self.three(x).relu()), 1)


def squeezenet1_1() -> nn.Module:
    """SqueezeNet 1.1 (arXiv 1602.07360, the authors' later release)."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    fires = [Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
    late = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    head = [nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), *fires, *late, *head)


class DenseLayer(nn.Module):
    """Batch normalization and activation first, then 1x1 and 3x3 convolutions; concatenated to the input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 32, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def densenet121() -> nn.Module:
    """DenseNet-121 (arXiv 1608.06993)."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16)):
        layers += [DenseLayer(channels + 32 * index) for index in range(depth)]
        channels += 32 * depth
        if block < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return Classifier(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels)


class Inverted(nn.Module):
    """Expand, depthwise (gated where `squeezed` is given), project; residual where shapes allow."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        hidden: int,
        kernel: int = 3,
        act: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        expand = [conv(inputs, hidden, act=act)] if hidden != inputs else []
        gates = [gate] if gate is not None else []
        depthwise = conv(hidden, hidden, kernel, stride, hidden, act=act, dilation=dilation)
        self.body = nn.Sequential(*expand, depthwise, *gates, conv(hidden, outputs, act=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x) if self.residual else self.body(x)
        return out


def mobilenet_v1(classes: int = 1000, image_channels: int = 3) -> nn.Module:
    """MobileNet (arXiv 1704.04861)."""
    layers: list[nn.Module] = [conv(image_channels, 32, 3, 2)]
    inputs = 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)):
        layers += [conv(inputs, inputs, 3, stride, inputs), conv(inputs, outputs)]
        inputs = outputs
    return Classifier(nn.Sequential(*layers), inputs, classes)


MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, depth, stride of each stage."""


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381)."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    for expansion, outputs, depth, stride in MOBILENET_V2:
        for index in range(depth):
            layers.append(Inverted(inputs, outputs, stride if index == 0 else 1, inputs * expansion))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, conv(inputs, 1280, act=nn.ReLU6)), 1280)


# Kernel, expanded channels, output channels, gated, hard swish, stride: arXiv 1905.02244, tables 1 and 2.
_V3_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip
_V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1),
    (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(*, large: bool) -> nn.Module:
    """MobileNetV3-Large or -Small (arXiv 1905.02244)."""
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.Hardswish)]
    inputs = 16
    for kernel, hidden, outputs, gated, swish, stride in _V3_LARGE if large else _V3_SMALL:
        gate = Excitation(hidden, divisible(hidden / 4), nn.ReLU, nn.Hardsigmoid) if gated else None
        layers.append(Inverted(inputs, outputs, stride, hidden, kernel, nn.Hardswish if swish else nn.ReLU, gate))
        inputs = outputs
    last, hidden = 6 * inputs, 1280 if large else 1024
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, 1000)]
    return nn.Sequential(*layers, conv(inputs, last, act=nn.Hardswish), *head)


class Shuffled(nn.Module):
    """ShuffleNet v2 unit: half of the channels (or all, at stride 2) through a branch, concatenated, shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, into = outputs // 2, inputs if stride == 2 else inputs // 2
        self.split = stride == 1
        self.left = nn.Identity() if self.split else nn.Sequential(conv(inputs, inputs, 3, 2, inputs, act=None), conv(inputs, half))
        self.right = nn.Sequential(conv(into, half), conv(half, half, 3, stride, half, act=None), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        both = torch.cat((self.left(left), self.right(right)), 1)
        # Written out, as exporters see it: view, transposition, copy.
        return both.view(len(both), 2, -1, *both.shape[2:]).transpose(1, 2).reshape(len(both), -1, *both.shape[2:])


def shufflenet_v2_x0_5() -> nn.Module:
    """ShuffleNet v2 x0.5 (arXiv 1807.11164)."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 24
    for outputs, depth in ((48, 4), (96, 8), (192, 4)):
        for index in range(depth):
            layers.append(Shuffled(inputs, outputs, 2 if index == 0 else 1))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, conv(inputs, 1024)), 1024)


class FusedInverted(nn.Module):
    """EfficientNet v2's first blocks: the expansion is a 3x3 convolution, there is no depthwise one."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        wide = nn.Sequential(conv(inputs, hidden, 3, stride, act=nn.SiLU), conv(hidden, outputs, act=None))
        self.body = conv(inputs, outputs, 3, stride, act=nn.SiLU) if expansion == 1 else wide
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x) if self.residual else self.body(x)
        return out


def efficientnet_v2_s() -> nn.Module:
    """EfficientNetV2-S (arXiv 2104.00298, table 4)."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2, act=nn.SiLU)]
    inputs = 24
    for fused, expansion, stride, outputs, depth in (
        (1, 1, 1, 24, 2),
        (1, 4, 2, 48, 4),
        (1, 4, 2, 64, 4),
        (0, 4, 2, 128, 6),
        (0, 6, 1, 160, 9),
        (0, 6, 2, 256, 15),
    ):
        for index in range(depth):
            step = stride if index == 0 else 1
            if fused:
                layers.append(FusedInverted(inputs, outputs, step, expansion))
            else:
                gate = Excitation(inputs * expansion, inputs // 4, nn.SiLU)
                layers.append(Inverted(inputs, outputs, step, inputs * expansion, 3, nn.SiLU, gate))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, conv(inputs, 1280, act=nn.SiLU)), 1280)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then normalization and two linear layers over the channels, scaled, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.pointwise = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.scale * self.pointwise(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def convnext(widths: Sequence[int], depths: Sequence[int]) -> nn.Module:
    """ConvNeXt (arXiv 2201.03545)."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0])]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            layers += [ChannelNorm(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), ChannelNorm(widths[-1]), nn.Flatten(), nn.Linear(widths[-1], 1000)]
    return nn.Sequential(*layers, *head)


class HalfWidthResNet(nn.Module):
    """ResNet-18 at half width whose last block is full again, on a grey image made by a 1x1 convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 1, 1), conv(1, 32, 7, 2), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)]
        inputs = 32
        for stage, planes in enumerate((32, 32, 64, 64, 128, 128, 256, 512)):
            layers.append(Residual(inputs, planes, 2 if stage in (2, 4, 6) else 1, planes, bottleneck=False))
            inputs = planes
        self.features, self.pool, self.output = nn.Sequential(*layers), nn.AvgPool2d(4, 1), nn.Linear(512, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.pool(self.features(x * 255)).flatten(1))
        return out
