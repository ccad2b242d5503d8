"""The workflow in examples/github_actions: it is well-formed, and its mcompress lines work on real bundles. And what `gate:` in a target means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from ruamel.yaml import YAML
from tiny_targets import ONE_STAGE

from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS, TRAINING_PHOTOS, embedded_photos
from mcompress.errors import TargetError
from mcompress.exporting import export_jobs, export_key
from mcompress.planning import plan
from mcompress.reports.gate.markdown import MARKER
from mcompress.targets.gate import Gate
from mcompress.targets.load import digest, load_target, resolved_yaml

FOLDER = Path(__file__).parent.parent / "examples" / "github_actions"
TEXT = (FOLDER / "model-gate.yml").read_text(encoding="utf-8")
WORKFLOW = YAML(typ="safe", pure=True).load(TEXT)
STEPS = {step.get("name", step.get("uses")): step for step in WORKFLOW["jobs"]["gate"]["steps"]}


def test_the_workflow_has_what_it_needs_and_no_more() -> None:
    assert set(WORKFLOW["on"]) == {"pull_request", "push"}
    assert set(WORKFLOW["on"]["pull_request"]["types"]) == {"opened", "synchronize", "reopened", "labeled", "unlabeled"}, "else the label counts late"
    assert "pull_request_target" not in TEXT, "it would run a stranger's code with this repository's rights"
    assert WORKFLOW["permissions"] == {"contents": "read", "actions": "read", "pull-requests": "write"}
    for step in STEPS.values():
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert step["uses"].startswith("actions/")
            assert step["uses"].partition("@v")[2].isdigit()
        else:
            assert "${{" not in step["run"], "what others can write must not become a part of a script"
    assert MARKER in STEPS["Comment on the pull request"]["with"]["script"]
    uploaded = STEPS["Leave the comparison"]["with"]["path"].split()
    assert all(f"{name}" in STEPS["Compare"]["run"] for name in uploaded)


@pytest.mark.pipeline
def test_its_commands_work(tmp_path: Path) -> None:
    for name, photos in (("training", TRAINING_PHOTOS), ("held_out", HELD_OUT_PHOTOS)):  # small ones: this test is not about their quality
        (tmp_path / name).mkdir()
        (photo,) = embedded_photos(photos[:1]).photos
        Image.fromarray(photo.pixels[:, 100:228, 100:228].permute(1, 2, 0).numpy()).save(tmp_path / name / "photo.png")
    (tmp_path / "target.yaml").write_text(ONE_STAGE + "data: {training: training, held_out: held_out}\n")
    environment = {
        **os.environ,
        "TARGET": "target.yaml",
        "GITHUB_STEP_SUMMARY": "summary.md",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def step(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", STEPS[name]["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    made = step("Make the bundle")
    assert made.returncode == 0, made.stderr
    (tmp_path / "bundle").rename(tmp_path / "baseline")
    with (tmp_path / "target.yaml").open("a") as file:
        file.write("gate: {size_percent: 3}\n")
    for run in (tmp_path / "runs").glob("one-*"):  # a runner keeps the cache and starts without runs
        shutil.rmtree(run)
    again = step("Make the bundle")
    assert again.returncode == 0, again.stderr
    compared = step("Compare")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "verdict  ok" in compared.stdout
    assert "not measured: the files are identical" in (tmp_path / "check.xml").read_text()
    assert "+1 % (baseline +1 %, new +3 %)" in (tmp_path / "check.md").read_text()
    assert ElementTree.parse(tmp_path / "check.xml").getroot().get("failures") == "0"
    assert step("Show it").returncode == 0
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "check.md").read_text()


def test_the_defaults_that_the_readme_states_are_the_defaults() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = YAML(typ="safe", pure=True).load(readme.split("```yaml\n")[1].split("```")[0])
    assert stated["gate"].keys() == Gate.model_fields.keys()
    assert Gate.model_validate(stated["gate"]) == Gate()


def test_a_gate_is_read_checked_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(ONE_STAGE + "gate: {latency_percent: 5, only_shown: [quality]}\n")
    target = load_target(path)
    assert target.gate == Gate(latency_percent=5, only_shown=("quality",))
    (tmp_path / "again.yaml").write_text(resolved_yaml(target))
    assert load_target(tmp_path / "again.yaml") == target
    path.write_text(ONE_STAGE + "gate: {latency_percent: -1, latency: 3, fallbacks: 1.5, only_shown: [qualty]}\n")
    with pytest.raises(TargetError) as caught:
        load_target(path)
    said = "\n".join(caught.value.problems)
    assert "gate.latency_percent is -1; it must be at least 0" in said
    assert "gate.latency is not known" in said
    assert "did you mean 'quality'?" in said
    assert "gate.fallbacks" in said
    path.write_text(ONE_STAGE + "gate: {measured_percent: 0.5}\n")
    with pytest.raises(TargetError, match=r"gate\.measured_percent: it is 0\.5; it must be at least 1, because two loads of one file differ"):
        load_target(path)
    path.write_text(ONE_STAGE + "gate: {measured_required: true, only_shown: [measured_percent]}\n")
    with pytest.raises(TargetError, match="measured_required is true, but only_shown holds measured_percent"):
        load_target(path)


def test_a_changed_gate_leaves_every_stage_cached(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(ONE_STAGE)
    made, strict = plan(load_target(path)), plan(load_target(path, ["gate.latency_percent=0"]))
    assert digest(made.target) != digest(strict.target)
    for name, stage in zip(made.target.stage_names(), made.target.stages, strict=True):
        assert made.key_parts(name, stage, "parent") == strict.key_parts(name, stage, "parent")
    for config, variant in export_jobs(made.target):
        assert export_key(made, "digest", config, variant) == export_key(strict, "digest", config, variant)
