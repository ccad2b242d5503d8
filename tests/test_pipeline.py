"""Whole runs on a tiny target: cache, damage, locks, budgets, the command line."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_origin

import pytest
from typer.testing import CliRunner

import mcompress
from mcompress.artifact import model_digest
from mcompress.cache import Cache
from mcompress.cli import app
from mcompress.compress.stages import STAGES
from mcompress.errors import BudgetMissed, DiskFullError, PlanError, UsageError
from mcompress.export.comparison import read_comparison
from mcompress.export.tables import table_of_file
from mcompress.planning import plan
from mcompress.record import Run
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate
from mcompress.targets.load import load_target, shipped_targets
from mcompress.targets.stages import StageConfig

pytestmark = pytest.mark.pipeline

TINY = """\
name: tiny
device: snapdragon865
threads: 1
model: {input_shape: [1, 3, 32, 32]}
budget: {macs_g: 0.43}
stages:
  - {stage: search, steps: 4, trials: 4, batch_size: 2, crop_size: 8, checkpoint_every_s: 0.001}
  - {stage: prune, latency_ratio: 0.99, importance_batches: 1}
  - {stage: distill, steps: 6, batch_size: 2, crop_size: 16, checkpoint_every_s: 0.001, feature: 0.1,
     adversarial: 0.01, discriminator: 0.1, discriminator_features: 4}
  - {stage: quantize, samples: 2, sensitivity_samples: 1, verify_samples: 1}
exports:
  - {backend: onnx}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, mcompress.Outcome]:
    """The tiny target as a whole: its file and the outcome; the folder that the run is in has the cache as well."""
    folder = tmp_path_factory.mktemp("ran")
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path, mcompress.run(path, out=folder / "runs")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mcompress.cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def digests(record: Run) -> list[str]:
    return [stage.digest for stage in record.stages]


def test_union_and_table_of_stages_agree() -> None:
    members = [member for one in get_args(get_args(StageConfig)[0]) for member in (get_args(get_args(one)[0]) if get_origin(one) else (one,))]
    assert set(STAGES) == set(members)


@pytest.mark.parametrize("path", shipped_targets(), ids=str)
def test_every_shipped_target_plans(path: str) -> None:
    made = plan(load_target(Path(path)))
    assert made.target.exports


def test_a_run_its_cache_and_its_record(ran: tuple[Path, mcompress.Outcome]) -> None:
    tiny, first = ran
    tmp_path = tiny.parent
    assert [stage.cached for stage in first.record.stages] == [False] * 4
    assert {"teacher", "student", "compressed"} <= first.record.models.keys()
    assert {(e.backend, e.variant) for e in first.record.exports} == {("onnx", "float"), ("onnx", "mixed")}
    assert all(e.parity.passed for e in first.record.exports)
    for name in ("run.json", "target.yaml", "report.html", "log.txt", "bundle/manifest.json", "stages/search/details.json"):
        assert (first.folder / name).is_file(), name
    second = mcompress.run(tiny, out=tmp_path / "runs")
    assert [stage.cached for stage in second.record.stages] == [True] * 4
    assert digests(first.record) == digests(second.record)
    changed = mcompress.run(tiny, ["stages[3].samples=3"], out=tmp_path / "runs")
    assert [stage.cached for stage in changed.record.stages] == [True, True, True, False]
    forced = mcompress.run(tiny, out=tmp_path / "runs", force=["distill"])
    assert [stage.cached for stage in forced.record.stages] == [True, True, False, True]
    assert digests(forced.record) == digests(first.record)

    # A damaged entry is noticed, said and computed again.
    entry = next(p.parent for p in (tmp_path / "runs" / "cache").glob("*/entry.json") if json.loads(p.read_text())["parts"]["name"] == "distill")
    weights = entry / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    rebuilt = mcompress.run(tiny, out=tmp_path / "runs")
    assert [stage.cached for stage in rebuilt.record.stages] == [True, True, False, True]
    assert digests(rebuilt.record) == digests(first.record)
    assert any("is damaged (weights.safetensors changed)" in f.reason for f in rebuilt.record.fallbacks)


