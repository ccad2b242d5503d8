"""The original and every executed file perform a held-out clip whole, for tasks whose outputs move. One cache entry each, and one for the video."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from mcompress.artifact import Artifact
from mcompress.cache import Cache, Entry
from mcompress.compress.cost import operator_table
from mcompress.compress.tasks.performance import Judgement, Performance
from mcompress.console import Reporter
from mcompress.elsewhere import Model, latency_on_devices
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.errors import MissingBackendError
from mcompress.export import backend_named
from mcompress.export.backend import Runner, captured
from mcompress.exporting import ExportResult
from mcompress.planning import STAGE_VERSIONS, Plan
from mcompress.record import VIDEO, ExportRecord, PerformanceRecord, PerformerRecord, Run
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback

WHERE = "performance"
ORIGINAL_BATCH = 10
"""Frames at once for the original in PyTorch; files take as many as they were exported for."""
FRAMES_FILE, RECORDS_FILE, NOTES_FILE = "frames.npy", "performers.json", "notes.json"


@dataclass(frozen=True)
class Performed:
    """A performer's record, and the entry with its frames."""

    record: PerformerRecord
    entry: Entry

    @property
    def frames(self) -> Tensor:
        """uint8 (T, 3, H, W)."""
        return torch.from_numpy(np.load(self.entry.folder / FRAMES_FILE))


@dataclass(frozen=True)
class Stage:
    """What all performers share."""

    made: Plan
    clip: Performance
    cache: Cache
    log: Path
    force: bool

    def key(self, what: str, **more: JsonValue) -> dict[str, JsonValue]:
        """What determines an entry; how the clip is judged is in the version, who judges in the digest of the data."""
        return {
            "name": f"perform {what}",
            "version": STAGE_VERSIONS["perform"],
            "clip": self.clip.name,
            "data": self.made.data_digest,
            "threads": thread_count(self.made.target),
            "packages": dict(package_versions()),
            "cpu": cpu_name(),
            **more,
        }


def with_performance(
    made: Plan, run: Run, final: Artifact, exports: Sequence[ExportResult], cache: Cache, folder: Path, reporter: Reporter, *, force: bool
) -> Run:
    """The record with what the original and the executed files of `exports` made of the task's clip, and what they take on all devices.

    `exports` are the first of `run.exports`, in their order. The video lies in the run's folder. Raises `ParityError` for a file that computes NaN.
    """
    (folder / VIDEO).unlink(missing_ok=True)
    clip = made.task.performance()
    if clip is None:
        return run
    stage = Stage(made, clip, cache, folder / "log.txt", force)
    records = run.exports[: len(exports)]
    executed = [(record, result) for record, result in zip(records, exports, strict=True) if record.parity.passed is not None]
    jobs: list[Callable[[], Performed]] = [partial(_original, stage), *(partial(_file, stage, record, result) for record, result in executed)]
    report, performed = reporter.progress("perform a held-out clip"), list[Performed]()
    for index, job in enumerate(jobs):
        report(index, len(jobs), "original" if index == 0 else executed[index - 1][0].label)
        performed.append(job())
    report(len(jobs), len(jobs), "")
    missing = [*clip.missing, *(f"performance of {record.file}: {record.parity.runtime}" for record in records if record.parity.passed is None)]
    shown = {"truth": lambda: clip.truth, "original": lambda: performed[0].frames}
    best = _shown([record for record, _ in executed])
    if best is not None:
        shown[best.label] = lambda: next(one.frames for one in performed if one.record.name == best.file)
    no_video, notes = _video(stage, shown, [one.entry.folder.name for one in performed], folder / VIDEO)
    performance = PerformanceRecord(
        clip=clip.name,
        fps=clip.fps,
        frames=len(clip.truth),
        curves=dict(clip.curves),
        curve_unit=clip.curve_unit,
        curve_note=clip.curve_note,
        performers=(*_contexts(stage), *(one.record for one in performed)),
        shown=() if no_video else tuple(shown),
        shown_file=best.file if best else "",
        no_video=no_video,
        missing=tuple(missing),
    )
    network = final.network().eval()
    tables: dict[Model, OperatorTable] = {
        "teacher": operator_table(made.teacher, *made.teacher_spec.input_shapes),
        "compressed": operator_table(network, *final.spec.input_shapes),
    }
    fallbacks = [Fallback(where=WHERE, what=note.partition(":")[0], reason=note) for note in notes]
    fallbacks += _rebuilt(performed)
    if no_video:
        fallbacks.append(Fallback(where=WHERE, what=VIDEO, reason=no_video))
    return run.model_copy(
        update={
            "performances": (performance,),
            "devices": latency_on_devices(tables, final.plan),
            "fallbacks": (*run.fallbacks, *fallbacks),
            "not_measured": (*run.not_measured, *missing),
        }
    )


