"""The report of a talking face: a video that plays, curves against the truth, what files are worth, latency on all devices; what is missing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from encoded_videos import tone
from reported_run import write_run

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS, wav2lip
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.tasks.talking_face.showing import BAND, FOOT, GAP, side_by_side
from mcompress.compress.tasks.talking_face.sound_tracks import read_sound_track
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.compress.tasks.talking_face.video_writing import write_video
from mcompress.compress.tasks.talking_face.videos import read_frames
from mcompress.compress.train import TrainSettings, train
from mcompress.record import VIDEO, DeviceLatency, PerformanceRecord, PerformerRecord, Run
from mcompress.reports.html import write_report
from mcompress.reports.talking import EXPERT_TERM, talking_part
from mcompress.targets.schema import DataConfig, Measurement
from mcompress.targets.stages import DistillConfig

FRAMES = 100
FILE = "bundle/snapdragon865-mixed.tflite"
EXPERT = "mean cosine over runs of 5 frames, by the lip-sync expert made by mcompress from the embedded clips; neither LSE-C nor LSE-D"
TRUTH = {"mouth_opening": tuple(0.002 * k for k in range(FRAMES)), "mouth_width": tuple(1 - 0.003 * k for k in range(FRAMES))}


class Page(HTMLParser):
    """Words, rows of tables, and the attributes of videos and plots."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.videos: list[dict[str, str | None]] = []
        self.plots: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "video":
            self.videos.append(dict(attrs))
        elif tag == "svg":
            self.plots.append(dict(attrs).get("aria-label") or "")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()

    def row(self, start: str) -> list[str]:
        (found,) = (row for row in self.rows if row and row[0].startswith(start))
        return found


def said(what: str, value: float, on: str, unit: str = "", source: str = "a source") -> Measurement:
    return Measurement(what=what, value=value, unit=unit, how="host", on=on, n=FRAMES, source=source)


def performer(
    name: str, kind: str, on: str, sync: float, error: float | None = None, explained: float = 0.9, *, still: bool = False
) -> PerformerRecord:
    numbers = [said("lip_sync", sync, on, source=EXPERT)]
    curves = {}
    if error is not None:
        numbers += [
            said("psnr_db", 200.0 if name == "real frames" else 24.0 if kind == "context" else 31.5, on, "dB"),
            said("mouth_explained", explained, on),
        ]
        for curve, truth in TRUTH.items():
            numbers.append(said(f"{curve}_error", error, on, "neutral mouth widths"))
            if not still:
                numbers.append(said(f"{curve}_correlation", 0.97, on))
            curves[curve] = tuple(value + error for value in truth)
    return PerformerRecord.model_validate({"name": name, "kind": kind, "measurements": numbers, "curves": curves})


def estimated(model: str, files: str, device: str, ms: float | None, computed_in: str = "", why: str = "") -> DeviceLatency:
    unit = "npu" if device.startswith("apple") else "gpu"
    band = "median error 17 %, on 8 networks"
    found = None if ms is None else Measurement(what="latency", value=ms, unit="ms", how="estimated", on=f"{device} {unit} {files}", band=band)
    title = "Apple A14 Bionic" if device == "apple-a14" else "NVIDIA Jetson TX2"
    facts = {"model": model, "files": files, "device": device, "title": title, "unit": unit, "latency": found, "computed_in": computed_in, "why": why}
    return DeviceLatency.model_validate(facts)


DEVICES = (
    estimated("teacher", "fp32", "apple-a14", None, why="its npu takes no fp32 files"),
    estimated("teacher", "fp16", "apple-a14", 0.8, "fp16"),
    estimated("compressed", "fp32", "apple-a14", None, why="its npu takes no fp32 files"),
    estimated("compressed", "fp16", "apple-a14", 0.5, "fp16"),
    estimated("compressed", "mixed", "apple-a14", None, why="its npu does not multiply in INT8"),
    estimated("teacher", "fp32", "jetson-tx2", 30.0, "fp32"),
    estimated("teacher", "fp16", "jetson-tx2", 24.0, "fp16"),
    estimated("compressed", "fp32", "jetson-tx2", 3.0, "fp16"),
    estimated("compressed", "fp16", "jetson-tx2", 2.5, "fp16"),
    estimated("compressed", "mixed", "jetson-tx2", 2.0),
)


