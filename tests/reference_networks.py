"""Networks whose latency on Snapdragon 865 class hardware is published: their layers, enough to count them. Weights are never trained here.

Each builder names its source; parameter counts are asserted in `test_device.py`, so that a wrong layer is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mcompress.compress.models.rrdb import rrdb


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, grouped 3x3, 1x1) residual block of ResNet, ResNeXt and RegNet-X."""

    def __init__(self, inputs: int, outputs: int, stride: int, width: int, groups: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.body = (
            nn.Sequential(_conv(inputs, width, 1), _conv(width, width, 3, stride, groups), _conv(width, outputs, 1, act=None))
            if bottleneck
            else nn.Sequential(_conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3, act=None))
        )
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else _conv(inputs, outputs, 1, stride, act=None)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.skip(x))


class Classifier(nn.Module):
    """Features, global average, linear layer."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features, self.pool, self.classifier = features, nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def resnet(depths: Sequence[int], *, bottleneck: bool, groups: int = 1, base: int = 64) -> nn.Module:
    """ResNet (arXiv 1512.03385), Wide ResNet (1605.07146), ResNeXt (1611.05431)."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        outputs, width = (planes * 4, planes * base // 64 * groups) if bottleneck else (planes, planes)
        for index in range(depth):
            layers.append(Residual(inputs, outputs, 2 if index == 0 and stage > 0 else 1, width, groups, bottleneck=bottleneck))
            inputs = outputs
    return Classifier(nn.Sequential(*layers), inputs)


def regnet_x_3_2gf() -> nn.Module:
    """RegNetX-3.2GF (arXiv 2003.13678)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
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
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    fires = [Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
    late = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    head = [nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), *fires, *late, *head)


class Inverted(nn.Module):
    """Expand, depthwise, project; residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv(inputs, hidden, 1, act=nn.ReLU6)] if expansion > 1 else []
        self.body = nn.Sequential(*expand, _conv(hidden, hidden, 3, stride, hidden, act=nn.ReLU6), _conv(hidden, outputs, 1, act=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v1() -> nn.Module:
    """MobileNet (arXiv 1704.04861)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
    inputs = 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)):
        layers += [_conv(inputs, inputs, 3, stride, inputs), _conv(inputs, outputs, 1)]
        inputs = outputs
    return Classifier(nn.Sequential(*layers), inputs)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381)."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, depth, stride in stages:
        for index in range(depth):
            layers.append(Inverted(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, _conv(inputs, 1280, 1, act=nn.ReLU6)), 1280)


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
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16)):
        layers += [DenseLayer(channels + 32 * index) for index in range(depth)]
        channels += 32 * depth
        if block < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return Classifier(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels)


def quicksrnet(layers: int) -> nn.Module:
    """QuickSRNet x4 (arXiv 2303.04336): 32 channels, all 3x3, residual paths merged into the convolutions, output clipped to [0, 1]."""
    body: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.Hardtanh(0.0, 1.0)]
    for _ in range(layers):
        body += [nn.Conv2d(32, 32, 3, padding=1), nn.Hardtanh(0.0, 1.0)]
    return nn.Sequential(*body, nn.Conv2d(32, 48, 3, padding=1), nn.PixelShuffle(4), nn.Hardtanh(0.0, 1.0))


class XLSR(nn.Module):
    """XLSR x4 (arXiv 2105.10288): three grouped blocks, a shortcut from the image, output clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(3, 16, 3, padding=1)
        block = lambda: [nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(32, 32, 1)]  # noqa: E731
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), *block(), *block(), *block())
        self.tail = nn.Sequential(nn.Conv2d(48, 32, 1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.PixelShuffle(4), nn.Hardtanh(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat((self.shortcut(x), self.body(x)), 1))


class ViT(nn.Module):
    """ViT-B/16 (arXiv 2010.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 768)), nn.Parameter(torch.zeros(1, 197, 768))
        layer = lambda: nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.layers = nn.Sequential(*(layer() for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1) + self.position
        return self.head(self.norm(self.layers(tokens))[:, 0])


PHOTO, LOW_RESOLUTION = (1, 3, 224, 224), (1, 3, 128, 128)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "resnet18": (lambda: resnet((2, 2, 2, 2), bottleneck=False), PHOTO, 11_689_512),
    "resnet50": (lambda: resnet((3, 4, 6, 3), bottleneck=True), PHOTO, 25_557_032),
    "wideresnet50": (lambda: resnet((3, 4, 6, 3), bottleneck=True, base=128), PHOTO, 68_883_240),
    "resnext50": (lambda: resnet((3, 4, 6, 3), bottleneck=True, groups=32, base=4), PHOTO, 25_028_904),
    "resnext101": (lambda: resnet((3, 4, 23, 3), bottleneck=True, groups=32, base=8), PHOTO, 88_791_336),
    "regnet": (regnet_x_3_2gf, PHOTO, 15_296_552),
    "squeezenet1_1": (squeezenet1_1, PHOTO, 1_235_496),
    "mobilenet_v1": (mobilenet_v1, PHOTO, 4_231_976),
    "mobilenet_v2": (mobilenet_v2, PHOTO, 3_504_872),
    "densenet121": (densenet121, PHOTO, 7_978_856),
    "vit": (ViT, PHOTO, 86_567_656),
    "quicksrnetsmall": (lambda: quicksrnet(2), LOW_RESOLUTION, 33_264),
    "quicksrnetmedium": (lambda: quicksrnet(5), LOW_RESOLUTION, 61_008),
    "xlsr": (XLSR, LOW_RESOLUTION, 28_016),
    "real_esrgan_x4plus": (rrdb, LOW_RESOLUTION, 16_697_987),
}
"""Name in the published table -> builder, input shape, parameter count."""
