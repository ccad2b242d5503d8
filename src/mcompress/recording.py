"""From results to the record of a run: costs, quality, estimates, budget, environment; the run folder and the bundle."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.artifact import Artifact, model_digest
from mcompress.breakdown import breakdown_of, ceilings_of
from mcompress.budget import check_budget
from mcompress.cache import Cache, Entry
from mcompress.comparing import Planned, comparison_of
from mcompress.compress.attention_layout import original_by_heads
from mcompress.compress.cost import FP32_BYTES, operator_table
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.console import Reporter
from mcompress.environment import commit, cpu_name, package_versions, thread_count
from mcompress.evaluate import Scores, mean, score_baseline, score_network
from mcompress.export.backend import captured
from mcompress.export.bundle import write_bundle
from mcompress.export.profile import BACKENDS
from mcompress.exporting import ExportResult
from mcompress.offer import HOST, against_expectation, best_of, device_latency, make_offers, offered, planned_precisions, unplanned, withheld
from mcompress.planning import STAGE_VERSIONS, Plan
from mcompress.record import (
    ATTENTION_BY_HEADS,
    HIGHEST_DB,
    DataRecord,
    EnvironmentRecord,
    ExportRecord,
    ModelRecord,
    Run,
    StageRecord,
    TargetRecord,
)
from mcompress.run_folder import lay_out_samples, link_folder
from mcompress.targets.device import Unit
from mcompress.targets.latency import weight_bytes
from mcompress.targets.load import digest
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback, Measurement
from mcompress.targets.speeds import PrecisionName
from mcompress.whole_picture import drawing_facts


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


@dataclass(frozen=True)
class Counted:
    """A network with its cost, counted once."""

    spec: ModelSpec
    network: nn.Module
    table: OperatorTable


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
    searched = next((s.artifact for s in stages if s.record.name == "search"), None)
    teacher = counted(made.teacher_spec, made.teacher)
    student = counted(searched.spec, searched.network()) if searched else counted(made.start_spec, made.start)
    distilled = counted(final.spec, final.network())
    baseline = evaluate(made, cache, made.task.baseline_name, None)
    scored = {name: evaluate(made, cache, name, of) for name, of in (("teacher", teacher), ("student", student), ("distilled", distilled))}
    written = withheld(made, [result.record for result in exports])
    offers = make_offers(made, distilled.table, final.plan, written)
    records = offered(written, offers)
    best = best_of(offers)
    unit, variant, floats = (best.unit, best.variant, best.floats) if best else (made.unit, "mixed" if final.plan else "float", made.floats)
    shown = shown_file(exports, [record.shipped for record in records], variant)
    original = model_record(made, teacher, None, unit, floats, scored["teacher"].scores)
    models = {
        "teacher": original.model_copy(update={"latency": (*original.latency, *_by_heads(made, unit, floats))}),
        "student": model_record(made, student, None, unit, floats, scored["student"].scores),
        "distilled": model_record(made, distilled, None, unit, floats, scored["distilled"].scores),
        "compressed": model_record(
            made, distilled, final.plan if variant == "mixed" else None, unit, floats, shown.scores if shown else scored["distilled"].scores
        ),
    }
    if best is not None:
        models["compressed"] = models["compressed"].model_copy(update={"latency": (best.latency,)})
    operators = shown.record.operators if shown and shown.record.variant == variant else ()
    shipped = planned_precisions(distilled.table, final.plan if variant == "mixed" else None, floats, operators)
    breakdowns = {
        "teacher": breakdown_of(teacher.table, made.device, unit.name, floats, floats=floats),
        "compressed": breakdown_of(distilled.table, made.device, unit.name, shipped, floats=floats),
    }
    models |= {name: models[name].model_copy(update={"breakdown": breakdown}) for name, breakdown in breakdowns.items()}
    pictures = {made.task.baseline_name: baseline.entry, **{name: found.entry for name, found in scored.items()}}
    lay_out_samples(folder, {name: entry.folder for name, entry in pictures.items()}, shown.entry.folder if shown else None)
    for stage in stages:
        link_folder(stage.entry.folder, folder / "stages" / stage.record.name)
    fallbacks = [
        *(Fallback(where="data", what=note.split(":")[0], reason=note) for note in made.data_notes),
        *((Fallback(where="plan", what="attention", reason=made.layout_note),) if made.layout_note else ()),
        *(fallback for stage in stages for fallback in stage.artifact.fallbacks),
        *(Fallback(where="cache", what=s.record.name, reason=s.entry.rebuilt_because) for s in stages if s.entry.rebuilt_because),
        *(fallback for result in exports for fallback in result.fallbacks),
        *against_expectation(made, records, offers),
        *unplanned(distilled.table, final.plan),
        *_unknown("teacher", teacher.table),
        *_unknown("compressed", distilled.table),
        *_beyond_the_device(made, models["compressed"]),
    ]
    return Run(
        target=TargetRecord(name=made.target.name, digest=digest(made.target), title=made.device.title, quick=quick, task=made.task.name),
        environment=EnvironmentRecord(
            python=platform.python_version(),
            platform=platform.platform(),
            packages=package_versions(),
            commit=commit(),
            seed=made.target.seed,
            cpu=f"{cpu_name()}, {thread_count(made.target)} threads",
        ),
        stages=tuple(stage.record for stage in stages),
        models=models,
        baseline={**baseline.scores, "mean": mean(baseline.scores)},
        baseline_name=made.task.baseline_name,
        data=_data_record(made),
        exports=records,
        budget=tuple(check_budget(made.target.budget, models, records)),
        roofline=ceilings_of(made.device, tuple(breakdowns.values())),
        fallbacks=tuple(fallbacks),
        not_measured=tuple(not_measured(made, records)),
        peak_memory_mb=peak_memory_mb,
    )


def write_bundle_of(
    made: Plan, record: Run, stages: Sequence[StageLike], exports: Sequence[ExportResult], narrower: Mapping[str, Planned], folder: Path
) -> Path:
    """The bundle in the run folder. `exports` are those of `record`, in their order; `narrower` has the networks of narrower widths, and
    those that go along.
    """
    files = [replace(result.file, record=entry) for entry, result in zip(record.exports, exports, strict=True) if entry.shipped]
    final = stages[-1].artifact
    table = operator_table(final.network().eval(), *final.spec.input_shapes)
    comparison = comparison_of(made, record, Planned(table, final.plan), narrower)
    plans = {name: network.plan for name, network in narrower.items() if network.plan is not None}
    drawing = drawing_facts(made, final, {name: network.final for name, network in narrower.items() if network.final is not None})
    with captured(folder / "log.txt"):  # of text to image, files draw a picture as the bundle is written
        return write_bundle(
            folder / "bundle",
            run=record,
            target=made.target,
            files=files,
            plan=final.plan,
            comparison=comparison,
            narrower_plans=plans,
            drawing=drawing,
        )


def _data_record(made: Plan) -> DataRecord | None:
    task = made.task
    if not isinstance(task, Translation | UnpairedTranslation):
        return None
    return DataRecord(
        pairing="aligned" if task.paired else "unpaired",
        labelled_fraction=made.target.data.labelled_fraction,
        labelled_pairs=task.labelled_pairs,
        unlabelled_images=task.unlabelled_images,
    )


def counted(spec: ModelSpec, network: nn.Module) -> Counted:
    """A network with its operators."""
    return Counted(spec, network.eval(), operator_table(network, *spec.input_shapes))


def evaluate(made: Plan, cache: Cache, name: str, counted: Counted | None) -> Evaluated:
    """What a network, or without one the task's baseline, is worth on the held-out data; from the cache where that is known."""
    parts: dict[str, JsonValue] = {
        "name": f"evaluate {name}",
        "version": STAGE_VERSIONS["evaluate"],
        "model": model_digest(counted.spec, counted.network.state_dict()) if counted else name,
        "data": made.data_digest,
        "threads": thread_count(made.target),
        "torch": torch.__version__,
        "cpu": cpu_name(),
    }

    def compute(folder: Path, _work: Path) -> None:
        if counted is None:
            scores = score_baseline(made.task, folder / "pictures")
        else:
            scores = score_network(made.task.for_network(counted.spec), counted.network, folder / "pictures", name)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")

    entry = cache.get(parts, compute)
    return Evaluated(json.loads((entry.folder / "scores.json").read_text(encoding="utf-8")), entry)


