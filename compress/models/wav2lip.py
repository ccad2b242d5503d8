"""Wav2Lip's generator (Prajwal et al. 2020, arXiv 2008.10010), and Nota's compressed form (Kim et al. 2023, arXiv 2304.00471).

A face whose lower half is masked, with a reference frame of the same person, and 200 ms of speech in; the face with the mouth of that speech out.
Published, 36,298,035 parameters: 8,171,056 of the face encoder, 2,812,672 of the audio encoder, 25,291,072 of the decoder and 23,235 of the output.
Without residual blocks 20,061,555. The compressed form has none, and a quarter of the channels: 1,258,143.

Modules are named as in the public checkpoints of Wav2Lip, so those load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mcompress.compress.models.arguments import check_whole, whole_numbers
from mcompress.errors import UsageError

NETWORK = "wav2lip"
FACE_CHANNELS, FACE_SIDE = 6, 96
MEL_BANDS, MEL_FRAMES = 80, 16
WIDEST, MOST_BLOCKS = 1024, 16
AUDIO_STRIDES: tuple[int | tuple[int, int], ...] = (1, (3, 1), 3, (3, 2))


class Block(nn.Module):
    """Convolution with bias, batch normalization, the input added in a residual block, ReLU. (N, C, H, W) -> (N, C', H', W')."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int | tuple[int, int] = 1, padding: int = 1, *, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.conv_block(x)
        return torch.relu(out + x if self.residual else out)


class Upward(nn.Module):
    """Transposed 3x3 convolution that doubles the sides, or the `first` one, which makes 3x3 of one pixel; batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d(inputs, outputs, 3, 1, 0) if first else nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
        self.conv_block = nn.Sequential(layer, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', 2 H, 2 W), or (N, C', 3, 3)."""
        return torch.relu(self.conv_block(x))


def residual_blocks(channels: int, count: int) -> list[Block]:
    """`count` blocks of 3x3 that add their input."""
    return [Block(channels, channels, 3, residual=True) for _ in range(count)]


def encoder_ends(before: int, width: int) -> tuple[Block, Block]:
    """What makes one pixel of 3x3: an unpadded 3x3, then a 1x1."""
    return Block(before, width, 3, padding=0), Block(width, width, 1, padding=0)


class Wav2Lip(nn.Module):
    """The generator; see `wav2lip` for its sizes."""

    def __init__(self, face: Sequence[int], audio: Sequence[int], decoder: Sequence[int], output: int, blocks: Sequence[Sequence[int]]) -> None:
        super().__init__()
        of_face, of_audio, of_decoder = blocks
        stages = [nn.Sequential(Block(FACE_CHANNELS, face[0], 7, padding=3))]
        stages += [
            nn.Sequential(Block(before, width, 3, 2), *residual_blocks(width, count))
            for (before, width), count in zip(pairwise(face), of_face, strict=True)
        ]
        stages.append(nn.Sequential(*encoder_ends(face[-1], face[-1])))
        self.face_encoder_blocks = nn.ModuleList(stages)

        heard: list[Block] = []
        for (before, width), stride, count in zip(pairwise((1, *audio[:-1])), AUDIO_STRIDES, of_audio, strict=True):
            heard += [Block(before, width, 3, stride), *residual_blocks(width, count)]
        self.audio_encoder = nn.Sequential(*heard, *encoder_ends(audio[-2], audio[-1]))

        skips = (face[-1], *reversed(face))
        joined = [width + skip for width, skip in zip(decoder, skips, strict=True)]
        rising = [nn.Sequential(Block(audio[-1], decoder[0], 1, padding=0))]
        rising += [
            nn.Sequential(Upward(before, width, first=index == 0), *residual_blocks(width, count))
            for index, (before, width, count) in enumerate(zip(joined[:-1], decoder[1:], of_decoder, strict=True))
        ]
        self.face_decoder_blocks = nn.ModuleList(rising)
        self.feature_taps = ("audio_encoder", *(f"face_decoder_blocks.{index}" for index in range(2, 6)))  # what is heard; at 6, 12, 24 and 48 pixels
        self.output_block = nn.Sequential(Block(joined[-1], output, 3), nn.Conv2d(output, 3, 1), nn.Sigmoid())

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Layer -> the layers that it reads, in their order: what rises, and what the face encoder saw at this size."""
        rising = [f"face_decoder_blocks.{stage}.0.conv_block.0" for stage in range(len(self.face_decoder_blocks))]
        seen = [f"face_encoder_blocks.{stage}.0.conv_block.0" for stage in range(len(self.face_encoder_blocks))]
        readers = [*rising[1:], "output_block.0.conv_block.0"]
        return dict(zip(readers, zip(rising, reversed(seen), strict=True), strict=True))

    def encode_audio(self, audio: Tensor) -> Tensor:
        """Log-mel windows (N, 1, 80, 16) in [-4, 4] -> (N, C, 1, 1)."""
        speech: Tensor = self.audio_encoder(audio)
        return speech

    def forward(self, face: Tensor, audio: Tensor) -> Tensor:
        """The face with its lower half masked above a reference frame (N, 6, 96, 96) in [0, 1], and log-mel windows (N, 1, 80, 16) in [-4, 4].

        Returns faces (N, 3, 96, 96) in [0, 1]. Raises `UsageError` for other sizes.
        """
        for what, given, wanted in (("face", face, (FACE_CHANNELS, FACE_SIDE, FACE_SIDE)), ("audio", audio, (1, MEL_BANDS, MEL_FRAMES))):
            if tuple(given.shape[1:]) != wanted:
                raise UsageError(f"{NETWORK}: {what} is {tuple(given.shape)}; it must be (N, {', '.join(map(str, wanted))})")
        seen = []
        for stage in self.face_encoder_blocks:
            face = stage(face)
            seen.append(face)
        risen = self.encode_audio(audio)
        for stage in self.face_decoder_blocks:
            risen = torch.cat((stage(risen), seen.pop()), 1)
        made: Tensor = self.output_block(risen)
        return made


def wav2lip(
    *,
    face_widths: Sequence[int] | str = (16, 32, 64, 128, 256, 512),
    audio_widths: Sequence[int] | str = (32, 64, 128, 256, 512),
    decoder_widths: Sequence[int] | str = (512, 512, 512, 384, 256, 128, 64),
    output_width: int = 32,
    face_blocks: Sequence[int] | str = (2, 3, 2, 2, 1),
    audio_blocks: Sequence[int] | str = (2, 2, 2, 1),
    decoder_blocks: Sequence[int] | str = (1, 2, 2, 2, 2, 2),
) -> Wav2Lip:
    """Wav2Lip's generator; the defaults are the published size (36,298,035 parameters).

    Widths are channels per stage: of the face at 96, 48, 24, 12, 6 and 3 pixels, of the audio encoder, of the decoder at 1, 3, 6, 12, 24, 48 and 96
    pixels; blocks are residual blocks behind each stage but the first of face and decoder. Raises `UsageError`.
    """
    widths = [
        whole_numbers(NETWORK, name, value, lengths=(length,), low=1, high=WIDEST, meaning="channels per stage")
        for name, value, length in (("face_widths", face_widths, 6), ("audio_widths", audio_widths, 5), ("decoder_widths", decoder_widths, 7))
    ]
    blocks = [
        whole_numbers(NETWORK, name, value, lengths=(length,), low=0, high=MOST_BLOCKS, meaning="residual blocks per stage")
        for name, value, length in (("face_blocks", face_blocks, 5), ("audio_blocks", audio_blocks, 4), ("decoder_blocks", decoder_blocks, 6))
    ]
    check_whole(NETWORK, "output_width", output_width, low=1, high=WIDEST)
    face, audio, decoder = widths
    return Wav2Lip(face, audio, decoder, output_width, blocks)


WITHOUT_BLOCKS: dict[str, tuple[int, ...]] = {"face_blocks": (0,) * 5, "audio_blocks": (0,) * 4, "decoder_blocks": (0,) * 6}
"""Arguments of the intermediate step: residual blocks removed, full width (20,061,555 parameters)."""
QUARTER_WIDTH: dict[str, tuple[int, ...]] = {
    "face_widths": (4, 8, 16, 32, 64, 128),
    "audio_widths": (8, 16, 32, 64, 128),
    "decoder_widths": (128, 128, 128, 96, 64, 32, 16),
}
"""Channels of the compressed form (1,258,143 parameters), which has no residual blocks and `output_width` 8."""
