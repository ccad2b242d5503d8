"""From results to the record of a run: costs, quality, estimates, budget, environment; the run folder and the bundle."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue
from torch import nn

from mcompress.artifact import Artifact, model_digest
from mcompress.cache import Cache, Entry
from mcompress.compress.cost import operator_table
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.console import Reporter
from mcompress.evaluate import Scores, mean, score_baseline, score_network
from mcompress.export.bundle import write_bundle
from mcompress.export.profile import cpu_name
from mcompress.exporting import ExportResult
from mcompress.planning import STAGE_VERSIONS, Plan, package_versions, thread_count
from mcompress.record import BudgetRecord, EnvironmentRecord, ExportRecord, ModelRecord, Run, StageRecord, TargetRecord
from mcompress.targets.latency import Precisions, estimate, weight_bytes
from mcompress.targets.load import digest
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback, How, Measurement

FP32_BYTES = 4
NOTABLY_SLOWER = 1.05  # timings of one file on one machine repeat within a few per cent


class StageLike(Protocol):
    """What this module needs of a finished stage."""

    @property
    def artifact(self) -> Artifact:
        """The stage's result."""

    @property
    def record(self) -> StageRecord:
        """Its line in run.json."""

    @property
    def entry(self) -> Entry:
        """Where it lies."""


@dataclass(frozen=True)
class Evaluated:
    """A network's quality on held-out data and the cache entry with its pictures."""

    scores: Scores
    entry: Entry


def make_record(
    made: Plan,
    stages: Sequence[StageLike],
    exports: Sequence[ExportResult],
    cache: Cache,
    reporter: Reporter,
    *,
    quick: bool,
    folder: Path,
    peak_memory_mb: float,
) -> Run:
    """Everything that is known about the run, and the run folder's stages and samples."""
    reporter.note("evaluating on held-out data")
    final = stages[-1].artifact
    student = next((s.artifact for s in stages if s.record.name == "search"), None)
    baseline = _evaluate(made, cache, made.task.baseline_name, None)
    teacher = _evaluate(made, cache, "teacher", (made.teacher_spec, made.teacher))
    start = (student.spec, student.network()) if student else (made.start_spec, made.start)
    evaluated = {"student": _evaluate(made, cache, "student", start), "distilled": _evaluate(made, cache, "distilled", (final.spec, final.network()))}
    chosen = [_recommend(result.record, made, final) for result in exports]
    records = [record for record, _ in chosen]
    shown = _shown(exports)
    models = {
        "teacher": _model_record(made, made.teacher_spec, made.teacher, None, teacher.scores),
        "student": _model_record(made, *start, None, evaluated["student"].scores),
        "distilled": _model_record(made, final.spec, final.network(), None, evaluated["distilled"].scores),
        "compressed": _model_record(made, final.spec, final.network(), final.plan, shown.scores if shown else evaluated["distilled"].scores),
    }
    pictures = {made.task.baseline_name: baseline.entry, "teacher": teacher.entry, "student": evaluated["student"].entry}
    _lay_out_samples(folder, pictures, shown)
    for stage in stages:
        link_folder(stage.entry.folder, folder / "stages" / stage.record.name)
    fallbacks = [
        *(Fallback(where="data", what=skipped.split(":")[0], reason=skipped) for skipped in made.task.skipped),
        *(fallback for stage in stages for fallback in stage.artifact.fallbacks),
        *(Fallback(where="cache", what=s.record.name, reason=s.entry.rebuilt_because) for s in stages if s.entry.rebuilt_because),
        *(fallback for result in exports for fallback in result.fallbacks),
        *(fallback for _, found in chosen for fallback in found),
        *host_contradictions(records),
        *unplanned(operator_table(final.network(), made.target.model.input_shape), final.plan),
    ]
    return Run(
        target=TargetRecord(name=made.target.name, digest=digest(made.target), title=made.device.title, quick=quick),
        environment=EnvironmentRecord(
            python=platform.python_version(),
            platform=platform.platform(),
            packages=package_versions(),
            commit=_commit(),
            seed=made.target.seed,
            cpu=f"{cpu_name()}, {thread_count(made.target)} threads",
        ),
        stages=tuple(stage.record for stage in stages),
        models=models,
        baseline={**baseline.scores, "mean": mean(baseline.scores)},
        exports=tuple(records),
        budget=tuple(_budget(made, models, records)),
        fallbacks=tuple(fallbacks),
        not_measured=tuple(_not_measured(made, records)),
        peak_memory_mb=peak_memory_mb,
    )


