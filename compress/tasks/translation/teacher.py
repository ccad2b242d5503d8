"""Originals for translation: the embedded one, how it was made and how to make it again, and those of one's own pictures.

    python -m mcompress.compress.tasks.translation.teacher --steps 4000 --seed 0 --precision bf16 --out FOLDER

trains pix2pix's ResNet-9 generator, plain convolutions and instance normalization, narrowed to 20 features so that it can be shipped, on all labels
of the embedded pairs with L1 loss.

    python -m mcompress.compress.tasks.translation.teacher --data PAIRS --steps 200000 --out FOLDER [--features 64 --crop-size 256]

trains the same generator as pix2pix does (`own_teachers`), with a discriminator, on a folder of one's own pairs.

    python -m mcompress.compress.tasks.translation.teacher --unpaired --steps 200000 --out FOLDER [--data PICTURES] [--features 64 --crop-size 256]

trains it as a CycleGAN, for data without pairs: on a folder with A and B, or on the embedded objects taken apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mcompress.compress.tasks.making_teachers import TeacherRecipe, make_teacher, parsed, parser_of
from mcompress.compress.tasks.translation.own_teachers import OwnTeacherRecipe, make_cycle_teacher, make_pix2pix_teacher
from mcompress.compress.tasks.translation.task import Translation
from mcompress.errors import MCompressError
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

PACKAGE = "mcompress.compress.tasks.translation"
STEPS, LEARNING_RATE, FEATURES = 4000, 1e-3, 20
OWN = OwnTeacherRecipe(STEPS)


def train_teacher(steps: int, seed: int, precision: Literal["no", "bf16"], folder: Path) -> None:
    """Make the embedded teacher in `folder`."""
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
    parser.add_argument("--data", type=Path, help="train on a folder of pairs; with --unpaired on one with A (inputs) and B (targets)")
    parser.add_argument("--unpaired", action="store_true", help="train a CycleGAN; without --data on the embedded objects")
    own = parser.add_argument_group("with --data or --unpaired")
    own.add_argument("--features", type=int, help=f"of generators and discriminators; the published width is 64; {OWN.features} if left out")
    own.add_argument("--crop-size", type=int, help=f"pixels; {OWN.crop_size} if left out")
    own.add_argument("--batch-size", type=int, help=f"{OWN.batch_size} if left out")
    own.add_argument("--learning-rate", type=float, help=f"of generators and discriminators; {OWN.learning_rate:g} if left out")
    options = parsed(parser)
    names = ("features", "crop_size", "batch_size", "learning_rate")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = OwnTeacherRecipe(options.steps, options.seed, options.precision, **given)
    try:
        if options.unpaired:
            make_cycle_teacher(recipe, options.data, options.out)
        elif options.data is not None:
            make_pix2pix_teacher(recipe, options.data, options.out)
        elif given:
            parser.error(f"--{next(iter(given)).replace('_', '-')} belongs to --data or --unpaired; the embedded teacher is made in one way")
        else:
            train_teacher(options.steps, options.seed, options.precision, options.out)
    except MCompressError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
