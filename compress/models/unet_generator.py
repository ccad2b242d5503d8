"""The U-Net generator of pix2pix (Isola et al. 2017, arXiv 1611.07004) and its narrow family (OMGD, Ren et al. 2021, arXiv 2108.06908).

Convolutions 4x4 of stride 2 halve the image level by level, transposed ones double it again, and each of these sees the level's own input beside what
comes from below. With 8 levels and 64 features it has 54,413,955 parameters, with 16 features 3,404,451.

A parameter of a narrower network is the leading block of the same-named one of a wider network along its outputs; along the inputs of a transposed
convolution it is the leading block of each of the two joined parts, which `joined` tells (`mcompress.compress.models.space.cut` follows it).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.arguments import check_whole, whole_numbers
from mcompress.compress.models.generator_parts import (
    WIDEST,
    check_generator,
    start_as_published,
)
from mcompress.compress.models.normalization import Normalization, normalization_of
from mcompress.errors import UsageError

NETWORK = "unet_generator"
SLOPE = 0.2
DROPOUT = 0.5
MOST_DOWNS = 10
MOST_MULTIPLE = 8  # a level is at most this many times as wide as the first one


class Level(nn.Module):
    """A convolution that changes the size, its normalization and its dropout, if it has them."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, normalization: Normalization | None, *, dropout: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.Identity() if normalization is None else normalization_of(normalization, conv.out_channels)
        self.drop = nn.Dropout(DROPOUT) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), half or twice the size."""
        out: Tensor = self.drop(self.norm(self.conv(x)))
        return out


class UnetGenerator(nn.Module):
    """Image to image at the same size. `downs` from the image inwards; `ups[k]` leads out of level k."""

    def __init__(self, channels: Sequence[int], normalization: Normalization, in_channels: int, out_channels: int, dropped: frozenset[int]) -> None:
        super().__init__()
        bias, last = normalization == "instance", len(channels) - 1
        self.downs = nn.ModuleList(
            # Neither the first level nor the innermost, which may be one pixel, is normalized.
            Level(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=bias), normalization if 0 < level < last else None)
            for level, (before, after) in enumerate(pairwise((in_channels, *channels)))
        )
        self.ups = nn.ModuleList(
            Level(
                nn.ConvTranspose2d(below if level == last else 2 * below, above, 4, stride=2, padding=1, bias=bias or level == 0),
                normalization if level else None,
                dropout=level in dropped,
            )
            for level, (above, below) in enumerate(pairwise((out_channels, *channels)))
        )
        self.act = nn.LeakyReLU(SLOPE)

    @property
    def feature_taps(self) -> tuple[str, ...]:
        """Modules whose outputs distillation compares: on the way in and out, near the image and half way to the innermost level."""
        half = len(self.downs) // 2
        return tuple(dict.fromkeys(("downs.1", f"downs.{half}", f"ups.{half}", "ups.1")))

    def joined(self) -> dict[str, tuple[str, ...]]:
        """The layers whose inputs are joined from several layers -> the layers whose outputs these are, in their order."""
        return {f"ups.{level}.conv": (f"downs.{level}.conv", f"ups.{level + 1}.conv") for level in range(len(self.ups) - 1)}

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) in [-1, 1] -> (N, out_channels, H, W) in [-1, 1]; H and W are multiples of 2^downs.

        Raises `UsageError` for an image of another size.
        """
        height, width = x.shape[2:]
        step = 2 ** len(self.downs)
        if height % step or width % step:
            raise UsageError(
                f"{NETWORK}: the image is ({height}, {width}) pixels; with downs {len(self.downs)} both must be multiples of {step}. "
                "Cut or resize the image, or lower downs"
            )
        features, feature = [], x
        for level, down in enumerate(self.downs):
            feature = down(feature if level == 0 else self.act(feature))
            features.append(feature)
        risen = functional.relu(features.pop())
        for level in range(len(self.ups) - 1, 0, -1):
            above = self.ups[level](risen)
            # Each part has its ReLU before it is joined: what comes from below then has it together with its convolution.
            risen = torch.cat((functional.relu(features.pop()), functional.relu(above)), 1)
        image: Tensor = torch.tanh(self.ups[0](risen))
        return image


def unet_generator(
    *,
    features: int = 64,
    widths: Sequence[int] | str | None = None,
    downs: int = 8,
    normalization: Normalization = "batch",
    dropout: bool = False,
    in_channels: int = 3,
    out_channels: int = 3,
) -> UnetGenerator:
    """U-Net generator of pix2pix; the defaults are the published size for 256x256 images (54,413,955 parameters).

    `widths`, in place of `features`, are one number per level, as a list or written 16_16_12_8: times 1, 2, 4 and, from the fourth level on, 8.
    `downs` is the number of levels; image sides are multiples of 2^downs. `dropout` drops, in training only, half of what comes out of the innermost
    levels but the last, as pix2pix is trained. Raises `UsageError`.
    """
    check_generator(NETWORK, features, widths, normalization, in_channels, out_channels)
    check_whole(NETWORK, "downs", downs, low=2, high=MOST_DOWNS)
    if not isinstance(dropout, bool):
        raise UsageError(f"{NETWORK}: dropout is {dropout!r}; it must be true or false")
    base: tuple[int, ...] = (features,) * downs
    if widths is not None:
        meaning = f"one per level, because downs is {downs}"
        base = whole_numbers(NETWORK, "widths", widths, lengths=(downs,), low=1, high=WIDEST, meaning=meaning)
    times = multiples(downs)
    channels = [width * multiple for width, multiple in zip(base, times, strict=True)]
    # Those whose outside is as wide as they can become, the innermost excepted.
    dropped = frozenset(level for level in range(1, downs - 1) if times[level - 1] == MOST_MULTIPLE) if dropout else frozenset()
    network = UnetGenerator(channels, normalization, in_channels, out_channels, dropped)
    start_as_published(network)
    return network


def multiples(downs: int) -> tuple[int, ...]:
    """Channels of each level per number of `widths`."""
    return tuple(min(2**level, MOST_MULTIPLE) for level in range(downs))
