"""The embedded translation teacher: how it was made, and how to make it again.

    python -m mcompress.compress.tasks.translation.teacher --steps 4000 --seed 0 --precision bf16 --out FOLDER

trains pix2pix's ResNet-9 generator, plain convolutions and instance normalization, narrowed to 20 features so that it can be shipped, on all labels
of the embedded pairs with L1 loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mcompress.compress.tasks.making_teachers import TeacherRecipe, command, make_teacher
from mcompress.compress.tasks.translation.task import Translation
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

PACKAGE = "mcompress.compress.tasks.translation"
STEPS, LEARNING_RATE = 4000, 1e-3


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the teacher in `folder`."""
    task = Translation.from_config(DataConfig())
    recipe = TeacherRecipe(
        PACKAGE,
        "resnet_generator",
        {"features": 20},
        TrainingConfig(steps=steps, batch_size=4, crop_size=64, learning_rate=LEARNING_RATE, precision=precision),
        {"training_digest": task.data_digest, "labelled_pairs": task.labelled_pairs},
    )
    make_teacher(task, recipe, seed, folder)


if __name__ == "__main__":
    command(__doc__, train_teacher, STEPS)
