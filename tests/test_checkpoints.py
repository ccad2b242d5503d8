"""Training state on disk: whole or not at all; damage is noticed, said, and recorded with the stage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tiny_targets import ONE_STAGE

import mcompress
from mcompress.cache import Cache
from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.console import Silent
from mcompress.errors import StageError
from mcompress.planning import plan
from mcompress.staging import run_stages
from mcompress.targets.load import load_target

STATE: dict[str, object] = {"step": 3, "seconds": 1.5, "curve": [(1, {"a/b": 0.5})], "averaged": {"a": {"w": torch.arange(400.0)}}}


@pytest.fixture
def store(tmp_path: Path) -> FileCheckpoints:
    made = FileCheckpoints(tmp_path / "distill.pt")
    made.save(STATE)
    return made


def test_what_was_saved_is_loaded(store: FileCheckpoints) -> None:
    loaded = store.load()
    assert loaded is not None
    assert torch.equal(loaded["averaged"]["a"]["w"], STATE["averaged"]["a"]["w"])
    assert {k: loaded[k] for k in ("step", "seconds", "curve")} == {k: STATE[k] for k in ("step", "seconds", "curve")}
    assert store.problem is None
    assert FileCheckpoints(store.path.with_name("other.pt")).load() is None


def test_every_damage_is_noticed(store: FileCheckpoints) -> None:
    """PyTorch's reader takes most of the changed bytes for weights."""
    good, source = store.path.read_bytes(), random.Random(0)
    damaged = [good[:length] for length in range(0, len(good), 97)]
    for _ in range(100):
        place = source.randrange(len(good))
        damaged.append(good[:place] + bytes([good[place] ^ (1 << source.randrange(8))]) + good[place + 1 :])
    for content in damaged:
        store.path.write_bytes(content)
        assert store.load() is None
        assert "distill.pt cannot be used (" in (store.problem or "")
        assert "the training started again from its first step" in (store.problem or "")


def test_a_file_without_a_state_is_no_state(store: FileCheckpoints) -> None:
    store.save(torch.zeros(3))  # type: ignore[arg-type]  # as a file of somebody else's
    assert store.load() is None
    assert "it holds a Tensor, not a training state" in (store.problem or "")


def test_the_reason_outlives_a_process_that_is_killed_after_it_began_again(store: FileCheckpoints) -> None:
    store.path.write_bytes(b"")
    store.load()
    store.save(STATE)
    later = FileCheckpoints(store.path)
    assert later.load() is not None
    assert "it has 0 bytes and is cut off" in (later.problem or "")


@pytest.mark.pipeline
def test_a_truncated_checkpoint_becomes_a_fallback_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "one.yaml"
    target.write_text(ONE_STAGE)
    made = plan(load_target(target))
    (undisturbed,) = run_stages(made, tmp_path / "a", Cache(tmp_path / "a" / "cache"), (), Silent())

    def stop(*_: object) -> None:
        raise StageError("stopped behind the training")

    with monkeypatch.context() as patch:
        patch.setattr("mcompress.staging.save_output", stop)
        with pytest.raises(StageError):
            run_stages(made, tmp_path / "b", Cache(tmp_path / "b" / "cache"), (), Silent())
    (checkpoint,) = (tmp_path / "b" / "cache").glob("*.work/distill.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    outcome = mcompress.run(target, out=tmp_path / "b")
    (found,) = [f for f in outcome.record.fallbacks if f.what == "training checkpoint"]
    assert found.where == "stage distill"
    assert "distill.pt cannot be used (its digest does not match its content: it was cut off or changed)" in found.reason
    assert found.reason in json.loads((outcome.folder / "run.json").read_text())["fallbacks"][0].values()
    assert "the training started again from its first step" in (outcome.folder / "report.html").read_text()
    assert [stage.digest for stage in outcome.record.stages] == [undisturbed.record.digest]
    assert undisturbed.artifact.fallbacks == ()
