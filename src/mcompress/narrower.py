"""The narrower widths of a run with a slim stage: evaluated, offered and recorded each on its own, beside the widest network.

The budget is judged by the widest, which is what the run was asked for; the narrower ones are what an app falls back to where it has less time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcompress.cache import Cache
from mcompress.comparing import Planned
from mcompress.compress.cost import operator_table
from mcompress.export.choices import left_out
from mcompress.exporting import ExportResult
from mcompress.offer import Offer, against_expectation, best_of, make_offers, offered, unplanned, withheld
from mcompress.planning import Plan
from mcompress.record import ExportRecord, ModelRecord, Run
from mcompress.recording import Counted, counted, evaluate, model_record, not_measured, shown_file
from mcompress.run_folder import link_folder
from mcompress.staging import Line
from mcompress.targets.schema import Fallback


@dataclass(frozen=True)
class NarrowerExports:
    """A narrower network with its files."""

    line: Line
    exports: list[ExportResult]


def with_narrower(made: Plan, run: Run, widths: Sequence[NarrowerExports], cache: Cache, folder: Path) -> Run:
    """The record of the run with the narrower networks in it: models and stages by the names of their widths, files behind those of the widest."""
    known = {(fallback.what, fallback.reason) for fallback in run.fallbacks}
    for width in widths:
        line, network = width.line, counted(width.line.artifact.spec, width.line.artifact.network())
        scores = evaluate(made, cache, line.name, network).scores
        written = withheld(made, [result.record for result in width.exports])
        offers = make_offers(made, network.table, line.artifact.plan, written)
        records = offered(written, offers)
        best = best_of(offers)
        variant = best.variant if best else "float"
        shown = shown_file(width.exports, [record.shipped for record in records], variant)
        model = _model(made, network, width, best, shown.scores if shown else scores)
        for stage in line.stages:
            link_folder(stage.entry.folder, folder / "stages" / stage.record.name)
        # What is as true of the widest is said once.
        news = [one for one in _fallbacks(made, width, network, records, offers) if (one.what, one.reason) not in known]
        run = run.model_copy(
            update={
                "stages": (*run.stages, *(stage.record for stage in line.stages)),
                "models": {**run.models, line.name: model},
                "exports": (*run.exports, *records),
                "fallbacks": (*run.fallbacks, *(_of_width(one, line.name) for one in news)),
                "not_measured": tuple(dict.fromkeys((*run.not_measured, *not_measured(made, records)))),
            }
        )
    return run.model_copy(update={"fallbacks": (*run.fallbacks, *left_out([record for record in run.exports if record.shipped], run))})


def _of_width(fallback: Fallback, name: str) -> Fallback:
    return fallback if name in fallback.where else fallback.model_copy(update={"where": f"{fallback.where} {name}"})


def planned(widths: Sequence[NarrowerExports]) -> dict[str, Planned]:
    """Name of a width -> its operators and its plan."""
    artifacts = {width.line.name: width.line.artifact for width in widths}
    return {name: Planned(operator_table(artifact.network(), *artifact.spec.input_shapes), artifact.plan) for name, artifact in artifacts.items()}


def _model(made: Plan, network: Counted, width: NarrowerExports, best: Offer | None, scores: dict[str, dict[str, float]]) -> ModelRecord:
    """What ships of this width, as `compressed` is what ships of the widest."""
    if best is None:
        return model_record(made, network, None, made.unit, made.floats, scores)
    plan = width.line.artifact.plan if best.variant == "mixed" else None
    return model_record(made, network, plan, best.unit, best.floats, scores).model_copy(update={"latency": (best.latency,)})


def _fallbacks(made: Plan, width: NarrowerExports, network: Counted, records: Sequence[ExportRecord], offers: dict[str, Offer]) -> Iterator[Fallback]:
    for stage in width.line.stages:
        yield from stage.artifact.fallbacks
        if stage.entry.rebuilt_because:
            yield Fallback(where="cache", what=stage.record.name, reason=stage.entry.rebuilt_because)
    for result in width.exports:
        yield from result.fallbacks
    yield from against_expectation(made, records, offers)
    yield from unplanned(network.table, width.line.artifact.plan)
