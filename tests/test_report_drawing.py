"""Reports of text to image: the grid, painters, latency by network and step, the evolution's trace; no network's numbers pass for another's."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from reported_drawing import (
    ACCURACY,
    ACTIONS,
    BLOCKS,
    BY_HEADS,
    CALLS,
    CAPTIONS,
    MS,
    NAME,
    OF_DECODER,
    SCORES,
    STEPS,
    evolve_details,
    gallery,
    write_drawing_run,
)
from rich.console import Console

from mcompress.export.manifest import Manifest
from mcompress.record import GALLERY, DeviceLatency, Run
from mcompress.reports import components, wording
from mcompress.reports.cells import Cell
from mcompress.reports.costs import network_parts, quality_rows
from mcompress.reports.details import StageDetails, read_details
from mcompress.reports.drawing import drawing_part
from mcompress.reports.drawing_headlines import drawn_headlines
from mcompress.reports.drawing_latency import picture_latency, summary
from mcompress.reports.evolution import BlockCount, evolution_part
from mcompress.reports.evolution_plot import short
from mcompress.reports.found import training_parts
from mcompress.reports.gate.compare import files_of
from mcompress.reports.headlines import shipped, verdicts
from mcompress.reports.html import write_report
from mcompress.reports.terminal import render
from mcompress.targets.schema import Measurement

HOSTILE = "<script>alert(1)</script>"
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}
WHOLE = {which: sum(CALLS[which][name] * MS[which][name] for name in MS[which]) for which in MS}


class Page(HTMLParser):
    """Words, tables with their rows, pictures, and what is still open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.plots: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self._label, self._in_cell = "", False
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "div" and values.get("aria-label"):
            self._label = str(values["aria-label"])
            self.tables[self._label] = []
        elif tag == "img":
            self.pictures.append(values)
        elif tag == "svg":
            self.plots.append(values.get("aria-label") or "")
        elif tag == "tr":
            self.tables[self._label].append([])
        elif tag in ("td", "th"):
            self.tables[self._label][-1].append("")
            self._in_cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            row = self.tables[self._label][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())

    def row(self, table: str, start: str) -> list[str]:
        (found,) = (row for row in self.tables[table] if row and (row[0] == start or row[0].startswith(f"{start} ")))
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; to be read only."""
    made = tmp_path_factory.mktemp("draws") / "run"
    write_drawing_run(made)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run.load(folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def on_a_device(model: str, ms: float) -> DeviceLatency:
    latency = Measurement(what="latency", value=ms, unit="ms", how="estimated", on="apple-a14 npu fp16", band="median error 17 %")
    facts = {"model": model, "files": "fp16", "device": "apple-a14", "title": "Apple A14 Bionic", "unit": "npu", "latency": latency}
    return DeviceLatency.model_validate({**facts, "computed_in": "fp16"})


@pytest.fixture(scope="module")
def otherwise(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The run without its grid, with nothing that evolved, on several devices, and with hostile names."""
    folder = tmp_path_factory.mktemp("otherwise")
    details = {**evolve_details(), "actions": [], "scores": [], "trainings": []}
    (folder / "stages" / "search").mkdir(parents=True)
    (folder / "stages" / "search" / "details.json").write_text(json.dumps(details), encoding="utf-8")
    found = gallery().model_copy(update={"missing": (f"{HOSTILE}: {HOSTILE}",)})
    run.model_copy(update={"gallery": found, "devices": (on_a_device("teacher", 24.0), on_a_device("compressed", 8.0))}).save(folder)
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evolved(folder: Path) -> StageDetails:
    found = read_details(folder / "stages" / "search")
    assert found is not None
    return found


def test_the_page_is_whole_and_has_the_sections(page: Page, folder: Path) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {"drawing", "evolution", "precision"} <= set(page.ids)
    assert "pictures" not in page.ids, "the grid stands for the samples of the U-Net alone"
    assert str(folder) not in page.text


