"""Text to image from one's own model and captioned pictures to a bundle that draws: the whole pipeline, with networks that are tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import tiny_pipeline
from PIL import Image

import mcompress
from mcompress import planning, receipt
from mcompress.compress.attention_layout import with_attention
from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import ParityError, UsageError
from mcompress.pipeline import Outcome, open_target
from mcompress.record import ATTENTION_BY_HEADS, GALLERY
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import PrecisionName

pytestmark = pytest.mark.pipeline

CAPTIONS = {"training": ("red", "red red", "", "a"), "held_out": ("red", "red a", "b")}
TARGET = """\
name: own
device: apple-a16
threads: 1
model:
  task: text_to_image
  teacher: {checkpoint: pipeline}
  input_shape: [1, 4, 8, 8]
  sampling: {steps: 8, guidance: 2.0}
data: {training: training, held_out: held_out}
stages:
  - stage: distill
    method: steps
    teacher_steps: 8
    middle_steps: 4
    student_steps: 2
    original_velocity_training_steps: 2
    student_velocity_training_steps: 2
    original_middle_training_steps: 2
    student_middle_training_steps: 2
    student_training_steps: 2
    batch_size: 2
  - {stage: quantize, samples: 2}
components:
  decoder:
    stages:
      - {stage: prune, ratio: 0.5, uniform: true, round_to: 4, importance_batches: 1}
      - {stage: distill, steps: 2, batch_size: 2, crop_size: 8, truth: 0.0, squared: 1.0, output: 1.0}
exports:
  - {backend: onnx, profile_s: 0.05}
"""


CONSISTENCY = """\
  - {stage: distill, method: consistency, student_steps: 2, ddim_steps: 10, steps: 2, batch_size: 2, guidance_range: [1.5, 4.0]}
