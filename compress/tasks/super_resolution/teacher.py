"""The embedded super-resolution teacher: how it was made, and how to make it again.

    python -m mcompress.compress.tasks.super_resolution.teacher --steps 18000 --seed 0 --precision bf16 --out FOLDER

trains a small RRDBNet on the embedded training photographs with L1 loss. About an hour on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from mcompress.compress.models.rrdb import RRDBNet, start_as_bilinear
from mcompress.compress.tasks import photographs
from mcompress.compress.tasks.making_teachers import TeacherRecipe, command, make_teacher
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

PACKAGE = "mcompress.compress.tasks.super_resolution"
STEPS, LEARNING_RATE = 18_000, 4e-4


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the teacher in `folder`."""
    task = SuperResolution.from_config(DataConfig())
    recipe = TeacherRecipe(
        PACKAGE,
        "rrdb",
        {"features": 32, "blocks": 4, "growth": 16},
        TrainingConfig(steps=steps, batch_size=8, crop_size=32, learning_rate=LEARNING_RATE, precision=precision),
        {"training_photos": [name for _, name in photographs.TRAINING_PHOTOS], "training_digest": task.training_photos.digest},
        _start,
    )
    make_teacher(task, recipe, seed, folder)


def _start(network: nn.Module) -> None:
    if isinstance(network, RRDBNet):
        start_as_bilinear(network)


if __name__ == "__main__":
    command(__doc__, train_teacher, STEPS)