def _original(stage: Stage) -> Performed:
    made = stage.made

    def frames() -> tuple[Tensor, str]:
        return stage.clip.perform(made.teacher.eval(), ORIGINAL_BATCH), "PyTorch fp32"

    return _performed(stage, stage.key("teacher", model=made.teacher_digest), "teacher", frames)


def _file(stage: Stage, record: ExportRecord, result: ExportResult) -> Performed:
    threads = thread_count(stage.made.target)

    def frames() -> tuple[Tensor, str]:
        runner = backend_named(record.backend).load(result.file.path, threads)
        return stage.clip.perform(partial(_run, runner), stage.made.target.model.input_shape[0]), runner.runtime

    return _performed(stage, stage.key(record.label, file=record.sha256, of=record.file), record.file, frames)


def _run(runner: Runner, *inputs: Tensor) -> Tensor:
    return torch.from_numpy(runner.run(*(one.numpy() for one in inputs)))


def _performed(stage: Stage, key: dict[str, JsonValue], name: str, frames: Callable[[], tuple[Tensor, str]]) -> Performed:
    def compute(folder: Path, _work: Path) -> None:
        with captured(stage.log):
            made, runtime = frames()
        np.save(folder / FRAMES_FILE, made.numpy())
        _save(folder, [_record(name, "teacher" if name == "teacher" else "file", stage.clip.judge(made, runtime))])

    entry = stage.cache.get(key, compute, force=stage.force)
    return Performed(_load(entry.folder)[0], entry)


def _contexts(stage: Stage) -> Sequence[PerformerRecord]:
    def compute(folder: Path, _work: Path) -> None:
        _save(folder, [_record(name, "context", judged) for name, judged in stage.clip.contexts().items()])

    return _load(stage.cache.get(stage.key("nothing"), compute, force=stage.force).folder)


def _record(name: str, kind: Literal["context", "teacher", "file"], judged: Judgement) -> PerformerRecord:
    return PerformerRecord(name=name, kind=kind, measurements=judged.measurements, curves=dict(judged.curves))


def _save(folder: Path, records: Sequence[PerformerRecord]) -> None:
    (folder / RECORDS_FILE).write_text(json.dumps([record.model_dump(mode="json") for record in records], indent=1), encoding="utf-8")


def _load(folder: Path) -> list[PerformerRecord]:
    return [PerformerRecord.model_validate(one) for one in json.loads((folder / RECORDS_FILE).read_text(encoding="utf-8"))]


def _shown(executed: Sequence[ExportRecord]) -> ExportRecord | None:
    """The file that is shown beside the original: the first that is offered, as the report's headline speaks of it, else the smallest shipped one."""
    inside = [record for record in executed if record.shipped]
    return next((record for record in inside if record.recommended), None) or min(inside or executed, key=lambda record: record.bytes, default=None)


def _video(stage: Stage, shown: Mapping[str, Callable[[], Tensor]], performers: Sequence[str], path: Path) -> tuple[str, list[str]]:
    """Write the video to `path`; returns why there is none, or nothing, and what was changed in it."""

    def compute(folder: Path, _work: Path) -> None:
        notes = stage.clip.write_video(folder / VIDEO, {title: frames() for title, frames in shown.items()})
        (folder / NOTES_FILE).write_text(json.dumps(notes), encoding="utf-8")

    key = stage.key("video", performers=[*performers], columns=[*shown])
    try:
        entry = stage.cache.get(key, compute, force=stage.force)
    except MissingBackendError as error:
        return str(error), []
    shutil.copyfile(entry.folder / VIDEO, path)
    return "", list(json.loads((entry.folder / NOTES_FILE).read_text(encoding="utf-8")))


def _rebuilt(performed: Sequence[Performed]) -> Iterator[Fallback]:
    return (Fallback(where="cache", what=one.record.name, reason=one.entry.rebuilt_because) for one in performed if one.entry.rebuilt_because)
