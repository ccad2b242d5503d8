"""The networks on which quantizers are compared, trained shortly on embedded data, so that their activations are those of real images.

Training is seeded and single-threaded; the weights are kept in a folder and made again if the recipe changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from comparing_trainings import digest_of, fit
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from talking_face_cuts import cut_args, task_of_clips
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.rrdb import RRDBNet, start_as_bilinear
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import TrainSettings
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """A network of the zoo and how long it is trained; crops are `crop` pixels a side, of super-resolution low-resolution ones."""

    model: str
    args: dict[str, JsonValue]
    steps: int
    batch: int
    crop: int
    learning_rate: float
    side: int
    """Of the inputs on which quantizers are compared, pixels."""
    samples: int
    """Calibration inputs."""
    task: Literal["super_resolution", "talking_face"] = "super_resolution"
    judging: int = 6
    """Further samples, on which precision plans are judged."""


RECIPES = {
    "MFAGAN": Recipe("mfagan", {}, steps=2500, batch=8, crop=24, learning_rate=1e-3, side=64, samples=32),
    "IMDN": Recipe("imdn", {}, steps=1500, batch=6, crop=24, learning_rate=5e-4, side=64, samples=32),
    "RRDBNet-6": Recipe("rrdb", {"blocks": 6}, steps=200, batch=3, crop=20, learning_rate=2e-4, side=32, samples=16),
    "wav2lip-cut": Recipe(
        "wav2lip", cut_args(), steps=1200, batch=10, crop=96, learning_rate=3e-3, side=96, samples=32, task="talking_face", judging=24
    ),
}


def embedded_task() -> SuperResolution:
    """Super-resolution on the embedded photographs."""
    return SuperResolution.from_config(DataConfig())


def task_of(recipe: Recipe) -> Task:
    """The task on its embedded data."""
    return embedded_task() if recipe.task == "super_resolution" else task_of_clips()


def spec_of(recipe: Recipe) -> ModelSpec:
    """The network with the inputs that it is quantized for."""
    task = task_of(recipe)
    return ModelSpec.taking(task.input_specs((1, task.input_channels, recipe.side, recipe.side)), recipe.model, dict(recipe.args))


def calibration_inputs(task: SuperResolution, recipe: Recipe) -> list[Tensor]:
    """Crops of the training photographs."""
    return [sample.picture for sample in task.calibration_samples(recipe.samples, (1, 3, recipe.side, recipe.side), SEED)]


def held_out_inputs(task: SuperResolution, side: int) -> list[Tensor]:
    """Two crops of every held-out photograph that is large enough, (1, 3, side, side)."""
    starts = (0, 20)
    crops = [sample.picture[..., start : start + side, start : start + side].contiguous() for sample in task.held_out() for start in starts]
    return [crop for crop in crops if crop.shape[2:] == (side, side)]


def trained(name: str, folder: Path) -> nn.Module:
    """The network `name` of `RECIPES` with trained weights, from `folder` if they are there."""
    recipe = RECIPES[name]
    torch.manual_seed(SEED)
    network = build(spec_of(recipe))
    task = task_of(recipe)
    weights = digest_of([task.weighted(torch.ones(1, 3, recipe.crop, recipe.crop))])
    fields = [recipe.model, recipe.args, recipe.steps, recipe.batch, recipe.crop, recipe.learning_rate, task.data_digest, weights, SEED]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"{recipe.model}-{digest}.safetensors"
    if not path.exists():
        if isinstance(network, RRDBNet):
            start_as_bilinear(network)
        config = TrainingConfig(steps=recipe.steps, batch_size=recipe.batch, crop_size=recipe.crop)
        fit(FitTruth(task, config, network), TrainSettings(recipe.steps, recipe.learning_rate, SEED))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    network.load_state_dict(load_file(path))
    return network.to(memory_format=torch.contiguous_format).eval()
