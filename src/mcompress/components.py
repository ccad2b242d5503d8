"""The networks that go along with a run's own, of text to image the text encoder and the decoder: each with stages, files and figures of its own.

Each is run and recorded as if it were a run alone, in a folder of its own below the run's; then its stages, models, files, limits and fallbacks join
the record of the run, by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcompress.cache import Cache
from mcompress.comparing import Planned
from mcompress.compress.cost import operator_table
from mcompress.console import Reporter
from mcompress.export.backend import captured
from mcompress.exporting import ExportResult, export_all
from mcompress.planning import Plan
from mcompress.record import Run
from mcompress.recording import make_record
from mcompress.staging import StageResult, run_stages
from mcompress.targets.schema import Fallback

COMPONENTS = "components"


@dataclass(frozen=True)
class Component:
    """A network that goes along, compressed and exported."""

    name: str
    made: Plan
    stages: list[StageResult]
    exports: list[ExportResult]


def run_components(made: Plan, folder: Path, cache: Cache, force: Sequence[str], reporter: Reporter) -> tuple[Component, ...]:
    """Compress and export each of them; `--force prune-decoder` forces a stage of one."""
    found = []
    for name, plan in made.beside.items():
        below, ending = folder / COMPONENTS / name, f"-{name}"
        below.mkdir(parents=True, exist_ok=True)
        own = [forced.removesuffix(ending) for forced in force if forced.endswith(ending)]
        reporter.note(f"{name}:")
        with captured(folder / "log.txt"):
            stages = run_stages(plan, below, cache, own, reporter)
        exports = export_all(plan, stages[-1].artifact, cache, folder / "log.txt", reporter, force="export" in force)
        found.append(Component(name, plan, stages, exports))
    return tuple(found)


def with_components(run: Run, components: Sequence[Component], cache: Cache, folder: Path, reporter: Reporter) -> Run:
    """The record with everything about them in it."""
    known = {(fallback.what, fallback.reason) for fallback in run.fallbacks if fallback.where == "data"}  # notes about what they share
    for one in components:
        below, name = folder / COMPONENTS / one.name, one.name
        own = make_record(
            one.made, one.stages, one.exports, cache, reporter, quick=run.target.quick, folder=below, peak_memory_mb=run.peak_memory_mb or 0.0
        )
        models = {f"{name}_teacher": own.models["teacher"], name: own.models["compressed"]}
        news = [fallback for fallback in own.fallbacks if fallback.where != "data" or (fallback.what, fallback.reason) not in known]
        run = run.model_copy(
            update={
                "stages": (*run.stages, *(stage.model_copy(update={"name": f"{stage.name}-{name}"}) for stage in own.stages)),
                "models": {**run.models, **models},
                "exports": (*run.exports, *(record.model_copy(update={"component": name}) for record in own.exports)),
                "budget": (*run.budget, *(row.model_copy(update={"what": f"{name} {row.what}"}) for row in own.budget)),
                "fallbacks": (*run.fallbacks, *(_of(fallback, name) for fallback in news)),
                "not_measured": tuple(dict.fromkeys((*run.not_measured, *own.not_measured))),
            }
        )
    return run


def planned(components: Sequence[Component]) -> dict[str, Planned]:
    """Name -> its operators, its plan and itself."""
    found = {}
    for one in components:
        final = one.stages[-1].artifact
        found[one.name] = Planned(operator_table(final.network(), *final.spec.input_shapes), final.plan, final)
    return found


def _of(fallback: Fallback, name: str) -> Fallback:
    return fallback if name in fallback.where else fallback.model_copy(update={"where": f"{fallback.where} {name}"})
