"""Runs and workers that are killed with SIGKILL, at moments that are observed and not guessed: the same digests as an undisturbed run."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob  # unlike Path.glob it goes on where a folder is renamed meanwhile, as the run does with this one
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

import mcompress
from mcompress import cli, joining
from mcompress.artifact import model_digest
from mcompress.cache import Cache
from mcompress.console import Silent
from mcompress.errors import UsageError
from mcompress.joining import leading, search_folder, work
from mcompress.pipeline import open_target, run_folder
from mcompress.planning import plan
from mcompress.run_folder import link_folder
from mcompress.staging import run_stages
from mcompress.targets.load import load_target, resolved_yaml
from mcompress.targets.own_modules import import_beside

pytestmark = pytest.mark.pipeline

TARGET = """\
name: tiny
device: snapdragon865
threads: 1
model: {input_shape: [1, 3, 32, 32]}
budget: {macs_g: 0.43}
stages:
  - {stage: search, steps: 12, trials: 24, batch_size: 2, crop_size: 8, checkpoint_every_s: 0.001}
  - {stage: prune, latency_ratio: 0.99, importance_batches: 1}
  - {stage: distill, steps: 12, batch_size: 2, crop_size: 16, checkpoint_every_s: 0.001, feature: 0.1}
  - {stage: quantize, samples: 2, sensitivity_samples: 1, verify_samples: 1}
exports:
  - {backend: onnx}
"""
LONGEST_WAIT_S = 60.0

# Children of a process that has imported everything start in milliseconds, and are processes of their own all the same.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["mcompress.pipeline", "mcompress.staging", "mcompress.recording", "mcompress.joining"])


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "tiny.yaml"
    path.write_text(TARGET)
    return path


@pytest.fixture(scope="module")
def undisturbed(target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a run up to its last stage, and the digest of each stage."""
    torch.set_num_threads(1)
    made = plan(load_target(target))
    folder = run_folder(made.target, tmp_path_factory.mktemp("undisturbed"))
    folder.mkdir()
    (folder / "target.yaml").write_text(resolved_yaml(made.target))
    stages = run_stages(made, folder, Cache(folder.parent / "cache"), (), Silent())
    link_folder(stages[0].entry.folder, folder / "stages" / "search")
    return folder, {stage.record.name: stage.record.digest for stage in stages}


class Observed:
    """What a run has left on the disk so far."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def run(self) -> Path | None:
        return next(iter(self.out.glob("tiny-*/")), None)

    def checkpoint(self, name: str) -> int | None:
        """A number that changes whenever the checkpoint is replaced; None if there is none."""
        for path in self.out.glob(f"cache/*.work/{name}.pt"):
            try:
                return path.stat().st_mtime_ns
            except FileNotFoundError:
                return None
        return None

    def journal(self) -> list[dict[str, object]]:
        """The complete lines of the search's journal."""
        for path in self.out.glob("tiny-*/search/*/study.journal"):
            return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return []

    def opened(self) -> int:
        """Trials that are open for evaluation."""
        return max((int(line["user_attr"]["open_before"]) for line in self.journal() if "open_before" in line.get("user_attr", {})), default=0)

    def unanswered(self) -> int:
        """Candidates of the open round without a result."""
        proposed = [line for line in self.journal() if line["op_code"] == 4][: self.opened()]
        return sum(line["state"] == TrialState.RUNNING for line in proposed) - len(self.answers())

    def answers(self) -> list[str]:
        """Who evaluated, per answer."""
        return [str(line["worker_id"]) for line in self.journal() if line["op_code"] == 6]

    def digest(self, stage: str) -> str | None:
        """Digest of a finished stage."""
        for path in self.out.glob("cache/*/entry.json"):
            if path.parent.suffix == ".tmp":
                continue  # still being written, or just about to get its name
            if json.loads(path.read_text())["parts"]["name"] == stage:
                return str(json.loads((path.parent / "output.json").read_text())["digest"])
        return None


def start_run(target: Path, out: Path) -> ForkServerProcess:
    process = context.Process(target=mcompress.run, args=(target,), kwargs={"out": out})
    process.start()
    return process


def wait_until(event: Callable[[], bool], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not event():
        assert alive(), "the process ended before it could be disturbed"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.002)


