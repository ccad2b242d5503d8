"""YOLOv6-N (arXiv 2301.05586) as deployed: its training branches merged into plain 3x3 convolutions with ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcompress.compress.networks.detection import best_class, decoded
from mcompress.compress.networks.layers import conv


def _deployed(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())


def _repeated(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_deployed(inputs if index == 0 else outputs, outputs) for index in range(depth)))


class SplitPyramid(nn.Module):
    """One 5x5 maximum applied three times on one half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.side, self.into = conv(channels, half), nn.Sequential(conv(channels, half), conv(half, half, 3), conv(half, half))
        self.join, self.out, self.pool = nn.Sequential(conv(4 * half, half), conv(half, half, 3)), conv(2 * half, channels), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.into(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        out: Tensor = self.out(torch.cat((self.side(x), self.join(torch.cat(parts, 1))), 1))
        return out


class Fusion(nn.Module):
    """Three neighbouring levels at the size of the middle one: the coarse transposed up, the fine strided down."""

    def __init__(self, coarse: int, middle: int, fine: int) -> None:
        super().__init__()
        self.up, self.one = nn.ConvTranspose2d(coarse, coarse, 2, 2), conv(middle, coarse)
        self.down, self.out = nn.Sequential(conv(fine, coarse), conv(coarse, coarse, 3, 2)), conv(3 * coarse, coarse)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat((self.up(coarse), self.one(middle), self.down(fine)), 1))
        return out


class YoloV6N(nn.Module):
    """Backbone to stride 32, bidirectional fusion, decoupled head without distributions."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = 16, 32, 64, 128, 256
        self.p2 = nn.Sequential(_deployed(3, a, 2), _deployed(a, b, 2), _repeated(b, b, 2))
        self.p3 = nn.Sequential(_deployed(b, c, 2), _repeated(c, c, 4))
        self.p4 = nn.Sequential(_deployed(c, d, 2), _repeated(d, d, 6))
        self.p5 = nn.Sequential(_deployed(d, e, 2), _repeated(e, e, 2), SplitPyramid(e))
        self.narrow5, self.narrow4 = conv(e, c), conv(c, b)
        self.fuse4, self.fuse3 = Fusion(c, d, c), Fusion(b, c, b)
        self.up4, self.up3 = _repeated(c, c, 4), _repeated(b, b, 4)
        self.down3, self.down4 = conv(b, b, 3, 2), conv(c, c, 3, 2)
        self.out4, self.out5 = _repeated(2 * b, c, 4), _repeated(2 * c, d, 4)
        self.stems = nn.ModuleList(conv(n, n, act=nn.SiLU) for n in (b, c, d))
        self.scores = nn.ModuleList(nn.Sequential(conv(n, n, 3, act=nn.SiLU), nn.Conv2d(n, 80, 1)) for n in (b, c, d))
        self.boxes = nn.ModuleList(nn.Sequential(conv(n, n, 3, act=nn.SiLU), nn.Conv2d(n, 4, 1)) for n in (b, c, d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.p2(x)
        p3 = self.p3(p2)
        p4 = self.p4(p3)
        narrow5 = self.narrow5(self.p5(p4))
        narrow4 = self.narrow4(self.up4(self.fuse4(narrow5, p4, p3)))
        n3 = self.up3(self.fuse3(narrow4, p3, p2))
        n4 = self.out4(torch.cat((self.down3(n3), narrow4), 1))
        n5 = self.out5(torch.cat((self.down4(n4), narrow5), 1))
        boxes, scores = [], []
        for level, feature in enumerate((n3, n4, n5)):
            stem = self.stems[level](feature)
            scores.append(self.scores[level](stem).sigmoid().flatten(2))
            boxes.append(self.boxes[level](stem).flatten(2))
        return best_class(decoded(torch.cat(boxes, 2)), torch.cat(scores, 2))
