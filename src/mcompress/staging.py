"""The stages of a run, in order, each from the artifact of the one before and each in the cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import JsonValue

from mcompress.artifact import Artifact, load_artifact, model_digest, save_output
from mcompress.cache import Cache, Entry
from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.stages import STAGES
from mcompress.console import Reporter
from mcompress.joining import leading, search_folder
from mcompress.planning import Plan
from mcompress.record import StageRecord
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import QuantizeConfig, SearchConfig, SlimConfig, StageConfig, width_name

SHARED = "shared.json"
Remember = Callable[[str, dict[str, JsonValue], Callable[[], str]], str]


@dataclass(frozen=True)
class StageResult:
    """A stage's artifact, its record, and the cache entry that holds it."""

    artifact: Artifact
    record: StageRecord
    entry: Entry


@dataclass(frozen=True)
class Line:
    """A narrower network that a slim stage cut out, on its way of its own through the stages behind."""

    name: str
    """Of its width, `w050`."""
    width: float
    """Its share of the channels of the widest."""
    stages: tuple[StageResult, ...]
    """Those behind the slim stage, named `quantize-w050`."""
    artifact: Artifact
    """What the last of them made."""


def run_stages(made: Plan, run_folder: Path, cache: Cache, force: Sequence[str], reporter: Reporter) -> list[StageResult]:
    """Run the stages in order, each from the one before. A search keeps what it shares with workers in the run's folder.

    With a slim stage these are the widest network's; `run_lines` continues with the narrower ones.
    """
    results: list[StageResult] = []
    parent = model_digest(made.start_spec, made.start.state_dict())
    for name, stage in zip(made.target.stage_names(), made.target.stages, strict=True):
        previous = results[-1].artifact if results else None
        results.append(_run(made, name, stage, previous, parent, run_folder, cache, reporter, forced=name in force))
        parent = results[-1].artifact.digest
    return results


def run_lines(
    made: Plan, results: Sequence[StageResult], run_folder: Path, cache: Cache, force: Sequence[str], reporter: Reporter
) -> tuple[Line, ...]:
    """Each narrower network of the slim stage through the stages behind it, from wide to narrow; nothing without such a stage.

    `results` are those of `run_stages`. To force a stage forces it for every width.
    """
    named = list(zip(made.target.stage_names(), made.target.stages, strict=True))
    lines = []
    for index, (_, slim) in enumerate(named):
        narrower = results[index].artifact.narrower() if isinstance(slim, SlimConfig) else {}
        widths = {width_name(width): width for width in slim.widths} if isinstance(slim, SlimConfig) else {}
        for name, artifact in narrower.items():
            own: list[StageResult] = []
            for kind, stage in named[index + 1 :]:
                own.append(_run(made, f"{kind}-{name}", stage, artifact, artifact.digest, run_folder, cache, reporter, forced=kind in force))
                artifact = own[-1].artifact
            lines.append(Line(name, widths[name], tuple(own), artifact))
    return tuple(lines)


def _run(
    made: Plan,
    name: str,
    stage: StageConfig,
    previous: Artifact | None,
    parent: str,
    run_folder: Path,
    cache: Cache,
    reporter: Reporter,
    *,
    forced: bool,
) -> StageResult:
    """One stage, from the cache or computed."""
    parts = made.key_parts(name, stage, parent)
    remember = partial(_remember, cache, parts, forced=forced)
    entry = cache.get(parts, partial(_compute, made, stage, previous, parts, run_folder, reporter, remember), force=forced)
    artifact = load_artifact(entry.folder)
    reporter.note(f"{name}: {_how_long(entry)}")
    if entry.rebuilt_because:
        reporter.note(entry.rebuilt_because)
    record = StageRecord(
        name=name,
        method=stage.method,
        digest=artifact.digest,
        parent=parent,
        cached=entry.cached,
        seconds=entry.seconds,
        continued=entry.continued,
    )
    return StageResult(artifact, record, entry)


def _how_long(entry: Entry) -> str:
    if entry.cached:
        return "cached"
    return f"{entry.seconds:.0f} s{' since it was continued' if entry.continued else ''}"


def _remember(
    cache: Cache,
    parts: dict[str, JsonValue],
    what: str,
    depends_on: dict[str, JsonValue],
    compute: Callable[[], str],
    *,
    forced: bool,
) -> str:
    """A text in an entry of its own, shared by all configurations of a stage; where the stage is `forced` it is computed again too."""

    def build(folder: Path, _work: Path) -> None:
        (folder / SHARED).write_text(compute(), encoding="utf-8")

    shared = {name: value for name, value in parts.items() if name not in ("config", "units", "budget", "ships_as")}
    entry = cache.get({**shared, "name": f"{parts['name']}: {what}", "depends_on": depends_on}, build, force=forced)
    return (entry.folder / SHARED).read_text(encoding="utf-8")


def _compute(
    made: Plan,
    stage: StageConfig,
    previous: Artifact | None,
    parts: dict[str, JsonValue],
    run_folder: Path,
    reporter: Reporter,
    remember: Remember,
    folder: Path,
    work: Path,
) -> None:
    """Compute a cache entry into `folder`, with state for resuming in `work`."""
    shared = search_folder(run_folder, parts)
    # Where this attempt has left no training state (it is the first one, or forced, or mends a damaged entry) a journal is not its own.
    with leading(shared, parts, anew=not any(work.iterdir())) if isinstance(stage, SearchConfig) else nullcontext():
        save_output(_run_stage(made, stage, previous, work, shared, reporter, remember), folder)


def _run_stage(
    made: Plan, stage: StageConfig, previous: Artifact | None, work: Path, shared: Path, reporter: Reporter, remember: Remember
) -> StageOutput:
    torch.manual_seed(made.target.seed)  # initial weights of new layers; everything else is seeded by step
    model = previous.network() if previous else build(made.start_spec)
    if previous is None:
        model.load_state_dict(made.start.state_dict())
    stores: list[FileCheckpoints] = []

    def checkpoints(name: str) -> FileCheckpoints:
        stores.append(FileCheckpoints(work / f"{name}.pt"))
        return stores[-1]

    context = StageContext(
        task=made.task.for_network(previous.spec if previous else made.start_spec),
        device=made.device,
        unit=made.unit,
        budget=made.target.budget,
        # A copy, because training changes the order in memory, and with it the last bits: the plan's own makes the truths of unpaired data.
        teacher=copy.deepcopy(made.teacher).eval(),
        teacher_spec=made.teacher_spec,
        model=model.eval(),
        spec=previous.spec if previous else made.start_spec,
        plan=previous.plan if previous else None,
        seed=made.target.seed,
        checkpoints=checkpoints,
        search_folder=shared,
        ships_as=made.ships_as,
        progress=reporter.progress,
        planned_units=made.planned_units,
        remember=remember,
        given_plan=made.given_plan if isinstance(stage, QuantizeConfig) else None,
        teachers=previous.teachers() if previous else {},
    )
    output = STAGES[type(stage)](stage, context)
    where = f"stage {stage.stage}"
    restarts = tuple(Fallback(where=where, what="training checkpoint", reason=store.problem) for store in stores if store.problem is not None)
    teachers = {} if isinstance(stage, QuantizeConfig | SlimConfig) else output.teachers or context.teachers  # nobody is taught behind these
    return replace(output, fallbacks=(*output.fallbacks, *restarts), teachers=teachers)
