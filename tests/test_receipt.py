"""The receipt of a finished run holds exactly as long as nothing that it names has changed."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

import mcompress
from mcompress import receipt
from mcompress.console import Silent
from mcompress.errors import UsageError
from mcompress.pipeline import Outcome, open_target
from mcompress.targets.schema import Target

pytestmark = pytest.mark.pipeline

OWN = """\
import torch
from torch import nn


def build() -> nn.Module:
    torch.manual_seed(0)  # weights of its own, the same in every run
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


TRANSLATION = """\
name: held
device: snapdragon865
model: {task: translation}
data: {training: pairs, held_out: held, unlabelled: more}
stages:
  - {stage: distill}
exports:
  - {backend: onnx}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("held")
    (folder / "receipt_network.py").write_text(OWN)
    (folder / "held.yaml").write_text(TARGET)
    return folder, mcompress.run(folder / "held.yaml", out=folder / "runs")


def target(folder: Path) -> Target:
    return open_target(folder / "held.yaml")


def holds(outcome: Outcome, folder: Path) -> bool:
    return receipt.still_holds(outcome.folder, receipt.inputs_of(target(folder)))


def test_a_second_run_does_nothing_and_keeps_what_the_work_cost(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a run with a receipt planned its work")

    monkeypatch.setattr("mcompress.planning.plan", never)
    second = mcompress.run(folder / "held.yaml", out=folder / "runs")
    assert all(stage.cached for stage in second.record.stages)
    assert (second.record.seconds, second.record.peak_memory_mb) == (first.record.seconds, first.record.peak_memory_mb)
    assert [stage.digest for stage in second.record.stages] == [stage.digest for stage in first.record.stages]
    assert holds(first, folder)  # also after run.json was written again


@pytest.mark.parametrize("name", ["run.json", "report.html", "bundle/manifest.json", "bundle/held-float.onnx"])
def test_it_fails_when_a_file_of_the_run_is_changed_or_missing(finished: tuple[Path, Outcome], name: str) -> None:
    folder, outcome = finished
    path = outcome.folder / name
    kept = path.read_bytes()
    path.unlink()  # never written in place: it may be a link into the cache
    assert not holds(outcome, folder)
    path.write_bytes(kept + b" ")
    assert not holds(outcome, folder)
    path.write_bytes(kept)
    assert holds(outcome, folder)


def test_it_fails_when_a_cache_entry_is_gone(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, outcome = finished
    entry = outcome.folder / json.loads((outcome.folder / receipt.NAME).read_text())["entries"][0]
    shutil.move(entry, tmp_path / "entry")
    assert not holds(outcome, folder)
    shutil.move(tmp_path / "entry", entry)
    assert holds(outcome, folder)


def test_it_fails_when_the_users_module_or_the_target_changes(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    (folder / "receipt_network.py").write_text(OWN + "\n")
    assert not holds(outcome, folder)
    (folder / "receipt_network.py").write_text(OWN)
    assert holds(outcome, folder)
    assert not receipt.still_holds(outcome.folder, receipt.inputs_of(target(folder).model_copy(update={"seed": 1})))


@pytest.mark.parametrize("fact", ["cpu_name", "package_versions", "thread_count", "_code_digest"])
def test_it_fails_elsewhere(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, fact: str) -> None:
    folder, outcome = finished
    monkeypatch.setattr(receipt, fact, lambda *_: {"other": "1"})
    assert not holds(outcome, folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 1, "outputs": 2, "entries": 3}', "\x00"])
def test_a_damaged_receipt_is_no_receipt(finished: tuple[Path, Outcome], text: str) -> None:
    folder, outcome = finished
    path = outcome.folder / receipt.NAME
    kept = path.read_text()
    path.write_text(text)
    assert not holds(outcome, folder)
    path.write_text(kept)


def test_every_folder_that_a_target_names_counts(tmp_path: Path) -> None:
    """A picture in any of them changes the inputs; `DataConfig.folders` has every field that is a folder."""
    for name in ("pairs", "held", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "t.yaml").write_text(TRANSLATION, encoding="utf-8")
    found = open_target(tmp_path / "t.yaml")
    seen = [receipt.inputs_of(found)]
    for name in ("pairs", "held", "more"):
        (tmp_path / name / "x.png").write_bytes(b"x")
        seen.append(receipt.inputs_of(found))
    assert all(one is not None and one != other for one, other in pairwise(seen))


def test_of_a_model_in_a_folder_only_what_is_read_counts(tmp_path: Path) -> None:
    for name in (".git/objects/aa", "unet/config.json", "unet/weights.safetensors", "unet/weights.bin", "tokenizer/merges.txt", "README.md"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(b"x")
    model = {"task": "text_to_image", "teacher": {"checkpoint": str(tmp_path / "model")}}
    rest = {"stages": [{"stage": "quantize"}], "exports": [{"backend": "onnx"}]}
    found = receipt.inputs_of(Target.model_validate({"name": "t", "device": "apple-a16", "model": model, **rest}))
    assert found is not None
    files = found["files"]
    assert isinstance(files, dict)
    read = {Path(name).relative_to(tmp_path / "model").as_posix() for name in files}
    assert read == {"unet/config.json", "unet/weights.safetensors", "tokenizer/merges.txt"}


def test_what_changes_while_a_run_works_leaves_no_receipt(tmp_path: Path) -> None:
    (tmp_path / "receipt_network.py").write_text(OWN)
    (tmp_path / "held.yaml").write_text(TARGET)

    class Meddler(Silent):
        def note(self, text: str) -> None:
            if text == "writing the report":
                (tmp_path / "receipt_network.py").write_text(OWN + "# edited\n")

    outcome = mcompress.run(tmp_path / "held.yaml", out=tmp_path / "runs", reporter=Meddler())
    assert not (outcome.folder / receipt.NAME).exists()
    again = mcompress.run(tmp_path / "held.yaml", out=tmp_path / "runs")
    assert [stage.cached for stage in again.record.stages] == [False]  # the module is part of what the stage is computed from
    assert holds(again, tmp_path)


def test_a_copy_of_the_runs_has_its_own_cache(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, outcome = finished
    copy = tmp_path / "copied"
    shutil.copytree(outcome.folder.parent, copy)
    inputs = receipt.inputs_of(target(folder))
    assert receipt.still_holds(copy / outcome.folder.name, inputs)
    shutil.rmtree(copy / "cache")
    assert not receipt.still_holds(copy / outcome.folder.name, inputs)
    assert receipt.still_holds(outcome.folder, inputs)


def operators(outcome: Outcome) -> set[str]:
    return {node.op_type for node in onnx.load(next(outcome.folder.glob("bundle/*.onnx"))).graph.node}


def test_another_part_of_the_users_package_gives_another_file(tmp_path: Path) -> None:
    parts = tmp_path / "receipt_package" / "parts"
    parts.mkdir(parents=True)
    (tmp_path / "held.yaml").write_text(TARGET.replace("receipt_network", "receipt_package.net"))
    (parts.parent / "net.py").write_text(
        OWN.replace("nn.ReLU()", "act()").replace("from torch", "from receipt_package.parts.blocks import act\nfrom torch")
    )
    for activation, other in (("ReLU", "Sigmoid"), ("Sigmoid", "ReLU")):
        (parts / "blocks.py").write_text(f"from torch.nn import {activation} as act\n")
        outcome = mcompress.run(tmp_path / "held.yaml", out=tmp_path / "runs")
        assert [stage.cached for stage in outcome.record.stages] == [False]
        seen = {operator.lower() for operator in operators(outcome)}
        assert activation.lower() in seen
        assert other.lower() not in seen
        assert holds(outcome, tmp_path)


def test_a_module_that_python_keeps_though_its_file_changed_gives_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target does not lie beside it, so it is not imported again; the next process must not believe that."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "receipt_kept.py").write_text(OWN)
    (tmp_path / "held.yaml").write_text(TARGET.replace("receipt_network", "receipt_kept"))
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    first = mcompress.run(tmp_path / "held.yaml", out=tmp_path / "runs")
    assert holds(first, tmp_path)
    (tmp_path / "elsewhere" / "receipt_kept.py").write_text(OWN.replace("ReLU", "Sigmoid"))
    again = mcompress.run(tmp_path / "held.yaml", out=tmp_path / "runs")
    assert [stage.digest for stage in again.record.stages] == [stage.digest for stage in first.record.stages]
    assert not (again.folder / receipt.NAME).exists()
    sys.modules.pop("receipt_kept")


def test_overrides_for_an_object_are_refused(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, _ = finished
    with pytest.raises(UsageError, match=r"overrides \['seed=3'\] were given with a Target object.*load_target.*model_copy"):
        mcompress.run(target(folder), ["seed=3"], out=tmp_path)
    assert not list(tmp_path.iterdir())