def test_a_file_is_estimated_as_what_it_holds(ran: tuple[Path, mcompress.Outcome]) -> None:
    """The bundle's estimates come from the network and the plan; reading the written file gives the same."""
    bundle, device = ran[1].folder / "bundle", load_device("snapdragon865")
    stored = read_comparison(bundle).files
    assert {name.rpartition("-")[2] for name in stored} == {"float.onnx", "mixed.onnx"}
    for name, found in stored.items():
        read = table_of_file(bundle / name)
        assert found.latency_ms == pytest.approx(estimate(read.table, device, found.unit, read.precisions).value, rel=0.03), name


def test_two_runs_on_one_folder(tiny: Path, tmp_path: Path) -> None:
    made = plan(load_target(tiny))
    from mcompress.targets.load import digest

    folder = tmp_path / "runs" / f"tiny-{digest(made.target)[:8]}"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4711")
        held.flush()
        with pytest.raises(UsageError, match=r"another mcompress run is working in .*process 4711"):
            mcompress.run(tiny, out=tmp_path / "runs")


def test_a_full_disk_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mcompress.staging.save_output", no_space)
    with pytest.raises(DiskFullError, match=r"no space left while writing to .* MB free"):
        mcompress.run(tiny, out=tmp_path / "runs")


def test_a_missed_budget_is_exit_code_3_and_everything_is_written(ran: tuple[Path, mcompress.Outcome]) -> None:
    tiny, met = ran
    before = set(met.folder.parent.glob("tiny-*"))
    done = command("run", str(tiny), "--set", "budget.quality.at_least=90", cwd=tiny.parent)
    assert done.returncode == BudgetMissed.exit_code == 3, done.stderr
    assert "psnr_db" in done.stderr
    (missed,) = set(met.folder.parent.glob("tiny-*")) - before
    assert (missed / "bundle" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.macs_g=0.0001"], r"budget.macs_g is 0.0001; the smallest network of the search space needs"),
        (["stages[0].crop_size=500"], r"crop_size is 500; the largest crop that the training data can give is"),
        (["budget.quality={metric: psnr, within: 1}"], r"budget.quality.metric is 'psnr'; super_resolution measures psnr_db"),
        (["model.student={network: imdn}"], r"model.student and a search stage exclude each other"),
        (['stages=[{"stage": "quantize"}, {"stage": "prune", "ratio": 0.1}]'], r"'prune' stands behind 'quantize'; the order is search"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_it_starts(tiny: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(load_target(tiny, overrides))


def test_a_stage_that_does_not_exist(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--force polish: this target has no such stage; it has: search, prune, distill, quantize, export"):
        mcompress.run(tiny, out=tmp_path, force=["polish"])


def test_weights_of_another_architecture(tiny: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(PlanError, match=r"encoder\.weight"):
        plan(load_target(tiny, [f"model.teacher.checkpoint={tmp_path / 'other.pth'}"]))


def test_a_users_checkpoint_replaces_the_embedded_teacher_of_a_shipped_target(tmp_path: Path) -> None:
    import torch

    from mcompress.compress.models.rrdb import rrdb

    network = rrdb(features=8, blocks=1, growth=4)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "esrgan.pth")
    made = plan(load_target(Path("snapdragon865"), [f"model.teacher.checkpoint={tmp_path / 'esrgan.pth'}", "model.input_shape=[1, 3, 32, 32]"]))
    assert made.teacher_spec.args == {"features": 8, "blocks": 1, "growth": 4}
    assert all(torch.equal(a, b) for a, b in zip(made.teacher.state_dict().values(), network.state_dict().values(), strict=True))


def test_the_users_own_folders_of_png_files(tiny: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for folder, count in (("train", 2), ("test/a", 1), ("test/b", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (160, 160, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "train" / "broken.png").write_bytes(b"not a picture")
    overrides = [f"data.training={tmp_path / 'train'}", f"data.held_out={tmp_path / 'test'}", 'stages=[{"stage": "prune", "ratio": 0.05}]']
    outcome = mcompress.run(tiny, [*overrides, "budget={}"], out=tmp_path / "runs")
    assert sorted(p.name for p in (outcome.folder / "samples").iterdir()) == ["a_0.png", "b_0.png"]
    assert any(f.what == "broken.png" for f in outcome.record.fallbacks)


def test_the_command_line_reports_errors_in_one_place(tmp_path: Path) -> None:
    done = command("run", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["models", "devices", "targets", "stages", "exporters"])
def test_list(what: str) -> None:
    result = CliRunner().invoke(app, ["list", what, "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert rows
    assert all(rows.values())


def test_every_stage_and_method_that_can_run_is_listed() -> None:
    rows = json.loads(CliRunner().invoke(app, ["list", "stages", "--json"]).stdout)
    assert len(rows) == len(STAGES)
    assert {name.partition(",")[0] for name in rows} == {kind.model_fields["stage"].default for kind in STAGES}


def test_count_prints_both_conventions() -> None:
    result = CliRunner().invoke(app, ["count", "rrdb", "--input", "1,3,64,64", "--json"])
    counted = json.loads(result.stdout)
    assert counted["params"] == 16_697_987
    assert counted["macs"] == counted["macs_output_convention"] == 17_926_848 * 64 * 64


def test_count_says_what_is_wrong_with_an_input() -> None:
    result = CliRunner().invoke(app, ["count", "mfagan", "--input", "1,4,8,8"])
    message = str(result.exception)
    assert isinstance(result.exception, UsageError)
    assert "--input is '1,4,8,8', which mfagan does not take" in message
    assert "Use an input shape that the network takes" in message
    assert "meta" not in message


def test_plan_and_show(tiny: Path, tmp_path: Path) -> None:
    rows = json.loads(CliRunner().invoke(app, ["plan", str(tiny), "--out", str(tmp_path), "--json"]).stdout)
    assert [row["step"] for row in rows] == ["search", "prune", "distill", "quantize", "export float", "export mixed"]
    assert rows[0]["state"] == "to compute"
    assert rows[-1]["state"] == "to compute (depends on the step before)"
    made = plan(load_target(tiny))
    parts = made.key_parts("search", made.target.stages[0], model_digest(made.start_spec, made.start.state_dict()))

    def build(folder: Path, _work: Path) -> None:
        (folder / "output.json").write_text("{}")

    entry = Cache(tmp_path / "cache").get(parts, build).folder
    (entry / "output.json").write_text("{")
    rows = json.loads(CliRunner().invoke(app, ["plan", str(tiny), "--out", str(tmp_path), "--json"]).stdout)
    assert rows[0]["state"] == "damaged, to compute again (output.json changed)"
    assert rows[1]["state"] == "to compute (depends on the step before)"
    shown = CliRunner().invoke(app, ["show", str(tiny)]).stdout
    assert "learning_rate: 0.001" in shown


def test_own_network_takes_the_same_way(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "own_network"
    done = command("run", str(example / "own_network.yaml"), "--quick", "--out", str(tmp_path), cwd=example)
    assert done.returncode == 0, done.stderr
    (record,) = [Run.load(p.parent) for p in tmp_path.glob("*/run.json")]
    assert record.models["compressed"].params < record.models["teacher"].params
    assert all(e.parity.passed for e in record.exports)


def test_search_for_an_own_network_says_that_it_needs_a_space(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "own_network"
    done = command("plan", str(example / "own_network.yaml"), "--set", 'stages=[{"stage": "search"}]', cwd=example)
    assert done.returncode == 2
    assert "has no search space; set space to one of: mfagan" in done.stderr
