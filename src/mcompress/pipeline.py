"""The straight line: target -> plan -> stages -> exports -> bundle -> budget -> report."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mcompress.artifact import Artifact, load_artifact, model_digest, save_output
from mcompress.cache import Cache, Entry, digest_of, disk_full_named, locked
from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.stages import STAGES
from mcompress.console import Reporter, Silent
from mcompress.errors import BudgetMissed, ParityError, UsageError
from mcompress.export.backend import captured
from mcompress.exporting import export_all
from mcompress.planning import Plan, plan, thread_count
from mcompress.record import Run, StageRecord
from mcompress.recording import make_record, write_bundle_of
from mcompress.reports.html import write_report
from mcompress.targets.load import digest, load_target, resolved_yaml
from mcompress.targets.schema import Target
from mcompress.targets.stages import StageConfig

logger = logging.getLogger("mcompress")


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder and its record."""

    folder: Path
    record: Run

    def raise_for_status(self) -> None:
        """Raise `ParityError` or `BudgetMissed` if the result is not what the target asked for; everything was written before."""
        failed = [
            f"{e.file}: {e.parity.metric} is {e.parity.value:.4g}, limit {e.parity.limit:g}" for e in self.record.exports if e.parity.passed is False
        ]
        if failed:
            raise ParityError("an artifact does not compute what PyTorch computes:\n" + "\n".join(failed))
        missed = [
            f"{b.what} is {'unknown' if b.value is None else format(b.value, '.4g')}, limit {b.limit:g} ({b.note})"
            for b in self.record.budget
            if not b.met
        ]
        if missed:
            raise BudgetMissed("the result is outside the budget:\n" + "\n".join(missed))


def run(
    target: str | Path | Target,
    overrides: Sequence[str] = (),
    *,
    out: Path = Path("runs"),
    quick: bool = False,
    force: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Outcome:
    """Run a target from its file, name or object. See `mcompress.errors` for what it raises."""
    if not isinstance(target, Target):
        target = open_target(target, overrides)
    if quick:
        target = target.quick()
    return execute(plan(target), out, force=force, reporter=reporter or Silent(), quick=quick)


def open_target(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Target:
    """Load a target, and let `network: my_network:build` find a module beside its file."""
    path = Path(path_or_name)
    if path.is_file() and str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))
    return load_target(path, overrides)


def execute(made: Plan, out: Path, *, force: Sequence[str], reporter: Reporter, quick: bool = False) -> Outcome:
    """Do what a plan says. Everything finished is in the cache, so a run that is stopped continues where it was."""
    started, target = time.monotonic(), made.target
    unknown = [name for name in force if name not in (*made.stage_names(), "export")]
    if unknown:
        raise UsageError(f"--force {unknown[0]}: this target has no such stage; it has: {', '.join((*made.stage_names(), 'export'))}")
    folder = out / f"{target.name}-{digest(target)[:8]}"
    with locked(folder / ".lock", f"another mcompress run is working in {folder}"), _logging_to(folder / "log.txt"), disk_full_named(out):
        torch.set_num_threads(thread_count(target))
        (folder / "target.yaml").write_text(resolved_yaml(target), encoding="utf-8")
        for skipped in made.task.skipped:
            reporter.note(f"skipped {skipped}")
        cache = Cache(out / "cache")
        with captured(folder / "log.txt"):
            stages = run_stages(made, cache, force, reporter)
        exports = export_all(made, stages[-1].artifact, cache, folder / "log.txt", reporter, force="export" in force)
        record = make_record(made, stages, exports, cache, reporter, quick=quick, folder=folder, peak_memory_mb=_peak_mb())
        write_bundle_of(made, record, stages, exports, folder)
        record = record.model_copy(update={"seconds": time.monotonic() - started})
        record.save(folder)
        reporter.note("writing the report")
        write_report(folder)
    return Outcome(folder, record)


@dataclass(frozen=True)
class StageResult:
    """A stage's artifact, its record, and the cache entry that holds it."""

    artifact: Artifact
    record: StageRecord
    entry: Entry


def run_stages(made: Plan, cache: Cache, force: Sequence[str], reporter: Reporter) -> list[StageResult]:
    """Run the stages in order, each from the one before."""
    results: list[StageResult] = []
    parent = model_digest(made.start_spec, made.start.state_dict())
    for name, stage in zip(made.stage_names(), made.target.stages, strict=True):
        previous = results[-1].artifact if results else None

        def compute(folder: Path, work: Path, stage: StageConfig = stage, previous: Artifact | None = previous) -> None:
            save_output(_run_stage(made, stage, previous, work, reporter), folder)

        entry = cache.get(made.key_parts(name, stage, parent), compute, force=name in force)
        artifact = load_artifact(entry.folder)
        reporter.note(f"{name}: {'cached' if entry.cached else f'{entry.seconds:.0f} s'}")
        if entry.rebuilt_because:
            reporter.note(entry.rebuilt_because)
        record = StageRecord(name=name, method=stage.method, digest=artifact.digest, parent=parent, cached=entry.cached, seconds=entry.seconds)
        results.append(StageResult(artifact, record, entry))
        parent = artifact.digest
    return results


def _run_stage(made: Plan, stage: StageConfig, previous: Artifact | None, work: Path, reporter: Reporter) -> StageOutput:
    torch.manual_seed(made.target.seed)  # initial weights of new layers; everything else is seeded by step
    model = previous.network() if previous else build(made.start_spec)
    if previous is None:
        model.load_state_dict(made.start.state_dict())
    context = StageContext(
        task=made.task,
        device=made.device,
        unit=made.unit,
        budget=made.target.budget,
        teacher=made.teacher.eval(),
        teacher_spec=made.teacher_spec,
        model=model.eval(),
        spec=previous.spec if previous else made.start_spec,
        plan=previous.plan if previous else None,
        seed=made.target.seed,
        checkpoints=lambda name: FileCheckpoints(work / f"{name}.pt"),
        study_journal=work / "study.journal",
        progress=reporter.progress,
    )
    return STAGES[type(stage)](stage, context)


def preview(target: Target, out: Path) -> list[dict[str, str]]:
    """What a run would do: one row per step with what is cached, and which part of the key changed where something is not."""
    made, cache = plan(target), Cache(out / "cache")
    rows, parent = [], model_digest(made.start_spec, made.start.state_dict())
    known = True
    for name, stage in zip(made.stage_names(), target.stages, strict=True):
        state = "to compute (depends on the step before)"
        if known:
            parts = made.key_parts(name, stage, parent)
            known = cache.has(parts)
            state = "cached" if known else _why(cache.nearest(parts))
            if known:
                parent = load_artifact(cache.root / digest_of(parts)).digest
        rows.append({"step": name, "method": stage.method, "state": state})
    rows.extend(
        {"step": "export", "method": export.backend, "state": "float and mixed" if _quantizes(target) else "float"} for export in target.exports
    )
    return rows


def _quantizes(target: Target) -> bool:
    return any(stage.stage == "quantize" for stage in target.stages)


def _why(changed: list[str]) -> str:
    return f"to compute ({', '.join(changed)} changed)" if changed else "to compute"


def _peak_mb() -> float:
    """Largest resident memory of this process or of a child that it waited for, MB."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


class _logging_to:  # noqa: N801  (reads as the phrase it is)
    """Everything that mcompress logs during a run, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.handler = logging.FileHandler(self.path, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self.handler)
        logger.propagate = False  # backends put handlers of their own on the root logger
        logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self.handler)
        self.handler.close()
