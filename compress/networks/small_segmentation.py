"""Small segmentation networks for one person: SINet and MediaPipe's selfie segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def _up(x: Tensor, factor: int, *, corners: bool) -> Tensor:
    return functional.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=corners)


def _normalized(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


class Squeezed(nn.Module):
    """Depthwise 3x3 of stride 2, channels gated by their averages, 1x1."""

    def __init__(self, inputs: int, outputs: int, divide: int) -> None:
        super().__init__()
        hidden = inputs // divide
        dense = [nn.Linear(inputs, hidden), nn.PReLU(hidden)] + ([nn.Linear(hidden, inputs), nn.PReLU(inputs)] if divide > 1 else [])
        self.depthwise, self.dense = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False), nn.Sequential(*dense)
        self.out = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), _normalized(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        gate = self.dense(functional.avg_pool2d(x, x.shape[2:]).flatten(1))
        out: Tensor = self.out(x * gate[:, :, None, None])
        return out


class Branch(nn.Module):
    """Depthwise convolution (at a lower resolution where `pooled` is more than 1), then 1x1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, pooled: int) -> None:
        super().__init__()
        depthwise = [nn.Conv2d(inputs, inputs, kernel, 1, kernel // 2, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.PReLU(inputs)]
        self.body = nn.Sequential(*depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))
        self.pooled, self.norm = pooled, nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = _up(self.body(functional.avg_pool2d(x, self.pooled)), self.pooled, corners=True) if self.pooled > 1 else self.body(x)
        out: Tensor = self.norm(x)
        return out


class SpatialSqueeze(nn.Module):
    """S2 module: grouped 1x1, shuffled, two branches of different kernels and resolutions, concatenated, added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, branches: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        half = outputs // 2
        self.reduce, self.residual = nn.Conv2d(inputs, half, 1, groups=2, bias=False), inputs == outputs
        self.branches = nn.ModuleList(Branch(half, half, kernel, pooled) for kernel, pooled in branches)
        self.out = _normalized(outputs)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        n, channels, height, width = reduced.shape
        reduced = reduced.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        both = torch.cat([branch(reduced) for branch in self.branches], 1)
        out: Tensor = self.out(x + both if self.residual else both)
        return out


class SINet(nn.Module):
    """SINet (arXiv 1911.09099): encoder to stride 8, decoder that lets the finer features in where the coarse result is unsure."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        fine = (((3, 1), (5, 1)), ((3, 1), (3, 1)))
        coarse = (
            ((3, 1), (5, 1)), ((3, 1), (3, 1)), ((5, 1), (3, 2)), ((5, 2), (3, 4)), ((3, 1), (3, 1)), ((5, 1), (5, 1)), ((3, 2), (3, 4)),
            ((3, 1), (5, 2)),
        )  # fmt: skip
        self.s2 = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), _normalized(12))
        self.into4, self.s4 = Squeezed(12, 16, 1), nn.Sequential(*(SpatialSqueeze(16 if i == 0 else 48, 48, b) for i, b in enumerate(fine)))
        self.norm4, self.into8 = _normalized(64), Squeezed(64, 48, 2)
        self.s8 = nn.Sequential(*(SpatialSqueeze(48 if i == 0 else 96, 96, b) for i, b in enumerate(coarse)))
        self.coarse = nn.Sequential(_normalized(144), nn.Conv2d(144, classes, 1, bias=False))
        self.norm3, self.norm2 = nn.BatchNorm2d(classes), nn.BatchNorm2d(classes)
        self.fine = nn.Sequential(nn.Conv2d(48, classes, 1, bias=False), _normalized(classes))
        self.last = nn.Conv2d(classes, classes, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        into4 = self.into4(self.s2(x))
        s4 = self.s4(into4)
        into8 = self.into8(self.norm4(torch.cat((into4, s4), 1)))
        coarse = self.norm3(_up(self.coarse(torch.cat((into8, self.s8(into8)), 1)), 2, corners=True))
        unsure = 1 - coarse.softmax(1).max(1)[0]
        joined = self.norm2(_up(self.fine(s4) * unsure.unsqueeze(1) + coarse, 2, corners=True))
        out: Tensor = self.last(_up(joined, 2, corners=True))
        return out


class Gated(nn.Module):
    """Average over a window, 1x1, ReLU, 1x1, sigmoid."""

    def __init__(self, channels: int, hidden: int, window: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AvgPool2d(window), nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.body(x)
        return gate


class SelfieBlock(nn.Module):
    """Expand, depthwise, gate, project; weights already folded."""

    def __init__(self, inputs: int, hidden: int, outputs: int, squeezed: int, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(hidden, hidden, 5, stride, 2, groups=hidden)
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.Hardswish(), depthwise, nn.Hardswish())
        self.gate, self.project, self.residual = Gated(hidden, squeezed, 16), nn.Conv2d(hidden, outputs, 1), stride == 1

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        out: Tensor = self.project(self.gate(hidden) * hidden)
        return out + x if self.residual else out


class SelfieMerge(nn.Module):
    """The coarse features projected, the skipped ones gated by both, then a 1x1 and a depthwise convolution."""

    def __init__(self, inputs: int, channels: int, window: int) -> None:
        super().__init__()
        self.project, self.gate = nn.Conv2d(inputs, channels, 1), Gated(channels, channels, window)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels), nn.ReLU())

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        x = self.project(x)
        x = self.mix(x + skipped * self.gate(x + skipped))
        out: Tensor = x + self.depthwise(x)
        return out


class SelfieSegmentation(nn.Module):
    """MediaPipe's square selfie segmentation, 256x256 (its model card; layers as in its published file)."""

    def __init__(self) -> None:
        super().__init__()
        self.s2 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish())
        self.s4 = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.ReLU())
        self.gate4, self.out4 = Gated(16, 8, 64), nn.Conv2d(16, 16, 1)
        self.s8 = nn.Sequential(
            nn.Conv2d(16, 72, 1), nn.ReLU(), nn.Conv2d(72, 72, 3, 2, 1, groups=72), nn.ReLU(), nn.Conv2d(72, 24, 1)
        )  # fmt: skip
        self.more8 = nn.Sequential(
            nn.Conv2d(24, 88, 1), nn.ReLU(), nn.Conv2d(88, 88, 3, 1, 1, groups=88), nn.ReLU(), nn.Conv2d(88, 24, 1)
        )  # fmt: skip
        rows = ((24, 96, 32, 24, 2), (32, 128, 32, 32, 1), (32, 128, 32, 32, 1), (32, 96, 32, 24, 1), (32, 96, 32, 24, 1))
        self.s16 = nn.Sequential(*(SelfieBlock(*row) for row in rows))
        self.top, self.top_gate = (
            nn.Sequential(nn.Conv2d(32, 128, 1), nn.ReLU()),
            nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(32, 128, 1), nn.Sigmoid()),
        )
        self.merge8, self.merge4, self.merge2 = SelfieMerge(128, 24, 32), SelfieMerge(24, 16, 64), SelfieMerge(16, 16, 128)
        self.mask = nn.Sequential(nn.ConvTranspose2d(16, 1, 2, 2), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        s2 = self.s2(x)
        s4 = self.s4(s2)
        s4 = self.out4(self.gate4(s4) * s4)
        s8 = self.s8(s4)
        s8 = s8 + self.more8(s8)
        s16 = self.s16(s8)
        top = _up(self.top(s16) * self.top_gate(s16), 2, corners=False)
        s4_out = self.merge4(_up(self.merge8(top, s8), 2, corners=False), s4)
        out: Tensor = self.mask(self.merge2(_up(s4_out, 2, corners=False), s2))
        return out
