"""The networks that judge a talking face: SyncNet, the lip-sync expert, and the visual quality discriminator (Wav2Lip, arXiv 2008.10010).

SyncNet (16,435,072 parameters: 13,031,808 of the face, 3,403,264 of the audio) says how well five frames of a mouth fit 200 ms of speech. The
discriminator (14,113,793) tells real lower halves of faces from generated ones. Modules are named as in the public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.arguments import check_whole
from mcompress.compress.models.wav2lip import Block, encoder_ends, residual_blocks

FRAMES = 5
"""Video frames that SyncNet judges together."""
FULL = 512
"""Channels of the embeddings at the published size."""


class SyncNet(nn.Module):
    """Embeddings of mouths and of speech that are near each other where both belong together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        eighth, quarter, half = width // 8, width // 4, width // 2
        self.face_encoder = nn.Sequential(
            Block(3 * FRAMES, width // 16, 7, padding=3),
            Block(width // 16, eighth, 5, (1, 2)), *residual_blocks(eighth, 2),
            Block(eighth, quarter, 3, 2), *residual_blocks(quarter, 3),
            Block(quarter, half, 3, 2), *residual_blocks(half, 2),
            Block(half, width, 3, 2), *residual_blocks(width, 2),
            Block(width, width, 3, 2),
            *encoder_ends(width, width),
        )  # fmt: skip
        self.audio_encoder = nn.Sequential(
            Block(1, width // 16, 3), *residual_blocks(width // 16, 2),
            Block(width // 16, eighth, 3, (3, 1)), *residual_blocks(eighth, 2),
            Block(eighth, quarter, 3, 3), *residual_blocks(quarter, 2),
            Block(quarter, half, 3, (3, 2)), *residual_blocks(half, 2),
            *encoder_ends(half, width),
        )  # fmt: skip

    def embed_face(self, mouths: Tensor) -> Tensor:
        """Lower halves of five frames, one behind the other (N, 15, 48, 96) in [0, 1] -> (N, width) of length 1."""
        return functional.normalize(self.face_encoder(mouths).flatten(1), dim=1)

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Log-mel windows (N, 1, 80, 16) in [-4, 4] -> (N, width) of length 1."""
        return functional.normalize(self.audio_encoder(audio).flatten(1), dim=1)

    def forward(self, mouths: Tensor, audio: Tensor) -> Tensor:
        """How well they fit, cosine of their embeddings, (N,) in [0, 1]: both come out of a ReLU."""
        return (self.embed_face(mouths) * self.embed_audio(audio)).sum(1)  # of length 1; coremltools has no operator for the cosine


def sync_loss(similarity: Tensor, fits: Tensor) -> Tensor:
    """Binary cross-entropy of SyncNet's cosine (N,) to whether mouth and speech belong together (N,) in {0, 1}; a scalar (Wav2Lip, section 3.2)."""
    return functional.binary_cross_entropy(similarity.clamp(0.0, 1.0), fits)


class QualityDiscriminator(nn.Module):
    """Convolutions with LeakyReLU and without normalization, then a probability for each picture."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def stage(*layers: tuple[int, int, int, int | tuple[int, int], int]) -> nn.Sequential:
            return nn.Sequential(*(_Plain(*layer) for layer in layers))

        self.face_encoder_blocks = nn.ModuleList(
            [
                stage((3, width // 16, 7, 1, 3)),
                *(
                    stage((before, after, kernel, stride, kernel // 2), (after, after, kernel, 1, kernel // 2))
                    for before, after, kernel, stride in _steps(width)
                ),
                stage((width, width, 3, 1, 0), (width, width, 1, 1, 0)),
            ]
        )
        self.binary_pred = nn.Sequential(nn.Conv2d(width, 1, 1), nn.Sigmoid())

    def forward_features(self, mouths: Tensor) -> list[Tensor]:
        """(N, 3, 48, 96) in [0, 1] -> the activations of every stage, then the probabilities (N, 1, 1, 1)."""
        features = []
        for block in self.face_encoder_blocks:
            mouths = block(mouths)
            features.append(mouths)
        return [*features, self.binary_pred(mouths)]

    def forward(self, mouths: Tensor) -> Tensor:
        """Lower halves of faces (N, 3, 48, 96) in [0, 1] -> the probability of each that it is real, (N,)."""
        return self.forward_features(mouths)[-1].flatten()


class _Plain(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int | tuple[int, int], padding: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding))

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.conv_block(x), 0.01)


def _steps(width: int) -> Sequence[tuple[int, int, int, int | tuple[int, int]]]:
    """Channels before and after, kernel and stride of the stages that reduce 48x96 to 3x3."""
    return (
        (width // 16, width // 8, 5, (1, 2)),
        (width // 8, width // 4, 5, 2),
        (width // 4, width // 2, 5, 2),
        (width // 2, width, 3, 2),
        (width, width, 3, 2),
    )


def syncnet(*, width: int = FULL) -> SyncNet:
    """The lip-sync expert; the default is the published size (16,435,072 parameters). `width` is that of the embeddings. Raises `UsageError`."""
    return SyncNet(check_whole("syncnet", "width", width, low=16, high=FULL))


def quality_discriminator(*, width: int = FULL) -> QualityDiscriminator:
    """The visual quality discriminator; the default is the published size (14,113,793 parameters). Raises `UsageError`."""
    return QualityDiscriminator(check_whole("quality_discriminator", "width", width, low=16, high=FULL))
