"""Small generators of the two families of image translation, with every operator of the published ones; images are (N, 3, H, W) in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 32
WIDTH = 4


def resnet_generator(*, separable: bool = True) -> nn.Module:
    """Two convolutions with stride 2, two residual blocks, two transposed convolutions; reflection padding and instance norms without parameters."""
    torch.manual_seed(7)
    return ResnetGenerator(separable=separable).eval()


def unet_generator() -> nn.Module:
    """Three levels with skips by concatenation; batch norms with statistics of their own."""
    torch.manual_seed(8)
    found = UnetGenerator()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    return found.eval()


def images(count: int, side: int = SIDE) -> list[Tensor]:
    """Blocks of few colours with noise, each (1, 3, side, side) in [-1, 1]."""
    source = torch.Generator().manual_seed(9)
    found = []
    for _ in range(count):
        coarse = torch.rand(1, 3, 4, 4, generator=source) * 2 - 1
        found.append((nn.functional.interpolate(coarse, (side, side)) + 0.1 * torch.randn(1, 3, side, side, generator=source)).clamp(-1, 1))
    return found


class _Block(nn.Module):
    def __init__(self, width: int, *, separable: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), *_convolution(width, separable=separable), nn.InstanceNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.ReflectionPad2d(1), *_convolution(width, separable=separable), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(width: int, *, separable: bool) -> list[nn.Module]:
    if not separable:
        return [nn.Conv2d(width, width, 3)]
    return [nn.Conv2d(width, width, 3, groups=width), nn.InstanceNorm2d(width), nn.Conv2d(width, width, 1)]


class ResnetGenerator(nn.Module):
    def __init__(self, *, separable: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, WIDTH, 7), nn.InstanceNorm2d(WIDTH), nn.ReLU(inplace=True),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1), nn.InstanceNorm2d(2 * WIDTH), nn.ReLU(inplace=True),
            nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, 2, 1), nn.InstanceNorm2d(4 * WIDTH), nn.ReLU(inplace=True),
            _Block(4 * WIDTH, separable=separable), _Block(4 * WIDTH, separable=separable),
            nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(2 * WIDTH), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * WIDTH, WIDTH, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(WIDTH), nn.ReLU(inplace=True),
            nn.ReflectionPad2d(3), nn.Conv2d(WIDTH, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class UnetGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _Level(
            3, WIDTH, _Level(WIDTH, 2 * WIDTH, _Level(2 * WIDTH, 4 * WIDTH, None, outermost=False), outermost=False), outermost=True
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class _Level(nn.Module):
    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, outermost: bool) -> None:
        super().__init__()
        self.outermost = outermost
        down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, 2, 1, bias=outermost)]
        up: list[nn.Module] = [nn.ReLU(inplace=True), nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1, bias=outermost)]
        if not outermost:
            down = [nn.LeakyReLU(0.2, inplace=True), *down] + ([nn.BatchNorm2d(inner)] if below is not None else [])
            up = [*up, nn.BatchNorm2d(outer)]
        self.body = nn.Sequential(*down, *([below] if below is not None else []), *up, *([nn.Tanh()] if outermost else []))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result if self.outermost else torch.cat((x, result), 1)
