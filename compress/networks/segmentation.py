"""Segmentation networks: FCN, DeepLabv3+, FFNet, DDRNet, PIDNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.networks.image_classifiers import MOBILENET_V2, resnet_features
from mcompress.compress.networks.layers import Residual, conv


def _resized(x: Tensor, like: Tensor, *, nearest: bool = False) -> Tensor:
    if nearest:
        return functional.interpolate(x, like.shape[2:], mode="nearest")
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class FCN(nn.Module):
    """FCN (arXiv 1411.4038) on a ResNet-50 of output stride 8, without the training head; the most likely class of each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers, channels = resnet_features((3, 4, 6, 3), bottleneck=True, dilated_stages=2)
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Sequential(conv(channels, channels // 4, 3), nn.Conv2d(channels // 4, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _resized(self.head(self.backbone(x)), x).argmax(1).to(torch.uint8)


class Unpadded(nn.Module):
    """MobileNetV2's block whose input is padded before the expansion, so that the depthwise convolution pads nothing."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv(inputs, hidden, act=nn.ReLU6)] if expansion > 1 else []
        depthwise = [nn.Conv2d(hidden, hidden, 3, stride, 0, dilation, hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.pad = nn.ZeroPad2d(dilation)
        self.body = nn.Sequential(*expand, *depthwise, conv(hidden, outputs, act=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(self.pad(x)) if self.residual else self.body(self.pad(x))
        return out


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (arXiv 1802.02611) on MobileNetV2 of output stride 16."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
        inputs, reached, dilation, low = 32, 2, 1, 0
        for expansion, outputs, depth, stride in MOBILENET_V2:
            if reached == 16:
                dilation, stride = dilation * stride, 1
            else:
                reached *= stride
            for index in range(depth):
                layers.append(Unpadded(inputs, outputs, stride if index == 0 else 1, expansion, dilation))
                inputs = outputs
            low = len(layers) if outputs == 24 else low
        self.shallow, self.deep = nn.Sequential(*layers[:low]), nn.Sequential(*layers[low:])
        rates = [conv(inputs, 256), *(conv(inputs, 256, 3, dilation=rate) for rate in (6, 12, 18))]
        self.pyramid = nn.ModuleList(rates)
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, 256))
        self.join, self.skip = conv(5 * 256, 256), conv(24, 48)
        self.decoder = nn.Sequential(conv(304, 256, 3), conv(256, 256, 3), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.shallow(x)
        deep = self.deep(low)
        parts = [rate(deep) for rate in self.pyramid]
        average = functional.interpolate(self.average(deep), deep.shape[2:], mode="bilinear", align_corners=True)
        context = self.join(torch.cat((*parts, average), 1))
        skip = self.skip(low)
        context = functional.interpolate(context, skip.shape[2:], mode="bilinear", align_corners=True)
        logits = self.decoder(torch.cat((context, skip), 1))
        return functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True).argmax(1).to(torch.uint8)


class FFNet(nn.Module):
    """FFNet (arXiv 2206.08236): a slim ResNet of basic blocks, four branches added from coarse to fine, all resized by repetition."""

    def __init__(
        self,
        stem: Sequence[tuple[int, int]],
        stages: Sequence[tuple[int, int, int]],
        adapted: Sequence[int],
        smoothed: Sequence[int],
        middle: int,
        last_kernel: int,
        *,
        halves_input: bool = False,
    ) -> None:
        """`stem`: channels and stride of its convolutions; `stages`: channels, depth and stride; then the head, finest branch first."""
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, stride in stem:
            layers.append(conv(inputs, channels, 3, stride))
            inputs = channels
        self.stem, branches = nn.Sequential(*layers), [inputs] if len(stages) == 3 else []
        self.stages = nn.ModuleList()
        for channels, depth, stride in stages:
            blocks = [Residual(inputs if i == 0 else channels, channels, stride if i == 0 else 1, channels, bottleneck=False) for i in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = channels
            branches.append(channels)
        self.adapters = nn.ModuleList(conv(a, b) for a, b in zip(branches, adapted, strict=True))
        self.smooth = nn.ModuleList(conv(a, b, 3) for a, b in zip(adapted, smoothed, strict=True))
        self.up = nn.ModuleList(conv(adapted[i + 1], adapted[i]) for i in range(3))
        total = sum(smoothed)
        last = nn.Conv2d(middle, 19, last_kernel, padding=last_kernel // 2)
        self.head = nn.Sequential(conv(total, middle, 3, bias=True), last)
        self.halves_input = halves_input
        self.register_buffer("kernel", torch.ones(3, 1, 5, 5), persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.halves_input:
            x = functional.conv2d(functional.pad(x, (0, 0, 1, 1), mode="reflect"), self.kernel, stride=2, groups=3)
        x = self.stem(x)
        features = [x] if len(self.stages) == 3 else []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        levels = [adapter(feature) for adapter, feature in zip(self.adapters, features, strict=True)]
        current, smooth = levels[3], [self.smooth[3](levels[3])]
        for level in (2, 1, 0):
            current = _resized(self.up[level](current), levels[level], nearest=True) + levels[level]
            smooth.insert(0, self.smooth[level](current))
        joined = smooth[0]
        for part in smooth[1:]:
            joined = torch.cat((joined, _resized(part, joined, nearest=True)), 1)
        out: Tensor = self.head(joined)
        return out


def ffnet_s(depths: Sequence[int]) -> nn.Module:
    """The "S" backbone that ends at stride 64, head B."""
    stages = [(channels, depth, 2) for channels, depth in zip((64, 128, 192, 320), depths, strict=True)]
    return FFNet(((32, 2), (64, 2)), stages, (64, 128, 128, 256), (96, 96, 64, 32), 256, 3)


def ffnet_122ns_low_resolution() -> nn.Module:
    """The three-stage "NS" backbone with head C; the input is smoothed and halved first."""
    stages = ((64, 16, 2), (128, 24, 2), (256, 20, 2))
    return FFNet(((64, 2), (64, 2), (64, 1)), stages, (128,) * 4, (128, 16, 16, 16), 128, 1, halves_input=True)


def _early(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """Normalization and activation before the convolution."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False))


def _blocks(inputs: int, outputs: int, depth: int, stride: int = 1) -> nn.Sequential:
    """Basic blocks of which the last is not activated."""
    return nn.Sequential(
        *(
            Residual(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, outputs, bottleneck=False, final=i < depth - 1 or depth == 1)
            for i in range(depth)
        )
    )


def _bottlenecks(inputs: int, planes: int, depth: int = 1, stride: int = 1) -> nn.Sequential:
    """Bottlenecks that double their planes, not activated at the end."""
    return nn.Sequential(
        *(Residual(inputs if i == 0 else 2 * planes, 2 * planes, stride if i == 0 else 1, planes, bottleneck=True, final=False) for i in range(depth))
    )


def _head(inputs: int, middle: int, classes: int = 19) -> nn.Sequential:
    return nn.Sequential(_early(inputs, middle, 3), nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, classes, 1))


class PyramidPooling(nn.Module):
    """DDRNet's pooling pyramid (each scale adds the one before it), or PIDNet's parallel one."""

    def __init__(self, inputs: int, branch: int, outputs: int, *, parallel: bool) -> None:
        super().__init__()
        pools: list[nn.Module] = [nn.AvgPool2d(kernel, stride, kernel // 2) for kernel, stride in ((5, 2), (9, 4), (17, 8))]
        self.first = _early(inputs, branch)
        self.scales = nn.ModuleList(nn.Sequential(pool, _early(inputs, branch)) for pool in [*pools, nn.AdaptiveAvgPool2d(1)])
        self.parallel = parallel
        self.process = nn.ModuleList([_early(4 * branch, 4 * branch, 3, 4)] if parallel else [_early(branch, branch, 3) for _ in range(4)])
        self.compress, self.shortcut = _early(5 * branch, outputs), _early(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        parts = [first]
        if self.parallel:
            scaled = [_resized(scale(x), x) + first for scale in self.scales]
            parts.append(self.process[0](torch.cat(scaled, 1)))
        else:
            for scale, process in zip(self.scales, self.process, strict=True):
                parts.append(process(_resized(scale(x), x) + parts[-1]))
        out: Tensor = self.compress(torch.cat(parts, 1)) + self.shortcut(x)
        return out


class DDRNet23Slim(nn.Module):
    """DDRNet-23-slim (arXiv 2101.06085): a branch at stride 8 and one down to stride 64, fused twice; no training head."""

    def __init__(self) -> None:
        super().__init__()
        p, high = 32, 64
        self.stem = nn.Sequential(conv(3, p, 3, 2, bias=True), conv(p, p, 3, 2, bias=True))
        self.layer1, self.layer2 = _blocks(p, p, 2), _blocks(p, 2 * p, 2, 2)
        self.layer3, self.layer4, self.layer5 = _blocks(2 * p, 4 * p, 2, 2), _blocks(4 * p, 8 * p, 2, 2), _bottlenecks(8 * p, 8 * p, stride=2)
        self.high3, self.high4, self.high5 = _blocks(2 * p, high, 2), _blocks(high, high, 2), _bottlenecks(high, high)
        self.compress3, self.compress4 = conv(4 * p, high, act=None), conv(8 * p, high, act=None)
        self.down3 = conv(high, 4 * p, 3, 2, act=None)
        self.down4 = nn.Sequential(conv(high, 4 * p, 3, 2), conv(4 * p, 8 * p, 3, 2, act=None))
        self.pyramid, self.head = PyramidPooling(16 * p, 128, 4 * p, parallel=False), _head(4 * p, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)).relu())
        low, high = self.layer3(x.relu()), self.high3(x.relu())
        low, high = low + self.down3(high.relu()), high + _resized(self.compress3(low.relu()), high)
        low, high = self.layer4(low.relu()), self.high4(high.relu())
        low, high = low + self.down4(high.relu()), high + _resized(self.compress4(low.relu()), high)
        high = self.high5(high.relu())
        out: Tensor = self.head(high + _resized(self.pyramid(self.layer5(low.relu())), high))
        return out


class PixelAttention(nn.Module):
    """PIDNet's pixel-attention-guided fusion of the coarse branch into the fine one."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.fine, self.coarse = conv(channels, middle, act=None), conv(channels, middle, act=None)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        similar = torch.sigmoid((self.fine(x) * _resized(self.coarse(y), x)).sum(1).unsqueeze(1))
        out: Tensor = (1 - similar) * x + similar * _resized(y, x)
        return out


class PIDNetS(nn.Module):
    """PIDNet-S (arXiv 2206.02066): detail, context and boundary branches; no training heads."""

    def __init__(self) -> None:
        super().__init__()
        p = 32
        self.stem = nn.Sequential(conv(3, p, 3, 2, bias=True), conv(p, p, 3, 2, bias=True))
        self.layer1, self.layer2 = _blocks(p, p, 2), _blocks(p, 2 * p, 2, 2)
        self.layer3, self.layer4, self.layer5 = _blocks(2 * p, 4 * p, 3, 2), _blocks(4 * p, 8 * p, 3, 2), _bottlenecks(8 * p, 8 * p, 2, 2)
        self.compress3, self.compress4 = conv(4 * p, 2 * p, act=None), conv(8 * p, 2 * p, act=None)
        self.attention3, self.attention4 = PixelAttention(2 * p, p), PixelAttention(2 * p, p)
        self.detail3, self.detail4, self.detail5 = _blocks(2 * p, 2 * p, 2), _blocks(2 * p, 2 * p, 2), _bottlenecks(2 * p, 2 * p)
        self.edge3 = Residual(2 * p, p, 1, p, bottleneck=False, final=False)
        self.edge4, self.edge5 = _bottlenecks(p, p), _bottlenecks(2 * p, 2 * p)
        self.difference3, self.difference4 = conv(4 * p, p, 3, act=None), conv(8 * p, 2 * p, 3, act=None)
        self.pyramid = PyramidPooling(16 * p, 96, 4 * p, parallel=True)
        self.join_p, self.join_i = conv(4 * p, 4 * p, act=None), conv(4 * p, 4 * p, act=None)
        self.head = _head(4 * p, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)).relu()).relu()
        detail, edge = self.detail3(x), self.edge3(x)
        x = self.layer3(x).relu()
        detail, edge = self.attention3(detail, self.compress3(x)), edge + _resized(self.difference3(x), edge)
        x = self.layer4(x).relu()
        detail, edge = self.detail4(detail.relu()), self.edge4(edge.relu())
        detail, edge = self.attention4(detail, self.compress4(x)), edge + _resized(self.difference4(x), edge)
        detail, edge = self.detail5(detail.relu()), self.edge5(edge.relu())
        context = _resized(self.pyramid(self.layer5(x)), detail)
        gate = torch.sigmoid(edge)
        out: Tensor = self.head(self.join_p((1 - gate) * context + detail) + self.join_i(context + gate * detail))
        return out
