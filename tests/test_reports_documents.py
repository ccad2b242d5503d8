"""Model card and licences say what is true of the task: what the network does, and whose pictures it learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import a_run, a_target, an_export

from mcompress.export.bundle import write_bundle
from mcompress.record import DataRecord

DRAWN, PACKAGED = "mcompress draws itself", "astronaut (scikit-image): NASA; public domain"
PAIRS = DataRecord(labelled_fraction=0.25, labelled_pairs=24, unlabelled_images=72)


def papers(folder: Path, *, data: dict[str, object], task: str = "translation", record: DataRecord | None = PAIRS) -> tuple[str, str]:
    """(model card, licences), each on one line."""
    export = an_export(folder / "made")
    run = a_run(export.record).model_copy(update={"baseline_name": "bicubic" if task == "super_resolution" else "mean colour", "data": record})
    bundle = write_bundle(folder / "bundle", run=run, target=a_target(model={"task": task}, data=data), files=(export,), plan=None)
    card, licences = ((bundle / name).read_text(encoding="utf-8") for name in ("MODEL_CARD.md", "LICENSES"))
    return " ".join(card.split()), " ".join(licences.split())


def test_drawn_scenes_are_nobodys_photographs(tmp_path: Path) -> None:
    card, licences = papers(tmp_path, data={"labelled_fraction": 0.25})
    assert "Image translation for" in card
    assert "Turns contour drawings of simple solids" in card
    assert "Scenes that mcompress draws itself, by chance" in card
    assert "24 pairs had their target (25 % of the training pairs); 72 images had none." in card
    assert "The mean colour of the training targets everywhere, which costs nothing: 28.00 psnr_db." in card
    assert f"Trained by the mcompress project and by this run on scenes that {DRAWN}." in licences
    assert "Drawn by mcompress itself: Apache License 2.0." in licences
    for absent in ("scikit", "Enlarges", "Bicubic", "astronaut"):
        assert absent not in card + licences, absent


def test_photographs_are_named_where_the_target_asks_for_them(tmp_path: Path) -> None:
    card, licences = papers(tmp_path, data={"embedded": "photographs"})
    assert "Squares of the colour photographs inside the wheels of scikit-image and scikit-learn" in card
    assert f"The teacher learned from other data: scenes that {DRAWN}." in card
    assert f"on scenes that {DRAWN}; this run trained on the photographs below." in licences
    assert PACKAGED in licences
    assert "BSD 3-Clause" in licences


@pytest.mark.parametrize("task", ["translation", "super_resolution"])
def test_the_owners_images_are_not_spoken_for(tmp_path: Path, task: str) -> None:
    card, licences = papers(tmp_path, task=task, data={"training": str(tmp_path), "held_out": str(tmp_path)})
    assert "A folder of images that the owner of this run supplied." in card
    assert "not known, stated by the owner. The test vectors in vectors/ are derived from the owner's images." in licences
    assert "Drawn by mcompress itself" not in licences
    assert (PACKAGED in licences, DRAWN in licences) == ((False, True) if task == "translation" else (True, False))  # the embedded teacher's


def test_without_pairs_the_card_says_what_truth_is(tmp_path: Path) -> None:
    unpaired = DataRecord(pairing="unpaired", labelled_fraction=1.0, labelled_pairs=0, unlabelled_images=42)
    card, _ = papers(tmp_path, data={"pairing": "unpaired"}, record=unpaired)
    assert "`truth` below is what the teacher (before compression, PyTorch) makes of a held-out input" in card
    assert "Before compression (the teacher, PyTorch)" not in card
    assert "made from 42 inputs without targets" in card


def test_super_resolution_still_enlarges_photographs(tmp_path: Path) -> None:
    card, licences = papers(tmp_path, task="super_resolution", data={}, record=None)
    assert "Super-resolution x4 for" in card
    assert "Enlarges RGB photographs 4 times" in card
    assert "Bicubic enlargement, which costs nothing: 28.00 psnr_db." in card
    assert "The colour photographs inside the wheels" in card
    assert "by this run on the photographs below" in licences
    assert PACKAGED in licences
    assert DRAWN not in card + licences
