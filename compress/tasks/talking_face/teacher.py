"""How the embedded talking-face original was made, and how to make it again:

    python -m mcompress.compress.tasks.talking_face.teacher --steps 12000 --seed 0 --precision no --out FOLDER

trains Wav2Lip's generator with all its residual blocks, narrowed to about 3/16 of its channels so that it can be shipped, on the embedded clips. Its
audio encoder first learns the mouths of the speech (`hearing`), then the whole learns the frames, by the mean absolute error in which the mouth
counts more. The mouth of an embedded clip follows from its speech alone, so nobody else has to judge it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.wav2lip import FACE_SIDE, Wav2Lip
from mcompress.compress.tasks.making_teachers import TeacherRecipe, command, make_teacher
from mcompress.compress.tasks.talking_face.embedded import embedded
from mcompress.compress.tasks.talking_face.hearing import STEPS as HEARING_STEPS
from mcompress.compress.tasks.talking_face.hearing import UTTERANCES, teach_hearing
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

STEPS, BATCH, LEARNING_RATE = 12_000, 10, 3e-3
"""More steps teach more than greater batches in the same time, and frames of ten clips more than runs of neighbours."""
HEARING = "audio_encoder"
"""Stays as it is once it has learnt to hear: the first steps of a decoder that knows nothing yet would spoil it."""
WIDTHS: dict[str, JsonValue] = {
    "face_widths": [8, 8, 16, 32, 64, 96],
    "audio_widths": [8, 16, 24, 48, 96],
    "decoder_widths": [96, 96, 96, 72, 48, 24, 16],
    "output_width": 8,
}
"""About 3/16 of the published ones, in multiples of eight: 1,375,515 parameters."""


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the embedded original in `folder`."""
    task, heard = TalkingFace.from_config(DataConfig()), min(steps, HEARING_STEPS)

    def start(network: nn.Module) -> None:
        if not isinstance(network, Wav2Lip):
            raise TypeError(f"the embedded original is Wav2Lip's generator, not {type(network).__name__}")
        teach_hearing(network, heard, seed, folder / f"hearing-{heard}-{seed}.pt")

    recipe = TeacherRecipe(
        "mcompress.compress.tasks.talking_face",
        "wav2lip",
        WIDTHS,
        TrainingConfig(steps=steps, batch_size=BATCH, crop_size=FACE_SIDE, learning_rate=LEARNING_RATE, precision=precision),
        {"training_digest": embedded("training").digest, "clips": len(task.training), "hearing": {"steps": heard, "utterances": len(UTTERANCES)}},
        start,
        fixed=HEARING,
    )
    make_teacher(task, recipe, seed, folder)


if __name__ == "__main__":
    command(__doc__, train_teacher, STEPS)
