"""Networks of depthwise blocks with additions: BlazePose and BlazePalm with their landmark networks (weights already folded), a PPE detector.

BlazePose (arXiv 2006.10204) and MediaPipe Hands (arXiv 2006.10214); layers as published with them for PyTorch, those of the PPE detector and of the
light face detector as Qualcomm published them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.networks.detection import best_class
from mcompress.compress.networks.layers import conv


class Blaze(nn.Module):
    """Depthwise and 1x1 convolution, added to the input (pooled at stride 2, its new channels zero or projected), then ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, project: bool = False) -> None:
        super().__init__()
        self.stride, self.kernel, self.added = stride, kernel, outputs - inputs
        padding = kernel // 2 if stride == 1 else 0
        depthwise = nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs)
        self.body, self.pool = nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1)), nn.MaxPool2d(2)
        self.project = nn.Conv2d(inputs, outputs, 1) if project else None

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        if self.stride == 2:
            seen = functional.pad(x, (0, 2, 0, 2) if self.kernel == 3 else (1, 2, 1, 2))
            x = self.pool(x)
        if self.project is not None:
            x = self.project(x)
        elif self.added:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.added))
        out: Tensor = (self.body(seen) + x).relu()
        return out


def _chain(inputs: int, outputs: int, depth: int, kernel: int = 3, *, project: bool = False) -> nn.Sequential:
    """A block of stride 2 and `depth` more."""
    return nn.Sequential(Blaze(inputs, outputs, kernel, 2, project=project), *(Blaze(outputs, outputs, kernel) for _ in range(depth)))


