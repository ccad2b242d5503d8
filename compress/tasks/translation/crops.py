"""Cutting pictures of translation: random crops, mirrored extensions, and bytes to values in [-1, 1]. A picture is a uint8 tensor (3, H, W)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

STRIDE = 4
VALIDATION_PIXELS, LARGEST_TILE = 16 * 128**2, 256
"""Pixels to validate on at most, and the largest side of their squares. It is a power of two, for a U-Net halves it many times."""


def to_values(pixels: Tensor) -> Tensor:
    """0 to 255 -> -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def to_bytes(values: Tensor) -> Tensor:
    """-1 to 1 (clipped to it) -> 0 to 255, rounded."""
    return ((values.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def whole(picture: Tensor) -> Tensor:
    """A picture as a batch of one in [-1, 1], its sides cut to a multiple of 4, which a generator with two steps of halving needs."""
    height, width = whole_size(picture)
    return to_values(picture[None, :, :height, :width])


def whole_size(picture: Tensor) -> tuple[int, int]:
    """Height and width, pixels, of what `whole` leaves."""
    return picture.shape[1] // STRIDE * STRIDE, picture.shape[2] // STRIDE * STRIDE


def mean_colour(pictures: Sequence[Tensor]) -> Tensor:
    """The mean over the pictures' mean colours, (1, 3, 1, 1) in [-1, 1]."""
    return torch.stack([to_values(picture).mean(dim=(1, 2)) for picture in pictures]).mean(dim=0)[None, :, None, None]


def psnr_db(output: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of values in [-1, 1], dB, both clipped to it and rounded to 8 bits; infinite for equal ones."""
    difference = to_bytes(output).double() - to_bytes(truth).double()
    return float(-10.0 * torch.log10(torch.mean(difference**2) / 255.0**2))


def smaller_side(picture: Tensor) -> int:
    """The shorter of height and width, pixels."""
    return min(picture.shape[-2:])


def count_fitting(pictures: Sequence[Tensor], crop_size: int) -> tuple[int, int]:
    """How many of the pictures can give a crop of this size (pixels), and how many there are."""
    return sum(smaller_side(picture) >= crop_size for picture in pictures), len(pictures)


def random_crops(sets: Sequence[tuple[Tensor, ...]], batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The same random square of each picture of a set: for sets of K pictures, K batches (N, 3, crop_size, crop_size) in [-1, 1].

    Each set that is large enough is equally likely; there must be one. Everything random comes from `generator`.
    """
    fitting = [pictures for pictures in sets if smaller_side(pictures[0]) >= crop_size]
    rows: list[tuple[Tensor, ...]] = []
    for index in torch.randint(len(fitting), (batch_size,), generator=generator).tolist():
        pictures = fitting[index]
        top, left = (int(torch.randint(side - crop_size + 1, (1,), generator=generator)) for side in pictures[0].shape[1:])
        rows.append(tuple(picture[:, top : top + crop_size, left : left + crop_size] for picture in pictures))
    return tuple(to_values(torch.stack(column)) for column in zip(*rows, strict=True))


def mirrored(images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Batches (N, C, H, W), each sample left and right exchanged or not, alike in all of them."""
    flip = (torch.rand((images[0].shape[0], 1, 1, 1), generator=generator) < 0.5).to(images[0].device)
    return tuple(torch.where(flip, image.flip(3), image) for image in images)


def cut(pictures: tuple[Tensor, ...], height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The same random part of each picture, extended by mirroring where the pictures are smaller; (1, 3, height, width) in [-1, 1]."""
    top, left = (
        int(torch.randint(max(1, have - want + 1), (1,), generator=generator))
        for have, want in zip(pictures[0].shape[1:], (height, width), strict=True)
    )
    return tuple(_extended(to_values(p[None, :, top : top + height, left : left + width]), height, width) for p in pictures)


def parts(named: Sequence[tuple[str, tuple[Tensor, ...]]], count: int, shape: tuple[int, ...], seed: int) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """`count` random parts, in turn of each set of pictures: for sets of K pictures, a name and K batches of `shape`, (N, 3, H, W) in [-1, 1].

    The first are the same for any `count`.
    """
    batch, _, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        chosen = [named[(index * batch + k) % len(named)] for k in range(batch)]
        columns = zip(*(cut(pictures, height, width, generator) for _, pictures in chosen), strict=True)
        yield f"{'+'.join(name for name, _ in chosen)} #{index}", tuple(torch.cat(column) for column in columns)


def _extended(image: Tensor, height: int, width: int) -> Tensor:
    while image.shape[2] < height or image.shape[3] < width:  # a mirror adds less than the image itself, so small images take several
        right, bottom = min(width - image.shape[3], image.shape[3] - 1), min(height - image.shape[2], image.shape[2] - 1)
        image = functional.pad(image, (0, right, 0, bottom), mode="reflect")
    return image


def tile_side(pictures: Sequence[Tensor]) -> int:
    """The side of the squares to validate on: the largest power of two up to 256 that fits into every picture."""
    side = min(smaller_side(picture) for picture in pictures)
    return int(min(LARGEST_TILE, 2 ** (side.bit_length() - 1)))


def validation_tiles(sets: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Squares of side `tile_side`, one of each set in turn, which do not overlap; for sets of K pictures, K batches (N, 3, S, S) in [-1, 1].

    There are as many as `VALIDATION_PIXELS` allow.
    """
    size = tile_side([pictures[0] for pictures in sets])
    grids = []
    for pictures in sets:
        height, width = pictures[0].shape[1:]
        places = [
            (top, left) for top in range(height % size // 2, height - size + 1, size) for left in range(width % size // 2, width - size + 1, size)
        ]
        grids.append([tuple(p[:, top : top + size, left : left + size] for p in pictures) for top, left in places])
    turns = [grid[turn] for turn in range(max(len(grid) for grid in grids)) for grid in grids if turn < len(grid)]
    return tuple(to_values(torch.stack(column)) for column in zip(*turns[: VALIDATION_PIXELS // size**2], strict=True))