def model_record(made: Plan, counted: Counted, plan: PrecisionPlan | None, unit: Unit, floats: PrecisionName, scores: Scores) -> ModelRecord:
    """A network's cost on a unit of the device, with a plan as planned, and what it is worth."""
    table = counted.table
    return ModelRecord(
        spec=json.loads(counted.spec.to_json()),
        params=table.params,
        macs=table.macs,
        macs_output_convention=table.macs_output_convention,
        assumed_macs=table.assumed_macs,
        weight_bytes=table.params * FP32_BYTES if plan is None else weight_bytes(table, planned_precisions(table, plan, floats)),
        peak_activation_bytes=table.peak_activation_elements * FP32_BYTES,
        activation_traffic_bytes=table.activation_traffic_elements * FP32_BYTES,
        quality=mean(scores),
        quality_per_sample=scores,
        latency=(device_latency(made, table, plan, unit, floats),),
    )


def _by_heads(made: Plan, unit: Unit, floats: PrecisionName) -> Iterator[Measurement]:
    """The original's latency in the layout of attention in which its compression begins; nothing where that is the one in which it was published."""
    spec = original_by_heads(made.teacher_spec, made.start_spec)
    if spec is not None:
        latency = device_latency(made, operator_table(build_meta(spec), *spec.input_shapes), None, unit, floats)
        yield latency.model_copy(update={"what": ATTENTION_BY_HEADS})


