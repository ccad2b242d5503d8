"""Fixtures: small real data, one thread, fixed seeds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks.super_resolution import photos
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget
from mcompress.targets.speeds import PrecisionName

SHAPE = (1, 3, 32, 32)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class MemoryCheckpoints:
    """Keeps training state in memory; `kill_at` raises KeyboardInterrupt right after that many saves, as a killed process would stop."""

    def __init__(self) -> None:
        self.state: dict[str, object] | None = None

    def load(self) -> dict[str, object] | None:
        return self.state

    def save(self, state: dict[str, object]) -> None:
        import copy

        self.state = copy.deepcopy(state)


@pytest.fixture(scope="session")
def task() -> SuperResolution:
    """Two embedded photographs to train on and one held out, cut to 160x192 pixels."""

    def some(which: tuple[tuple[str, str], ...], count: int) -> photos.PhotoSet:
        chosen = photos.embedded_photos(which[:count]).photos
        return photos.PhotoSet(tuple(photos.Photo(p.name, p.pixels[:, 100:260, 100:292].contiguous()) for p in chosen))

    return SuperResolution(some(photos.TRAINING_PHOTOS, 2), some(photos.HELD_OUT_PHOTOS, 1))


@pytest.fixture
def make_context(task: SuperResolution, tmp_path: Path) -> Callable[..., StageContext]:
    """A stage context around a model spec, with a small RRDBNet as the teacher."""

    def make(
        spec: ModelSpec, *, budget: Budget | None = None, seed: int = 0, work: Path | None = None, ships_as: PrecisionName = "int8"
    ) -> StageContext:
        torch.manual_seed(0)
        teacher_spec = ModelSpec("rrdb", {"features": 8, "blocks": 1, "growth": 4}, (), SHAPE)
        device = load_device("snapdragon865")
        stores: dict[str, MemoryCheckpoints] = {}
        return StageContext(
            task=task,
            device=device,
            unit=device.units[device.preferred_unit],
            budget=budget or Budget(),
            teacher=build(teacher_spec).eval(),
            teacher_spec=teacher_spec,
            model=build(spec).eval(),
            spec=spec,
            plan=None,
            seed=seed,
            checkpoints=lambda name: stores.setdefault(name, MemoryCheckpoints()),
            search_folder=work or tmp_path,
            ships_as=ships_as,
            progress=lambda _title: lambda _done, _total, _note: None,
        )

    return make


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the pipeline leaves it, with its report; to be read only."""
    from reported_run import write_run

    from mcompress.reports.html import write_report

    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("run")
    write_run(made)
    write_report(made)
    return made


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as it is shipped; to be read only."""
    from tiny_bundle import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "bundle"))