def test_the_grid_in_the_page_is_the_picture_of_the_run(page: Page, folder: Path) -> None:
    (grid,) = page.pictures
    start = "data:image/png;base64,"
    assert grid["src"] is not None
    assert grid["src"].startswith(start)
    assert base64.b64decode(grid["src"][len(start) :], validate=True) == (folder / GALLERY).read_bytes()
    assert grid["alt"] == (
        "Pictures of captions, a row each, by original (32 steps), original, 16 steps, original, 8 steps, original, 4 steps, "
        "compressed, 16 steps, compressed (8 steps), compressed, 4 steps, onnx mixed (8 steps)"
    )
    assert f"{len(CAPTIONS)} held-out captions, drawn whole" in page.text
    assert "Who is not in the table below drew these captions alone, to be looked at, and was not judged." in page.text


def test_painters_have_a_row_each_with_what_their_pictures_are_worth(page: Page) -> None:
    table = "Who drew, and how well"
    assert page.tables[table][0] == [
        "Drawn by", "Steps", "Guidance", "Attribute accuracy", "Whole captions right", "Scene distance", "PSNR to PyTorch, worst"
    ]  # fmt: skip
    assert page.row(table, "original the")[0] == "original the original networks in PyTorch"
    assert page.row(table, "original the")[1:] == ["32", "4", "97.9 %", "94.6 %", "2.08", ""]
    assert page.row(table, "original, 8 steps")[1:] == [
        "8", "4", "71.4 % −26.6 to the original", "41.5 % −53.1 to the original", "28.6 +26.6 to the original", ""
    ]  # fmt: skip
    assert page.row(table, "compressed")[3].startswith("95.3 % −2.6")
    assert page.row(table, "onnx float") == [
        "onnx float text encoder float, U-Net float, decoder float", "8", "4", "95.3 % −2.6 to the original", "89.4 % −5.2 to the original",
        "4.69 +2.60 to the original", "passed 52.12 dB limit 35 dB; mean 58.23 dB",
    ]  # fmt: skip
    mixed = page.row(table, "onnx mixed")
    assert mixed[0] == "onnx mixed text encoder mixed, U-Net mixed, decoder float", "a mixed file that is not shipped draws nothing"
    assert mixed[-1] == "21.77 dB no limit; mean 27.41 dB"
    assert "Scene distance: Fréchet distance of the features of a classifier of scenes; no FID." in page.text
    assert "Left out: pictures of the coreml float files: not executed: Core ML runs on Apple systems only" in page.text


def test_what_the_script_of_the_bundle_drew_is_told(page: Page) -> None:
    assert "draw.py with onnx float files: 51.42 dB, passed; draw.py with onnx mixed files: 27.41 dB." in page.text


def test_latency_by_network_and_step_adds_up_to_the_picture(page: Page, run: Run) -> None:
    table = "Latency of one picture by network and step"
    assert page.tables[table] == [
        ["Of one picture", "original", BY_HEADS, "compressed", "Faster"],
        ["text encoder", "0.820 ms 2 calls of 0.410 ms", "0.820 ms 2 calls of 0.410 ms", "0.580 ms 2 calls of 0.290 ms", "1.41×"],
        [
            "U-Net", "877 ms 64 calls of 13.7 ms", "701 ms 64 calls of 11.0 ms", "94.4 ms 16 calls of 5.90 ms",
            "9.29× 1.25× by attention by heads, 7.43× by compression",
        ],
        [
            "one step", "27.4 ms 32 steps of 2 calls of 13.7 ms", "21.9 ms 32 steps of 2 calls of 11.0 ms", "11.8 ms 8 steps of 2 calls of 5.90 ms",
            "2.32× 1.25× by attention by heads, 1.86× by compression",
        ],
        ["decoder", "6.30 ms 1 call of 6.30 ms", "6.30 ms 1 call of 6.30 ms", "2.10 ms 1 call of 2.10 ms", "3.00×"],
        ["whole picture", "884 ms", "709 ms", "97.1 ms", "9.11× 1.25× by attention by heads, 7.30× by compression"],
    ]  # fmt: skip
    assert (WHOLE["original"], WHOLE[BY_HEADS], WHOLE["compressed"]) == pytest.approx((883.92, 708.56, 97.08))
    assert "With attention by heads the original has the same weights and makes the same pictures" in page.text
    assert run.gallery is not None
    assert {which: run.gallery.picture_ms(which) for which in WHOLE} == pytest.approx(WHOLE)
    assert "Calls are estimated, apple-a16 npu fp16, median error 17 %, on 8 networks." in page.text
    (plot,) = (plot for plot in page.plots if "milliseconds of one picture" in plot)
    assert plot == f"Bar chart: milliseconds of one picture by text encoder, U-Net, decoder; original 884 ms, {BY_HEADS} 709 ms, compressed 97.1 ms."


