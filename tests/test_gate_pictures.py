"""The gate on single held-out pictures: what is equal, what is damage, what older bundles cannot say, and who decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gate_bundles import PACKAGES, a_comparison, gate_bundle, recorded, with_pictures
from gate_checks import check, row, side
from pydantic import ValidationError
from test_fidelity import UNIT, picture
from tiny_bundle import PICTURES, a_likeness, about_pictures

from mcompress.export.bundle import read_manifest
from mcompress.export.comparison import Comparison
from mcompress.export.fidelity import likeness
from mcompress.export.manifest import Manifest
from mcompress.record import Likeness, PictureRecord
from mcompress.reports.gate.verdicts import Check
from mcompress.targets.gate import ALIKE_DB, Gate

QUALITY = "worst picture, psnr_db"
PSNR, SSIM, SHIFT = "PSNR, float student, dB", "SSIM, float student", "colour shift, float student"
TEACHER_PSNR, TEACHER_SSIM, TEACHER_SHIFT = (name.replace("float student", "teacher") for name in (PSNR, SSIM, SHIFT))
ABOUT_PICTURES = [QUALITY, PSNR, SSIM, SHIFT, TEACHER_PSNR, TEACHER_SSIM, TEACHER_SHIFT]


def changed(name: str, **more: object) -> dict[str, PictureRecord]:
    """The tiny bundle's pictures with something else about one of them."""
    return {**PICTURES, name: PICTURES[name].model_copy(update=more)}


def compared(
    folder: Path, old: Mapping[str, PictureRecord], new: Mapping[str, PictureRecord], before: Mapping[str, object] | None = None, **more: object
) -> Check:
    pair = zip(("old", "new"), (old, new), (before or {}, more), strict=True)
    folders = [
        gate_bundle(folder / who, a_comparison(**said), export=lambda made, p=pictures: recorded(made, **about_pictures(p)))
        for who, pictures, said in pair
    ]
    return check(*folders)


def student(psnr_db: float = 50.0, ssim: float | None = 0.99, shift: tuple[float, ...] = (0.1, -0.2, 0.0)) -> dict[str, object]:
    return {"against": {**PICTURES["flower"].against, "float_student": a_likeness(psnr_db, ssim, shift)}}


def teacher(psnr_db: float = 38.0, ssim: float | None = 0.97, shift: tuple[float, ...] = (0.1, -0.2, 0.0)) -> dict[str, object]:
    return {"against": {**PICTURES["flower"].against, "teacher": a_likeness(psnr_db, ssim, shift)}}


def test_equal_pictures_pass_and_the_worst_is_shown(tmp_path: Path) -> None:
    found = compared(tmp_path, PICTURES, PICTURES)
    assert {row(found, field).verdict for field in ABOUT_PICTURES} == {"ok"}
    assert (row(found, QUALITY).baseline, row(found, QUALITY).note) == ("27.500", "of 3 pictures, flower lost most")


