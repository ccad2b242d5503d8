"""PatchGAN, the discriminator that judges patches (pix2pix, Isola et al. 2017, arXiv 1611.07004, section 3.2).

Three strided layers see 70x70 pixels each. With 64 features, instance normalization without parameters and therefore biases it has 2,764,737
parameters for 3 input channels and 2,767,809 for 6; with batch normalization, whose shift replaces the biases, 2,768,705 for 6.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mcompress.compress.models.arguments import check_choice, check_whole
from mcompress.compress.models.normalization import NORMALIZATIONS, Normalization, normalization_of

WIDEST = 8  # a layer is at most this many times as wide as the first one


class PatchGAN(nn.Module):
    """4x4 convolutions: `layers` with stride 2, one with stride 1, one that gives the logits."""

    def __init__(self, features: int, layers: int, in_channels: int, normalization: Normalization) -> None:
        super().__init__()
        widths = [features * min(2**layer, WIDEST) for layer in range(layers + 1)]
        first = nn.Sequential(nn.Conv2d(in_channels, features, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        others = (
            nn.Sequential(
                nn.Conv2d(before, width, 4, stride=2 if layer < layers else 1, padding=1, bias=normalization == "instance"),
                normalization_of(normalization, width),
                nn.LeakyReLU(0.2),
            )
            for layer, (before, width) in enumerate(pairwise(widths), start=1)
        )
        self.blocks = nn.ModuleList([first, *others])
        self.logits = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> the activations of every block, then the logits (N, 1, H', W')."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return [*features, self.logits(x)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits of overlapping patches, (N, 1, H', W'); H' = H / 2^layers - 2."""
        return self.forward_features(x)[-1]


def patchgan(*, features: int = 64, layers: int = 3, in_channels: int = 3, normalization: Normalization = "instance") -> PatchGAN:
    """PatchGAN discriminator; the defaults judge patches of 70x70 pixels (2,764,737 parameters)."""
    check_whole("patchgan", "features", features, low=1, high=1024)
    check_whole("patchgan", "layers", layers, low=1, high=8)
    check_whole("patchgan", "in_channels", in_channels, low=1, high=64)
    check_choice("patchgan", "normalization", normalization, NORMALIZATIONS)
    return PatchGAN(features, layers, in_channels, normalization)
