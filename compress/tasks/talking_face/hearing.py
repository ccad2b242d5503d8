"""What an audio encoder starts from when the embedded original is made: it has learnt to tell the mouth from the speech.

The mouth's width moves few pixels, so that the error of a picture teaches little of it: an original that learnt from pictures alone for 4,000 steps
opened the mouth with the speech (correlation 0.9) and drew one width (0.08). The embedded speech comes with exact mouths, which a linear layer reads
from the encoder's channels; that takes two minutes, because nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.wav2lip import Wav2Lip
from mcompress.compress.tasks.making_teachers import AVERAGE, WARMUP_STEPS, lines_on_stderr
from mcompress.compress.tasks.talking_face.clips import CLIP_S
from mcompress.compress.tasks.talking_face.mouths import mouth_track
from mcompress.compress.tasks.talking_face.speech import utterance
from mcompress.compress.tasks.talking_face.windows import windows_of
from mcompress.compress.train import Objective, TrainSettings, train

UTTERANCES = tuple(range(1000, 1400))
"""Seeds: those of the training clips, whose speech this is, and as many voices more as it takes; none of a validation or held-out clip."""
STEPS, BATCH, LEARNING_RATE = 3000, 64, 2e-3


class FitMouths(Objective):
    """Player: the `encoder` with a linear layer behind it, on moments of utterances and what the mouth is like then."""

    def __init__(self, windows: Tensor, mouths: Tensor, encoder: nn.Module, channels: int) -> None:
        """Windows (N, 1, 80, 16); mouths (N, 2), opening and width, each with mean 0 and deviation 1; the encoder's channels."""
        self.windows, self.mouths = windows, mouths
        self.reader = nn.Sequential(encoder, nn.Flatten(), nn.Linear(channels, mouths.shape[1]))

    def players(self) -> Mapping[str, nn.Module]:
        """The encoder, with the layer."""
        return {"encoder": self.reader}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw moments."""
        drawn = torch.randint(len(self.windows), (BATCH,), generator=generator)
        self.heard, self.shown = self.windows[drawn].to(device), self.mouths[drawn].to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`mouth` alone, the mean square error."""
        return {"mouth": functional.mse_loss(self.reader(self.heard).float(), self.shown)}


def teach_hearing(network: Wav2Lip, steps: int, seed: int, checkpoint: Path) -> None:
    """Train the network's audio encoder in place; continues from the checkpoint, and is done at once where that is the last one."""
    windows, mouths = moments(UTTERANCES)
    scaled = (mouths - mouths.mean(0)) / mouths.std(0)
    channels = int(network.encode_audio(windows[:2]).shape[1])
    objective = FitMouths(windows, scaled, network.audio_encoder, channels)
    settings = TrainSettings(steps, LEARNING_RATE, seed, WARMUP_STEPS, AVERAGE)
    train(objective, settings, FileCheckpoints(checkpoint), lines_on_stderr())


def moments(seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Speech (N, 1, 80, 16) and mouths (N, 2) of every frame of utterances with these seeds."""
    windows, mouths = [], []
    for seed in seeds:
        spoken = utterance(seed, CLIP_S)
        mouths.append(mouth_track(spoken))
        windows.append(windows_of(spoken.samples, len(mouths[-1])))
    return torch.cat(windows), torch.from_numpy(np.concatenate(mouths)).float()
