"""The pictures of each file in the reports: in HTML, in the terminal, in the model card, and the worst place of the worst one."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_bundle import make_bundle

from mcompress.record import Run
from mcompress.reports.html import write_report
from mcompress.reports.likeness import picture_rows, worst_shown
from mcompress.reports.pictures import DETAIL, worst_place
from mcompress.reports.terminal import render


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def terminal(run: Run, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(run, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_executed_file_has_its_rows(run_folder: Path) -> None:
    run = Run.load(run_folder)
    rows = picture_rows(run)
    executed = [export for export in run.exports if export.fidelity]
    assert 0 < len(executed) < len(run.exports)
    assert [row.against for row in rows] == len(executed) * ["the truth", "the teacher", "the float student"]
    mixed = next(row for row in rows if row.file.endswith("mixed.tflite") and row.against == "the float student")
    psnr, ssim, shift, colour = mixed.cells
    assert (psnr.mean, psnr.worst, psnr.picture) == ("42.5 dB", "41.0 dB", "rocket")
    assert (ssim.worst, shift.worst, shift.picture, colour.worst) == ("0.9880", "0.60 steps", "rocket", "0.70")
    assert shift.mean == "0.33 steps (+0.30, -0.10, +0.00)"


def test_the_page_holds_the_rows_and_the_worst_place(run_folder: Path) -> None:
    words = Words()
    words.feed(write_report(run_folder).read_text(encoding="utf-8"))
    for row in picture_rows(Run.load(run_folder)):
        for cell in row.cells:
            assert cell.mean in words.text
            assert cell.worst in words.text
    assert "The worst place of the worst picture" in words.text
    assert "rocket: 33.5 dB against the teacher" in words.text


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_the_worst_case(run_folder: Path, width: int) -> None:
    text = terminal(Run.load(run_folder), width)
    assert max(len(line) for line in text.splitlines()) <= width
    line = next(line for line in text.splitlines() if line.strip().startswith("tflite mixed") and "steps" in line)
    assert line.split()[2:] == ["28.00", "dB", "41.0", "dB", "33.5", "dB", "0.9880", "0.60", "steps"]


def test_a_run_that_compared_no_pictures_says_nothing_of_them(run_folder: Path, tmp_path: Path) -> None:
    run = Run.load(run_folder)
    without = run.model_copy(
        update={"exports": tuple(e.model_copy(update={"fidelity": {}, "pictures": {}, "quality_worst": {}}) for e in run.exports)}
    )
    without.save(tmp_path)
    assert picture_rows(without) == []
    assert worst_shown(without) is None
    assert "What became of the pictures" not in write_report(tmp_path).read_text(encoding="utf-8")
    assert "worst picture of" not in terminal(without)


def test_a_record_of_an_older_run_is_read(run_folder: Path) -> None:
    run = Run.load(run_folder)
    older = run.model_dump(mode="json", by_alias=True)
    for export in older["exports"]:
        for key in ("fidelity", "pictures", "quality_worst"):
            del export[key]
    assert all(export.pictures == {} for export in Run.model_validate(older).exports)


def test_the_worst_place_is_where_the_two_differ_most(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pixels = np.full((256, 320, 3), 128, np.uint8)
    damaged = pixels.copy()
    damaged[144:240, 200:296] = 90
    for variant, picture in (("truth", pixels), ("teacher", pixels), ("compressed", damaged)):
        Image.fromarray(picture).save(tmp_path / "a" / f"{variant}.png")
    place = worst_place(tmp_path, "a")
    assert place is not None
    assert (place.side, [detail.variant for detail in place.details]) == (DETAIL, ["truth", "teacher", "compressed"])
    same, teacher, compressed = (detail.uri for detail in place.details)
    assert same == teacher != compressed
    (tmp_path / "a" / "teacher.png").unlink()
    assert worst_place(tmp_path, "a") is None


def test_the_model_card_names_the_worst_picture(tmp_path: Path) -> None:
    card = (make_bundle(tmp_path) / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| `tiny-float.onnx` | truth | worst 27.50 psnr_db (flower) | | | |" in card
    assert "| `tiny-float.onnx` | float_student | 50.0, worst 50.0 (flower) | 0.9900, worst 0.9900 (flower) |" in card
    table = [line for line in card.splitlines() if line.startswith("| `tiny-float.onnx` | ")]
    header = card.splitlines()[card.splitlines().index("| file | against | PSNR | SSIM | colour shift | CIEDE2000 |")]
    likeness_rows = [line for line in table if line.split("|")[2].strip() in ("truth", "teacher", "float_student")]
    assert {line.replace("\\|", "").count("|") for line in likeness_rows} == {header.count("|")}