"""


def own_folder(folder: Path) -> None:
    """The original, and captioned pictures."""
    tiny_pipeline.pipeline().save_pretrained(folder / "pipeline")
    for part, captions in CAPTIONS.items():
        (folder / part).mkdir()
        for number, caption in enumerate(captions):
            picture = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / part / f"{number}.png")
            (folder / part / f"{number}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("own")
    own_folder(folder)
    (folder / "t.yaml").write_text(TARGET, encoding="utf-8")
    return folder, mcompress.run(folder / "t.yaml", out=folder / "runs")


def of_files(outcome: Outcome) -> Iterable[str]:
    return sorted(f"{export.component or 'unet'} {export.variant}" for export in outcome.record.exports)


def test_every_network_went_its_way(finished: tuple[Path, Outcome]) -> None:
    _, outcome = finished
    record = outcome.record
    assert [stage.name for stage in record.stages] == ["distill", "quantize", "quantize-text_encoder", "prune-decoder", "distill-decoder"]
    assert set(record.models) >= {"teacher", "compressed", "text_encoder_teacher", "text_encoder", "decoder_teacher", "decoder"}
    assert record.models["decoder"].params < record.models["decoder_teacher"].params
    assert {"unet float", "unet mixed", "text_encoder float", "text_encoder mixed", "decoder float"} == set(of_files(outcome))
    assert all(export.parity.passed for export in record.exports), [(export.file, export.parity) for export in record.exports]
    assert any("attribute accuracy" in missing for missing in record.not_measured), "nobody who sees attributes was given"


def test_files_draw_what_pytorch_draws(finished: tuple[Path, Outcome]) -> None:
    _, outcome = finished
    gallery = outcome.record.gallery
    assert gallery is not None
    assert gallery.captions == CAPTIONS["held_out"]
    painters = {painter.name: painter for painter in gallery.painters}
    assert {"original", "original, 2 steps", "compressed", "onnx float"} <= set(painters)
    assert (painters["original"].steps, painters["compressed"].steps, painters["onnx float"].steps) == (8, 2, 2)
    assert painters["onnx float"].passed
    assert {name: {row.component: row.calls for row in rows} for name, rows in gallery.latency.items()} == {
        "original": {"text_encoder": 2, "unet": 16, "decoder": 1},
        "compressed": {"text_encoder": 2, "unet": 4, "decoder": 1},
    }
    with Image.open(outcome.folder / GALLERY) as grid:
        assert grid.height > 3 * 16, "a row for each caption"


def test_the_grid_goes_by_steps_and_what_is_drawn_for_it_alone_is_not_judged(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    gallery = outcome.record.gallery
    assert gallery is not None
    alone = {"original, 4 steps", "original, 1 step", "compressed, 4 steps", "compressed, 1 step"}
    assert gallery.shown == (
        "original", "original, 4 steps", "original, 2 steps", "original, 1 step",
        "compressed, 4 steps", "compressed", "compressed, 1 step", "onnx float",
    )  # fmt: skip
    assert alone.isdisjoint(painter.name for painter in gallery.painters)
    drawn = {}
    for entry in (folder / "runs" / "cache").glob("*/entry.json"):
        parts = json.loads(entry.read_text(encoding="utf-8"))["parts"]
        if parts["name"].startswith("draw "):
            drawn[parts["name"].removeprefix("draw ")] = (parts.get("captions"), np.load(entry.parent / "pictures.npy"), parts["sampling"]["steps"])
    assert alone | set(gallery.shown) <= set(drawn)
    for name, (captions, pictures, steps) in drawn.items():
        assert captions == ([0, 1, 2] if name in alone else None), name
        assert len(pictures) == 3
        assert name == "original" or str(steps) in name or steps == 2
    assert not np.array_equal(drawn["compressed, 4 steps"][1], drawn["compressed"][1])
    with Image.open(outcome.folder / GALLERY) as grid:
        assert grid.width == 230 + 8 + (1 + len(gallery.shown)) * (112 + 8)


def test_the_bundle_draws_without_torch(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    _, outcome = finished
    bundle, picture = outcome.folder / "bundle", tmp_path / "red.png"
    without = "import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    for arguments in (["--prompt", "red", "--out", str(picture)], ["--check"]):
        done = subprocess.run([sys.executable, "-c", without, str(bundle / "draw.py"), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(picture) as drawn:
        assert (drawn.size, drawn.mode) == ((16, 16), "RGB")
    told = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["drawing"]
    assert (told["sampling"]["steps"], told["sampling"]["prediction"], told["scaling_factor"]) == (2, "v_prediction", 0.25)


def test_pictures_that_are_not_alike_fail_the_run(finished: tuple[Path, Outcome]) -> None:
    _, outcome = finished
    outcome.raise_for_status()
    gallery = outcome.record.gallery
    assert gallery is not None
    painters = [painter.model_copy(update={"least_psnr_db": 20.0}) if painter.limit_db else painter for painter in gallery.painters]
    record = outcome.record.model_copy(update={"gallery": gallery.model_copy(update={"painters": tuple(painters)})})
    with pytest.raises(ParityError, match=r"onnx float: the picture that is least like PyTorch's is at 20 dB, limit 35, drawn by bundle/own"):
        replace(outcome, record=record).raise_for_status()


def test_files_that_the_script_puts_together_wrongly_fail_the_run(finished: tuple[Path, Outcome]) -> None:
    _, outcome = finished
    gallery = outcome.record.gallery
    assert gallery is not None
    floats, *others = gallery.by_script
    assert floats.name == "draw.py with onnx float files"
    assert floats.passed
    assert all(mixed.passed is None for mixed in others)
    wrong = gallery.model_copy(update={"by_script": (floats.model_copy(update={"least_psnr_db": 11.0}), *others)})
    said = r"draw\.py with onnx float files: .* at 11 dB, limit 35\. Where those files pass, they are put together wrongly"
    with pytest.raises(ParityError, match=said):
        replace(outcome, record=outcome.record.model_copy(update={"gallery": wrong})).raise_for_status()


def test_the_receipt_names_every_file_of_the_original_and_all_that_was_left(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    target = open_target(folder / "t.yaml")
    inputs = receipt.inputs_of(target)
    assert receipt.still_holds(outcome.folder, inputs)
    grid = outcome.folder / GALLERY
    kept = grid.read_bytes()
    grid.unlink()
    assert not receipt.still_holds(outcome.folder, inputs)
    grid.write_bytes(kept)
    weights = folder / "pipeline" / "vae" / "config.json"
    before = weights.read_bytes()
    weights.write_bytes(before + b"\n")
    assert receipt.inputs_of(target) != inputs
    weights.write_bytes(before)
    assert receipt.inputs_of(target) == inputs


def test_a_stage_of_a_component_can_be_forced(finished: tuple[Path, Outcome]) -> None:
    folder, _ = finished
    again = mcompress.run(folder / "t.yaml", out=folder / "runs", force=["distill-decoder"])
    assert [stage.name for stage in again.record.stages if not stage.cached] == ["distill-decoder"]
    stages = "distill, quantize, quantize-text_encoder, prune-decoder, distill-decoder, export"
    with pytest.raises(UsageError, match=f"--force prune: .* it has: {stages}"):
        mcompress.run(folder / "t.yaml", out=folder / "runs", force=["prune"])


def test_plans_of_components_are_found_beside_the_target(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    (folder / "plans").mkdir()
    plan = next((outcome.folder / "components" / "text_encoder").rglob("plan.json"))
    (folder / "plans" / "text.json").write_bytes(plan.read_bytes())
    text = TARGET.replace("components:\n", "components:\n  text_encoder:\n    stages: [{stage: quantize, plan: plans/text.json}]\n")
    (folder / "planned.yaml").write_text(text, encoding="utf-8")
    target = open_target(folder / "planned.yaml")
    assert target.components["text_encoder"].stages[0].plan == folder / "plans" / "text.json"  # type: ignore[union-attr]
    inputs = receipt.inputs_of(target)
    (folder / "plans" / "text.json").write_bytes(plan.read_bytes() + b"\n")
    assert receipt.inputs_of(target) != inputs


def test_a_consistency_model_ships_with_guidance_as_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention goes by heads, as on a device that runs it faster so."""
    monkeypatch.setattr(planning, "fastest_attention", lambda spec, *_: (with_attention(spec, "heads"), {"whole": 2.0, "heads": 1.0}))
    own_folder(tmp_path)
    stages, rest = TARGET.split("stages:\n", 1)
    text = stages + "stages:\n" + CONSISTENCY + "exports:\n" + rest.split("exports:\n")[1]
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    outcome = mcompress.run(tmp_path / "t.yaml", out=tmp_path / "runs")
    gallery = outcome.record.gallery
    assert gallery is not None
    (files,) = [painter for painter in gallery.painters if painter.kind == "files" and painter.name == "onnx float"]
    assert files.passed, files
    assert {row.component: row.calls for row in gallery.latency["compressed"]} == {"text_encoder": 1, "unet": 2, "decoder": 1}
    assert gallery.shown[:-1] == (
        "original", "original, 4 steps", "original, 2 steps", "original, 1 step", "compressed, 4 steps", "compressed", "compressed, 1 step"
    )  # fmt: skip
    assert list(gallery.latency) == ["original", ATTENTION_BY_HEADS, "compressed"]
    published, by_heads = ({row.component: row for row in gallery.latency[which]} for which in ("original", ATTENTION_BY_HEADS))
    assert {name: row.calls for name, row in published.items()} == {name: row.calls for name, row in by_heads.items()}
    assert (published["text_encoder"], published["decoder"]) == (by_heads["text_encoder"], by_heads["decoder"])
    spec = with_attention(ModelSpec.from_json(json.dumps(outcome.record.models["teacher"].spec)), "heads")
    each = by_heads["unet"].each
    device, unit, precision = each.on.split()
    expected = estimate(operator_table(build_meta(spec), *spec.input_shapes), load_device(device), unit, cast("PrecisionName", precision))
    assert each == expected
    assert published["unet"].each.value != each.value
    assert "by attention by heads" in (outcome.folder / "report.html").read_text(encoding="utf-8")
    told = json.loads((outcome.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))["drawing"]
    assert (told["sampling"]["method"], told["sampling"]["guidance_by"], told["sampling"]["steps"]) == ("lcm", "input", 2)
    (unet,) = [one for one in told["components"] if one["name"] == "unet"]
    assert (len(unet["inputs"]), unet["calls"]) == (4, 2)
    (check,) = [one for one in told["check"]["drawn"] if one["variant"] == "float"]
    assert check["psnr_db"] > 35