def test_what_the_layout_saves_is_told_only_where_it_is_another_one(run: Run, tmp_path: Path) -> None:
    assert run.gallery is not None
    latency = {model: rows for model, rows in run.gallery.latency.items() if model != BY_HEADS}
    gallery = run.gallery.model_copy(update={"latency": latency})
    found = picture_latency(gallery)
    assert found is not None
    assert (found.models, found.whole.faster.value, found.whole.faster.note) == (("original", "compressed"), "9.11×", "")
    run.model_copy(update={"gallery": gallery}).save(tmp_path)
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "by heads" not in text
    assert "884 ms to 97.1 ms, in 32 and in 8 steps; estimated for apple-a16 npu fp16" in text
    assert next(summary(gallery)) == "One picture: 884 ms -> 97.1 ms (9.11x less), estimated for apple-a16 npu fp16"


def test_bars_are_as_long_as_their_milliseconds_and_the_unet_is_cut_into_its_steps(run: Run) -> None:
    assert run.gallery is not None
    found = picture_latency(run.gallery)
    assert found is not None
    for which in MS:
        for name in MS[which]:
            title = f"{which}, {components.title(name)}: {wording.number(CALLS[which][name] * MS[which][name])} ms"
            assert f"<title>{title}" in found.plot
    blocks = {which: len(re.findall(r'<g id="p[0-9a-f]{6}-patch_\d+">', found.plot)) for which in MS}
    fewer = run.gallery.model_copy(update={"painters": tuple(p.model_copy(update={"steps": 1}) for p in run.gallery.painters)})
    plain = picture_latency(fewer)
    assert plain is not None
    cut = blocks["original"] - len(re.findall(r'<g id="p[0-9a-f]{6}-patch_\d+">', plain.plot))
    assert cut == sum(STEPS.values()) - len(STEPS)


def test_without_steps_latencies_or_judges_the_rest_stays(folder: Path, run: Run) -> None:
    whole = gallery()
    unjudged = whole.model_copy(update={"painters": tuple(p.model_copy(update={"measurements": ()}) for p in whole.painters), "latency": {}})
    part = drawing_part(run.model_copy(update={"gallery": unjudged}), folder)
    assert part is not None
    assert (part.columns, part.latency, part.sources) == ((), None, ())
    assert [row.name for row in part.painters] == list(ACCURACY)
    alone = whole.model_copy(update={"latency": {"original": whole.latency["original"]}, "painters": whole.painters[1:]})
    found = picture_latency(alone)
    assert found is not None
    assert [row.name for row in found.rows] == ["text encoder", "U-Net", "decoder"], "how many steps it takes is not known"
    assert (found.models, found.whole.faster) == (("original",), Cell())
    assert [head.label for head in drawn_headlines(run.model_copy(update={"gallery": unjudged}))] == ["less activation memory", "less to download"]


def test_a_grid_that_is_gone_is_said_to_be_gone(run: Run, otherwise: Page, tmp_path: Path) -> None:
    assert otherwise.pictures == []
    assert "No pictures gallery.png is no longer in the run's folder; run the target again to have it made" in otherwise.text
    (tmp_path / GALLERY).write_bytes(b"no picture")
    part = drawing_part(run, tmp_path)
    assert part is not None
    assert part.grid is None


def test_names_are_escaped(otherwise: Page) -> None:
    assert f"Left out: {HOSTILE}: {HOSTILE}" in otherwise.text
    assert not [words for words in otherwise.words if words == "alert(1)"], "it is text, and no script"


