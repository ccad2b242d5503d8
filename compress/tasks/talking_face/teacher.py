"""How the embedded talking-face original was made, and how to make it again:

    python -m mcompress.compress.tasks.talking_face.teacher --steps 4000 --seed 0 --precision no --out FOLDER

trains Wav2Lip's generator with all its residual blocks, narrowed to about 3/16 of its channels so that it can be shipped, on the embedded clips, by
the mean absolute error. The mouth of an embedded clip follows from its speech alone, so nobody else has to judge it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.lip_experts import FRAMES
from mcompress.compress.models.wav2lip import FACE_SIDE
from mcompress.compress.tasks.making_teachers import TeacherRecipe, command, make_teacher
from mcompress.compress.tasks.talking_face.embedded import embedded
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

STEPS, LEARNING_RATE = 4000, 2e-3
WIDTHS: dict[str, JsonValue] = {
    "face_widths": [8, 8, 16, 32, 64, 96],
    "audio_widths": [8, 16, 24, 48, 96],
    "decoder_widths": [96, 96, 96, 72, 48, 24, 16],
    "output_width": 8,
}
"""About 3/16 of the published ones, in multiples of eight: 1,375,515 parameters."""


def _channels_last(network: nn.Module) -> None:
    """The layout in memory in which a processor trains it half as fast again."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the embedded original in `folder`."""
    task = TalkingFace.from_config(DataConfig())
    recipe = TeacherRecipe(
        "mcompress.compress.tasks.talking_face",
        "wav2lip",
        WIDTHS,
        TrainingConfig(steps=steps, batch_size=4 * FRAMES, crop_size=FACE_SIDE, learning_rate=LEARNING_RATE, precision=precision),
        {"training_digest": embedded("training").digest, "clips": len(task.training)},
        start=_channels_last,
    )
    make_teacher(task, recipe, seed, folder)


if __name__ == "__main__":
    command(__doc__, train_teacher, STEPS)
