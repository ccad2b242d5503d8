"""Networks that fill holes: AOT-GAN and LaMa (dilated). Both take the image and its mask as one tensor of four channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Aggregation(nn.Module):
    """AOT block: four reflected dilated convolutions side by side, fused, and a normalized gate between the old and the new."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.rates = nn.ModuleList(
            nn.Sequential(nn.ReflectionPad2d(rate), nn.Conv2d(channels, quarter, 3, dilation=rate), nn.ReLU()) for rate in (1, 2, 4, 8)
        )
        self.fuse = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))
        self.gate = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        new = self.fuse(torch.cat([rate(x) for rate in self.rates], 1))
        gate = self.gate(x)
        mean, deviation = gate.mean((2, 3), keepdim=True), gate.std((2, 3), keepdim=True) + 1e-9
        gate = torch.sigmoid(5 * (2 * (gate - mean) / deviation - 1))
        out: Tensor = x * (1 - gate) + new * gate
        return out


class Doubled(nn.Module):
    """Bilinear to twice the size, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        return out


def _filled(network: nn.Module, x: Tensor) -> Tensor:
    """The network's picture inside of the hole, the given one outside."""
    image, mask = x[:, :3], x[:, 3:]
    masked = image * (1 - mask)
    made: Tensor = network(torch.cat((masked, mask), 1))
    filled: Tensor = mask * made + (1 - mask) * image
    return filled


class AOTGAN(nn.Module):
    """Generator of AOT-GAN (arXiv 2104.01431): two halvings, eight aggregation blocks, two doublings."""

    def __init__(self) -> None:
        super().__init__()
        into = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(4, 64, 7),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(128, 256, 4, 2, 1),
            nn.ReLU(),
        ]
        out = [Doubled(256, 128), nn.ReLU(), Doubled(128, 64), nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1), nn.Tanh()]
        self.network = nn.Sequential(*into, *(Aggregation(256) for _ in range(8)), *out)

    def forward(self, x: Tensor) -> Tensor:
        return _filled(self.network, x)


class ManyDilations(nn.Module):
    """A quarter of the channels through each of four dilations to all channels, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.convs = nn.ModuleList(
            nn.Conv2d(quarter, channels, 3, padding=rate, dilation=rate, padding_mode="reflect", bias=False) for rate in (1, 2, 4, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(part) for layer, part in zip(self.convs, x.chunk(4, 1), strict=True)]
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


class DilatedResidual(nn.Module):
    """Two of them with normalization, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ManyDilations(channels), nn.BatchNorm2d(channels), nn.ReLU(), ManyDilations(channels), nn.BatchNorm2d(channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class LaMaDilated(nn.Module):
    """LaMa without Fourier convolutions (arXiv 2109.07161): three halvings, nine dilated residual blocks, three transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(4, 64, 7), nn.BatchNorm2d(64), nn.ReLU()]
        for channels in (64, 128, 256):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.BatchNorm2d(2 * channels), nn.ReLU()]
        layers += [DilatedResidual(512) for _ in range(9)]
        for channels in (512, 256, 128):
            layers += [nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, 1), nn.BatchNorm2d(channels // 2), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return _filled(self.network, x)
