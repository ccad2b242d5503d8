"""Photographs for super-resolution: degrade, crop, augment.

An image is a uint8 tensor (3, H, W). Low resolution is antialiased bicubic x4, rounded to 8 bits as a camera or a decoder would deliver it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mcompress.compress.tasks.photographs import LUMA, Photo

SCALE = 4
PYRAMID = (1.0, 0.75, 0.5)  # training photographs also reduced, because a reduced photograph is sharper than most originals


def degrade(high: Tensor) -> Tensor:
    """Antialiased bicubic x4 reduction: (N, 3, 4H, 4W) in [0, 1] -> (N, 3, H, W) in [0, 1], rounded to 8 bits."""
    low = functional.interpolate(high, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return (low.clamp(0.0, 1.0) * 255.0).round() / 255.0


def bicubic_upsample(low: Tensor) -> Tensor:
    """Bicubic x4 enlargement, the baseline: (N, 3, H, W) -> (N, 3, 4H, 4W), clipped to [0, 1]."""
    return functional.interpolate(low, scale_factor=float(SCALE), mode="bicubic", antialias=True).clamp(0.0, 1.0)


def whole_pair(photo: Photo) -> tuple[Tensor, Tensor]:
    """A photograph as (low, high), batch of one in [0, 1], sides cut to a multiple of 4."""
    height, width = (side // SCALE * SCALE for side in photo.pixels.shape[1:])
    high = photo.pixels[None, :, :height, :width].float() / 255.0
    return degrade(high), high


def pyramid(photos: Sequence[Photo], smallest: int) -> tuple[Tensor, ...]:
    """Each photograph at the scales of `PYRAMID`, where it stays at least `smallest` pixels on each side; uint8 (3, H, W)."""
    levels = []
    for photo in photos:
        for factor in PYRAMID:
            height, width = (int(side * factor) for side in photo.pixels.shape[1:])
            if min(height, width) < smallest:
                continue
            if factor == 1.0:
                levels.append(photo.pixels)
                continue
            reduced = functional.interpolate(photo.pixels[None].float(), size=(height, width), mode="bicubic", antialias=True)
            levels.append(reduced[0].round().clamp(0, 255).to(torch.uint8))
    return tuple(levels)


def random_batch(levels: Sequence[Tensor], batch_size: int, low_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops with flips, rotations and colour changes: (low, high) in [0, 1], high (N, 3, 4*low_size, 4*low_size).

    Crops are drawn from each image in proportion to its area. Everything random comes from `generator`.
    """
    size = low_size * SCALE
    areas = torch.tensor([float(level.shape[1] * level.shape[2]) for level in levels])
    chosen = torch.multinomial(areas, batch_size, replacement=True, generator=generator).tolist()
    crops = []
    for index in chosen:
        level = levels[index]
        top = int(torch.randint(level.shape[1] - size + 1, (1,), generator=generator))
        left = int(torch.randint(level.shape[2] - size + 1, (1,), generator=generator))
        flips, turns = torch.randint(4, (2,), generator=generator).tolist()
        crop = level[:, top : top + size, left : left + size]
        crop = crop.flip(1) if flips & 1 else crop
        crop = crop.flip(2) if flips & 2 else crop
        crops.append(crop.transpose(1, 2) if turns & 1 else crop)
    high = recolour(torch.stack(crops).float() / 255.0, generator)
    return degrade(high), high


def reorient(images: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Flip and transpose batches (N, C, H, W) alike."""
    flips, turns = torch.randint(4, (2,), generator=generator).tolist()
    axes = [axis for bit, axis in ((1, 2), (2, 3)) if flips & bit]
    return tuple((image.flip(axes).transpose(2, 3) if turns & 1 else image.flip(axes)).contiguous() for image in images)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random channel order, saturation (0 to 2), contrast and brightness per image; (N, 3, H, W) in [0, 1].

    A handful of photographs does not cover the colours of the world; without this a network fails on saturated held-out ones.
    """
    count = images.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand((count, 1, 1, 1), generator=generator) * (high - low) + low).to(images)

    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = luma + (images - luma) * uniform(0.0, 2.0)
    return (0.5 + (images - 0.5) * uniform(0.7, 1.3) + uniform(-0.15, 0.15)).clamp(0.0, 1.0)
