"""Originals made of a user's own pictures, for targets that have none: pix2pix from pairs, CycleGAN from two collections without pairs.

    python -m mcompress.compress.tasks.translation.teacher --data PAIRS --steps 20000 --out FOLDER
    python -m mcompress.compress.tasks.translation.teacher --unpaired --data PICTURES --steps 20000 --out FOLDER

write `teacher.safetensors`, a ResNet-9 generator from inputs to targets, which a target takes as `teacher: {network: resnet_generator, checkpoint:
FOLDER/teacher.safetensors}`, and `teacher.json`, which records how it was made. For the other direction exchange inputs and targets. A training that
was stopped continues from `checkpoint.pt` in the folder.

Weights and rates are the published ones (pix2pix: 100 of L1 for 1 of the game). Both play with least squares, where pix2pix had cross-entropy, and
learn on the schedule of the one training loop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.generator_parts import start_as_published
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.cycle import CycleGAN, CycleSettings
from mcompress.compress.objectives.pix2pix import Pix2Pix
from mcompress.compress.tasks.making_teachers import AVERAGE, WARMUP_STEPS, lines_on_stderr, write_teacher
from mcompress.compress.tasks.photographs import PhotoSet
from mcompress.compress.tasks.task import Sample
from mcompress.compress.tasks.translation import crops, folders
from mcompress.compress.tasks.translation.embedded import objects
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.compress.train import Objective, TrainResult, TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import LikenessConfig

NETWORK = "resnet_generator"
BETAS = (0.5, 0.999)  # as published
TRUTH, ADVERSARIAL = 1.0, 0.01  # as published, divided by 100


@dataclass(frozen=True)
class OwnTeacherRecipe:
    """How wide generators and discriminators are, and how they are trained; `crop_size` in pixels."""

    steps: int
    seed: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    features: int = 20
    crop_size: int = 64
    batch_size: int = 1
    learning_rate: float = 2e-4


def make_pix2pix_teacher(recipe: OwnTeacherRecipe, data: Path, folder: Path) -> None:
    """Train on the pairs in `data`, write; continues from `folder/checkpoint.pt` if it exists. Raises `PlanError` for data that cannot be used."""
    pairs = folders.aligned(data, "--data")
    task = Translation(pairs.pairs, (), skipped=pairs.skipped)
    _check_crop(recipe.crop_size, task.largest_crop(), "no pair can give a larger one")
    torch.manual_seed(recipe.seed)
    network = _generator(recipe)
    config = LikenessConfig(
        batch_size=recipe.batch_size,
        crop_size=recipe.crop_size,
        truth=TRUTH,
        adversarial=ADVERSARIAL,
        adversarial_loss="least_squares",
        discriminator_features=recipe.features,
        discriminator_learning_rate=recipe.learning_rate,
    )
    objective = Pix2Pix(task, config, network)
    start_as_published(objective.discriminator)
    result = _train(objective, recipe, task.skipped, folder)
    _write(network, recipe, task, result, folder, _quality(task, network), own=True)


def make_cycle_teacher(recipe: OwnTeacherRecipe, data: Path | None, folder: Path) -> None:
    """Train on the folders A and B in `data`, without it on the embedded objects taken apart; write the generator from A to B.

    Continues from `folder/checkpoint.pt` if it exists. Raises `PlanError` for data that cannot be used.
    """
    if data is None:
        task = UnpairedTranslation.from_config(DataConfig(pairing="unpaired"))
    else:
        task = UnpairedTranslation(*folders.two_domains(data, "--data"), PhotoSet(()))
    _check_crop(recipe.crop_size, task.largest_crop(), "not both collections can give larger ones")
    torch.manual_seed(recipe.seed)
    a_to_b, b_to_a = _generator(recipe), _generator(recipe)
    cycle = CycleSettings(recipe.batch_size, recipe.crop_size, discriminator_features=recipe.features)
    result = _train(CycleGAN(task, cycle, a_to_b, b_to_a), recipe, task.skipped, folder)
    _write(a_to_b, recipe, task, result, folder, _cycle_quality(task, a_to_b, b_to_a, embedded=data is None), own=data is not None)


def _generator(recipe: OwnTeacherRecipe) -> nn.Module:
    return build(ModelSpec(NETWORK, {"features": recipe.features}))


def _check_crop(crop_size: int, largest: int, why: str) -> None:
    if not folders.SMALLEST_SIDE <= crop_size <= largest or crop_size % crops.STRIDE:
        limits = f"it must be a multiple of {crops.STRIDE}, at least {folders.SMALLEST_SIDE}, at most {largest}: {why}"
        raise PlanError([f"--crop-size is {crop_size}; {limits}"])


def _train(objective: Objective, recipe: OwnTeacherRecipe, skipped: Sequence[str], folder: Path) -> TrainResult:
    sys.stderr.writelines(f"{reason}\n" for reason in skipped)
    settings = TrainSettings(
        recipe.steps, recipe.learning_rate, recipe.seed, min(WARMUP_STEPS, recipe.steps // 10), AVERAGE, precision=recipe.precision, betas=BETAS
    )
    return train(objective, settings, FileCheckpoints(folder / "checkpoint.pt"), lines_on_stderr())


def _write(
    network: nn.Module,
    recipe: OwnTeacherRecipe,
    task: Translation | UnpairedTranslation,
    result: TrainResult,
    folder: Path,
    quality: dict[str, JsonValue],
    *,
    own: bool,
) -> None:
    options = f"--steps {recipe.steps} --seed {recipe.seed} --precision {recipe.precision} --features {recipe.features}"
    options += f" --crop-size {recipe.crop_size} --batch-size {recipe.batch_size} --learning-rate {recipe.learning_rate:g}"
    options += " --data FOLDER" if own else ""
    record: dict[str, JsonValue] = {
        "model": NETWORK,
        "args": {"features": recipe.features},
        "command": f"python -m mcompress.compress.tasks.translation.teacher {'' if task.paired else '--unpaired '}{options}",
        "data_digest": task.data_digest,
        "skipped_pictures": len(task.skipped),
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        **quality,
    }
    write_teacher(folder, network.state_dict(), record)


@torch.no_grad()
def _quality(task: Translation, network: nn.Module) -> dict[str, JsonValue]:
    """How near to its target an input gets of pairs that nothing was trained on, and how near the mean colour is."""
    inputs, truths = task.validation_batch()
    made = {"validation_psnr_db": network(*inputs), "validation_psnr_db_of_mean_colour": task.baseline(Sample("validation", inputs, truths))}
    return {name: round(task.quality(picture, truths), 3) for name, picture in made.items()}


@torch.no_grad()
def _cycle_quality(task: UnpairedTranslation, a_to_b: nn.Module, b_to_a: nn.Module, *, embedded: bool) -> dict[str, JsonValue]:
    """How inputs that nothing was trained on come back from both generators; of embedded data, whose truth is known, how near to it they get."""
    (inputs,), made = task.taught_by(a_to_b).validation_batch()
    found: dict[str, JsonValue] = {"validation_cycle_psnr_db": round(crops.psnr_db(b_to_a(made), inputs), 3)}
    if embedded:
        samples = [Sample(pair.name, (crops.whole(pair.input),), crops.whole(pair.target)) for pair in objects().held_out]
        found["held_out_psnr_db"] = round(fmean(crops.psnr_db(a_to_b(one.picture), one.truth) for one in samples), 3)
        found["held_out_psnr_db_of_mean_colour"] = round(fmean(crops.psnr_db(task.baseline(one), one.truth) for one in samples), 3)
    return found
