"""RRDBNet, the generator of ESRGAN (Wang et al., 2018, arXiv 1809.00219), x4.

Residual-in-residual dense blocks at low resolution, then nearest-neighbour upsampling with convolutions at high resolution. At the published
size (64 features, 23 blocks, growth 32) it has 16,697,987 parameters and costs 17,926,848 multiply-adds per low-resolution pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.arguments import check_whole

RESIDUAL_SCALE = 0.2  # section 3.1 of the paper: residuals are scaled before they are added


class ResidualDenseBlock(nn.Module):
    """Five 3x3 convolutions, each on the concatenation of everything before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) -> the same shape."""
        x1 = self.activation(self.conv1(x))
        x2 = self.activation(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.activation(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.activation(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        out: Tensor = x5 * RESIDUAL_SCALE + x
        return out


class RRDB(nn.Module):
    """Residual-in-residual dense block: three dense blocks and a scaled skip."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) -> the same shape."""
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x))) * RESIDUAL_SCALE + x
        return out


class RRDBNet(nn.Module):
    """x4 super-resolution of an RGB image in [0, 1]; attribute names follow BasicSR's checkpoints."""

    def __init__(self, features: int, blocks: int, growth: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W)."""
        head = self.conv_first(x)
        trunk = head + self.conv_body(self.body(head))
        up = self.activation(self.conv_up1(functional.interpolate(trunk, scale_factor=2.0, mode="nearest")))
        up = self.activation(self.conv_up2(functional.interpolate(up, scale_factor=2.0, mode="nearest")))
        image: Tensor = self.conv_last(self.activation(self.conv_hr(up)))
        return image


def rrdb(*, features: int = 64, blocks: int = 23, growth: int = 32) -> RRDBNet:
    """RRDBNet, ESRGAN's generator x4; the defaults are the published size (16,697,987 parameters; 6 blocks: the anime model, 4,467,779)."""
    check_whole("rrdb", "features", features, low=1, high=1024)
    check_whole("rrdb", "blocks", blocks, low=1, high=128)
    check_whole("rrdb", "growth", growth, low=1, high=1024)
    return RRDBNet(features, blocks, growth)


def start_as_bilinear(network: RRDBNet) -> None:
    """Set the first three feature channels to carry the image, so that the untrained network is a bilinear x4 upsampler.

    Few photographs do not teach a network that colours must pass through unchanged; starting from a network that already does so leaves only
    the detail to be learned. Nearest-neighbour x2 followed by the kernel (1, 2, 1)/4 in each direction is bilinear interpolation, and
    LeakyReLU is the identity on the non-negative image channels.
    """
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, ResidualDenseBlock):
                block.conv5.weight.mul_(0.1)
        for conv in (network.conv_first, network.conv_body, network.conv_up1, network.conv_up2, network.conv_hr, network.conv_last):
            assert conv.bias is not None  # noqa: S101  (for the type checker: every convolution here is built with a bias)
            conv.bias.zero_()
        network.conv_body.weight.mul_(0.1)
        network.conv_body.weight[:3].zero_()
        identity, binomial = torch.zeros(3, 3), torch.tensor([1.0, 2.0, 1.0])
        identity[1, 1] = 1.0
        smooth = torch.outer(binomial, binomial) / 16.0
        carried = ((network.conv_first, identity), (network.conv_up1, smooth), (network.conv_up2, smooth), (network.conv_hr, identity))
        for conv, kernel in (*carried, (network.conv_last, identity)):
            for channel in range(3):
                conv.weight[channel].zero_()
                conv.weight[channel, channel] = kernel