def test_headlines_are_of_whole_pictures(run: Run) -> None:
    found = {head.label: head for head in drawn_headlines(run)}
    assert found["less time for a picture"].value == "9.11×"
    assert found["less time for a picture"].detail == (
        "884 ms to 97.1 ms, in 32 and in 8 steps: 1.25× by attention by heads, 7.30× by compression; estimated for apple-a16 npu fp16"
    )
    macs = [
        sum(CALLS[which][name] * model[place].macs for name, model in components.networks(run).items())
        for place, which in enumerate(("original", "compressed"))
    ]
    assert found["fewer multiply-adds"].value == f"{wording.number(macs[0] / macs[1])}×"
    assert found["fewer multiply-adds"].detail.startswith(f"{wording.count(macs[0])} to {wording.count(macs[1])} per picture")
    download = 1_410_000 + 214_000 + 3 * 423_000
    assert found["less to download"].detail == f"12.4 MB of weights to {wording.size(download)} in 3 coreml files", (
        "the decoder's mixed file is not shipped"
    )
    points = found["attribute accuracy against the original"]
    assert points.value == "−3.1 points"
    assert points.detail == "97.9 % in 32 steps to 94.8 % in 8 (the onnx mixed files), over 12 held-out captions"
    own = shipped(run)
    assert own is not None
    assert own.component is None


def test_files_that_draw_something_else_are_told_first(run: Run) -> None:
    assert ("float files of all backends that were executed draw PyTorch's pictures", True) in verdicts(run)
    assert run.gallery is not None
    wrong = tuple(p.model_copy(update={"least_psnr_db": 34.9}) if p.limit_db else p for p in run.gallery.painters)
    failed = run.model_copy(update={"gallery": run.gallery.model_copy(update={"painters": wrong})})
    assert ("onnx float files draw other pictures than PyTorch", False) in verdicts(failed)


def test_no_network_passes_for_another(page: Page, run: Run) -> None:
    assert run.components == ("text_encoder", "decoder")
    assert list(wording.models_of(run)) == ["teacher", "student", "distilled", "compressed"]
    assert {row[0].rpartition(", ")[2] for row in quality_rows(run)} == {"attribute accuracy"}
    text, decoder = network_parts(run)
    assert (text.title, decoder.title) == ("text encoder", "decoder")
    assert {row[0].rpartition(", ")[2] for row in text.qualities} == {"SNR"}
    assert {row[0].rpartition(", ")[2] for row in decoder.qualities} == {"PSNR"}
    assert decoder.qualities[:2] == (
        ("original, PSNR", "equal", "PyTorch"), ("compressed, PSNR", f"{OF_DECODER} dB", f"{NAME}-decoder-float.onnx in its runtime")
    )  # fmt: skip
    assert next(row for row in decoder.costs if row.label == "Parameters").ratios == ("", "3.98x less"), "of its own original, not of the U-Net"
    assert page.row("Quality of the decoder", "compressed, PSNR")[1] == f"{OF_DECODER} dB"
    assert [row[0] for row in page.tables["Budget"]] == ["Line", "U-Net: latency, ms", "decoder: latency, ms"]
    assert "Precision plan of the U-Net" in page.text
    assert "Where the milliseconds of one call of the U-Net go" in page.text


def test_equal_numbers_of_two_networks_keep_their_own_files(run: Run) -> None:
    """With captions of one's own both are judged by PSNR."""
    same = {"psnr_db": OF_DECODER}
    models = {name: model.model_copy(update={"quality": same}) for name, model in run.models.items()}
    exports = tuple(export.model_copy(update={"quality": same} if export.quality else {}) for export in run.exports)
    alike = run.model_copy(update={"models": models, "exports": exports})
    assert wording.quality_source(alike, "compressed").startswith(f"{NAME}-float.onnx ")
    assert wording.quality_source(alike, "decoder").startswith(f"{NAME}-decoder-float.onnx ")
    assert wording.quality_source(alike, "text_encoder").startswith(f"{NAME}-text_encoder-float.onnx ")
    assert wording.quality_source(alike, "decoder_teacher") == "PyTorch"
    assert not [row for row in quality_rows(alike) if "decoder" in row[0] or "encoder" in row[0]]


