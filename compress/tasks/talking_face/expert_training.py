"""How the embedded lip-sync expert was made, and how to make it again:

    python -m mcompress.compress.tasks.talking_face.expert_training --steps 3000 --seed 0 --out FOLDER

trains a narrow SyncNet on the embedded clips as Wav2Lip's (arXiv 2008.10010, section 3.1) was trained: half of the pairs belong together, half of
them are a mouth with the speech of another moment of the same clip; binary cross-entropy of the cosine of their embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.lip_experts import FRAMES, sync_loss
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.tasks.making_teachers import AVERAGE, WARMUP_STEPS, command, lines_on_stderr, rounded, write_teacher
from mcompress.compress.tasks.talking_face.embedded import embedded
from mcompress.compress.tasks.talking_face.expert import STEM, mouths_of, sync_inputs
from mcompress.compress.tasks.talking_face.recordings import Recording
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.compress.train import Objective, TrainSettings, train
from mcompress.targets.schema import DataConfig

WIDTH, STEPS, PAIRS, LEARNING_RATE = 64, 3000, 32, 1e-3
LEAST_SHIFT = 3
"""Frames between a mouth and speech that does not belong to it: of neighbours most is the same."""
TESTED = 1024
"""Pairs of held-out clips that the record's accuracy is of."""


class FitSync(Objective):
    """Player: the `expert`, on pairs of which half belong together."""

    def __init__(self, recordings: Sequence[Recording], pairs: int, network: nn.Module) -> None:
        self.recordings, self.pairs, self.network = recordings, pairs, network

    def players(self) -> Mapping[str, nn.Module]:
        """The expert."""
        return {"expert": self.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw pairs, mirrored or not."""
        mouths, audio, fits = pairs_of(self.recordings, self.pairs, generator)
        mirror = torch.rand(len(mouths), generator=generator)[:, None, None, None] < 0.5
        self.mouths, self.audio, self.fits = torch.where(mirror, mouths.flip(3), mouths).to(device), audio.to(device), fits.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`sync` alone."""
        return {"sync": sync_loss(self.network(self.mouths, self.audio).float(), self.fits)}


def pairs_of(recordings: Sequence[Recording], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mouths (N, 15, 48, 96), speech (N, 1, 80, 16), and whether they belong together (N,), every second one."""
    mouths, audio = [], []
    for number, which in enumerate(torch.randint(len(recordings), (count,), generator=generator).tolist()):
        one = recordings[which]
        starts = len(one.faces) - FRAMES + 1
        first = int(torch.randint(starts, (1,), generator=generator))
        shift = int(torch.randint(LEAST_SHIFT, starts - LEAST_SHIFT, (1,), generator=generator))
        mouths.append(mouths_of(one.faces[first : first + FRAMES].float() / 255.0))
        audio.append(one.windows[first if number % 2 == 0 else (first + shift) % starts][None])
    fits = (torch.arange(count) % 2 == 0).float()
    return torch.cat(mouths), torch.cat(audio), fits


def train_expert(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the embedded expert in `folder`."""
    task = TalkingFace.from_config(DataConfig())
    torch.manual_seed(seed)
    network = build(ModelSpec.taking(sync_inputs(), "syncnet", {"width": WIDTH}))
    settings = TrainSettings(steps, LEARNING_RATE, seed, WARMUP_STEPS, AVERAGE, precision=precision)
    result = train(FitSync(task.training, PAIRS, network), settings, FileCheckpoints(folder / "checkpoint.pt"), lines_on_stderr())
    weights = rounded(network)
    record: dict[str, JsonValue] = {
        "model": "syncnet",
        "args": {"width": WIDTH},
        "command": f"python -m mcompress.compress.tasks.talking_face.expert_training --steps {steps} --seed {seed} --precision {precision}",
        "training_digest": embedded("training").digest,
        "clips": len(task.training),
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        "held_out": cast("JsonValue", held_out_accuracy(task.held_out_recordings, network)),
    }
    write_teacher(folder, weights, record, STEM)


@torch.no_grad()
def held_out_accuracy(recordings: Sequence[Recording], network: nn.Module) -> dict[str, float]:
    """Share of held-out pairs that it tells rightly, with the cosine that separates them best, and mean cosines of both kinds."""
    mouths, audio, fits = pairs_of(recordings, TESTED, torch.Generator().manual_seed(0))
    said = torch.cat([network.eval()(*part) for part in zip(torch.split(mouths, 64), torch.split(audio, 64), strict=True)])
    right = torch.stack([((said > limit) == (fits > 0)).float().mean() for limit in torch.linspace(0, 1, 101)])
    return {
        "accuracy": round(float(right.max()), 4),
        "together": round(float(said[fits > 0].mean()), 4),
        "apart": round(float(said[fits == 0].mean()), 4),
    }


if __name__ == "__main__":
    command(__doc__, train_expert, STEPS)