def _same(channels: int, depth: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(*(Blaze(channels, channels, kernel) for _ in range(depth)))


def _rows(x: Tensor, columns: int) -> Tensor:
    """(n, anchors x columns, height, width) to (n, positions, columns)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, columns)


class PoseDetector(nn.Module):
    """BlazePose detector, 128x128: boxes with four key points at two sizes, each an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv2d(3, 48, 5, 1, 2), nn.ReLU(), _same(48, 3, 5), _chain(48, 64, 3, 5, project=True), _chain(64, 96, 6, 5, project=True),
            _chain(96, 128, 7, 5, project=True),
        )  # fmt: skip
        self.coarse = _chain(128, 256, 6, 5, project=True)
        self.scores = nn.ModuleList((nn.Conv2d(128, 2, 1), nn.Conv2d(256, 6, 1)))
        self.boxes = nn.ModuleList((nn.Conv2d(128, 24, 1), nn.Conv2d(256, 72, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(functional.pad(x, (1, 2, 2, 2)))
        levels = (fine, self.coarse(fine))
        boxes = [_rows(head(level), 12) for head, level in zip(self.boxes, levels, strict=True)]
        return [*boxes, *(_rows(head(level), 1) for head, level in zip(self.scores, levels, strict=True))]


def _lateral(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3x3, 1x1, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs), nn.Conv2d(inputs, outputs, 1), nn.ReLU())


def _up(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear")


class PoseLandmarks(nn.Module):
    """BlazePose landmarks, 256x256: down to stride 32, up to stride 4, and down again; the segmentation branch is not deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.s2 = nn.Sequential(nn.Conv2d(3, 24, 3, 2), nn.ReLU(), _same(24, 2))
        self.s4, self.s8, self.s16, self.s32 = _chain(24, 48, 3), _chain(48, 96, 4), _chain(96, 192, 5), _chain(192, 288, 6)
        self.up1, self.up2, self.up3, self.up4 = _lateral(288, 48), _lateral(192, 48), _lateral(96, 48), _lateral(48, 48)
        self.down8, self.down16, self.down32 = _chain(48, 96, 4), _chain(96, 192, 5), _chain(192, 288, 6)
        self.skip8, self.skip16, self.skip32 = _lateral(96, 96), _lateral(192, 192), _lateral(288, 288)
        self.last = nn.Sequential(_chain(288, 288, 7), _chain(288, 288, 6), Blaze(288, 288))
        self.flag, self.landmarks = nn.Conv2d(288, 1, 2), nn.Conv2d(288, 124, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s4 = self.s4(self.s2(functional.pad(x, (0, 1, 0, 1))))
        s8 = self.s8(s4)
        s16 = self.s16(s8)
        s32 = self.s32(s16)
        up = self.up2(s16) + _up(self.up1(s32))
        up = self.up4(s4) + _up(self.up3(s8) + _up(up))
        down = self.down8(up) + self.skip8(s8)
        down = self.down32(self.down16(down) + self.skip16(s16)) + self.skip32(s32)
        down = self.last(down)
        return self.flag(down).view(-1).sigmoid(), self.landmarks(down).view(len(x), 31, 4) / 256


class PalmDetector(nn.Module):
    """BlazePalm, 256x256: boxes with seven key points at three sizes, fused by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.s8 = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), _same(32, 7), _chain(32, 64, 7), _chain(64, 128, 7))
        self.s16, self.s32 = _chain(128, 256, 7), _chain(256, 256, 7)
        self.up16, self.mix16 = nn.ConvTranspose2d(256, 256, 2, 2), Blaze(256, 256)
        self.up8, self.mix8 = nn.ConvTranspose2d(256, 128, 2, 2), Blaze(128, 128)
        self.scores = nn.ModuleList((nn.Conv2d(128, 2, 1), nn.Conv2d(256, 2, 1), nn.Conv2d(256, 6, 1)))
        self.boxes = nn.ModuleList((nn.Conv2d(128, 36, 1), nn.Conv2d(256, 36, 1), nn.Conv2d(256, 108, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s8 = self.s8(functional.pad(x, (0, 1, 0, 1)))
        s16 = self.s16(s8)
        s32 = self.s32(s16)
        s16 = self.mix16(s16 + self.up16(s32).relu())
        s8 = self.mix8(s8 + self.up8(s16).relu())
        levels = (s8, s16, s32)
        scores = [_rows(head(level), 1) for head, level in zip(self.scores, levels, strict=True)]
        return torch.cat([_rows(head(level), 18) for head, level in zip(self.boxes, levels, strict=True)], 1), torch.cat(scores, 1)


class HandLandmarks(nn.Module):
    """Hand landmarks, 256x256: down to stride 64, up to stride 4, and down again."""

    def __init__(self) -> None:
        super().__init__()

        def step(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(_same(inputs, 2, 5), Blaze(inputs, outputs, 5, 2))

        self.s4 = nn.Sequential(nn.Conv2d(3, 24, 3, 2), nn.ReLU(), step(24, 48))
        self.s8, self.s16, self.s32 = step(48, 96), step(96, 96), step(96, 96)
        self.mix16, self.mix8 = Blaze(96, 96, 5), nn.Sequential(Blaze(96, 96, 5), nn.Conv2d(96, 48, 1))
        deep = [_chain(288, 288, 4, 5) for _ in range(3)]
        self.last = nn.Sequential(_same(48, 4, 5), _chain(48, 96, 4, 5), _chain(96, 288, 4, 5), *deep)
        self.flag, self.side, self.landmarks = nn.Conv2d(288, 1, 2), nn.Conv2d(288, 1, 2), nn.Conv2d(288, 63, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s4 = self.s4(functional.pad(x, (0, 1, 0, 1)))
        s8 = self.s8(s4)
        s16 = self.s16(s8)
        s16 = self.mix16(s16 + _up(self.s32(s16)))
        last = self.last(s4 + _up(self.mix8(s8 + _up(s16))))
        return self.flag(last).view(-1).sigmoid(), self.side(last).view(-1).sigmoid(), self.landmarks(last).view(-1, 21, 3) / 256


class DoubleBlaze(nn.Module):
    """Two depthwise 5x5 with 1x1 convolutions behind them, half as wide between; added to the input or its projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = max(inputs, outputs) // 2
        first = [conv(inputs, inputs, 5, groups=inputs, act=None), conv(inputs, hidden)]
        self.body = nn.Sequential(*first, conv(hidden, hidden, 5, groups=hidden, act=None), conv(hidden, outputs, act=None))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.body(x) + self.skip(x)).relu()
        return out


class ProtectionDetector(nn.Module):
    """GearGuardNet: YOLOv5's paths with depthwise blocks, ReLU, three anchors per position, two classes."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = 32, 64, 128, 256, 512
        stem = nn.Sequential(nn.Conv2d(3, a, 6, 2, 2, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.s8 = nn.Sequential(stem, conv(a, b, 3, 2), DoubleBlaze(b, b), conv(b, c, 3, 2), DoubleBlaze(c, c))
        self.s16 = nn.Sequential(conv(c, d, 3, 2), *(DoubleBlaze(d, d) for _ in range(3)))
        self.s32 = nn.Sequential(conv(d, e, 3, 2), DoubleBlaze(e, e), conv(e, e, 3), conv(e, d))
        self.mix16, self.mix8 = nn.Sequential(DoubleBlaze(2 * d, d), conv(d, c)), DoubleBlaze(2 * c, c)
        self.down8, self.out16 = conv(c, c, 3, 2), DoubleBlaze(2 * c, d)
        self.down16, self.out32 = conv(d, d, 3, 2), DoubleBlaze(2 * d, e)
        self.heads = nn.ModuleList(nn.Conv2d(n, 21, 1) for n in (c, d, e))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s8 = self.s8(x)
        s16 = self.s16(s8)
        s32 = self.s32(s16)
        narrow = self.mix16(torch.cat((functional.interpolate(s32, scale_factor=2.0), s16), 1))
        p8 = self.mix8(torch.cat((functional.interpolate(narrow, scale_factor=2.0), s8), 1))
        p16 = self.out16(torch.cat((self.down8(p8), narrow), 1))
        p32 = self.out32(torch.cat((self.down16(p16), s32), 1))
        return decoded([head(level) for head, level in zip(self.heads, (p8, p16, p32), strict=True)])


def decoded(levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, best scores and classes from three anchors a position, each with box, confidence and class scores."""
    boxes, scores = [], []
    for level in levels:
        n, channels, height, width = level.shape
        rows = level.permute(0, 2, 3, 1).reshape(n, height * width * 3, channels // 3).sigmoid()
        grid, anchors = torch.zeros(1, height * width * 3, 2, device=level.device), torch.ones(1, height * width * 3, 2, device=level.device)
        boxes.append(torch.cat(((rows[..., :2] * 2 - 0.5 + grid) * 8, 4 * rows[..., 2:4] ** 2 * anchors), -1))
        scores.append(rows[..., 5:] * rows[..., 4:5])
    return best_class(torch.cat(boxes, 1).transpose(1, 2), torch.cat(scores, 1).transpose(1, 2))


class LightFaceDetector(nn.Module):
    """Qualcomm's face detector on a grey image: inverted blocks with full 3x3 convolutions, gated; heat map, boxes and landmarks at stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 16, 3, 2)
        self.s8 = nn.Sequential(Fused(3, 16, 16, 16, 2), Fused(3, 16, 64, 32, 2), Fused(3, 32, 96, 32, 1))
        rows = ((32, 96, 32, 2), (32, 224, 32, 1), (32, 224, 32, 1), (32, 128, 64, 1), (64, 160, 64, 1))
        self.s16, self.s32 = nn.Sequential(*(Fused(5, *row) for row in rows)), Fused(5, 64, 256, 96, 2)
        self.narrow, self.skip8, self.skip16 = conv(96, 32), conv(32, 32), conv(64, 32)
        self.up16, self.up8 = conv(32, 32, 3), conv(32, 32, 3)
        self.direct, self.into, self.one = conv(32, 16, 3), conv(32, 8, 3), conv(8, 8, 3)
        self.two = nn.Sequential(conv(8, 8, 3), conv(8, 8, 3))
        self.heads = nn.ModuleList(nn.Conv2d(32, n, 1) for n in (1, 4, 10))

    def forward(self, x: Tensor) -> list[Tensor]:
        s8 = self.s8(self.stem((x - 0.442) / 0.280))
        s16 = self.s16(s8)
        top = self.narrow(self.s32(s16))
        top = self.up16(functional.interpolate(top, scale_factor=2.0)) + self.skip16(s16)
        top = self.up8(functional.interpolate(top, scale_factor=2.0)) + self.skip8(s8)
        context = self.into(top)
        top = torch.cat((self.direct(top), self.one(context), self.two(context)), 1)
        return [head(top) for head in self.heads]


class Gate(nn.Module):
    """Squeeze and excitation with normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(channels, channels // 4), conv(channels // 4, channels, act=nn.Sigmoid))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class Fused(nn.Module):
    """1x1 to the hidden width, full 3x3 to the outputs; with `kernel` 5 a second 3x3 that carries the stride, and a gate."""

    def __init__(self, kernel: int, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = 1 if kernel == 5 else stride
        late = [conv(outputs, outputs, 3, stride), Gate(outputs)] if kernel == 5 else []
        self.body, self.residual = nn.Sequential(conv(inputs, hidden), conv(hidden, outputs, 3, first), *late), stride == 1
        self.skip = conv(inputs, outputs, act=None) if stride == 1 and inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.skip(x) if self.residual else self.body(x)
        return out
