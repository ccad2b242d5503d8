"""The discriminator of ESRGAN (Wang et al. 2018, arXiv 1809.00219): ten VGG-like convolutions and two linear layers, for 128x128 images.

Attribute names follow BasicSR's checkpoints. With 64 features it has 14,499,401 parameters.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mcompress.compress.models.arguments import check_whole
from mcompress.errors import UsageError

IMAGE_SIZE = 128  # the linear layer fixes it: five halvings leave 4x4
STAGES = 5


class VGGDiscriminator(nn.Module):
    """Five stages, each a 3x3 convolution and a 4x4 convolution with stride 2; only the first convolution has no normalization."""

    def __init__(self, features: int, in_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(features * min(2**stage, 8) for stage in range(STAGES))]
        for stage, (before, width) in enumerate(pairwise(widths)):
            self.add_module(f"conv{stage}_0", nn.Conv2d(before, width, 3, padding=1, bias=stage == 0))
            if stage > 0:
                self.add_module(f"bn{stage}_0", nn.BatchNorm2d(width))
            self.add_module(f"conv{stage}_1", nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(width))
        self.linear1 = nn.Linear(widths[-1] * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 1)
        self.activation = nn.LeakyReLU(0.2)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, 128, 128) -> the activations of every convolution and of the first linear layer, then the logits (N, 1)."""
        if tuple(x.shape[2:]) != (IMAGE_SIZE, IMAGE_SIZE):
            raise UsageError(f"vgg_discriminator: the image is {tuple(x.shape[2:])} pixels; it must be (128, 128). Use patchgan for other sizes.")
        features = []
        for stage in range(STAGES):
            for half in (0, 1):
                x = self.get_submodule(f"conv{stage}_{half}")(x)
                if (stage, half) != (0, 0):
                    x = self.get_submodule(f"bn{stage}_{half}")(x)
                x = self.activation(x)
                features.append(x)
        hidden = self.activation(self.linear1(x.flatten(1)))
        return [*features, hidden, self.linear2(hidden)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 128, 128) -> logits (N, 1)."""
        return self.forward_features(x)[-1]


def vgg_discriminator(*, features: int = 64, in_channels: int = 3) -> VGGDiscriminator:
    """ESRGAN's VGG-style discriminator for 128x128 images (14,499,401 parameters)."""
    check_whole("vgg_discriminator", "features", features, low=1, high=512)
    check_whole("vgg_discriminator", "in_channels", in_channels, low=1, high=64)
    return VGGDiscriminator(features, in_channels)
