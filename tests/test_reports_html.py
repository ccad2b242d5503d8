"""The HTML report: one self-contained, well-formed file that holds every number of the run and escapes what users named."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reported_run import write_run
from rich.console import Console

from mcompress.errors import UsageError
from mcompress.record import EnvironmentRecord, Run, TargetRecord
from mcompress.reports import wording
from mcompress.reports.html import headlines, write_report
from mcompress.reports.terminal import render
from mcompress.targets.schema import Fallback

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HOSTILE = "<script>alert(1)</script> [bold]&"


class Reader(HTMLParser):
    """Collects what must be checked, and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.without_alt = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(values[key]) for key in ("src", "href", "srcset", "xlink:href", "action", "poster", "data") if values.get(key)]
        self.without_alt += tag == "img" and not values.get("alt")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return (run_folder / "report.html").read_text(encoding="utf-8")


def test_report_is_whole_and_well_formed(page: str, run_folder: Path) -> None:
    reader = read(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.without_alt == 0
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert {r[1:] for r in reader.references if r.startswith("#")} <= set(reader.ids)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in re.sub(r"url\(#p[0-9a-f]{6}-[\w-]+\)", "", page)
    assert str(run_folder) not in page
    assert len(page.encode()) < 8_000_000


def test_report_holds_every_number_of_the_run(page: str, run_folder: Path) -> None:
    run = Run.load(run_folder)
    text = " ".join("".join(read(page).text).split())
    for record in run.models.values():
        assert wording.count(record.params) in text
        assert wording.count(record.macs) in text
        assert wording.size(record.peak_activation_bytes) in text
        for measurement in record.latency:
            assert f"{wording.number(measurement.value)} ms" in text
        for values in record.quality_per_sample.values():
            assert f"PSNR {values['psnr_db']:.2f} dB" in text
    for export in run.exports:
        assert wording.file_name(export) in text
        assert wording.size(export.bytes) in text
        assert wording.parity(export.parity)[0] in text
    for fallback in wording.all_fallbacks(run):
        assert fallback.what in text
        assert fallback.reason in text
    for line in run.not_measured:
        assert line in text
    for stage in run.stages:
        assert stage.digest[:16] in text
    assert "<b>&" in text  # the target's text, escaped


def test_the_second_count_of_a_walked_file_is_shown(page: str) -> None:
    assert "1.23 G multiply-adds, 7.65 MB peak" in page
    assert "peak at node_add_9 (Add)" in page


def test_estimates_and_host_times_look_different(page: str) -> None:
    assert len(re.findall(r'class="bar estimated"', page)) == 3
    assert len(re.findall(r'class="bar host"', page)) == 3 + 5


def test_report_is_the_same_for_the_same_run(page: str, run_folder: Path) -> None:
    write_report(run_folder)
    assert (run_folder / "report.html").read_text(encoding="utf-8") == page


def test_report_without_pictures_stages_and_files(tmp_path: Path) -> None:
    run = Run(
        target=TargetRecord(name="bare", digest="0" * 64, quick=True),
        environment=EnvironmentRecord(python="3.11", platform="x", packages={}, commit=None, seed=0),
        stages=(),
        models={},
        exports=(),
        budget=(),
        fallbacks=(Fallback(where=HOSTILE, what=HOSTILE, reason=HOSTILE),),
    )
    run.save(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "<script>alert" not in text
    assert "No file was exported." in text
    assert "quick run: tiny budgets, not a result" in text
    assert read(text).open == []
    console = Console(file=io.StringIO(), width=80)
    render(run, console)
    assert isinstance(console.file, io.StringIO)
    assert "Fallbacks: 1" in console.file.getvalue()


def test_names_of_the_user_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    hostile = run.model_copy(update={"target": run.target.model_copy(update={"title": HOSTILE})})
    hostile.save(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    console = Console(file=io.StringIO(), width=100)
    render(hostile, console)
    assert isinstance(console.file, io.StringIO)
    assert "[bold]&" in console.file.getvalue()


def test_headlines_tell_growth_from_shrinking(run_folder: Path) -> None:
    run = Run.load(run_folder)
    first = headlines(run)[0]
    assert (first.value, first.label) == (f"{12480 / 861:.1f}\N{MULTIPLICATION SIGN}", "fewer multiply-adds")
    swapped = run.model_copy(update={"models": {"teacher": run.models["compressed"], "compressed": run.models["teacher"]}})
    assert headlines(swapped)[0].label == "more multiply-adds"


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema": 2}'])
def test_folders_that_are_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_broken_details_are_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "stages" / "search" / "details.json").write_text('{"front": 3}')
    with pytest.raises(UsageError, match=r"details\.json: front"):
        write_report(tmp_path)