def write_bundle_of(made: Plan, record: Run, stages: Sequence[StageLike], exports: Sequence[ExportResult], folder: Path) -> Path:
    """The bundle in the run folder."""
    files = [replace(result.file, record=entry) for entry, result in zip(record.exports, exports, strict=True)]
    return write_bundle(folder / "bundle", run=record, target=made.target, files=files, plan=stages[-1].artifact.plan)


def _evaluate(made: Plan, cache: Cache, name: str, network: tuple[ModelSpec, nn.Module] | None) -> Evaluated:
    parts: dict[str, JsonValue] = {
        "name": f"evaluate {name}",
        "version": STAGE_VERSIONS["evaluate"],
        "model": model_digest(network[0], network[1].state_dict()) if network else name,
        "data": made.data_digest,
        "threads": thread_count(made.target),
    }

    def compute(folder: Path, _work: Path) -> None:
        if network is None:
            scores = score_baseline(made.task, folder / "pictures")
        else:
            scores = score_network(made.task, network[1].eval(), folder / "pictures", name)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")

    entry = cache.get(parts, compute)
    return Evaluated(json.loads((entry.folder / "scores.json").read_text(encoding="utf-8")), entry)


def planned_precisions(table: OperatorTable, plan: PrecisionPlan | None) -> Precisions:
    """Table row -> precision: what the plan gives the module; float networks ship as fp16 to phones."""
    if plan is None:
        return "fp16"
    of_module = {operator.module: operator.precision for operator in plan.operators if operator.module}
    return {row.name: of_module.get(row.name, "fp16") for row in table.operators if row.macs}


def unplanned(table: OperatorTable, plan: PrecisionPlan | None) -> Iterator[Fallback]:
    """Rows that the plan does not name, such as a convolution called as a function: the estimate takes them as fp16, and says so."""
    modules = {operator.module for operator in plan.operators if operator.module} if plan is not None else set()
    for row in table.operators:
        if plan is not None and row.macs and row.name not in modules:
            yield Fallback(
                where="estimate", what=row.name, reason="the precision plan knows no module of this name; it is estimated and sized as fp16"
            )


def device_latency(made: Plan, table: OperatorTable, plan: PrecisionPlan | None) -> Measurement:
    """Estimate on the target's unit."""
    return estimate(table, made.device, made.unit.name, planned_precisions(table, plan))


def _model_record(made: Plan, spec: ModelSpec, network: nn.Module, plan: PrecisionPlan | None, scores: Scores) -> ModelRecord:
    table = operator_table(network, made.target.model.input_shape)
    return ModelRecord(
        spec=json.loads(spec.to_json()),
        params=table.params,
        macs=table.macs,
        macs_output_convention=table.macs_output_convention,
        weight_bytes=table.params * FP32_BYTES if plan is None else weight_bytes(table, planned_precisions(table, plan)),
        peak_activation_bytes=table.peak_activation_elements * FP32_BYTES,
        activation_traffic_bytes=table.activation_traffic_elements * FP32_BYTES,
        quality=mean(scores),
        quality_per_sample=scores,
        latency=(device_latency(made, table, plan),),
    )


def _shown(exports: Sequence[ExportResult]) -> ExportResult | None:
    """The file whose pictures and quality stand for the compressed network: the first executed one, mixed before float."""
    executed = [result for result in exports if result.scores]
    return next((r for r in executed if r.record.variant == "mixed"), executed[0] if executed else None)


def _recommend(record: ExportRecord, made: Plan, final: Artifact) -> tuple[ExportRecord, list[Fallback]]:
    """Offer the mixed file unless the device is estimated to run the float one faster; say so, and say when the host disagrees."""
    table = operator_table(final.network(), made.target.model.input_shape)
    as_float = device_latency(made, table, None)
    as_mixed = device_latency(made, table, final.plan) if final.plan is not None else None
    mixed_pays = as_mixed is not None and as_mixed.value <= as_float.value
    estimated = as_mixed if record.variant == "mixed" and as_mixed is not None else as_float
    recommended = (record.variant == "mixed") == mixed_pays
    found = []
    if record.variant == "mixed" and as_mixed is not None and not mixed_pays:
        reason = f"estimated {as_mixed.value:.2f} ms on {as_mixed.on}, the float file {as_float.value:.2f} ms: INT8 does not pay there"
        found.append(Fallback(where=f"export {record.backend}", what="the float file is recommended", reason=reason))
    return record.model_copy(update={"recommended": recommended, "latency": (*record.latency, estimated)}), found