def test_every_file_says_of_which_network_it_is(page: Page, folder: Path, run: Run) -> None:
    source = (folder / "report.html").read_text(encoding="utf-8")
    cards = re.findall(r'<article class="file">\s*<h3>([^ <]+).*?<p class="sub"><b>([^<]+)</b>', source, re.DOTALL)
    titles = {wording.file_name(export): components.network_of(run, export.component) for export in run.exports}
    assert dict(cards) == titles
    assert set(titles.values()) == {"U-Net", "text encoder", "decoder"}
    likeness = [row[0] for row in page.tables["Likeness of each file's pictures"][1:]]
    assert likeness.count(f"{NAME}-float.onnx U-Net") == likeness.count(f"{NAME}-decoder-float.onnx decoder") == 3
    bars = [row[0] for row in page.tables["Estimated for the device"]]
    assert [bar.partition(" apple-a16")[0] for bar in bars[1:]] == [
        "U-Net, teacher", "U-Net, student", "U-Net, distilled", "U-Net, compressed",
        "text encoder, original", "text encoder, compressed", "decoder, original", "decoder, compressed",
    ]  # fmt: skip
    held = page.tables["Planned precisions and those of the files"]
    assert [row[0] for row in held[1:]] == [f"{NAME}-mixed.mlpackage", f"{NAME}-mixed.onnx"], "the plan is the U-Net's"


def test_what_int8_loses_is_told_of_one_call(page: Page) -> None:
    assert "SNR against the float network at most 0.1 dB may be lost" in page.text
    assert "attribute accuracy lost" not in page.text


def test_gate_subjects_of_a_bundle_with_three_networks_are_distinct(run: Run) -> None:
    files = [SimpleNamespace(backend=e.backend, variant=e.variant, width=None, component=e.component, path=e.file) for e in run.exports]
    found = files_of(cast("Manifest", SimpleNamespace(files=files)))
    assert len(found) == len(run.exports)
    assert found["onnx mixed decoder"].path.endswith("decoder-mixed.onnx")
    assert found["onnx mixed"].path.endswith(f"{NAME}-mixed.onnx")


def test_the_block_map_is_told_as_in_the_paper(page: Page, evolved: StageDetails, run: Run) -> None:
    assert page.tables["Blocks at each stage before and after"] == [
        ["Stage", "Latents", "Channels", "Attention", "Residual"],
        ["Down-1", "8×8", "32", "2 → 0", "2"],
        ["Mid", "2×2", "64", "1", "7 → 4"],
        ["Up-1", "4×4", "48", "3 → 5", "3"],
        ["Up-2", "8×8", "32", "none", "3 → 2"],
        ["all", "", "", "6 → 6", "15 → 11"],
    ]
    part = evolution_part(run, {"search": evolved})
    assert part is not None
    for row in part.stages:
        for count, kind in zip(row.counts, ("attention", "residual"), strict=True):
            (known,) = [one for one in BLOCKS if (one["stage"], one["kind"]) == (row.stage, kind)] or [None]
            assert (count is None) == (known is None)
            if count is not None and known is not None:
                marks = count.marks
                assert marks.count("kept") + marks.count("gone") == known["before"]
                assert marks.count("kept") + marks.count("new") == known["after"]
    assert BlockCount(3, 5).marks == ("kept", "kept", "kept", "new", "new")
    assert page.row("The U-Net before and after it evolved", "Latency of one call, ms (estimated)")[1:] == ["13.7", "5.50", "2.49x less"]
    assert page.row("The U-Net before and after it evolved", "Error of the prediction")[1:] == ["0.0987", "0.1078", "+0.0091"]