def shown_file(exports: Sequence[ExportResult], shipped: Sequence[bool], variant: str) -> ExportResult | None:
    """The file whose pictures and quality stand for the compressed network: the first executed and shipped one of the offered form, else of any."""
    executed = [result for result, ships in zip(exports, shipped, strict=True) if result.scores and ships]
    return next((r for r in executed if r.record.variant == variant), executed[0] if executed else None)


def _unknown(model: str, table: OperatorTable) -> Iterator[Fallback]:
    """What the operator table does not know, one line per operation."""
    for operation in dict.fromkeys(row.operation for row in table.unknown):
        rows = [row for row in table.unknown if row.operation == operation]
        macs = sum(row.macs for row in rows)
        reason = f"the operator table does not know it; the {macs:,} multiply-adds of {len(rows)} of them in the {model} network are assumed"
        yield Fallback(where="count", what=operation, reason=reason)


def _beyond_the_device(made: Plan, compressed: ModelRecord) -> Iterator[Fallback]:
    needed_mb = (compressed.weight_bytes + compressed.peak_activation_bytes) / 1e6
    limit = made.device.memory
    if needed_mb > limit.limit_mb:
        source = made.device.sources[limit.source].text
        reason = f"weights and live fp32 activations need {needed_mb:.0f} MB; one app may use {limit.limit_mb:g} MB there ({source})"
        yield Fallback(where="device", what=made.device.title, reason=reason)


def not_measured(made: Plan, exports: Sequence[ExportRecord]) -> Iterator[str]:
    """What a reader could expect to find measured, and is not."""
    if made.device.name != HOST:
        yield f"latency on a real {made.device.title}: no device was attached; figures for it are estimates, and say their error"
    if all(record.walked is None for record in exports):
        yield "a second count of multiply-adds and memory: it walks the exported ONNX graph, and the target exports none"
    for record in exports:
        if record.parity.passed is None:
            yield f"parity, quality and latency of {record.file}: {record.parity.runtime}"
        elif record.backend not in BACKENDS.values():
            yield f"latency of {record.file}: only Core ML itself could tell, and mcompress has nothing that times it, on macOS neither"
    if not made.task.paired:
        yield (
            f"the original's own quality: the data are unpaired, so {made.task.metric} compares with the original's output; of the original itself "
            f"it is {HIGHEST_DB:g} dB, equal to the bit, by definition"
        )
    yield "LPIPS, FID and other metrics that need pretrained weights: none were given"
