"""HRNet-W18 (arXiv 1908.07919) for face landmarks: four resolutions side by side, every one fused with all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.networks.layers import Residual, conv


class Exchange(nn.Module):
    """Four basic blocks on each resolution, then each resolution is the sum of all, resized."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Residual(w, w, 1, w, bottleneck=False) for _ in range(4))) for w in widths)
        self.paths = nn.ModuleList()
        for i, width in enumerate(widths):
            row = nn.ModuleList()
            for j, other in enumerate(widths):
                steps = [conv(other, width if k == i - 1 else other, 3, 2, act=None if k == i - 1 else nn.ReLU) for k in range(j, i)]
                row.append(conv(other, width, act=None) if j > i else nn.Sequential(*steps))
            self.paths.append(row)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for i, row in enumerate(cast("Iterable[nn.ModuleList]", self.paths)):
            total = xs[0] if i == 0 else row[0](xs[0])
            for j in range(1, len(xs)):
                part = xs[j] if i == j else row[j](xs[j])
                if j > i:
                    part = functional.interpolate(part, xs[i].shape[2:], mode="bilinear", align_corners=False)
                total = total + part
            fused.append(total.relu())
        return fused


class HRNetW18(nn.Module):
    """Stem to stride 4, then two, three and four resolutions; all upsampled, concatenated, two 1x1 convolutions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (18, 36, 72, 144)
        bottlenecks = (Residual(64 if i == 0 else 256, 256, 1, 64, bottleneck=True) for i in range(4))
        self.stem = nn.Sequential(conv(3, 64, 3, 2), conv(64, 64, 3, 2), *bottlenecks)
        self.first = nn.ModuleList((conv(256, 18, 3), conv(256, 36, 3, 2)))
        self.down = nn.ModuleList((conv(36, 72, 3, 2), conv(72, 144, 3, 2)))
        self.stages = nn.ModuleList(nn.ModuleList(Exchange(widths[: stage + 2]) for _ in range(modules)) for stage, modules in enumerate((1, 4, 3)))
        total = sum(widths)
        self.head = nn.Sequential(conv(total, total, bias=True), nn.Conv2d(total, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        xs = [layer(x) for layer in self.first]
        for stage, modules in enumerate(cast("Iterable[nn.ModuleList]", self.stages)):
            if stage:
                xs.append(self.down[stage - 1](xs[-1]))
            for module in modules:
                xs = module(xs)
        resized = [functional.interpolate(part, xs[0].shape[2:], mode="bilinear", align_corners=False) for part in xs[1:]]
        out: Tensor = self.head(torch.cat((xs[0], *resized), 1))
        return out
