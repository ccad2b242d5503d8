"""Video classifiers of arXiv 1711.11248: ResNet-18 with 3D, (2+1)D or first 3D and then 2D convolutions; (n, 3, frames, height, width)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Kind = Literal["3d", "2+1d", "mixed"]


def _conv(inputs: int, outputs: int, middle: int, stride: int, kind: Kind, stage: int) -> nn.Sequential:
    if kind == "2+1d":
        spatial = nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        return nn.Sequential(spatial, nn.BatchNorm3d(middle), nn.ReLU(), nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False))
    if kind == "mixed" and stage > 0:
        return nn.Sequential(nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False))
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False))


class Block(nn.Module):
    """Two convolutions, normalized, added to the input or its projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: Kind, stage: int) -> None:
        super().__init__()
        # As many channels between the two halves of a (2+1)D convolution as give the parameters of the block's first 3D one.
        middle = inputs * outputs * 27 // (inputs * 9 + 3 * outputs)
        self.body = nn.Sequential(
            _conv(inputs, outputs, middle, stride, kind, stage), nn.BatchNorm3d(outputs), nn.ReLU(),
            _conv(outputs, outputs, middle, 1, kind, stage), nn.BatchNorm3d(outputs),
        )  # fmt: skip
        step = (1, stride, stride) if kind == "mixed" else stride
        project = nn.Sequential(nn.Conv3d(inputs, outputs, 1, step, bias=False), nn.BatchNorm3d(outputs))
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else project
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.skip(x))
        return out


class VideoResNet18(nn.Module):
    """The network of 18 layers, 400 classes."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        stem: list[nn.Module]
        if kind == "2+1d":
            spatial = nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
            stem = [spatial, nn.BatchNorm3d(45), nn.ReLU(), nn.Conv3d(45, 64, (3, 1, 1), 1, (1, 0, 0), bias=False)]
        else:
            stem = [nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)]
        layers: list[nn.Module] = [*stem, nn.BatchNorm3d(64), nn.ReLU()]
        inputs = 64
        for stage, outputs in enumerate((64, 128, 256, 512)):
            layers += [Block(inputs, outputs, 2 if stage else 1, kind, stage), Block(outputs, outputs, 1, kind, stage)]
            inputs = outputs
        self.features, self.head = nn.Sequential(*layers), nn.Linear(512, 400)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x).flatten(2).mean(2))
        return out