def test_actions_are_told_in_their_order_with_value_and_what_they_did(page: Page) -> None:
    rows = page.tables["Actions in their order"][1:]
    assert len(rows) == sum(len(action.blocks) for action in ACTIONS)
    firsts = [row for row in rows if len(row) == 7]
    assert [row[0] for row in firsts] == [f"{number} {action.what}" for number, action in enumerate(ACTIONS, start=1)]
    assert firsts[0] == ["1 removed", "down_blocks.0.attentions.0", "+0.0011", "1.90", "0.000579", "0.1013 → 0.1041", "13.7 → 10.0 −3.7"]
    assert rows[1] == ["down_blocks.0.attentions.1", "+0.0014", "1.80", "0.000778"]
    assert rows[2][2:5] == ["−0.0003", "0.700", "−0.00021"], "the network was better without"
    assert firsts[-1][5:] == ["0.1081 → 0.1078", "6.00 → 5.50 −0.5"], "the last error is that of the result"
    for action, row in zip(ACTIONS, firsts, strict=True):
        rise, ms = action.blocks[0].loss_rise, action.blocks[0].milliseconds
        assert row[4] == f"{rise / ms if rise > 0 else rise * ms:.3g}".replace("-", "−")
    assert page.row("Value of every block", "down_blocks.0.attentions.0")[0].endswith("(removed first)")
    assert page.row("Value of every block", "up_blocks.0.resnets.0")[1:] == ["+0.007", "0", "no time"]
    assert len(page.tables["Value of every block"]) == 1 + len(SCORES)
    assert "mean squared distance of the guided prediction to the original's" in page.text


def test_the_plot_names_what_was_removed_or_doubled(page: Page, folder: Path) -> None:
    (plot,) = (plot for plot in page.plots if "over 6 actions" in plot)
    assert plot == "Error of the prediction against estimated latency over 6 actions on blocks from 13.7 to 5.50 ms."
    source = (folder / "report.html").read_text(encoding="utf-8")
    for number, action in enumerate(ACTIONS, start=1):
        ms = action.latency_after_ms - action.latency_before_ms
        assert f"<title>{number}: {action.what} {', '.join(short(one.block) for one in action.blocks)}, {ms:+.3g} ms</title>" in source
    assert "1  down 0 attention 0, down 0 attention 1" in source
    assert "4, 6<" in source, "points on one another share their label"
    assert short("mid_block.resnets.0.1") == "mid residual 0 1"


def test_an_evolution_with_nothing_to_do_says_so(otherwise: Page) -> None:
    assert "No block was removed or doubled: the budget was met as the network was" in otherwise.text
    assert "Actions in their order" not in otherwise.tables
    assert "Value of every block" not in otherwise.tables
    assert otherwise.row("Blocks at each stage before and after", "Down-1")[3] == "2 → 0"


