"""Super-resolution networks: QuickSRNet and XLSR."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        blocks: list[nn.Module] = []
        for _ in range(3):
            blocks += [nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(32, 32, 1)]
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), *blocks)
        self.tail = nn.Sequential(nn.Conv2d(48, 32, 1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.PixelShuffle(4), nn.Hardtanh(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(torch.cat((self.shortcut(x), self.body(x)), 1))
        return out
