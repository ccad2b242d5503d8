"""A talking face in the report: the video, how mouths moved against the truth, what files are worth on a whole clip, latency on all devices."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup

from mcompress.record import HIGHEST_DB, VIDEO, PerformanceRecord, PerformerRecord, Run
from mcompress.reports import plots, wording
from mcompress.reports.cells import Cell
from mcompress.reports.details import StageDetails
from mcompress.reports.devices import DeviceRow, device_table
from mcompress.targets.schema import Measurement

COLUMNS: Mapping[str, str] = {
    "psnr_db": "Lower half, PSNR",
    "mouth_opening_error": "Opening, mean error",
    "mouth_width_error": "Width, mean error",
    "mouth_explained": "Mouth explained",
    "lip_sync": "Lip sync",
}
"""Measurement -> column of the table."""
BESIDE: Mapping[str, tuple[str, str]] = {
    "mouth_opening_error": ("mouth_opening_correlation", "correlation"),
    "mouth_width_error": ("mouth_width_correlation", "correlation"),
}
"""Measurement -> the other one that its cell holds as well, and what that is called."""
NO_MOUTH = 0.5
"""Of what is explained in real frames; with less, there is hardly a mouth whose opening could be told."""
EXPERT_TERM = "generator/expert"
"""Of a stage's training curve, where the task's expert judged its outputs."""


@dataclass(frozen=True)
class PerformerRow:
    """One performer: its name, what is to be known of it, and a cell per column; None where it was not judged so."""

    name: str
    note: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Talking:
    """The section."""

    performance: PerformanceRecord
    seconds: float
    video_uri: str
    """Empty where there is no video."""
    no_video: str
    plots: tuple[Markup, ...]
    columns: tuple[str, ...]
    rows: tuple[PerformerRow, ...]
    judge: str
    """What the lip-sync score is; empty without one."""
    judge_taught: bool
    """Whether a stage trained the network against the expert that gives the score."""
    device_columns: tuple[str, ...]
    devices: tuple[DeviceRow, ...]


def talking_part(run: Run, folder: Path, details: Mapping[str, StageDetails]) -> Talking | None:
    """For the run in `folder`, whose stages left `details`. None for a run without a performance."""
    if not run.performances:
        return None
    found = run.performances[0]
    uri, why = _video(found, folder / VIDEO)
    named = {name for one in found.performers for name in (m.what for m in one.measurements)}
    columns = {name: title for name, title in COLUMNS.items() if name in named}
    sync = next((m for one in found.performers for m in one.measurements if m.what == "lip_sync"), None)
    device_columns, devices = device_table(run.devices)
    return Talking(
        performance=found,
        seconds=found.frames / found.fps,
        video_uri=uri,
        no_video=why,
        plots=tuple(map(Markup, _curves(found))),
        columns=tuple(columns.values()),
        rows=tuple(_row(run, found, one, tuple(columns)) for one in found.performers),
        judge=sync.source or "" if sync else "",
        judge_taught=any(EXPERT_TERM in terms for stage in details.values() for _, terms in stage.curve),
        device_columns=device_columns,
        devices=devices,
    )


def _video(found: PerformanceRecord, path: Path) -> tuple[str, str]:
    """The video as a data URI, and why there is none."""
    if found.no_video:
        return "", found.no_video
    if not path.is_file():
        return "", f"{VIDEO} is no longer in the run's folder; run the target again to have it made"
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}", ""


def _curves(found: PerformanceRecord) -> Iterator[str]:
    """One plot per curve: the truth, the original, and the file that is shown."""
    drawn = [("original", found.named("teacher"), plots.SECOND), (_file_name(found.shown_file), found.named(found.shown_file), plots.ACCENT)]
    for name, truth in found.curves.items():
        title = name.replace("_", " ")
        times = [(index + 0.5) / found.fps for index in range(len(truth))]
        with mpl.rc_context(plots.STYLE):
            figure, axes = plots.new_figure(plots.WIDTH, 2.5)
            axes.plot(times, truth, color=plots.INK, linewidth=2.2, alpha=0.55, label="truth")
            for label, performer, colour in drawn:
                if performer is not None and name in performer.curves:
                    axes.plot(times[: len(performer.curves[name])], performer.curves[name], color=colour, linewidth=1.4, label=plots.literal(label))
            axes.set_xlim(0, found.frames / found.fps)
            axes.set_xlabel("seconds")
            axes.set_ylabel(f"{title},\n{found.curve_unit}")
            plots.legend(figure)
            yield plots.as_svg(figure, f"The {title} of {found.clip} in each of {len(truth)} frames: truth and what was measured of the networks.")


def _row(run: Run, found: PerformanceRecord, one: PerformerRecord, columns: Sequence[str]) -> PerformerRow:
    numbers = {m.what: m for m in one.measurements}
    if one.kind == "context":
        note = f"for comparison{_shows(numbers)}"
    elif one.kind == "teacher":
        note = next(iter(numbers.values())).on if numbers else ""
    else:
        export = next((export for export in run.exports if export.file == one.name), None)
        note = ", ".join((export.label if export else "", *dict.fromkeys(m.on for m in one.measurements))).strip(", ")
    if _mouthless(found, numbers):
        note += "; hardly a mouth to be seen, so its opening and width say little"
    name = {"teacher": "original"}.get(one.name, _file_name(one.name))
    return PerformerRow(name, note, tuple(_cell(numbers, column) for column in columns))


def _shows(numbers: Mapping[str, Measurement]) -> str:
    """What a context is there for: frames that are equal to the truth show the error of the measurement, others what no network is worth."""
    if "psnr_db" not in numbers:
        return ""
    if numbers["psnr_db"].value < HIGHEST_DB:
        return "; what doing nothing is worth"
    return "; what the measurement itself gets wrong" if "mouth_opening_error" in numbers else ""


def _mouthless(found: PerformanceRecord, numbers: Mapping[str, Measurement]) -> bool:
    real = next((m.value for one in found.performers if one.kind == "context" for m in one.measurements if m.what == "mouth_explained"), None)
    return real is not None and "mouth_explained" in numbers and numbers["mouth_explained"].value < NO_MOUTH * real


def _cell(numbers: Mapping[str, Measurement], name: str) -> Cell | None:
    if name not in numbers:
        return None
    one = numbers[name]
    beside, called = BESIDE.get(name, ("", ""))
    note = f"{called} {numbers[beside].value:.3f}" if beside in numbers else ""
    if name in BESIDE and not note:
        note = "stands still: no correlation"
    value = wording.quality(name, one.value) if name == "psnr_db" else f"{one.value:.4f}" if name in BESIDE else f"{one.value:.3f}"
    return Cell(value, note, f"{wording.provenance(one)}: {one.source or 'source not recorded'}")


def _file_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]