def test_killed_at_any_moment_ends_with_the_same_digests(target: Path, undisturbed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    seen = Observed(tmp_path)

    def replaced(name: str) -> Callable[[], bool]:
        before = seen.checkpoint(name)
        return lambda: seen.checkpoint(name) not in (None, before)

    moments: dict[str, Callable[[], Callable[[], bool]]] = {
        "a checkpoint of the supernet appeared": lambda: lambda: seen.checkpoint("supernet") is not None,
        "it was replaced": lambda: replaced("supernet"),
        "the first candidates were proposed": lambda: lambda: len(seen.journal()) > 4,
        "in the middle of the first round": lambda: lambda: seen.opened() > 0 and len(seen.answers()) > 2,
        "in the middle of the last round": lambda: lambda: len(seen.answers()) > 17,
        "the distilled student's checkpoint was replaced": lambda: replaced("distill"),
        "a model file was being written": lambda: lambda: bool(glob(f"{tmp_path}/cache/*.tmp/*.onnx")),  # noqa: PTH207
    }
    for moment in moments.values():
        event = moment()
        process = start_run(target, tmp_path)
        wait_until(event, process.is_alive)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    resumed = mcompress.run(target, out=tmp_path)
    assert {stage.name: stage.digest for stage in resumed.record.stages} == undisturbed[1]
    trials = [json.loads((folder / "stages" / "search" / "details.json").read_text())["trials"] for folder in (resumed.folder, undisturbed[0])]
    assert trials[0] == trials[1]


def stop_outside_the_journal(process: ForkServerProcess, journal: Path) -> None:
    """Halt a run where it holds no lock, as a run on a machine that is slow for a while."""
    assert process.pid is not None
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        with journal.with_name(journal.name + ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                os.kill(process.pid, signal.SIGCONT)
                time.sleep(0.001)


def test_workers_that_join_and_are_killed_change_nothing(target: Path, undisturbed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    seen = Observed(tmp_path)
    run = start_run(target, tmp_path)
    try:
        assert run.pid is not None
        while True:
            wait_until(lambda: seen.unanswered() > 3, run.is_alive)
            assert seen.run is not None
            stop_outside_the_journal(run, next(seen.run.glob("search/*/study.journal")))
            if seen.unanswered() > 1:
                break
            os.kill(run.pid, signal.SIGCONT)  # it was faster; there are more rounds
        by_run = len(seen.answers())

        first = subprocess.Popen([sys.executable, "-m", "mcompress.cli", "work", str(seen.run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(seen.answers()) > by_run, lambda: first.poll() is None)
        first.kill()
        first.wait()

        second = context.Process(target=work, args=(seen.run,))
        second.start()
        wait_until(lambda: seen.unanswered() == 0, second.is_alive)
        os.kill(run.pid, signal.SIGCONT)
        wait_until(lambda: seen.digest("search") is not None, run.is_alive)
        second.join(LONGEST_WAIT_S)
        assert second.exitcode == 0
    finally:
        run.kill()
        run.join()
    assert len(set(seen.answers())) >= 2
    assert seen.digest("search") == undisturbed[1]["search"]


def test_a_search_that_is_over_says_so(undisturbed: tuple[Path, dict[str, str]], capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = undisturbed
    cli.work(folder)
    assert "is finished already; there is nothing to evaluate" in capfd.readouterr().out
    journal = next(folder.glob("search/*/study.journal"))  # it stays, for whoever wants to look at it
    assert journal.with_name("supernet.safetensors").is_file()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run: it has no target\.yaml"):
        work(tmp_path)


def test_a_run_without_a_search(target: Path, tmp_path: Path) -> None:
    (tmp_path / "target.yaml").write_text(resolved_yaml(load_target(target, ['stages=[{"stage": "quantize"}]'])))
    with pytest.raises(UsageError, match="has no search stage, so there is nothing to join; its stages: quantize"):
        work(tmp_path)


def test_who_would_evaluate_differently_or_too_early_is_refused(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "START_S", 0.0)
    monkeypatch.setattr(joining, "PATIENCE_S", 0.3)
    folder = tmp_path / "tiny-1"
    folder.mkdir()
    loaded = load_target(target)
    (folder / "target.yaml").write_text(resolved_yaml(loaded))
    with pytest.raises(UsageError, match=r"no search is going on in .*; start it with mcompress run"):
        work(folder)
    made = plan(loaded)
    parts = made.key_parts("search", loaded.stages[0], model_digest(made.start_spec, made.start.state_dict()))
    for name, value in (("cpu", "Another 9000"), ("threads", 64), ("torch", "0.4")):
        other = {**parts, name: value}
        with (
            leading(search_folder(folder, other), other, anew=False),
            pytest.raises(UsageError, match=rf"who evaluated\. Different: {name} \(") as error,
        ):
            work(folder)
        assert f"{parts[name]} here, {value} in the run" in str(error.value)
        assert error.value.exit_code == 2
    with leading(search_folder(folder, parts), parts, anew=False):
        facts = search_folder(folder, parts) / "facts.json"
        facts.write_text(facts.read_text().replace('"mcompress": "', '"mcompress": "9.'))
        with pytest.raises(UsageError, match=r"Different: mcompress \("):
            work(folder)
    with leading(search_folder(folder, parts), parts, anew=False):
        pass
    with pytest.raises(UsageError, match="was stopped and not started again"):
        work(folder)


def test_a_worker_finds_the_users_network_beside_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "START_S", 0.0)
    monkeypatch.setattr(joining, "PATIENCE_S", 0.3)
    beside, folder = tmp_path / "beside", tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    beside.mkdir()
    (beside / "worker_network.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))\n"
    )
    own = TARGET.replace("model: {", "model: {network: 'worker_network:build', ").replace("stage: search", "stage: search, space: mfagan")
    (beside / "tiny.yaml").write_text(own)
    loaded = open_target(beside / "tiny.yaml")
    (folder / "target.yaml").write_text(resolved_yaml(loaded))
    with pytest.raises(UsageError, match="no search is going on"):
        work(folder)
    open_target(beside / "tiny.yaml")
    made = plan(loaded)
    parts = made.key_parts("search", loaded.stages[0], model_digest(made.start_spec, made.start.state_dict()))
    with leading(search_folder(folder, parts), parts, anew=False):
        pass
    import_beside(None)
    with pytest.raises(UsageError, match="was stopped and not started again"):  # it agreed with the run, and waited for it
        work(folder)
    import_beside(None)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "runs", moved / "runs")
    with pytest.raises(UsageError, match=rf"imports worker_network:build from '{moved}/beside', and there is no such module.*Share that folder"):
        work(moved / "runs" / "tiny-1")
    shutil.copytree(beside, moved / "beside")  # as on a machine that has the disk at another place
    with pytest.raises(UsageError, match="was stopped and not started again"):
        work(moved / "runs" / "tiny-1")
    (beside / "worker_network.py").write_text((beside / "worker_network.py").read_text() + "# edited\n")
    with pytest.raises(UsageError, match=r"Different: .*teacher"):
        work(folder)
    import_beside(None)


def test_a_forced_and_a_rebuilt_search_do_not_read_the_old_journal(target: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made = plan(load_target(target, ['stages=[{"stage": "search", "steps": 2, "trials": 4, "batch_size": 1, "crop_size": 8}]']))
    cache, folder = Cache(tmp_path / "cache"), tmp_path / "run"

    def made_by() -> tuple[str, str]:
        """(which process and study the journal is of, digest of the stage)."""
        journal = next(folder.glob("search/*/study.journal"))
        return journal.read_text().splitlines()[0], artifact.digest

    artifact = run_stages(made, folder, cache, (), Silent())[0].artifact
    first = made_by()
    artifact = run_stages(made, folder, cache, (), Silent())[0].artifact
    assert made_by() == first
    artifact = run_stages(made, folder, cache, ("search",), Silent())[0].artifact
    forced = made_by()
    (artifact.folder / "weights.safetensors").write_bytes(b"damaged")
    artifact = run_stages(made, folder, cache, (), Silent())[0].artifact
    rebuilt = made_by()
    assert len({first[0], forced[0], rebuilt[0]}) == 3
    assert first[1] == forced[1] == rebuilt[1]


def test_what_a_search_shares_is_kept_for_its_own_key_only(tmp_path: Path) -> None:
    mine, other = {"threads": 1}, {"threads": 2}
    with leading(search_folder(tmp_path, mine), mine, anew=False):
        (search_folder(tmp_path, mine) / "study.journal").write_text("x")
    with leading(search_folder(tmp_path, mine), mine, anew=False):  # a killed run that goes on
        assert (search_folder(tmp_path, mine) / "study.journal").is_file()
    with leading(search_folder(tmp_path, mine), mine, anew=True):  # forced, or a damaged entry
        assert not (search_folder(tmp_path, mine) / "study.journal").exists()
    with leading(search_folder(tmp_path, other), other, anew=False):
        assert [path.name for path in (tmp_path / "search").iterdir()] == [search_folder(tmp_path, other).name]
