"""Wav2Lip's generator (arXiv 2008.10010) and Nota's compressed one (arXiv 2304.00471): a face and a piece of speech in, the face with that mouth out.

Latencies of both are published for NVIDIA's boards. Channels are those of Nota-NetsPresso/nota-wav2lip, `nota_wav2lip/models`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcompress.compress.networks.reference import ReferenceNetwork

Stride = int | tuple[int, int]
FACE = (1, 6, 96, 96)
SOURCE = "https://github.com/Nota-NetsPresso/nota-wav2lip"


class Block(nn.Module):
    """Convolution with bias, batch normalization, the input added where it has the same shape, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Stride = 1, padding: int = 1, *, residual: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return torch.relu(out + x if self.residual else out)


def residuals(channels: int, count: int) -> list[nn.Module]:
    """`count` blocks of 3x3 that add their input."""
    return [Block(channels, channels, 3, residual=True) for _ in range(count)]


def upward(inputs: int, outputs: int, *, first: bool) -> nn.Sequential:
    """Transposed 3x3 that doubles the size, or makes 3x3 of one pixel."""
    layer = nn.ConvTranspose2d(inputs, outputs, 3, 1, 0) if first else nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class TalkingFace(nn.Module):
    """The generator. Takes the lower-masked and the reference face (batch, 6, 96, 96); the speech is a view of that input, so one suffices.

    `face`, `audio` and `decoder` are channels per stage, `repeats` residual blocks per stage of the three parts.
    """

    def __init__(
        self,
        face: Sequence[int],
        audio: Sequence[int],
        decoder: Sequence[int],
        last: int,
        repeats: tuple[Sequence[int], Sequence[int], Sequence[int]],
    ) -> None:
        super().__init__()
        of_face, of_audio, of_decoder = repeats
        stages: list[nn.Module] = [nn.Sequential(Block(6, face[0], 7, 1, 3))]
        for before, width, count in zip(face[:-1], face[1:], of_face, strict=True):
            stages.append(nn.Sequential(Block(before, width, 3, 2), *residuals(width, count)))
        deepest = face[-1]
        stages.append(nn.Sequential(Block(deepest, deepest, 3, 1, 0), Block(deepest, deepest, 1, 1, 0)))
        self.face = nn.ModuleList(stages)

        strides: tuple[Stride, ...] = (1, (3, 1), 3, (3, 2))
        heard: list[nn.Module] = []
        before = 1
        for width, stride, count in zip(audio[:-1], strides, of_audio, strict=True):
            heard += [Block(before, width, 3, stride), *residuals(width, count)]
            before = width
        self.audio = nn.Sequential(*heard, Block(before, audio[-1], 3, 1, 0), Block(audio[-1], audio[-1], 1, 1, 0))

        skips = [deepest, *reversed(face)]
        blocks: list[nn.Module] = [nn.Sequential(Block(audio[-1], decoder[0], 1, 1, 0))]
        joined = decoder[0] + skips[0]
        for index, (width, count) in enumerate(zip(decoder[1:], of_decoder, strict=True)):
            blocks.append(nn.Sequential(upward(joined, width, first=index == 0), *residuals(width, count)))
            joined = width + skips[index + 1]
        self.decoder = nn.ModuleList(blocks)
        self.output = nn.Sequential(Block(joined, last, 3), nn.Conv2d(last, 3, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        speech = x[:, :1, :80, :16]
        features: list[Tensor] = []
        for stage in self.face:
            x = stage(x)
            features.append(x)
        y: Tensor = self.audio(speech)
        for block in self.decoder:
            y = torch.cat((block(y), features.pop()), 1)
        out: Tensor = self.output(y)
        return out


def wav2lip() -> TalkingFace:
    """The original."""
    repeats = ((2, 3, 2, 2, 1), (2, 2, 2, 1), (1, 2, 2, 2, 2, 2))
    return TalkingFace((16, 32, 64, 128, 256, 512), (32, 64, 128, 256, 512), (512, 512, 512, 384, 256, 128, 64), 32, repeats)


def compressed_wav2lip() -> TalkingFace:
    """A quarter of the channels, no residual blocks."""
    repeats = ((0,) * 5, (0,) * 4, (0,) * 6)
    return TalkingFace((4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128), (128, 128, 128, 96, 64, 32, 16), 8, repeats)


TALKING_FACES: dict[str, ReferenceNetwork] = {
    "wav2lip": ReferenceNetwork(wav2lip, FACE, 36_298_035, f"arXiv 2008.10010; {SOURCE}", 3.967),
    "compressed_wav2lip": ReferenceNetwork(compressed_wav2lip, FACE, 1_258_143, f"arXiv 2304.00471; {SOURCE}", 0.075),
}
"""Multiply-adds of exact work; the papers count transposed convolutions by their output: 6.202 and 0.2147."""
