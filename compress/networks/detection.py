"""YOLO networks: v3-tiny (with an anchor-free head), v8, v10, 11 and YOLOX, heads with masks for v8 and 11, and how boxes are decoded.

They end as published files do: boxes decoded, the best class of every box and its score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.networks.layers import conv

DISTANCES = 16
"""Bins of the distribution that gives one side of a box."""


def _silu(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return conv(inputs, outputs, kernel, stride, groups, act=nn.SiLU)


class Bottleneck(nn.Module):
    """Two convolutions, added to the input where asked for."""

    def __init__(self, channels: int, hidden: int, *, add: bool, kernels: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.body, self.add = nn.Sequential(_silu(channels, hidden, kernels[0]), _silu(hidden, channels, kernels[1])), add

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x) if self.add else self.body(x)
        return out


class Chain(nn.Module):
    """YOLOv8's C2f: split in two halves, one through blocks whose every result is kept, all concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int, block: Callable[[int], nn.Module], ratio: float = 0.5) -> None:
        super().__init__()
        self.width = int(outputs * ratio)
        self.into, self.blocks = _silu(inputs, 2 * self.width), nn.ModuleList(block(self.width) for _ in range(depth))
        self.out = _silu((2 + depth) * self.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.into(x).split(self.width, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        out: Tensor = self.out(torch.cat(parts, 1))
        return out


def chain(inputs: int, outputs: int, depth: int, *, add: bool) -> Chain:
    """C2f of bottlenecks at full width."""
    return Chain(inputs, outputs, depth, lambda c: Bottleneck(c, c, add=add))


class Partial(nn.Module):
    """C3: one half through bottlenecks, the other through a 1x1 convolution, concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, add: bool, kernels: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        half = outputs // 2
        self.one, self.two, self.out = _silu(inputs, half), _silu(inputs, half), _silu(2 * half, outputs)
        self.blocks = nn.Sequential(*(Bottleneck(half, half, add=add, kernels=kernels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat((self.blocks(self.one(x)), self.two(x)), 1))
        return out


class Pyramid(nn.Module):
    """SPPF: one 5x5 maximum applied three times, all concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into, self.out, self.pool = _silu(channels, channels // 2), _silu(2 * channels, channels), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.into(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        out: Tensor = self.out(torch.cat(parts, 1))
        return out


class SpatialAttention(nn.Module):
    """Attention over all positions of a map, keys of half the size, a depthwise convolution of the values added; then two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.size = channels // self.heads
        self.key = self.size // 2
        self.project = conv(channels, channels + 2 * self.key * self.heads, act=None)
        self.position, self.out = conv(channels, channels, 3, groups=channels, act=None), conv(channels, channels, act=None)
        self.mix = nn.Sequential(_silu(channels, 2 * channels), conv(2 * channels, channels, act=None))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        query, key, value = self.project(x).view(n, self.heads, -1, height * width).split((self.key, self.key, self.size), 2)
        weights = ((query.transpose(-2, -1) @ key) * self.key**-0.5).softmax(-1)
        seen = (value @ weights.transpose(-2, -1)).view(n, channels, height, width)
        x = x + self.out(seen + self.position(value.reshape(n, channels, height, width)))
        out: Tensor = x + self.mix(x)
        return out


class Attended(nn.Module):
    """PSA: half of the channels through attention, concatenated to the other half."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__()
        self.width = channels // 2
        self.into, self.out = _silu(channels, channels), _silu(channels, channels)
        self.blocks = nn.Sequential(*(SpatialAttention(self.width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        kept, seen = self.into(x).split(self.width, 1)
        out: Tensor = self.out(torch.cat((kept, self.blocks(seen)), 1))
        return out


class LargeKernel(nn.Module):
    """YOLOv10's compact inverted block with 7x7 depthwise convolution (its 3x3 branch merged into it)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        layers = [_silu(channels, channels, 3, groups=channels), _silu(channels, wide), _silu(wide, wide, 7, groups=wide)]
        self.body = nn.Sequential(*layers, _silu(wide, channels), _silu(channels, channels, 3, groups=channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _separable_down(inputs: int, outputs: int) -> nn.Sequential:
    """YOLOv10's downsampling: 1x1, then depthwise 3x3 of stride 2 without activation."""
    return nn.Sequential(_silu(inputs, outputs), conv(outputs, outputs, 3, 2, outputs, act=None))


def decoded(sides: Tensor) -> Tensor:
    """Distances from every position to the four sides of its box (n, 4, positions) as its centre and size, of the same shape.

    Anchors and strides, constants of a published file, only have their shapes here: no weights are made either.
    """
    positions = sides.shape[-1]
    anchors, strides = torch.zeros(1, 2, positions, device=sides.device), torch.ones(1, 1, positions, device=sides.device)
    least, most = sides.chunk(2, 1)
    corner, other = anchors - least, anchors + most
    return torch.cat(((corner + other) / 2, other - corner), 1) * strides


def best_class(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4, positions) as centre and size to corners, and the best class of every position: (n, positions, 4), (n, positions) twice."""
    boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    values, classes = scores.max(-1)
    return torch.cat((centre - half, centre + half), -1), values, classes.to(torch.uint8)


class Head(nn.Module):
    """Anchor-free head of YOLOv8 and later: per level boxes as distributions and class scores; optionally 32 mask coefficients and prototypes."""

    def __init__(self, channels: Sequence[int], classes: int, *, separable: bool = False, masks: int = 0, prototypes: int = 0) -> None:
        super().__init__()
        box, score = max(16, channels[0] // 4, 4 * DISTANCES), max(channels[0], min(classes, 100))
        self.boxes = nn.ModuleList(nn.Sequential(_silu(c, box, 3), _silu(box, box, 3), nn.Conv2d(box, 4 * DISTANCES, 1)) for c in channels)
        self.scores = nn.ModuleList()
        for c in channels:
            plain = [_silu(c, score, 3), _silu(score, score, 3)]
            light = [_silu(c, c, 3, groups=c), _silu(c, score), _silu(score, score, 3, groups=score), _silu(score, score)]
            self.scores.append(nn.Sequential(*(light if separable else plain), nn.Conv2d(score, classes, 1)))
        self.expectation = nn.Conv2d(DISTANCES, 1, 1, bias=False)
        self.masks = nn.ModuleList()
        self.prototypes: nn.Module = nn.Identity()
        if masks:
            hidden = max(channels[0] // 4, masks)
            self.masks.extend(nn.Sequential(_silu(c, hidden, 3), _silu(hidden, hidden, 3), nn.Conv2d(hidden, masks, 1)) for c in channels)
            up = nn.ConvTranspose2d(prototypes, prototypes, 2, 2)
            self.prototypes = nn.Sequential(_silu(channels[0], prototypes, 3), up, _silu(prototypes, prototypes, 3), _silu(prototypes, masks))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        n = len(levels[0])
        boxes = torch.cat([head(x).view(n, 4 * DISTANCES, -1) for head, x in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.scores, levels, strict=True)], 2)
        positions = boxes.shape[-1]
        sides = self.expectation(boxes.view(n, 4, DISTANCES, positions).transpose(1, 2).softmax(1)).view(n, 4, positions)
        found = best_class(decoded(sides), scores.sigmoid())
        if not len(self.masks):
            return found
        coefficients = torch.cat([head(x).flatten(2) for head, x in zip(self.masks, levels, strict=True)], 2)
        return (*found, coefficients.transpose(1, 2), self.prototypes(levels[0]))


class Yolo(nn.Module):
    """Backbone that yields three levels, top-down and bottom-up paths, head."""

    def __init__(self, backbone: Sequence[nn.Module], down: Sequence[nn.Module], merges: Sequence[nn.Module], head: nn.Module) -> None:
        """`backbone`: up to stride 8, 16 and 32; `merges`: blocks at stride 16 and 8, then 16 and 32; `down`: between the last three."""
        super().__init__()
        self.backbone, self.down, self.merges, self.head = nn.ModuleList(backbone), nn.ModuleList(down), nn.ModuleList(merges), head

    def forward(self, x: Tensor) -> object:
        fine = self.backbone[0](x)
        middle = self.backbone[1](fine)
        coarse = self.backbone[2](middle)
        joined = self.merges[0](torch.cat((functional.interpolate(coarse, scale_factor=2.0), middle), 1))
        first = self.merges[1](torch.cat((functional.interpolate(joined, scale_factor=2.0), fine), 1))
        second = self.merges[2](torch.cat((self.down[0](first), joined), 1))
        third = self.merges[3](torch.cat((self.down[1](second), coarse), 1))
        return self.head([first, second, third])


def _widths(width: float, most: int) -> list[int]:
    return [math.ceil(min(c, most) * width / 8) * 8 for c in (64, 128, 256, 512, 1024)]


def yolov8(width: float, depth: float, most: int, *, classes: int = 80, masks: int = 0) -> nn.Module:
    """YOLOv8, detection or with masks (layer table: the configuration published with it); FastSAM is the one-class mask network."""
    a, b, c, d, e = _widths(width, most)

    def deep(n: int) -> int:
        return max(round(n * depth), 1)

    backbone = [
        nn.Sequential(_silu(3, a, 3, 2), _silu(a, b, 3, 2), chain(b, b, deep(3), add=True), _silu(b, c, 3, 2), chain(c, c, deep(6), add=True)),
        nn.Sequential(_silu(c, d, 3, 2), chain(d, d, deep(6), add=True)),
        nn.Sequential(_silu(d, e, 3, 2), chain(e, e, deep(3), add=True), Pyramid(e)),
    ]
    merges = [chain(x, y, deep(3), add=False) for x, y in ((e + d, d), (d + c, c), (c + d, d), (d + e, e))]
    head = Head((c, d, e), classes, masks=masks, prototypes=math.ceil(min(256, most) * width / 8) * 8)
    return Yolo(backbone, [_silu(c, c, 3, 2), _silu(d, d, 3, 2)], merges, head)


def yolov10n() -> nn.Module:
    """YOLOv10-N (arXiv 2405.14458) with its one-to-many head."""
    a, b, c, d, e = _widths(0.25, 1024)
    backbone = [
        nn.Sequential(_silu(3, a, 3, 2), _silu(a, b, 3, 2), chain(b, b, 1, add=True), _silu(b, c, 3, 2), chain(c, c, 2, add=True)),
        nn.Sequential(_separable_down(c, d), chain(d, d, 2, add=True)),
        nn.Sequential(_separable_down(d, e), chain(e, e, 1, add=True), Pyramid(e), Attended(e)),
    ]
    merges = [chain(x, y, 1, add=False) for x, y in ((e + d, d), (d + c, c), (c + d, d))]
    return Yolo(backbone, [_silu(c, c, 3, 2), _separable_down(d, d)], [*merges, Chain(d + e, e, 1, LargeKernel)], Head((c, d, e), 80, separable=True))


def yolo11n(*, masks: int = 0) -> nn.Module:
    """YOLO11-N, detection or with masks (layer table: the configuration published with it)."""
    a, b, c, d, e = _widths(0.25, 1024)

    def light(inputs: int, outputs: int, ratio: float = 0.5) -> nn.Module:
        return Chain(inputs, outputs, 1, lambda n: Bottleneck(n, n // 2, add=True), ratio)

    def nested(inputs: int, outputs: int) -> nn.Module:
        return Chain(inputs, outputs, 1, lambda n: Partial(n, n, 2, add=True))

    backbone = [
        nn.Sequential(_silu(3, a, 3, 2), _silu(a, b, 3, 2), light(b, c, 0.25), _silu(c, c, 3, 2), light(c, d, 0.25)),
        nn.Sequential(_silu(d, d, 3, 2), nested(d, d)),
        nn.Sequential(_silu(d, e, 3, 2), nested(e, e), Pyramid(e), Attended(e)),
    ]
    merges = [light(e + d, d), light(d + d, c), light(c + d, d), nested(d + e, e)]
    head = Head((c, d, e), 80, separable=True, masks=masks, prototypes=c)
    return Yolo(backbone, [_silu(c, c, 3, 2), _silu(d, d, 3, 2)], merges, head)


class YoloV3Tiny(nn.Module):
    """YOLOv3-tiny (arXiv 1804.02767) with the anchor-free head of YOLOv8 on two levels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (16, 32, 64, 128, 256):
            layers += [_silu(inputs, outputs, 3), nn.MaxPool2d(2)]
            inputs = outputs
        self.fine, self.pool = nn.Sequential(*layers[:-1]), layers[-1]
        self.coarse = nn.Sequential(_silu(256, 512, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), _silu(512, 1024, 3), _silu(1024, 256))
        self.large, self.narrow, self.small = _silu(256, 512, 3), _silu(256, 128), _silu(128 + 256, 256, 3)
        self.head = Head((256, 512), 80)

    def forward(self, x: Tensor) -> object:
        fine = self.fine(x)
        coarse = self.coarse(self.pool(fine))
        small = self.small(torch.cat((functional.interpolate(self.narrow(coarse), scale_factor=2.0), fine), 1))
        return self.head([small, self.large(coarse)])


class SpatialPyramid(nn.Module):
    """YOLOX's pooling pyramid: maxima of 5x5, 9x9 and 13x13 side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into, self.out = _silu(channels, channels // 2), _silu(2 * channels, channels)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        out: Tensor = self.out(torch.cat((x, *(pool(x) for pool in self.pools)), 1))
        return out


class Focus(nn.Module):
    """Every second row and column as channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)


class YoloX(nn.Module):
    """YOLOX-S (arXiv 2107.08430): decoupled head at width 128 on three levels."""

    def __init__(self) -> None:
        super().__init__()
        small = (1, 3)
        self.c3 = nn.Sequential(
            Focus(), _silu(12, 32, 3), _silu(32, 64, 3, 2), Partial(64, 64, 1, add=True, kernels=small), _silu(64, 128, 3, 2),
            Partial(128, 128, 3, add=True, kernels=small),
        )  # fmt: skip
        self.c4 = nn.Sequential(_silu(128, 256, 3, 2), Partial(256, 256, 3, add=True, kernels=small))
        self.c5 = nn.Sequential(_silu(256, 512, 3, 2), SpatialPyramid(512), Partial(512, 512, 1, add=False, kernels=small))
        self.narrow5, self.narrow4 = _silu(512, 256), _silu(256, 128)
        self.up4, self.up3 = Partial(512, 256, 1, add=False, kernels=small), Partial(256, 128, 1, add=False, kernels=small)
        self.down3, self.down4 = _silu(128, 128, 3, 2), _silu(256, 256, 3, 2)
        self.out4, self.out5 = Partial(256, 256, 1, add=False, kernels=small), Partial(512, 512, 1, add=False, kernels=small)
        self.stems = nn.ModuleList(_silu(c, 128) for c in (128, 256, 512))
        self.scores = nn.ModuleList(nn.Sequential(_silu(128, 128, 3), _silu(128, 128, 3)) for _ in range(3))
        self.boxes = nn.ModuleList(nn.Sequential(_silu(128, 128, 3), _silu(128, 128, 3)) for _ in range(3))
        self.to_score, self.to_box, self.to_object = (nn.ModuleList(nn.Conv2d(128, c, 1) for _ in range(3)) for c in (80, 4, 1))

    def forward(self, x: Tensor) -> object:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        narrow5 = self.narrow5(self.c5(c4))
        narrow4 = self.narrow4(self.up4(torch.cat((functional.interpolate(narrow5, scale_factor=2.0), c4), 1)))
        p3 = self.up3(torch.cat((functional.interpolate(narrow4, scale_factor=2.0), c3), 1))
        p4 = self.out4(torch.cat((self.down3(p3), narrow4), 1))
        p5 = self.out5(torch.cat((self.down4(p4), narrow5), 1))
        found = []
        for level, feature in enumerate((p3, p4, p5)):
            stem = self.stems[level](feature)
            scores, boxes = self.scores[level](stem), self.boxes[level](stem)
            parts = (self.to_box[level](boxes), self.to_object[level](boxes).sigmoid(), self.to_score[level](scores).sigmoid())
            found.append(torch.cat(parts, 1).flatten(2))
        all_found = torch.cat(found, 2)
        positions = all_found.shape[-1]
        grid, strides = torch.zeros(1, 2, positions, device=x.device), torch.ones(1, 1, positions, device=x.device)
        boxes = torch.cat(((all_found[:, :2] + grid) * strides, all_found[:, 2:4].exp() * strides), 1)
        return best_class(boxes, all_found[:, 5:] * all_found[:, 4:5])
