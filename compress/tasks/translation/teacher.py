"""The embedded translation teacher: how it was made, and how to make it again.

    python -m mcompress.compress.tasks.translation.teacher --steps 4000 --seed 0 --precision bf16 --out FOLDER

trains pix2pix's ResNet-9 generator, plain convolutions and instance normalization, narrowed to 20 features so that it can be shipped, on all labels
of the embedded pairs with L1 loss.

    python -m mcompress.compress.tasks.translation.teacher --unpaired --steps 20000 --out FOLDER [--data FOLDER] [--features 64 --crop-size 256]

trains the same generator as a CycleGAN (`cycle_teacher`), for data without pairs: on the embedded objects taken apart, or on folders of one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mcompress.compress.tasks.making_teachers import TeacherRecipe, make_teacher, parsed, parser_of
from mcompress.compress.tasks.translation.cycle_teacher import CycleRecipe, make_cycle_teacher
from mcompress.compress.tasks.translation.task import Translation
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

PACKAGE = "mcompress.compress.tasks.translation"
STEPS, LEARNING_RATE, FEATURES = 4000, 1e-3, 20


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the teacher in `folder`."""
    task = Translation.from_config(DataConfig())
    recipe = TeacherRecipe(
        PACKAGE,
        "resnet_generator",
        {"features": FEATURES},
        TrainingConfig(steps=steps, batch_size=4, crop_size=64, learning_rate=LEARNING_RATE, precision=precision),
        {"training_digest": task.data_digest, "labelled_pairs": task.labelled_pairs},
    )
    make_teacher(task, recipe, seed, folder)


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, STEPS)
    of_unpaired = parser.add_argument_group("with --unpaired")
    parser.add_argument("--unpaired", action="store_true", help="train a CycleGAN")
    of_unpaired.add_argument("--data", type=Path, help="a folder with A (inputs) and B (targets); left out, the embedded objects")
    of_unpaired.add_argument("--features", type=int, help=f"of both generators; the published width is 64; {FEATURES} if left out")
    of_unpaired.add_argument("--crop-size", type=int, help=f"pixels; {CycleRecipe().crop_size} if left out")
    of_unpaired.add_argument("--batch-size", type=int, help=f"{CycleRecipe().batch_size} if left out")
    of_unpaired.add_argument("--learning-rate", type=float, help=f"of generators and discriminators; {CycleRecipe().learning_rate:g} if left out")
    options = parsed(parser)
    given = {
        name: getattr(options, name)
        for name in ("data", "features", "crop_size", "batch_size", "learning_rate")
        if getattr(options, name) is not None
    }
    if options.unpaired:
        make_cycle_teacher(CycleRecipe(options.steps, options.seed, options.precision, **given), options.out)
    elif given:
        parser.error(f"--{next(iter(given)).replace('_', '-')} belongs to --unpaired; the embedded teacher is made in one way")
    else:
        train_teacher(options.steps, options.seed, options.precision, options.out)


if __name__ == "__main__":
    main()
