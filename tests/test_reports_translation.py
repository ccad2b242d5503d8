"""Reports of image translation: strips of pictures, the baseline's own name, teachers and what they counted, runs without pairs."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported_translation import SIDE, STUDENT, TEACHERS, WEIGHTS, write_translation_run
from rich.console import Console

from mcompress.record import Run
from mcompress.reports import plots, wording
from mcompress.reports.details import read_details
from mcompress.reports.found import search_part, taught_part, training_parts
from mcompress.reports.html import headlines, quality_rows, write_report
from mcompress.reports.strips import strips
from mcompress.reports.terminal import render


class Words(HTMLParser):
    """What a reader sees and hears: text, and descriptions of pictures and plots."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.pictures: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("img", "svg"):
            self.pictures.append(values.get("alt") or values.get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from pairs, with its report; to be read only."""
    made = tmp_path_factory.mktemp("pairs") / "run"
    write_translation_run(made)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without pairs; to be read only."""
    made = tmp_path_factory.mktemp("unpaired") / "run"
    write_translation_run(made, pairing="unpaired")
    write_report(made)
    return made


def terminal(run: Run, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(run, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(folder: Path) -> Words:
    return Words((folder / "report.html").read_text(encoding="utf-8"))


def all_details(folder: Path) -> dict[str, object]:
    return {stage.name: read_details(folder / "stages" / stage.name) for stage in Run.load(folder).stages}


def test_strips_show_every_network_beside_input_and_target(folder: Path) -> None:
    shown, count = strips(folder / "samples", Run.load(folder))
    assert (count, [strip.name for strip in shown]) == (2, ["objects_2_0000", "objects_2_0001"])
    for strip in shown:
        assert [(p.variant, p.title, p.note) for p in strip.pictures] == [
            ("input", "input", ""),
            ("truth", "target", ""),
            ("teacher", "teacher", ""),
            ("student", "student", "as the search left it"),
            ("distilled", "distilled", "trained, in float"),
            ("compressed", "compressed", ""),
        ]
        assert (strip.width, strip.height, strip.missing) == (SIDE, SIDE, ())
        assert strip.box[2:] == (pytest.approx(100 * 64 / SIDE), pytest.approx(100 * 64 / SIDE))
        assert len({p.uri for p in strip.pictures}) == len({p.detail_uri for p in strip.pictures}) == 6


def test_a_picture_that_is_missing_or_of_another_size_is_said_to_be_missing(tmp_path: Path, folder: Path) -> None:
    sample = tmp_path / "a"
    sample.mkdir()
    for variant, side in (("input", 80), ("truth", 80), ("teacher", 40)):
        Image.fromarray(np.full((side, side, 3), 128, np.uint8)).save(sample / f"{variant}.png")
    (strip,), count = strips(tmp_path, Run.load(folder))
    assert count == 1
    assert [p.variant for p in strip.pictures] == ["input", "truth"]
    assert strip.missing == ("teacher", "student", "distilled", "compressed")
    assert strips(tmp_path / "none", Run.load(folder)) == ((), 0)


def test_a_student_that_was_not_trained_on_is_shown_once(folder: Path) -> None:
    run = Run.load(folder)
    models = run.models | {"distilled": run.models["student"]}
    plain = run.model_copy(update={"models": models, "stages": ()})
    (first, _), _ = strips(folder / "samples", plain)
    assert [(p.title, p.note) for p in first.pictures][3:] == [("student", "in float"), ("compressed", "")]


def test_the_page_speaks_of_pictures_and_of_the_mean_colour(folder: Path) -> None:
    page, run = words(folder), Run.load(folder)
    assert "Held-out pictures: nothing was trained" in page.text
    assert "Above mean colour" in page.text
    assert f"; mean colour {wording.quality('psnr_db', run.baseline['mean']['psnr_db'])}" in headlines(run)[-1].detail
    assert quality_rows(run)[0][:2] == ("mean colour, PSNR", wording.quality("psnr_db", run.baseline["mean"]["psnr_db"]))
    assert [alt for alt in page.pictures if alt.startswith("objects_2_0000")] == [
        f"objects_2_0000, {title}" for title in ("input", "target", "teacher", "student", "distilled", "compressed")
    ]
    for model in ("teacher", "student", "distilled", "compressed"):
        for values in run.models[model].quality_per_sample.values():
            assert f"PSNR {values['psnr_db']:.2f} dB" in page.text
    for absent in ("bicubic", "Bicubic", "photograph", "enlarge"):
        assert absent not in page.text, absent


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_names_the_baseline_and_the_labels(folder: Path, width: int) -> None:
    run = Run.load(folder)
    text = terminal(run, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "bicubic" not in text
    assert "Data: 24 labelled pairs (25 % of the training pairs), 72 unlabelled images" in " ".join(text.split())
    if width == 120:
        base = run.baseline["mean"]["psnr_db"]
        line = next(line for line in text.splitlines() if line.strip().startswith("above mean colour"))
        gains = [f"{run.models[name].quality['psnr_db'] - base:+.2f}" for name in ("teacher", "student", "distilled", "compressed")]
        assert line.split()[3:7] == gains


def test_teachers_and_what_they_counted(folder: Path) -> None:
    run = Run.load(folder)
    part = taught_part(run, all_details(folder))  # type: ignore[arg-type]
    assert part is not None
    assert (part.found_by, part.taught_in, part.metric) == ("search", "distill", "PSNR, dB")
    assert [(row.name, row.macs, row.against_student, row.quality, row.share) for row in part.rows] == [
        ("student", "500 M", "", "14.80", None),
        ("wider teacher", "1.50 G", "3.00x the student", "17.25", 100 * WEIGHTS["wider"]),
        ("deeper teacher", "1.00 G", "2.00x the student", "16.50", 100 * WEIGHTS["deeper"]),
    ]
    assert [json.loads(row.network) for row in part.rows] == [STUDENT, *(one["spec_args"] for one in TEACHERS.values())]
    text = words(folder).text
    assert "62.5 %" in text
    assert "37.5 %" in text


def test_an_original_that_taught_has_its_row(folder: Path) -> None:
    run = Run.load(folder)
    details = all_details(folder)
    distill = details["distill"].model_copy(update={"teacher_weights": {"original": 1.0}})  # type: ignore[attr-defined]
    part = taught_part(run, {"distill": distill})
    assert part is not None
    assert [(row.name, row.macs, row.quality, row.share) for row in part.rows] == [("the original", "5.20 G", "", 100.0)]
    assert taught_part(run, {"distill": distill.model_copy(update={"teacher_weights": {}})}) is None


def test_the_front_and_the_curves(folder: Path) -> None:
    details = all_details(folder)
    search = search_part(Run.load(folder), details)  # type: ignore[arg-type]
    assert search is not None
    assert "6 candidates; 6 on the Pareto front; 1 over budget and not evaluated" in search.plot
    assert search.metric == "PSNR, dB"
    supernet, distill = training_parts(details)  # type: ignore[arg-type]
    assert (supernet.name, len(supernet.plots)) == ("search", 1)
    assert [plot.split('aria-label="')[1].split(":")[0] for plot in distill.plots] == [
        f"Training curves of distill, {player}" for player in ("wider", "deeper", "discriminator", "student")
    ]
    assert "student/channel" in distill.plots[3]
    assert "student/channel" not in distill.plots[0]
    assert sum("Training curves" in alt for alt in words(folder).pictures) == 5


def test_a_limit_far_away_does_not_press_the_candidates_together() -> None:
    near = [plots.Candidate(2.0, 20.0), plots.Candidate(4.0, 21.0, picked=True)]
    drawn = {limit: plots.pareto(near, near, [], limit_ms=limit, quality_label="PSNR", latency_label="ms") for limit in (5.0, 30.0)}
    assert "latency limit (30 ms, further right)" in drawn[30.0]
    assert "further right" not in drawn[5.0]
    assert ">30<" not in drawn[30.0]


def test_without_pairs_quality_is_likeness_to_the_teacher(unpaired: Path) -> None:
    run, page = Run.load(unpaired), words(unpaired)
    assert "No input has a target here: the network was made from 42 inputs" in page.text
    assert not [alt for alt in page.pictures if alt.endswith(", target")]
    assert not [alt for alt in page.pictures if alt.startswith("Line plot")]
    last = headlines(run)[-1]
    assert (last.value, last.label) == (
        wording.quality("teacher_psnr_db", run.models["compressed"].quality["teacher_psnr_db"]),
        "PSNR to the teacher",
    )
    assert ("teacher, PSNR to the teacher", "equal", "", "PyTorch") in quality_rows(run)
    assert "200" not in " ".join(cell for row in quality_rows(run) for cell in row)
    assert "Data: 42 inputs without a target, and pictures of the target domain" in " ".join(terminal(run).split())


def test_the_worst_place_is_beside_the_target(tmp_path: Path) -> None:
    """The pictures of the files in the fixture have names of their own, which are given to two of the samples."""
    for pairing, titles in (("aligned", ["target", "teacher", "compressed"]), ("unpaired", ["teacher", "compressed"])):
        folder = tmp_path / pairing
        write_translation_run(folder, pairing=pairing)
        (folder / "samples" / "objects_2_0001").rename(folder / "samples" / "rocket")
        write_report(folder)
        worst = [alt for alt in words(folder).pictures if alt.startswith("Worst place")]
        assert worst == [f"Worst place of rocket, {title}" for title in titles]


def test_an_older_record_has_bicubic_and_photographs(run_folder: Path) -> None:
    older = Run.load(run_folder).model_dump(mode="json", by_alias=True)
    for key in ("baseline_name", "data"):
        del older[key]
    del older["target"]["task"]
    run = Run.model_validate(older)
    assert (run.baseline_name, run.data, wording.samples(run)) == ("bicubic", None, "photographs")
    assert "above bicubic" in terminal(run)
