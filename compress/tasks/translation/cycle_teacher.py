"""A CycleGAN made from two collections of pictures: an original for targets whose data are unpaired.

    python -m mcompress.compress.tasks.translation.teacher --unpaired --steps 20000 --out FOLDER

writes `teacher.safetensors`, the generator from A to B, which a target takes as `teacher: {network: resnet_generator, checkpoint:
FOLDER/teacher.safetensors}`, and `teacher.json`, which records how it was made. For the other direction exchange the folders A and B. A training that
was stopped continues from `checkpoint.pt` in the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import JsonValue
from torch import nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.cycle import CycleGAN, CycleSettings
from mcompress.compress.tasks.making_teachers import AVERAGE, WARMUP_STEPS, lines_on_stderr
from mcompress.compress.tasks.photographs import PhotoSet
from mcompress.compress.tasks.translation import crops, folders
from mcompress.compress.tasks.translation.embedded import objects
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.compress.train import TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig

NETWORK = "resnet_generator"
BETAS = (0.5, 0.999)  # as published


@dataclass(frozen=True)
class CycleRecipe:
    """How both generators are made: their width, how long and on what they train. `data` holds the folders A and B; without it, embedded objects."""

    steps: int = 20_000
    seed: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    data: Path | None = None
    features: int = 20
    crop_size: int = 64
    batch_size: int = 1
    learning_rate: float = 2e-4


def make_cycle_teacher(recipe: CycleRecipe, folder: Path) -> None:
    """Train, write; continues from `folder/checkpoint.pt` if it exists. Raises `PlanError` for data that cannot be used."""
    data = _data(recipe)
    args: dict[str, JsonValue] = {"features": recipe.features}
    torch.manual_seed(recipe.seed)
    a_to_b, b_to_a = build(ModelSpec(NETWORK, args)), build(ModelSpec(NETWORK, args))
    cycle = CycleSettings(recipe.batch_size, recipe.crop_size, discriminator_features=recipe.features)
    settings = TrainSettings(
        recipe.steps, recipe.learning_rate, recipe.seed, min(WARMUP_STEPS, recipe.steps // 10), AVERAGE, precision=recipe.precision, betas=BETAS
    )
    result = train(CycleGAN(data, cycle, a_to_b, b_to_a), settings, FileCheckpoints(folder / "checkpoint.pt"), lines_on_stderr())
    weights = {name: value.contiguous() for name, value in a_to_b.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "teacher.safetensors")
    record = {
        "model": NETWORK,
        "args": args,
        "command": (
            f"python -m mcompress.compress.tasks.translation.teacher --unpaired --steps {recipe.steps} --seed {recipe.seed} "
            f"--precision {recipe.precision} --features {recipe.features} --crop-size {recipe.crop_size} --batch-size {recipe.batch_size} "
            f"--learning-rate {recipe.learning_rate:g}"
            f"{'' if recipe.data is None else ' --data FOLDER'}"
        ),
        "data_digest": data.data_digest,
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        **_quality(data, a_to_b, b_to_a, embedded=recipe.data is None),
    }
    (folder / "teacher.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _data(recipe: CycleRecipe) -> UnpairedTranslation:
    if recipe.data is None:
        data = UnpairedTranslation.from_config(DataConfig(pairing="unpaired"))
    else:
        data = UnpairedTranslation(*folders.two_domains(recipe.data, "--data"), PhotoSet(()))
    largest = data.largest_crop()
    if not folders.SMALLEST_SIDE <= recipe.crop_size <= largest or recipe.crop_size % crops.STRIDE:
        raise PlanError(
            [
                f"--crop-size is {recipe.crop_size}; it must be a multiple of {crops.STRIDE}, at least {folders.SMALLEST_SIDE}, at most {largest}: "
                "not both collections can give larger ones"
            ]
        )
    return data


@torch.no_grad()
def _quality(data: UnpairedTranslation, a_to_b: nn.Module, b_to_a: nn.Module, *, embedded: bool) -> dict[str, JsonValue]:
    """How inputs that nothing was trained on come back from both generators; of embedded data, whose truth is known, how near to it they get."""
    inputs, made = data.taught_by(a_to_b).validation_batch()
    found: dict[str, JsonValue] = {"validation_cycle_psnr_db": round(crops.psnr_db(b_to_a(made), inputs), 3)}
    if embedded:
        pairs = [(crops.whole(pair.input), crops.whole(pair.target)) for pair in objects().held_out]
        found["held_out_psnr_db"] = round(sum(crops.psnr_db(a_to_b(source), truth) for source, truth in pairs) / len(pairs), 3)
        colour = crops.mean_colour([photo.pixels for photo in data.targets.photos])
        found["held_out_psnr_db_of_mean_colour"] = round(sum(crops.psnr_db(colour.expand_as(truth), truth) for _, truth in pairs) / len(pairs), 3)
    return found
