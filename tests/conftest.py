"""Fixtures: small real data, one thread, fixed seeds."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mcompress.cli import COLLECT_AFTER
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks import photographs
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.translation.pairs import Pair
from mcompress.compress.tasks.translation.task import Translation
from mcompress.targets.connect import Host
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    from stand_in_device import StandInDevice

SHAPE = (1, 3, 32, 32)
gc.set_threshold(*COLLECT_AFTER)  # as in a run


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class MemoryCheckpoints:
    """Keeps a copy of the training state in memory; with `kill_after` the training is killed when it has saved its state so often."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.state: dict[str, object] | None = None
        self.saves, self.kill_after = 0, kill_after

    def load(self) -> dict[str, object] | None:
        return copy.deepcopy(self.state)

    def save(self, state: dict[str, object]) -> None:
        self.state, self.saves = copy.deepcopy(state), self.saves + 1
        if self.saves == self.kill_after:
            raise KeyboardInterrupt


def silent(_done: int, _total: int, _note: str) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="session")
def task() -> SuperResolution:
    """Two embedded photographs to train on and one held out, cut to 160x192 pixels."""

    def some(which: tuple[tuple[str, str], ...], count: int) -> photographs.PhotoSet:
        chosen = photographs.embedded_photos(which[:count]).photos
        return photographs.PhotoSet(tuple(photographs.Photo(p.name, p.pixels[:, 100:260, 100:292].contiguous()) for p in chosen))

    return SuperResolution(some(photographs.TRAINING_PHOTOS, 2), some(photographs.HELD_OUT_PHOTOS, 1))


@pytest.fixture(scope="session")
def pairs() -> Translation:
    """Noise and its negative: eight small pairs to train on, half of them labelled, and two held out."""

    def picture(seed: int) -> torch.Tensor:
        return torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)

    made = tuple(Pair(f"pair {seed}", picture(seed), 255 - picture(seed)) for seed in range(10))
    return Translation(made[:8], made[8:], labelled_fraction=0.5)


@pytest.fixture
def make_context(task: SuperResolution, tmp_path: Path) -> Callable[..., StageContext]:
    """A stage context around a model spec, with a small RRDBNet as the teacher."""

    def make(
        spec: ModelSpec,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        work: Path | None = None,
        ships_as: PrecisionName = "int8",
        planned_units: tuple[str, ...] = ("cpu",),
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
            progress=lambda _title: silent,
            planned_units=planned_units,
            remember=lambda _what, _depends_on, compute: compute(),
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


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with which the gate compares others; to be read only."""
    from gate_bundles import gate_bundle

    return gate_bundle(tmp_path_factory.mktemp("baseline"))


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """The network of the bundle, in a file of its own."""
    from tiny_bundle import write_onnx

    path = tmp_path / "enlarge.onnx"
    write_onnx(path)
    return path


@pytest.fixture
def host() -> Iterator[Host]:
    """This machine, to measure on."""
    with Host() as opened:
        yield opened


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An adb server of the tests' own, and the environment that leads to it."""
    from stand_in_device import adb

    home = tmp_path_factory.mktemp("adb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    reached = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "TMPDIR": str(home)}  # its key and its log lie there
    everything = {**os.environ, **reached}
    adb("start-server", environment=everything)
    yield reached
    adb("kill-server", check=False, environment=everything)


@pytest.fixture
def stand_in(adb_server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDevice]:
    """A stand-in for a phone, the only one that the adb server knows."""
    from stand_in_device import StandInDevice, adb, attach

    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    made = StandInDevice(tmp_path / "device")
    made.add_program(
        "getprop", 'case "$1" in ro.product.model) echo Stand-in;; ro.soc.model) echo SM8250;; ro.build.version.release) echo 14;; esac\n'
    )
    made.add_program("dumpsys", "echo 'Thermal Status: 0'\n")
    try:
        attach(made)
        yield made
    finally:
        made.unplug()
        adb("disconnect", check=False)
