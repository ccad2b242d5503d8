"""Wav2Lip's generator (arXiv 2008.10010) and Nota's compressed one (arXiv 2304.00471), whose latencies are published for NVIDIA's boards."""

from __future__ import annotations

from torch import Tensor, nn

from mcompress.compress.models.wav2lip import MEL_BANDS, MEL_FRAMES, QUARTER_WIDTH, WITHOUT_BLOCKS, Wav2Lip, wav2lip
from mcompress.compress.networks.reference import ReferenceNetwork

FACE = (1, 6, 96, 96)
SOURCE = "https://github.com/Nota-NetsPresso/nota-wav2lip"


class OfOneInput(nn.Module):
    """The generator with the speech as a view of its picture: what it costs needs one input then, and is the same."""

    def __init__(self, generator: Wav2Lip) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, face: Tensor) -> Tensor:
        """(N, 6, 96, 96) -> (N, 3, 96, 96)."""
        made: Tensor = self.generator(face, face[:, :1, :MEL_BANDS, :MEL_FRAMES])
        return made


def compressed_wav2lip() -> Wav2Lip:
    """A quarter of the channels, no residual blocks."""
    return wav2lip(output_width=8, **QUARTER_WIDTH, **WITHOUT_BLOCKS)


TALKING_FACES: dict[str, ReferenceNetwork] = {
    "wav2lip": ReferenceNetwork(lambda: OfOneInput(wav2lip()), FACE, 36_298_035, f"arXiv 2008.10010; {SOURCE}", 3.967),
    "compressed_wav2lip": ReferenceNetwork(lambda: OfOneInput(compressed_wav2lip()), FACE, 1_258_143, f"arXiv 2304.00471; {SOURCE}", 0.075),
}
"""Multiply-adds of exact work; the papers count transposed convolutions by their output: 6.202 and 0.2147."""
