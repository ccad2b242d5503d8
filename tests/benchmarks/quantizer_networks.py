"""The networks on which quantizers are compared, trained shortly on the embedded photographs, so that their activations are those of real images.

Training is seeded and single-threaded; the weights are kept in a folder and made again if the recipe changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.rrdb import RRDBNet, start_as_bilinear
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives import FitTruth
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


RECIPES = {
    "MFAGAN": Recipe("mfagan", {}, steps=2500, batch=8, crop=24, learning_rate=1e-3),
    "IMDN": Recipe("imdn", {}, steps=1500, batch=6, crop=24, learning_rate=5e-4),
    "RRDBNet-6": Recipe("rrdb", {"blocks": 6}, steps=200, batch=3, crop=20, learning_rate=2e-4),
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


def trained(name: str, folder: Path) -> nn.Module:
    """The network `name` of `RECIPES` with trained weights, from `folder` if they are there."""
    recipe = RECIPES[name]
    torch.manual_seed(SEED)
    network = build(ModelSpec(recipe.model, dict(recipe.args), (), (1, 3, 64, 64)))
    digest = hashlib.sha256(json.dumps([asdict(recipe), SEED], sort_keys=True).encode()).hexdigest()[:8]
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
