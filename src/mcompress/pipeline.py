"""The straight line: target -> plan -> stages -> exports -> bundle -> budget -> report.

What needs torch is imported where it is first used, so that a run which has nothing to do answers in a second.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.cache import Cache, disk_full_named, locked
from mcompress.console import Reporter, Silent
from mcompress.environment import thread_count
from mcompress.errors import BudgetMissed, ParityError, UsageError
from mcompress.receipt import inputs_of, settled, still_holds, write_receipt
from mcompress.record import ExportRecord, PainterRecord, Run
from mcompress.targets.load import digest, load_target, resolved_yaml
from mcompress.targets.own_modules import import_beside
from mcompress.targets.schema import Target

if TYPE_CHECKING:
    from mcompress.planning import Plan

logger = logging.getLogger("mcompress")


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder and its record."""

    folder: Path
    record: Run

    def raise_for_status(self) -> None:
        """Raise `ParityError` or `BudgetMissed` if the result is not what the target asked for; everything was written before."""
        failed = [
            f"{e.file}: {e.parity.metric} is {e.parity.value:.4g}, limit {e.parity.limit:g}. {_where(e)}"
            for e in self.record.exports
            if e.parity.passed is False
        ]
        gallery = self.record.gallery
        failed += [
            f"{p.name}: the picture that is least like PyTorch's is at {p.least_psnr_db:.4g} dB, limit {p.limit_db:g}{_drawn_by(p)}"
            for p in ((*gallery.painters, *gallery.by_script) if gallery is not None else ())
            if p.passed is False
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
    elif overrides:
        raise UsageError(
            f"overrides {list(overrides)} were given with a Target object; they apply to a target file or name. Give that instead, load the object "
            "with mcompress.load_target(path, overrides), or change it with target.model_copy(update={...})"
        )
    if quick:
        target = target.quick()
    reporter = reporter or Silent()
    _check_names(target, force)
    check_out(out)
    folder = run_folder(target, out)
    inputs = inputs_of(target)  # before anything is read, so that what changes meanwhile is noticed
    if not force and folder.exists():
        with _working_in(folder):
            if still_holds(folder, inputs):
                reporter.note("nothing has changed since this run was made; every step is cached")
                return Outcome(folder, settled(folder))
    from mcompress.planning import plan

    made = plan(target)
    with _working_in(folder), _logging_to(folder / "log.txt"):
        cache = Cache(out / "cache", note=reporter.note)
        record = execute(made, folder, cache, force=force, reporter=reporter, quick=quick)
        write_receipt(folder, target, inputs, cache.used)
        return Outcome(folder, record)


def open_target(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Target:
    """Load a target, and let `network: my_network:build` find a module beside its file."""
    path = Path(path_or_name)
    target = load_target(path, overrides)
    import_beside(path.resolve().parent if path.is_file() else None)
    return target


def execute(made: Plan, folder: Path, cache: Cache, *, force: Sequence[str], reporter: Reporter, quick: bool = False) -> Run:
    """Do what a plan says, in `folder`. Everything finished is in the cache, so a run that is stopped continues where it was."""
    import torch

    from mcompress.components import planned as planned_components
    from mcompress.components import run_components, with_components
    from mcompress.export.backend import captured
    from mcompress.exporting import export_all
    from mcompress.narrower import NarrowerExports, planned, with_narrower
    from mcompress.painting import with_gallery, with_script
    from mcompress.performing import with_performance
    from mcompress.recording import make_record, write_bundle_of
    from mcompress.reports.html import write_report
    from mcompress.staging import run_lines, run_stages

    started, target = time.monotonic(), made.target
    torch.set_num_threads(thread_count(target))
    (folder / "target.yaml").write_text(resolved_yaml(target), encoding="utf-8")
    for note in made.data_notes:
        reporter.note(f"data: {note}")
    with captured(folder / "log.txt"):
        stages = run_stages(made, folder, cache, force, reporter)
        lines = run_lines(made, stages, folder, cache, force, reporter)
    log, anew = folder / "log.txt", "export" in force
    exports = export_all(made, stages[-1].artifact, cache, log, reporter, force=anew, width=1.0 if lines else None)
    widths = [NarrowerExports(line, export_all(made, line.artifact, cache, log, reporter, force=anew, width=line.width)) for line in lines]
    components = run_components(made, folder, cache, force, reporter)
    record = make_record(made, stages, exports, cache, reporter, quick=quick, folder=folder, peak_memory_mb=_peak_mb())
    record = with_narrower(made, record, widths, cache, folder)
    record = with_components(record, components, cache, folder, reporter)
    record = with_performance(made, record, stages[-1].artifact, exports, cache, folder, reporter, force=anew)
    record = with_gallery(made, record, stages[-1].artifact, exports, components, cache, folder, reporter, force=anew)
    beside = [*(one.exports for one in widths), *(one.exports for one in components)]
    everything = [*exports, *(result for results in beside for result in results)]
    bundle = write_bundle_of(made, record, stages, everything, {**planned(widths), **planned_components(components)}, folder)
    record = with_script(record, bundle)
    record = record.model_copy(update={"seconds": time.monotonic() - started})
    record.save(folder)
    reporter.note("writing the report")
    write_report(folder)
    return record


def _drawn_by(painter: PainterRecord) -> str:
    return f", drawn by {', '.join(painter.files)}" if painter.files else ". Where those files pass, they are put together wrongly"


def _where(export: ExportRecord) -> str:
    if export.divergence is None:
        return "No single operator was found that is wrong; the run's fallbacks say why"
    return f"The first operator that is wrong: {export.divergence.sentence()}"


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    with disk_full_named(folder.parent), locked(folder / ".lock", f"another mcompress run is working in {folder}"):
        yield


def run_folder(target: Target, out: Path) -> Path:
    """`out/<target>-<digest8>`."""
    return out / f"{target.name}-{digest(target)[:8]}"


def check_out(out: Path, option: str = "--out") -> None:
    """Raise `UsageError`, naming the option, unless `out` is a folder that can be written to, or can become one; nothing is made."""
    try:
        nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        able = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK) and os.statvfs(nearest).f_blocks > 0  # /proc and its like have no blocks
    except OSError:
        able = False
    if not able:
        raise UsageError(f"{option} is '{out}'; it must be a folder, or a path where one can be made, that you may write to")


def _check_names(target: Target, force: Sequence[str]) -> None:
    beside = (f"{stage}-{name}" for name in target.beside for stage in target.of_component(name).stage_names())
    names = (*target.stage_names(), *beside, "export")
    unknown = [name for name in force if name not in names]
    if unknown:
        raise UsageError(f"--force {unknown[0]}: this target has no such stage; it has: {', '.join(names)}")


def _peak_mb() -> float:
    """At most so much memory was resident at once, MB: the peak of this process and the largest of a child that it waited for."""
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
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
