"""The ResNet generator of pix2pix and CycleGAN (Isola et al. 2017, arXiv 1611.07004; Zhu et al. 2017, arXiv 1703.10593) and its mobile family.

A 7x7 convolution, two of stride 2, residual blocks, two transposed convolutions, a 7x7 convolution and tanh. With plain 3x3 convolutions in its
nine blocks and 64 features it has 11,378,179 parameters. Separable blocks, a depthwise 3x3, a normalization and a 1x1 convolution, are the mobile
family of GAN Compression (Li et al. 2020, arXiv 2003.08936) and OMGD (Ren et al. 2021, arXiv 2108.06908): 137,347 parameters with 16 features.

The blocks stand in three groups. Width and depth of every part follow its own number, and every parameter of a narrower or shallower network is the
leading block of the parameter with the same name in a wider or deeper one, because a block's inner width is its own and blocks count from the front
of their group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mcompress.compress.models.arguments import check_choice, whole_numbers
from mcompress.compress.models.generator_parts import (
    WIDEST,
    check_generator,
    start_as_published,
)
from mcompress.compress.models.normalization import Normalization, normalization_of
from mcompress.errors import UsageError

NETWORK = "resnet_generator"
Convolutions = Literal["plain", "separable"]
GROUPS = 3
MOST_BLOCKS = 32
"""Per group."""
WIDTHS_MEAN = "first convolution, two down-samplings, the inner width of three groups of residual blocks, two up-samplings"
MULTIPLES = (1, 2, 4, 4, 4, 4, 2, 1)
"""Channels per number of `widths`: the number is what the layer would have at full resolution."""
LEGACY = (0, 1, 2, 3, 3, 3, 4, 5)
"""Where GAN Compression's older form of six numbers has the eight: one number for all residual blocks."""
STEP, LEAST_SIDE = 4, 8
"""Image sides are multiples of the first, and at least the second: reflection needs two pixels after two halvings."""


class Separable(nn.Module):
    """A depthwise 3x3 convolution, a normalization, a 1x1 convolution; takes a padded input."""

    def __init__(self, inputs: int, outputs: int, normalization: Normalization) -> None:
        super().__init__()
        bias = normalization == "instance"
        self.depthwise = nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=bias)
        self.norm = normalization_of(normalization, inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H - 2, W - 2)."""
        out: Tensor = self.pointwise(self.norm(self.depthwise(x)))
        return out


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions over reflected borders, `channels` -> `inner` -> `channels`, added to the input."""

    def __init__(self, channels: int, inner: int, convolutions: Convolutions, normalization: Normalization) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int) -> nn.Module:
            if convolutions == "separable":
                return Separable(inputs, outputs, normalization)
            return nn.Conv2d(inputs, outputs, 3, bias=normalization == "instance")

        self.pad = nn.ReflectionPad2d(1)
        self.conv1 = convolution(channels, inner)
        self.norm1 = normalization_of(normalization, inner)
        self.act = nn.ReLU()
        self.conv2 = convolution(inner, channels)
        self.norm2 = normalization_of(normalization, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        inner = self.act(self.norm1(self.conv1(self.pad(x))))
        out: Tensor = x + self.norm2(self.conv2(self.pad(inner)))
        return out


class Layer(nn.Module):
    """A convolution with its normalization and ReLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, normalization: Normalization) -> None:
        super().__init__()
        self.conv = conv
        self.norm = normalization_of(normalization, conv.out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W') as the convolution gives it."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class ResnetGenerator(nn.Module):
    """Image to image at the same size."""

    feature_taps = ("downs.1", "groups.0", "groups.1", "groups.2")
    """Modules whose outputs distillation compares, as GAN Compression and OMGD do: the trunk before, between and behind its groups of blocks."""

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        convolutions: Convolutions,
        normalization: Normalization,
        in_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        bias = normalization == "instance"
        head, down0, trunk, *inner, up0, up1 = channels
        self.pad = nn.ReflectionPad2d(3)
        self.head = Layer(nn.Conv2d(in_channels, head, 7, bias=bias), normalization)
        self.downs = nn.ModuleList(
            Layer(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=bias), normalization) for before, after in ((head, down0), (down0, trunk))
        )
        self.groups = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(trunk, width, convolutions, normalization) for _ in range(depth)))
            for width, depth in zip(inner, depths, strict=True)
        )
        self.ups = nn.ModuleList(
            Layer(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1, bias=bias), normalization)
            for before, after in ((trunk, up0), (up0, up1))
        )
        self.tail = nn.Conv2d(up1, out_channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) in [-1, 1] -> (N, out_channels, H, W) in [-1, 1]; H and W are multiples of 4, at least 8.

        Raises `UsageError` for an image of another size.
        """
        height, width = x.shape[2:]
        if height % STEP or width % STEP or min(height, width) < LEAST_SIDE:
            raise UsageError(f"{NETWORK}: the image is ({height}, {width}) pixels; both must be multiples of {STEP} and at least {LEAST_SIDE}")
        feature = self.head(self.pad(x))
        for stage in (*self.downs, *self.groups, *self.ups):
            feature = stage(feature)
        image: Tensor = torch.tanh(self.tail(self.pad(feature)))
        return image


def resnet_generator(
    *,
    features: int = 64,
    widths: Sequence[int] | str | None = None,
    depths: Sequence[int] = (3, 3, 3),
    convolutions: Convolutions = "plain",
    normalization: Normalization = "instance",
    in_channels: int = 3,
    out_channels: int = 3,
) -> ResnetGenerator:
    """ResNet generator of pix2pix and CycleGAN; the defaults are the published size (11,378,179 parameters).

    `widths`, in place of `features`, are GAN Compression's eight groups, as a list or written 32_32_48_32_48_48_16_16: first convolution, two
    down-samplings, inner width of three groups of residual blocks, two up-samplings; its older six numbers have one for all blocks. They are
    times 1 at full resolution, 2 at half and 4 at a quarter. `depths`: residual blocks per group, 0 to 32. Raises `UsageError`.
    """
    check_generator(NETWORK, features, widths, normalization, in_channels, out_channels)
    check_choice(NETWORK, "convolutions", convolutions, ("plain", "separable"))
    base = (features,) * len(MULTIPLES) if widths is None else _eight(widths)
    meaning = f"residual blocks in each of the {GROUPS} groups"
    blocks = whole_numbers(NETWORK, "depths", depths, lengths=(GROUPS,), low=0, high=MOST_BLOCKS, meaning=meaning)
    channels = [width * multiple for width, multiple in zip(base, MULTIPLES, strict=True)]
    network = ResnetGenerator(channels, blocks, convolutions, normalization, in_channels, out_channels)
    start_as_published(network)
    return network


def _eight(widths: object) -> tuple[int, ...]:
    given = whole_numbers(NETWORK, "widths", widths, lengths=(8, 6), low=1, high=WIDEST, meaning=f"{WIDTHS_MEAN} (with 6, one for all blocks)")
    return given if len(given) == len(MULTIPLES) else tuple(given[position] for position in LEGACY)