CHANGES: dict[str, tuple[dict[str, object], str, str]] = {
    "quality within": ({"quality": {"psnr_db": 29.5}}, QUALITY, "ok"),
    "quality lost, still above the worst picture": ({"quality": {"psnr_db": 28.0}}, QUALITY, "regression"),
    "psnr within": (student(psnr_db=49.0), PSNR, "ok"),
    "psnr lost": (student(psnr_db=48.9), PSNR, "regression"),
    "ssim within": (student(ssim=0.985), SSIM, "ok"),
    "ssim lost": (student(ssim=0.984), SSIM, "regression"),
    "ssim that is gone": (student(ssim=None), SSIM, "regression"),
    "a shift within": (student(shift=(0.1, -0.45, 0.0)), SHIFT, "ok"),
    "a shift of another channel": (student(shift=(0.1, -0.2, 0.46)), SHIFT, "regression"),
    "a shift the other way": (student(shift=(0.1, -0.46, 0.0)), SHIFT, "regression"),
    "psnr to the teacher within": (teacher(psnr_db=37.0), TEACHER_PSNR, "ok"),
    "psnr to the teacher lost": (teacher(psnr_db=36.9), TEACHER_PSNR, "regression"),
    "ssim to the teacher within": (teacher(ssim=0.965), TEACHER_SSIM, "ok"),
    "ssim to the teacher lost": (teacher(ssim=0.964), TEACHER_SSIM, "regression"),
    "a shift from the teacher within": (teacher(shift=(0.45, -0.2, 0.0)), TEACHER_SHIFT, "ok"),
    "a shift from the teacher": (teacher(shift=(0.46, -0.2, 0.0)), TEACHER_SHIFT, "regression"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_picture_decides(name: str, tmp_path: Path) -> None:
    more, field, verdict = CHANGES[name]
    found = compared(tmp_path, PICTURES, changed("chelsea", **more))
    assert row(found, field).verdict == verdict
    assert "chelsea" in row(found, field).note
    assert {row(found, other).verdict for other in ABOUT_PICTURES if other != field} == {"ok"}
    assert [one.field for one in found.failing] == [field] * (verdict == "regression"), "the row alone fails the gate"


def test_better_needs_every_picture_to_be_better(tmp_path: Path) -> None:
    one, every = changed("chelsea", **student(55.0)), {name: found.model_copy(update=student(55.0)) for name, found in PICTURES.items()}
    assert row(compared(tmp_path / "one", PICTURES, one), PSNR).verdict == "ok"
    assert row(compared(tmp_path / "every", PICTURES, every), PSNR).verdict == "better"


def test_what_only_rounding_moves_is_no_finding(tmp_path: Path) -> None:
    same, rounded = (changed("chelsea", **student(psnr_db)) for psnr_db in (200.0, 96.3))
    assert row(compared(tmp_path / "float", same, rounded), PSNR).verdict == "ok"
    assert row(compared(tmp_path / "edge", same, changed("chelsea", **student(ALIKE_DB - 1))), PSNR).verdict == "ok"
    assert row(compared(tmp_path / "seen", same, changed("chelsea", **student(ALIKE_DB - 1.1))), PSNR).verdict == "regression"


def real(names: tuple[str, ...], damaged: Mapping[str, np.ndarray]) -> dict[str, PictureRecord]:
    """Pictures of a file that computes its float student's, but for those damaged; quality is invented and the same for all."""
    found = {}
    for index, name in enumerate(names):
        reference = picture(index)
        against = likeness(damaged.get(name, reference), reference, UNIT)
        found[name] = PictureRecord(quality={"psnr_db": 30.0}, against={"float_student": against})
    return found


def test_swapped_channels_and_one_ruined_picture_are_caught(tmp_path: Path) -> None:
    names = tuple(f"photo{index}" for index in range(30))
    good = real(names, {})
    swapped = compared(tmp_path / "swapped", good, real(names, {name: picture(i)[:, ::-1] for i, name in enumerate(names)}))
    assert {row(swapped, field).verdict for field in (PSNR, SSIM, SHIFT)} == {"regression"}
    grain = np.random.default_rng(0).normal(0, 0.02, picture().shape).astype(np.float32)
    ruined = compared(tmp_path / "ruined", good, real(names, {"photo7": picture(7) + grain}))
    assert row(ruined, PSNR).verdict == row(ruined, SSIM).verdict == "regression"
    assert row(ruined, PSNR).note == "of 30 pictures, photo7 lost most"
    assert row(ruined, SHIFT).verdict == "ok", "noise shifts no colour"
    offset = compared(tmp_path / "offset", good, real(names, {"photo7": picture(7) + np.float32(1 / 255)}))
    assert row(offset, SHIFT).verdict == "regression"
    assert (row(offset, SHIFT).baseline, row(offset, SHIFT).new, row(offset, SHIFT).change) == ("0.00", "1.00", "+1.00")


def test_bundles_that_do_not_know_single_pictures(tmp_path: Path) -> None:
    from_before = compared(tmp_path / "baseline", {}, PICTURES)
    assert {row(from_before, field).verdict for field in ABOUT_PICTURES} == {"not comparable"}
    assert from_before.verdict == "ok"
    neither = compared(tmp_path / "neither", {}, {})
    assert row(neither, "single pictures").verdict == "not comparable"
    assert neither.verdict == "ok"
    lost = compared(tmp_path / "lost", PICTURES, {})
    assert {row(lost, field).verdict for field in ABOUT_PICTURES} == {"regression"}
    one_lost = compared(tmp_path / "one lost", PICTURES, {name: found for name, found in PICTURES.items() if name != "flower"})
    assert row(one_lost, QUALITY).verdict == "regression"
    assert row(one_lost, QUALITY).note == "only the baseline has it for flower"


def test_what_excuses_a_worse_picture(tmp_path: Path) -> None:
    worse = changed("chelsea", **student(30.0))
    assert row(compared(tmp_path / "cpu", PICTURES, worse, cpu="another processor"), PSNR).verdict == "re-baseline"
    newer = {**PACKAGES, "onnxruntime": "1.32.0"}
    assert row(compared(tmp_path / "runtime", PICTURES, worse, packages=newer), PSNR).verdict == "re-baseline"
    data = compared(tmp_path / "data", PICTURES, {"another": PICTURES["chelsea"]}, held_out="cd" * 32)
    assert {row(data, field).verdict for field in ABOUT_PICTURES} == {"re-baseline"}


def test_what_is_only_shown_fails_nothing(tmp_path: Path) -> None:
    gate = {"only_shown": ["float_psnr_db", "ssim", "colour_shift", "worst_picture"]}
    worse = changed("chelsea", quality={"psnr_db": 10.0}, **student(30.0, 0.5, (9.0, 0.0, 0.0)))
    found = compared(tmp_path, PICTURES, worse, {"gate": gate}, gate=gate)
    assert not found.failing
    assert row(found, PSNR).note.endswith("only shown, worse than would be allowed")


def test_a_looser_gate_is_the_users_choice(tmp_path: Path) -> None:
    gate = Gate(float_psnr_db=25, worst_picture=3).model_dump()
    worse = changed("chelsea", quality={"psnr_db": 27.1}, **student(26.0))
    assert not compared(tmp_path, PICTURES, worse, {"gate": gate}, gate=gate).failing
    assert row(compared(tmp_path / "own", PICTURES, worse, gate=gate), PSNR).tolerance == "-1 below 60 (baseline -1 below 60, new -25 below 60)"


def test_files_from_before_there_were_pictures_are_read(tmp_path: Path) -> None:
    comparison = a_comparison(pictures={"tiny-float.onnx": PICTURES}).model_dump(mode="json", by_alias=True)
    del comparison["pictures"]
    for name in ("worst_picture", "float_psnr_db", "teacher_psnr_db", "ssim", "colour_shift"):
        del comparison["gate"][name]
    assert Comparison.model_validate(comparison) == a_comparison()
    manifest = read_manifest(gate_bundle(tmp_path)).model_dump(mode="json", by_alias=True)
    for file in manifest["files"]:
        del file["fidelity"], file["quality"]["worst"]
    assert Manifest.model_validate(manifest).files[0].fidelity == {}


@pytest.mark.parametrize(("field", "value"), [("psnr_db", float("nan")), ("ssim", 1.5), ("delta_e", -1), ("largest_shift", float("inf"))])
def test_numbers_that_cannot_be_are_refused(field: str, value: float) -> None:
    damaged = a_likeness().model_dump() | {field: value}
    with pytest.raises(ValidationError, match=field):
        Likeness.model_validate(damaged)


def test_a_comparison_keeps_the_pictures_of_its_files(tmp_path: Path) -> None:
    bundle = gate_bundle(tmp_path)
    kept = with_pictures(a_comparison()).pictures
    assert kept == {}
    assert side(bundle).comparison.pictures == {"tiny-float.onnx": PICTURES}
    (file,) = side(bundle).manifest.files
    assert file.fidelity["float_student"].worst["psnr_db"].value == 50.0
    assert file.quality.worst["psnr_db"].picture == "flower"
