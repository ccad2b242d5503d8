"""The generators of the public pix2pix and CycleGAN code as they are laid out there: one list of layers each, so that its positions are the names."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalization(kind: str, channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.BatchNorm2d(channels)


class PublicSeparable(nn.Module):
    """A block's convolution in the mobile family."""

    def __init__(self, inputs: int, outputs: int, kind: str) -> None:
        super().__init__()
        bias = kind == "instance"
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=bias), normalization(kind, inputs), nn.Conv2d(inputs, outputs, 1, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PublicBlock(nn.Module):
    def __init__(self, channels: int, inner: int, kind: str, *, separable: bool, dropout: bool) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int) -> nn.Module:
            return PublicSeparable(inputs, outputs, kind) if separable else nn.Conv2d(inputs, outputs, 3, bias=kind == "instance")

        layers: list[nn.Module] = [nn.ReflectionPad2d(1), convolution(channels, inner), normalization(kind, inner), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(0.5)] if dropout else []
        layers += [nn.ReflectionPad2d(1), convolution(inner, channels), normalization(kind, channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class PublicResnet(nn.Module):
    """`inner`: channels inside each block; `dropout` moves the names of a block's second half."""

    def __init__(self, ngf: int, inner: list[int], kind: str = "instance", *, separable: bool = False, dropout: bool = False) -> None:
        super().__init__()
        bias = kind == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7, bias=bias), normalization(kind, ngf), nn.ReLU(inplace=True)]
        for width in (ngf, 2 * ngf):
            layers += [nn.Conv2d(width, 2 * width, 3, 2, 1, bias=bias), normalization(kind, 2 * width), nn.ReLU(inplace=True)]
        layers += [PublicBlock(4 * ngf, width, kind, separable=separable, dropout=dropout) for width in inner]
        for width in (4 * ngf, 2 * ngf):
            up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1, bias=bias)
            layers += [up, normalization(kind, width // 2), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PublicLevel(nn.Module):
    def __init__(self, outer: int, inner: int, below: PublicLevel | None, kind: str, *, outermost: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.outermost = outermost
        bias = kind == "instance"
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)
        if outermost:
            assert below is not None
            layers: list[nn.Module] = [down, below, nn.ReLU(inplace=True), nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1), nn.Tanh()]
        else:
            up = nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1, bias=bias)
            layers = [nn.LeakyReLU(0.2, inplace=True), down]
            layers += [] if below is None else [normalization(kind, inner), below]
            layers += [nn.ReLU(inplace=True), up, normalization(kind, outer)] + ([nn.Dropout(0.5)] if dropout else [])
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class PublicUnet(nn.Module):
    """`channels` per level, from the image inwards."""

    def __init__(self, channels: list[int], kind: str = "batch", *, dropout: bool = False) -> None:
        super().__init__()
        level: PublicLevel | None = None
        for position in range(len(channels) - 1, 0, -1):
            level = PublicLevel(channels[position - 1], channels[position], level, kind, dropout=dropout and level is not None)
        self.model = PublicLevel(3, channels[0], level, kind, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def trained(network: nn.Module) -> nn.Module:
    """In evaluation mode, every number different from how it starts."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.randn(value.shape, generator=generator) * 0.1 if value.dim() == 4 else torch.rand(value.shape, generator=generator) + 0.5
            )
        else:
            assert name.endswith("num_batches_tracked")
    return network.eval()
