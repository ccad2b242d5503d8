"""IMDN, the information multi-distillation network (Hui et al. 2019, arXiv 1909.11856), x4: a published light generator to compare with.

A block splits what it has computed three times: a quarter is kept, the rest goes on; the four kept parts are joined, weighted by contrast-aware
channel attention and fused. Six blocks of 64 channels have 715,176 parameters. Attribute names follow the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcompress.compress.models.arguments import check_whole
from mcompress.errors import UsageError

SCALE = 4
REDUCTION = 16
SLOPE = 0.05


class ContrastAttention(nn.Module):
    """Channel attention from the sum of each channel's standard deviation and mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // REDUCTION
        self.conv_du = nn.Sequential(nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        mean = x.mean((2, 3), keepdim=True)
        centred = x - mean
        # Without the small constant the gradient of the square root is infinite where a channel is constant.
        deviation = ((centred * centred).mean((2, 3), keepdim=True) + 1e-12).sqrt()
        out: Tensor = x * self.conv_du(deviation + mean)
        return out


class MultiDistillationBlock(nn.Module):
    """Progressive refinement: keep a quarter, pass the rest on, three times."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kept = channels // 4
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(channels - kept, channels, 3, padding=1)
        self.c3 = nn.Conv2d(channels - kept, channels, 3, padding=1)
        self.c4 = nn.Conv2d(channels - kept, kept, 3, padding=1)
        self.act = nn.LeakyReLU(SLOPE)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.cca = ContrastAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        kept1, rest = _split(self.act(self.c1(x)), self.c2.in_channels)
        kept2, rest = _split(self.act(self.c2(rest)), self.c3.in_channels)
        kept3, rest = _split(self.act(self.c3(rest)), self.c4.in_channels)
        out: Tensor = self.c5(self.cca(torch.cat((kept1, kept2, kept3, self.c4(rest)), 1))) + x
        return out


def _split(x: Tensor, rest: int) -> tuple[Tensor, Tensor]:
    """The kept channels and the last `rest` ones, which is what the next layer takes: so the split follows when channels are pruned."""
    kept, remaining = torch.split(x, [x.shape[1] - rest, rest], 1)
    return kept, remaining


class IMDN(nn.Module):
    """x4 super-resolution of an RGB image in [0, 1]."""

    def __init__(self, features: int, blocks: int) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, features, 3, padding=1)
        self.block_names = tuple(f"IMDB{block}" for block in range(1, blocks + 1))
        for name in self.block_names:
            self.add_module(name, MultiDistillationBlock(features))
        self.c = nn.Sequential(nn.Conv2d(features * blocks, features, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(features, 3 * SCALE * SCALE, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W)."""
        head = self.fea_conv(x)
        outputs, feature = [], head
        for name in self.block_names:
            feature = self.get_submodule(name)(feature)
            outputs.append(feature)
        image: Tensor = self.upsampler(self.LR_conv(self.c(torch.cat(outputs, 1))) + head)
        return image


def imdn(*, features: int = 64, blocks: int = 6) -> IMDN:
    """IMDN x4, a published light generator; the defaults are the published size (715,176 parameters)."""
    check_whole("imdn", "features", features, low=REDUCTION, high=1024)
    check_whole("imdn", "blocks", blocks, low=1, high=64)
    if features % 4:
        raise UsageError(f"imdn: features is {features}; it must be a multiple of 4, because a block keeps a quarter of them at each split")
    return IMDN(features, blocks)
