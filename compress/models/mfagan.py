"""MFAGAN-style generator: super-resolution x4 by multi-scale feature aggregation without dense concatenation.

MFAGAN (Cheng et al., 2021, arXiv 2107.12679) replaces ESRGAN's dense connections by a multi-scale aggregation net because dense concatenation
makes memory explode. The paper's text gives no layer table; this reconstruction is ours. Its rules:

- A block chains 3x3 convolutions; the k-th sees a (2k+1)x(2k+1) window, so the chain is a set of scales. Every scale is projected by a 1x1
  convolution and *added* to the block's output. Nothing is concatenated, so the live memory does not grow with the number of scales.
- The block outputs are aggregated over the whole depth in the same way: a running sum of 1x1 projections.
- The tail is one 3x3 convolution to 48 channels and a pixel shuffle, so nothing but the image ever exists at high resolution. A 5x5 convolution
  from the input to the same 48 channels starts as bicubic interpolation; the rest of the network learns what bicubic misses.

ReLU, because all four export backends fuse it into an INT8 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.arguments import check_whole
from mcompress.errors import UsageError

SCALE = 4


class AggregationBlock(nn.Module):
    """A chain of 3x3 convolutions whose scales are projected and summed; residual."""

    def __init__(self, channels: int, branches: int, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(channels if k == 0 else width, width, 3, padding=1) for k in range(branches))
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        feature, total = x, x
        for scale, projection in zip(self.scales, self.projections, strict=True):
            feature = functional.relu(scale(feature))
            total = total + projection(feature)
        return total


class MFAGenerator(nn.Module):
    """x4 super-resolution of an RGB image in [0, 1]."""

    def __init__(self, channels: int, blocks: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(AggregationBlock(channels, branches, width) for branches, width in blocks)
        self.aggregations = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in blocks)
        self.tail = nn.Conv2d(channels, 3 * SCALE * SCALE, 3, padding=1)
        self.upsampler = nn.Conv2d(3, 3 * SCALE * SCALE, 5, padding=2)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W)."""
        feature = functional.relu(self.head(x))
        total = feature
        for block, aggregation in zip(self.blocks, self.aggregations, strict=True):
            feature = block(feature)
            total = total + aggregation(feature)
        image: Tensor = self.shuffle(self.tail(functional.relu(total)) + self.upsampler(x))
        return image


def mfagan(*, channels: int = 32, blocks: Sequence[Sequence[int]] = ((3, 32), (3, 32), (3, 32), (3, 32))) -> MFAGenerator:
    """MFAGAN-style generator x4; `blocks` holds (branches, width) per block. It starts as bicubic interpolation."""
    check_whole("mfagan", "channels", channels, low=1, high=1024)
    _check_blocks(blocks)
    network = MFAGenerator(channels, [(branches, width) for branches, width in blocks])
    start_as_bicubic(network)
    return network


def _check_blocks(blocks: object) -> None:
    pairs = list(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else []
    if not pairs or not all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs):
        raise UsageError(f"mfagan: blocks is {blocks!r}; it must hold at least one pair (branches, width), for example [[3, 32], [2, 24]]")
    for position, (branches, width) in enumerate(pairs):
        check_whole("mfagan", f"blocks[{position}] branches", branches, low=1, high=16)
        check_whole("mfagan", f"blocks[{position}] width", width, low=1, high=1024)


def start_as_bicubic(network: MFAGenerator) -> None:
    """Fill the upsampler with the bicubic kernel, and make everything added to it zero at first."""
    with torch.no_grad():
        impulse = torch.zeros(1, 1, 9, 9, device="cpu")
        impulse[0, 0, 4, 4] = 1.0
        # The response of bicubic enlargement to an impulse, read at the 16 positions inside one source pixel, seen from its 5x5 neighbours.
        response = functional.interpolate(impulse, scale_factor=float(SCALE), mode="bicubic", antialias=True)[0, 0]
        kernel = network.upsampler.weight.new_zeros(3, SCALE * SCALE, 3, 5, 5)
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                phases = response[(4 - dy) * SCALE : (5 - dy) * SCALE, (4 - dx) * SCALE : (5 - dx) * SCALE].reshape(-1)
                for colour in range(3):
                    kernel[colour, :, colour, dy + 2, dx + 2] = phases
        network.upsampler.weight.copy_(kernel.reshape(3 * SCALE * SCALE, 3, 5, 5))
        assert network.upsampler.bias is not None and network.tail.bias is not None  # noqa: S101, PT018  (built with a bias above)
        network.upsampler.bias.zero_()
        network.tail.weight.zero_()
        network.tail.bias.zero_()