def performance(*more: PerformerRecord, shown: Sequence[str] = ("truth", "original", "tflite mixed"), no_video: str = "") -> PerformanceRecord:
    return PerformanceRecord(
        clip="astronaut-<3000>",
        fps=25.0,
        frames=FRAMES,
        curves=TRUTH,
        curve_unit="neutral mouth widths",
        curve_note="Blur makes a mouth read too narrow.",
        performers=(
            performer("real frames", "context", "no network", 0.796, 0.002, 0.99),
            performer("the reference frame, held still", "context", "no network", 0.402, 0.095, 0.98, still=True),
            performer("real frames, speech 0.4 s late", "context", "no network", 0.311),
            performer("teacher", "teacher", "PyTorch fp32", 0.712, 0.031),
            performer(FILE, "file", "LiteRT 2.3", 0.688, 0.042),
            *more,
        ),
        shown=tuple(shown),
        shown_file=FILE,
        no_video=no_video,
        missing=("performance of bundle/snapdragon865-mixed.mlpackage: not executed: no Mac",),
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another task; to be read only."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    write_run(folder)
    return folder


def reported(plain: Path, folder: Path, found: PerformanceRecord) -> Page:
    """The report of that run with a performance; `folder` may hold a video."""
    run = Run.load(plain).model_copy(update={"performances": (found,), "devices": DEVICES})
    run.save(folder)
    assert Run.load(folder).performances == run.performances
    write_report(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("talks")
    moving = torch.arange(FRAMES, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 96, 96).contiguous()
    write_video(folder / VIDEO, side_by_side({"truth": moving, "original": moving, "tflite mixed": 255 - moving}), tone(4.0), 16000)
    return reported(plain, folder, performance(performer("bundle/blank.onnx", "file", "ORT", 0.2, 0.3, 0.1, still=True)))


def test_the_video_in_the_page_has_every_frame_and_the_sound(page: Page, tmp_path: Path) -> None:
    (video,) = page.videos
    start = "data:video/mp4;base64,"
    assert video["src"] is not None
    assert video["src"].startswith(start)
    assert "controls" in video
    assert "autoplay" not in video, "it has sound"
    path = tmp_path / "from the page.mp4"
    path.write_bytes(base64.b64decode(video["src"][len(start) :], validate=True))
    frames = read_frames(path, "the page")
    assert frames.pictures.shape == (FRAMES, 3, BAND + 192 + FOOT, 3 * 192 + 4 * GAP)
    assert frames.fps == 25
    middle = BAND + 96
    for column, sign in ((0, 1), (1, 1), (2, -1)):
        shade = frames.pictures[:, :, middle, GAP + 96 + column * (192 + GAP)].float().mean(1)
        expected = torch.arange(100.0) if sign > 0 else 255 - torch.arange(100.0)
        assert float((shade - expected).abs().max()) < 12, "the frames are those of their column, in their order"
    track = read_sound_track(path, "the page")
    assert track is not None
    assert len(track.samples) / track.sample_rate_hz == pytest.approx(4.0, abs=0.15)
    assert "From left to right: truth, original, tflite mixed" in page.text


def test_curves_of_truth_original_and_file_are_drawn_once_each(page: Page) -> None:
    drawn = [plot for plot in page.plots if "truth and what was measured" in plot]
    assert [plot.split(" of ")[0] for plot in drawn] == ["The mouth opening", "The mouth width"]
    assert all("in each of 100 frames" in plot for plot in drawn)


def test_each_file_stands_between_speech_that_fits_and_speech_that_does_not(page: Page) -> None:
    assert page.row("real frames for")[0].endswith("for comparison; what the measurement itself gets wrong")
    assert page.row("the reference frame, held still")[0].endswith("for comparison; what doing nothing is worth")
    assert page.row("real frames, speech")[0].endswith("for comparison")
    assert page.row("the reference frame, held still")[1:] == [
        "24.00 dB", "0.0950 stands still: no correlation", "0.0950 stands still: no correlation", "0.980", "0.402"
    ]  # fmt: skip
    assert page.row("real frames for")[1:] == ["equal", "0.0020 correlation 0.970", "0.0020 correlation 0.970", "0.990", "0.796"]
    assert page.row("real frames, speech")[1:] == ["", "", "", "", "0.311"]
    assert page.row("original PyTorch fp32")[1:] == ["31.50 dB", "0.0310 correlation 0.970", "0.0310 correlation 0.970", "0.900", "0.712"]
    assert page.row("snapdragon865-mixed.tflite tflite mixed, LiteRT 2.3")[1:] == [
        "31.50 dB", "0.0420 correlation 0.970", "0.0420 correlation 0.970", "0.900", "0.688"
    ]  # fmt: skip
    blank = page.row("blank.onnx")
    assert blank[0].endswith("hardly a mouth to be seen, so its opening and width say little")
    assert blank[2] == "0.3000 stands still: no correlation"
    assert f"Lip sync: {EXPERT}." in page.text
    assert "Blur makes a mouth read too narrow. Lip sync" in page.text
    assert "Left out: performance of bundle/snapdragon865-mixed.mlpackage: not executed: no Mac" in page.text


def test_devices_have_a_row_each_and_say_why_a_number_is_missing(page: Page) -> None:
    heads = ["Device", "original, FP32", "original, FP16", "compressed, FP32", "compressed, FP16", "compressed, mixed", "Faster"]
    assert heads in page.rows
    (apple, _), (jetson, _) = ([row for row in page.rows if row and row[0] == name] for name in ("Apple A14 Bionic npu", "NVIDIA Jetson TX2 gpu"))
    assert apple[1:] == [
        "none its npu takes no fp32 files", "0.800 ms", "none its npu takes no fp32 files", "0.500 ms",
        "none its npu does not multiply in INT8", "1.60× FP16 to FP16",
    ]  # fmt: skip
    assert jetson[1:] == ["30.0 ms", "24.0 ms", "3.00 ms computed in fp16", "2.50 ms", "2.00 ms", "15.0× FP32 to mixed"]


def test_without_a_video_the_reason_is_shown_and_the_rest_stays(plain: Path, tmp_path: Path) -> None:
    why = "video files need PyAV, which is not installed. Install with: pip install 'mcompress[video]'."
    found = reported(plain, tmp_path, performance(shown=(), no_video=why))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert found.videos == []
    assert f"No video {why}" in found.text
    assert found.row("original PyTorch fp32")[-1] == "0.712"
    assert len([plot for plot in found.plots if "truth and what was measured" in plot]) == 2
    assert "default-src 'none'; img-src data:; media-src data:;" in source, "the page may show a video and loads nothing"
    assert "astronaut-<3000>" not in source
    assert "astronaut-&lt;3000&gt;" in source


def test_a_video_that_is_gone_is_said_to_be_gone(plain: Path, tmp_path: Path) -> None:
    part = talking_part(Run.load(plain).model_copy(update={"performances": (performance(),)}), tmp_path, {})
    assert part is not None
    assert part.video_uri == ""
    assert part.no_video == "talking.mp4 is no longer in the run's folder; run the target again to have it made"
    assert part.devices == ()


def test_clips_of_ones_own_have_neither_curves_nor_a_score(plain: Path, tmp_path: Path) -> None:
    bare = performer("teacher", "teacher", "PyTorch fp32", 0.5).model_copy(update={"measurements": (said("psnr_db", 30.0, "PyTorch fp32", "dB"),)})
    record = performance(shown=(), no_video="none").model_copy(update={"curves": {}, "performers": (bare,), "shown_file": ""})
    part = talking_part(Run.load(plain).model_copy(update={"performances": (record,)}), tmp_path, {})
    assert part is not None
    assert (part.columns, part.plots, part.judge) == (("Lower half, PSNR",), (), "")
    assert [(row.name, [cell and cell.value for cell in row.cells]) for row in part.rows] == [("original", ["30.00 dB"])]


@pytest.mark.parametrize(("terms", "flattered"), [({"generator/truth": 0.1, "generator/expert": 0.02}, True), ({"generator/truth": 0.1}, False)])
def test_a_score_by_the_expert_that_taught_the_network_is_said_to_flatter_it(
    plain: Path, tmp_path: Path, terms: dict[str, float], *, flattered: bool
) -> None:
    (tmp_path / "stages" / "distill").mkdir(parents=True)
    (tmp_path / "stages" / "distill" / "details.json").write_text(json.dumps({"curve": [[100, terms]]}), encoding="utf-8")
    assert "distill" in [stage.name for stage in Run.load(plain).stages]
    page = reported(plain, tmp_path, performance(shown=(), no_video="none"))
    assert ("speech that does not. The network was trained against this expert, so its score flatters it." in page.text) is flattered
    assert ("flatters" in page.text) is flattered


def test_the_curve_of_a_distillation_names_the_expert(tmp_path: Path) -> None:
    """By which the report knows of it."""
    task = TalkingFace.from_config(DataConfig())
    torch.manual_seed(0)
    student, teacher = (
        wav2lip(face_widths=[4] * 6, audio_widths=[4] * 5, decoder_widths=[4] * 7, output_width=4, **WITHOUT_BLOCKS) for _ in range(2)
    )
    for weight in (0.01, 0.0):
        config = DistillConfig(steps=1, batch_size=5, crop_size=96, expert=weight)
        kept = FileCheckpoints(tmp_path / f"{weight}.pt")
        trained = train(Distillation(task, config, student, teacher, 0), TrainSettings(1, 1e-4, 0), kept, lambda *_: None)
        assert (EXPERT_TERM in trained.curve[-1][1]) is bool(weight)


def test_other_runs_have_no_such_section(plain: Path) -> None:
    assert talking_part(Run.load(plain), plain, {}) is None
