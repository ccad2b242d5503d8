"""MobileOne (arXiv 2206.04040) as it is deployed: its training branches merged into one convolution each."""

from __future__ import annotations

from torch import nn

from mcompress.compress.networks.layers import Excitation
from mcompress.compress.networks.reference import ReferenceNetwork

BLOCKS = (2, 8, 10, 1)
SOURCE = "arXiv 2206.04040, tables of architectures and results; https://github.com/apple/ml-mobileone"
PHOTO = (1, 3, 224, 224)


def _gate(channels: int) -> Excitation:
    return Excitation(channels, channels // 16)


def mobileone(widths: tuple[float, float, float, float], *, gated: bool = False) -> nn.Sequential:
    """`widths` multiply 64, 128, 256 and 512 channels; `gated` puts gates into half of the third stage and the last (S4)."""
    channels = min(64, int(64 * widths[0]))
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU()]
    for stage, (count, width) in enumerate(zip(BLOCKS, widths, strict=True)):
        outputs = int(64 * 2**stage * width)
        gates = {2: count // 2, 3: count}.get(stage, 0) if gated else 0
        for index in range(count):
            gate = [_gate] if index >= count - gates else []
            layers += [nn.Conv2d(channels, channels, 3, 2 if index == 0 else 1, 1, groups=channels), *(make(channels) for make in gate), nn.ReLU()]
            layers += [nn.Conv2d(channels, outputs, 1), *(make(outputs) for make in gate), nn.ReLU()]
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


MOBILEONE: dict[str, ReferenceNetwork] = {
    "mobileone_s0": ReferenceNetwork(lambda: mobileone((0.75, 1.0, 1.0, 2.0)), PHOTO, 2_100_000, SOURCE, 0.275, parameters_within=0.03),
    "mobileone_s1": ReferenceNetwork(lambda: mobileone((1.5, 1.5, 2.0, 2.5)), PHOTO, 4_800_000, SOURCE, 0.825, parameters_within=0.03),
    "mobileone_s2": ReferenceNetwork(lambda: mobileone((1.5, 2.0, 2.5, 4.0)), PHOTO, 7_800_000, SOURCE, 1.299, parameters_within=0.03),
    "mobileone_s3": ReferenceNetwork(lambda: mobileone((2.0, 2.5, 3.0, 4.0)), PHOTO, 10_100_000, SOURCE, 1.896, parameters_within=0.03),
    "mobileone_s4": ReferenceNetwork(lambda: mobileone((3.0, 3.5, 3.5, 4.0), gated=True), PHOTO, 14_800_000, SOURCE, 2.978, parameters_within=0.03),
}
"""Published counts have two digits."""
