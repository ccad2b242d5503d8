"""A super-resolution network of your own: mcompress knows nothing about it and needs nothing but `build`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(x)))


class MyNetwork(nn.Module):
    """x4 super-resolution: residual blocks, two transposed convolutions, and the enlarged input added at the end."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.up1 = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1)
        nn.init.zeros_(self.up2.weight)  # the untrained network enlarges by nearest neighbour
        if self.up2.bias is not None:
            nn.init.zeros_(self.up2.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W)."""
        features = self.blocks(functional.relu(self.head(image)))
        detail: Tensor = self.up2(functional.relu(self.up1(features)))
        return detail + functional.interpolate(image, scale_factor=4.0, mode="nearest")


def build(width: int = 32, blocks: int = 3) -> MyNetwork:
    """What the target file names: arguments in, network out."""
    return MyNetwork(width, blocks)
