"""The receipt of a finished run holds exactly as long as nothing that it names has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mcompress
from mcompress import receipt
from mcompress.pipeline import Outcome, open_target
from mcompress.targets.schema import Target

pytestmark = pytest.mark.pipeline

OWN = """\
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
"""
TARGET = """\
name: held
device: snapdragon865
threads: 1
model: {network: receipt_network:build, input_shape: [1, 3, 16, 16]}
stages:
  - {stage: prune, ratio: 0.0, importance_batches: 1}
exports:
  - {backend: onnx, profile_s: 0.05}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("held")
    (folder / "receipt_network.py").write_text(OWN)
    (folder / "held.yaml").write_text(TARGET)
    return folder, mcompress.run(folder / "held.yaml", out=folder / "runs")


def target(folder: Path) -> Target:
    return open_target(folder / "held.yaml")


def test_a_second_run_does_nothing_and_keeps_what_the_work_cost(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a run with a receipt planned its work")

    monkeypatch.setattr("mcompress.planning.plan", never)
    second = mcompress.run(folder / "held.yaml", out=folder / "runs")
    assert all(stage.cached for stage in second.record.stages)
    assert (second.record.seconds, second.record.peak_memory_mb) == (first.record.seconds, first.record.peak_memory_mb)
    assert [stage.digest for stage in second.record.stages] == [stage.digest for stage in first.record.stages]
    assert receipt.still_holds(first.folder, target(folder))  # also after run.json was written again


@pytest.mark.parametrize("name", ["run.json", "report.html", "bundle/manifest.json", "bundle/held-float.onnx"])
def test_it_fails_when_a_file_of_the_run_is_changed_or_missing(finished: tuple[Path, Outcome], name: str) -> None:
    folder, outcome = finished
    path = outcome.folder / name
    kept = path.read_bytes()
    path.unlink()  # never written in place: it may be a link into the cache
    assert not receipt.still_holds(outcome.folder, target(folder))
    path.write_bytes(kept + b" ")
    assert not receipt.still_holds(outcome.folder, target(folder))
    path.write_bytes(kept)
    assert receipt.still_holds(outcome.folder, target(folder))


def test_it_fails_when_a_cache_entry_is_gone(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, outcome = finished
    entry = Path(json.loads((outcome.folder / receipt.NAME).read_text())["entries"][0])
    shutil.move(entry, tmp_path / "entry")
    assert not receipt.still_holds(outcome.folder, target(folder))
    shutil.move(tmp_path / "entry", entry)
    assert receipt.still_holds(outcome.folder, target(folder))


def test_it_fails_when_the_users_module_or_the_target_changes(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    (folder / "receipt_network.py").write_text(OWN + "\n")
    assert not receipt.still_holds(outcome.folder, target(folder))
    (folder / "receipt_network.py").write_text(OWN)
    assert receipt.still_holds(outcome.folder, target(folder))
    assert not receipt.still_holds(outcome.folder, target(folder).model_copy(update={"seed": 1}))


@pytest.mark.parametrize("fact", ["cpu_name", "package_versions", "thread_count", "_code_digest"])
def test_it_fails_elsewhere(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, fact: str) -> None:
    folder, outcome = finished
    monkeypatch.setattr(receipt, fact, lambda *_: {"other": "1"})
    assert not receipt.still_holds(outcome.folder, target(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 1, "outputs": 2, "entries": 3}', "\x00"])
def test_a_damaged_receipt_is_no_receipt(finished: tuple[Path, Outcome], text: str) -> None:
    folder, outcome = finished
    path = outcome.folder / receipt.NAME
    kept = path.read_text()
    path.write_text(text)
    assert not receipt.still_holds(outcome.folder, target(folder))
    path.write_text(kept)
