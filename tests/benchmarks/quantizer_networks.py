"""The networks on which quantizers are compared, trained shortly on the embedded photographs, so that their activations are those of real images.

Training is seeded and single-threaded; the weights are kept in a folder and made again if the recipe changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.rrdb import RRDBNet, start_as_bilinear
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.train import TrainSettings, train
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """A network of the zoo and how long it is trained; crops are `crop` low-resolution pixels a side."""

    model: str
    args: dict[str, int]
    steps: int
    batch: int
    crop: int
    learning_rate: float
    side: int
    """Of the inputs on which quantizers are compared, pixels."""
    samples: int
    """Calibration inputs."""


RECIPES = {
    "MFAGAN": Recipe("mfagan", {}, steps=2500, batch=8, crop=24, learning_rate=1e-3, side=64, samples=32),
    "IMDN": Recipe("imdn", {}, steps=1500, batch=6, crop=24, learning_rate=5e-4, side=64, samples=32),
    "RRDBNet-6": Recipe("rrdb", {"blocks": 6}, steps=200, batch=3, crop=20, learning_rate=2e-4, side=32, samples=16),
}


class NoCheckpoints:
    """Nothing is kept: training is short."""

    def load(self) -> dict[str, object] | None:
        return None

    def save(self, state: dict[str, object]) -> None:
        pass


def embedded_task() -> SuperResolution:
    """Super-resolution on the embedded photographs."""
    return SuperResolution.from_config(DataConfig())


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
    network = build(ModelSpec(recipe.model, dict(recipe.args), (), (1, 3, 64, 64)))
    fields = [recipe.model, recipe.args, recipe.steps, recipe.batch, recipe.crop, recipe.learning_rate, SEED]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"{recipe.model}-{digest}.safetensors"
    if not path.exists():
        if isinstance(network, RRDBNet):
            start_as_bilinear(network)
        config = TrainingConfig(steps=recipe.steps, batch_size=recipe.batch, crop_size=recipe.crop)
        settings = TrainSettings(recipe.steps, recipe.learning_rate, SEED)
        train(FitTruth(embedded_task(), config, network), settings, NoCheckpoints(), lambda _done, _total, _note: None)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    network.load_state_dict(load_file(path))
    return network.to(memory_format=torch.contiguous_format).eval()