def host_contradictions(records: Sequence[ExportRecord]) -> Iterator[Fallback]:
    """Mixed files that this machine runs slower than their float form."""
    by_backend = {(record.backend, record.variant): _host_ms(record) for record in records}
    for record in records:
        mixed, plain = by_backend[record.backend, record.variant], by_backend.get((record.backend, "float"))
        if record.variant == "mixed" and mixed and plain and mixed > NOTABLY_SLOWER * plain:
            reason = (
                f"{mixed:.2f} ms against {plain:.2f} ms for the float file, measured on this host; the recommendation follows the estimate for "
                "the target device, so measure both files there before shipping"
            )
            yield Fallback(where=f"export {record.backend}", what="the mixed file is slower than the float file here", reason=reason)


def _host_ms(record: ExportRecord) -> float | None:
    return next((m.value for m in record.latency if m.what == "latency" and m.how in ("host", "device")), None)


def _budget(made: Plan, models: dict[str, ModelRecord], exports: Sequence[ExportRecord]) -> Iterator[BudgetRecord]:
    budget, compressed, teacher = made.target.budget, models["compressed"], models["teacher"]
    latency = compressed.latency[0]
    shipped = [record for record in exports if record.recommended]
    largest = max(shipped, key=lambda record: record.bytes)
    rows: list[tuple[str, float | None, float, How, str]] = [
        ("latency_ms", budget.latency_ms, latency.value, latency.how, f"{latency.on}, {latency.band}"),
        ("macs_g", budget.macs_g, compressed.macs / 1e9, "host", "counted from the operator table, exact work"),
        (
            "peak_memory_mb",
            budget.peak_memory_mb,
            compressed.peak_activation_bytes / 1e6,
            "host",
            "counted from the operator table, fp32 activations",
        ),
        ("size_mb", budget.size_mb, largest.bytes / 1e6, "host", f"the largest recommended file, {largest.file}"),
    ]
    for what, limit, value, how, note in rows:
        if limit is not None:
            yield BudgetRecord(what=what, limit=limit, value=value, how=how, met=value <= limit, note=note)
    floor = budget.quality
    if floor is None:
        return
    executed = {record.file: record.quality[floor.metric] for record in shipped if floor.metric in record.quality}
    worst = min(executed, key=lambda file: executed[file]) if executed else None
    reached = executed[worst] if worst else None
    note = (
        f"held-out mean, computed by {worst} in its runtime, the worst recommended file"
        if worst
        else f"no recommended file could compute {floor.metric}"
    )
    if floor.at_least is not None:
        met = reached is not None and reached >= floor.at_least
        yield BudgetRecord(what=f"{floor.metric} at least", limit=floor.at_least, value=reached, how="host", met=met, note=note)
    if floor.within is not None:
        loss = None if reached is None or floor.metric not in teacher.quality else teacher.quality[floor.metric] - reached
        yield BudgetRecord(
            what=f"{floor.metric} loss against the teacher",
            limit=floor.within,
            value=loss,
            how="host",
            met=loss is not None and loss <= floor.within,
            note=note,
        )


def _not_measured(made: Plan, exports: Sequence[ExportRecord]) -> Iterator[str]:
    yield f"latency on a real {made.device.title}: no device was attached; figures for it are estimates, and say their error"
    for record in exports:
        if record.parity.passed is None:
            yield f"parity, quality and latency of {record.file}: {record.parity.runtime}"
    yield "LPIPS, FID and other metrics that need pretrained weights: none were given"


def _lay_out_samples(folder: Path, pictures: dict[str, Entry], shown: ExportResult | None) -> None:
    samples = folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    for entry in pictures.values():
        for picture in sorted(p for p in (entry.folder / "pictures").rglob("*.png") if p.is_file()):
            _link(picture, samples / picture.parent.name / picture.name)
    if shown is not None:
        for picture in sorted(p for p in (shown.entry.folder / "pictures").rglob("file.png") if p.is_file()):
            _link(picture, samples / picture.parent.name / "compressed.png")


def link_folder(source: Path, destination: Path) -> None:
    """Show a cache entry in the run folder without copying its bytes."""
    shutil.rmtree(destination, ignore_errors=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        _link(path, destination / path.relative_to(source))


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)  # writing through a link would change the cache
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)


def _commit() -> str | None:
    """The commit of mcompress's own checkout; None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
