"""The shape of the repository: links, light imports, no leaks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from mcompress.compress.tasks.translation.task import Translation
from mcompress.export import EXPORTERS
from mcompress.targets.schema import DataConfig

ROOT = Path(__file__).parent.parent
FOLDERS = ("compress", "export", "targets", "calibration", "reports")


def loaded(statement: str, libraries: tuple[str, ...]) -> list[str]:
    """Which of these libraries a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {libraries!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("name", FOLDERS)
def test_links_resolve(name: str) -> None:
    link = ROOT / "src" / "mcompress" / name
    assert link.is_symlink()
    assert link.resolve() == (ROOT / name).resolve()


@pytest.mark.parametrize(
    "statement",
    [
        "import mcompress",
        "import mcompress.cli",
        "import mcompress.targets.load, mcompress.targets.device, mcompress.targets.latency",
        "import mcompress.record, mcompress.export",
    ],
)
def test_light_imports(statement: str) -> None:
    heavy = ("torch", "onnx", "coremltools", "executorch", "litert_torch", "matplotlib", "optuna", "skimage", "sklearn")
    assert loaded(statement, heavy) == []


def test_importing_the_backends_imports_no_library() -> None:
    modules = ", ".join([*EXPORTERS.values(), "mcompress.export.profile", "mcompress.export.parity"])
    assert loaded(f"import {modules}", ("torch", "onnx", "onnxruntime", "coremltools", "executorch", "ai_edge_litert")) == []


def test_reading_files_imports_no_torch() -> None:
    modules = "mcompress.export.tables.onnx, mcompress.export.tables.tflite, mcompress.export.tables, mcompress.estimating"
    assert loaded(f"import {modules}", ("torch",)) == []


def test_writing_reports_imports_no_torch() -> None:
    assert loaded("import mcompress.reports.html", ("torch", "scipy", "skimage", "accelerate")) == []


def test_the_table_of_networks_does_not_import_their_packages() -> None:
    assert loaded("import mcompress.compress.networks", ("transformers",)) == []


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nsys.argv = ['mcompress', '--help']\nfrom mcompress.cli import main\n"
        "try:\n main()\nexcept SystemExit:\n pass\nprint('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "doctor" in out
    assert out.strip().endswith("False")


def test_package_data_is_found() -> None:
    assert files("mcompress.targets").joinpath("snapdragon865.yaml").is_file()
    assert files("mcompress.compress.tasks.super_resolution").joinpath("teacher.safetensors").is_file()


def test_no_absolute_paths_or_prints_in_the_sources() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    pattern = re.compile(r"(^|[\s\"'=(])/(work|root|home|Users|tmp)/")
    offenders = [
        name
        for name in tracked
        if name.endswith((".py", ".yaml", ".md", ".toml", ".j2")) and (ROOT / name).is_file() and not name.startswith("tests/")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert not offenders


def test_the_embedded_teacher_is_small_and_says_how_it_was_made() -> None:
    folder = files("mcompress.compress.tasks.super_resolution")
    assert len(folder.joinpath("teacher.safetensors").read_bytes()) <= 3_000_000
    record = json.loads(folder.joinpath("teacher.json").read_text())
    assert record["command"].startswith("python -m mcompress.compress.tasks.super_resolution.teacher")
    assert not {"flower", "chelsea", "coffee", "rocket"} & {Path(name).stem for name in record["training_photos"]}


def test_the_embedded_translation_teacher_is_small_and_was_made_from_the_pairs_that_ship() -> None:
    folder = files("mcompress.compress.tasks.translation")
    assert len(folder.joinpath("teacher.safetensors").read_bytes()) <= 3_000_000
    record = json.loads(folder.joinpath("teacher.json").read_text())
    assert record["command"].startswith("python -m mcompress.compress.tasks.translation.teacher")
    task = Translation.from_config(DataConfig())
    assert record["training_digest"] == task.data_digest
    spec, network = task.embedded_teacher((1, 3, 256, 256))
    assert spec.input_range == (-1.0, 1.0)
    sample = task.held_out()[0]
    with torch.no_grad():
        found = task.quality(network.eval()(*sample.inputs), sample.truth)
    assert found == pytest.approx(record["held_out_psnr_db"][sample.name]["teacher"], abs=0.01)
