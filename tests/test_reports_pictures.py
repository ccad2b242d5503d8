"""Photographs, their details and the plots of the report."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS
from mcompress.record import Run
from mcompress.reports import plots
from mcompress.reports.pictures import detail_region, photographs


def test_every_variant_is_shown_for_every_photograph(run_folder: Path) -> None:
    shown, count = photographs(run_folder / "samples", "bicubic")
    assert count == len(HELD_OUT_PHOTOS) == len(shown)
    for photo in shown:
        assert [detail.variant for detail in photo.details] == ["input", "bicubic", "teacher", "student", "compressed", "truth"]
        assert (photo.left, photo.right, photo.missing) == ("bicubic", "compressed", ())


def test_details_of_all_variants_show_one_region(tmp_path: Path) -> None:
    ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    (tmp_path / "a").mkdir()
    for variant in ("truth", "teacher", "compressed"):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{variant}.png")
    (photo,), _ = photographs(tmp_path, "bicubic")
    assert len({detail.uri for detail in photo.details}) == 1
    assert photo.missing == ("input", "bicubic", "student")


def test_region_is_where_bicubic_loses_most() -> None:
    truth = np.full((256, 320, 3), 128, np.uint8)
    truth[144:240, 200:296] += np.random.default_rng(0).integers(0, 100, (96, 96, 1)).astype(np.uint8)
    assert detail_region(truth, np.full_like(truth, 128)) == (144, 200, 96)
    assert detail_region(truth, None) == (144, 200, 96)
    assert detail_region(truth[:40, :50], None) == (0, 0, 40)


def test_plots_take_the_colours_of_the_page() -> None:
    svg = plots.curves([(1, {"generator/l1": 0.2}), (2, {"generator/l1": 0.1})], title="distill")
    assert svg.startswith('<svg role="img" aria-label="Training curves of distill: generator/l1 over 2 steps."')
    assert "var(--accent)" in svg
    assert "#0" not in re.sub(r"#p[0-9a-f]{6}", "", svg)
    assert svg == plots.curves([(1, {"generator/l1": 0.2}), (2, {"generator/l1": 0.1})], title="distill")


def test_psnr_of_the_fixture_is_that_of_its_pictures(run_folder: Path) -> None:
    run = Run.load(run_folder)
    pictures = {v: np.asarray(Image.open(run_folder / "samples" / "coffee" / f"{v}.png"), np.float64) / 255 for v in ("truth", "teacher")}
    error = functional.mse_loss(torch.from_numpy(pictures["teacher"]), torch.from_numpy(pictures["truth"]))
    assert run.models["teacher"].quality_per_sample["coffee"]["psnr_db"] == pytest.approx(-10 * math.log10(float(error)), abs=0.05)
