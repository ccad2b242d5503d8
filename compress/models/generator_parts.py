"""What the generators of image translation share: how they start, which arguments they refuse, and how widths are written."""

from __future__ import annotations

from torch import nn

from mcompress.compress.models.arguments import check_choice, check_whole
from mcompress.compress.models.normalization import NORMALIZATIONS
from mcompress.errors import UsageError

FEATURES = 64
"""Of the published generators."""
WIDEST = 1024
START = 0.02


def start_as_published(network: nn.Module) -> None:
    """Weights from N(0, 0.02), scales of batch normalization from N(1, 0.02), biases zero: what pix2pix and CycleGAN are trained from."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, START)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, START)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_generator(network: str, features: object, widths: object, normalization: object, in_channels: object, out_channels: object) -> None:
    """Raise `UsageError` for arguments that no generator here can take; what `widths` must be is each generator's own."""
    check_whole(network, "features", features, low=1, high=WIDEST)
    if widths is not None and features != FEATURES:
        raise UsageError(f"{network}: features is {features!r} and widths is {widths!r}; give one of the two")
    check_choice(network, "normalization", normalization, NORMALIZATIONS)
    check_whole(network, "in_channels", in_channels, low=1, high=64)
    check_whole(network, "out_channels", out_channels, low=1, high=64)
