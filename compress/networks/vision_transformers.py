"""Vision transformers written out: ViT and Swin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ViT(nn.Module):
    """ViT-B/16 (arXiv 2010.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 768)), nn.Parameter(torch.zeros(1, 197, 768))
        layers = (nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True, norm_first=True) for _ in range(12))
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1) + self.position
        out: Tensor = self.head(self.norm(self.layers(tokens))[:, 0])
        return out


class WindowAttention(nn.Module):
    """Attention inside windows of 7x7 positions, shifted by half a window in every second block; (n, height, width, channels)."""

    def __init__(self, channels: int, heads: int, size: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, 7
        self.shift = self.window // 2 if shifted and size > self.window else 0
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, heads))
        area, windows = self.window**2, (size // self.window) ** 2
        self.register_buffer("index", torch.zeros(area * area, dtype=torch.long), persistent=False)
        self.register_buffer("mask", torch.zeros(1, windows, 1, area * area), persistent=False)
        self.index: Tensor
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        side, area = self.window, self.window**2
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(n * height // side, side, width // side, side * channels).permute(0, 2, 1, 3).reshape(-1, area, channels)
        windows = len(x)
        query, key, value = (layer(x).reshape(windows, area, self.heads, -1).permute(0, 2, 1, 3) for layer in (self.query, self.key, self.value))
        scores = (query * (channels // self.heads) ** -0.5) @ key.transpose(-2, -1)
        scores = scores + self.bias_table[self.index].view(area, area, -1).permute(2, 0, 1).unsqueeze(0)
        if self.shift:
            scores = (scores.view(n, windows // n, self.heads, area * area) + self.mask).view(-1, self.heads, area, area)
        x = self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(windows, area, channels))
        x = x.view(n * height // side, width // side, side, side * channels).permute(0, 2, 1, 3).reshape(n, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    """Window attention and two linear layers, each normalized before and added."""

    def __init__(self, channels: int, heads: int, size: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(channels), WindowAttention(channels, heads, size, shifted=shifted))
        self.mix = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.mix(x)
        return out


class Merging(nn.Module):
    """Every second row and column as channels, normalized, projected to twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]), -1)
        out: Tensor = self.reduce(self.norm(x))
        return out


class Swin(nn.Module):
    """Swin transformer (arXiv 2103.14030) on images of 224x224, windows of 7."""

    def __init__(self, channels: int, depths: Sequence[int], heads: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, channels, 4, 4), nn.LayerNorm(channels)
        stages: list[nn.Module] = []
        size = 56
        for stage, depth in enumerate(depths):
            if stage:
                stages.append(Merging(channels))
                channels, size = 2 * channels, size // 2
            stages += [SwinBlock(channels, heads * 2**stage, size, shifted=index % 2 == 1) for index in range(depth)]
        self.stages, self.last = nn.Sequential(*stages), nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.norm(self.patches(x).permute(0, 2, 3, 1))))
        out: Tensor = self.head(functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1))
        return out