def test_fixed_removals_have_their_map_and_figures_and_no_actions(run: Run, tmp_path: Path) -> None:
    """As the search stage leaves them, method `bk_sdm`."""
    details = {
        "removed_as": "BK-SDM Base", "block_map": BLOCKS, "before": {"latency_ms": 13.7, "params": 1_435_000, "macs": 812_000_000, "size_mb": 5.74},
        "after": {"latency_ms": 5.5, "params": 1_152_000, "macs": 402_000_000, "size_mb": 4.61},
    }  # fmt: skip
    (tmp_path / "stages" / "search").mkdir(parents=True)
    (tmp_path / "stages" / "search" / "details.json").write_text(json.dumps(details), encoding="utf-8")
    run.model_copy(update={"gallery": None}).save(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.row("Blocks at each stage before and after", "Down-1")[3] == "2 \N{RIGHTWARDS ARROW} 0"
    rows = {row[0]: row[1:] for row in page.tables["The U-Net before and after"][1:]}
    assert rows["Latency of one call, ms (estimated)"] == ["13.7", "5.50", "2.49x less"]
    assert rows["Parameters"][2] == "1.25x less"
    assert rows["Multiply-adds"][2] == "2.02x less"
    assert "Error of the prediction" not in rows
    assert "Blocks are gone as BK-SDM Base has it" in page.text
    assert "No block was removed or doubled" not in page.text
    assert "Actions in their order" not in page.tables


def test_devices_are_shown_where_the_record_has_them(page: Page, otherwise: Page) -> None:
    assert "Estimated latency on each device" not in page.tables
    assert "Latency of one call of the U-Net on each device, estimated" in otherwise.text
    assert otherwise.row("Estimated latency on each device", "Apple A14 Bionic npu")[1:] == ["24.0 ms", "8.00 ms", "3.00× FP16 to FP16"]


def test_legs_of_a_distillation_have_a_row_and_a_plot_each(page: Page, folder: Path) -> None:
    assert page.tables["Trainings of distill"] == [
        ["Training", "Of what", "Steps", "Seconds"],
        ["original velocity", "from noise to velocity", "1,000", "61.5"],
        ["student velocity", "left out: it predicts the velocity already", "", ""],
        ["original middle", "32 steps to 16", "900", "88.2"],
        ["student", "16 steps to 8", "2,000", "143"],
    ]
    details = read_details(folder / "stages" / "distill")
    assert details is not None
    (part,) = training_parts({"distill": details})
    assert len(part.plots) == 3, "each leg begins with step 1, so none is drawn over another"
    assert [re.findall(r"Training curves of distill, ([a-z ]+):", plot)[0] for plot in part.plots] == [
        "original velocity",
        "original middle",
        "student",
    ]


def test_robust_trainings_stand_behind_one_another(page: Page) -> None:
    (plot,) = (plot for plot in page.plots if "robust training" in plot)
    assert plot == f"Training curves of search, robust training: network/squared over {30 * (len(ACTIONS) + 1)} steps."


def test_what_became_of_the_decoder_is_found_in_its_own_folder(page: Page) -> None:
    assert "prune-decoder: channels" in page.text
    assert page.row("Pruned layers", "decoder.up_blocks.0.resnets.0.conv1")[1:3] == ["64", "32"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_tells_pictures_and_networks_apart(run: Run, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    render(run, console, folder=Path("runs/x"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    flat = " ".join(text.split())
    causes = "1.25x by attention by heads, 7.30x by compression"
    assert f"One picture: 884 ms -> 97.1 ms (9.11x less: {causes}), estimated for apple-a16 npu fp16" in flat
    assert f"{BY_HEADS}: text encoder 2 x 0.410 ms, U-Net 64 x 11.0 ms, decoder 1 x 6.30 ms" in flat
    assert "compressed: text encoder 2 x 0.290 ms, U-Net 16 x 5.90 ms, decoder 1 x 2.10 ms" in flat
    for name in ("original", "original, 8 steps", "compressed"):
        assert re.search(rf"^ {name} +\d+ +{wording.quality('attribute_accuracy_percent', ACCURACY[name])} ", text, re.MULTILINE)
    assert "52.12 dB passed, >= 35 dB" in flat
    assert re.search(r"^ {3}compressed +402 k +163 M +1\.61 MB +2\.10 ms +PSNR 41\.37 dB", text, re.MULTILINE)
    assert f"decoder: latency, ms: {MS['compressed']['decoder']:.2f}, limit 2.00" in flat
    assert "Where the time of one call of the U-Net goes" in flat
    if width == 120:
        assert "onnx mixed U-Net *" in text
        assert "onnx float text encoder" in text
        assert "onnx float decoder *" in text


def test_runs_of_one_network_have_none_of_it(run: Run, tmp_path: Path) -> None:
    models = {name: model for name, model in run.models.items() if not name.startswith(("decoder", "text_encoder"))}
    exports = tuple(export for export in run.exports if export.component is None)
    stages = tuple(stage for stage in run.stages if "-" not in stage.name)
    plain = run.model_copy(update={"gallery": None, "models": models, "exports": exports, "stages": stages, "budget": run.budget[:1]})
    assert (plain.components, network_parts(plain), drawing_part(plain, tmp_path), drawn_headlines(plain)) == ((), (), None, [])
    assert evolution_part(plain, {"quantize": StageDetails()}) is None
    assert [components.network_of(plain, None), components.named(plain, None, "teacher")] == ["", "teacher"]
    plain.save(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "drawing" not in page.ids
    assert "U-Net" not in page.text
    assert page.tables["Budget"][1][0] == "latency, ms"
