"""Several processes on one search: what a run lays out in its folder, and `work`, which joins from another terminal or machine.

`<run>/search/<key>/` holds optuna's journal, the trained supernet and the facts that decide what evaluating a candidate gives. A worker whose facts
differ would give other numbers, so it is refused: the result must not depend on who evaluated. The facts also say where the user's own modules lie.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna import Study
from optuna.trial import TrialState
from pydantic import JsonValue

from mcompress.artifact import model_digest
from mcompress.cache import Cache, json_digest
from mcompress.compress.candidates import space_of
from mcompress.compress.journal import join_study
from mcompress.compress.rounds import finished, help_once, trials_in, wanted
from mcompress.compress.search import JOURNAL, WEIGHTS
from mcompress.compress.supernet import CandidateQuality, read_weights
from mcompress.console import Reporter, Silent
from mcompress.environment import package_versions, thread_count
from mcompress.errors import UsageError
from mcompress.planning import Plan, plan
from mcompress.targets.load import load_target
from mcompress.targets.own_modules import import_beside, open_folder, sources_of
from mcompress.targets.schema import Target
from mcompress.targets.stages import SearchConfig

FACTS, LOCK = "facts.json", ".lock"
BESIDE = "own modules"
"""In the facts, the folder of the run's target, from the run's folder. Not compared: what lies in it is, as part of the networks' digests."""
POLL_S = 0.2
START_S = 5.0  # a run writes its target file a moment before it opens its search
PATIENCE_S = 600.0  # how long a worker waits for a run that was stopped to be started again


@dataclass(frozen=True)
class Joined:
    """What a worker did: of the `wanted` candidates it evaluated so many first. `search_was_over` if there was nothing left to join."""

    evaluated: int = 0
    wanted: int = 0
    search_was_over: bool = False


def search_folder(run_folder: Path, parts: dict[str, JsonValue]) -> Path:
    """Where the search with this cache key shares its state."""
    return run_folder / "search" / json_digest(parts)[:12]


@contextmanager
def leading(folder: Path, parts: dict[str, JsonValue], *, anew: bool) -> Iterator[None]:
    """Make a search's folder ready for workers, and show them by a lock that its run is alive.

    Searches with another key are removed; with `anew`, this one's earlier state too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in sorted(folder.parent.iterdir()):
        if anew or other != folder:
            _remove(other)
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # waits no longer than a worker needs to look
        temporary = folder / f"{FACTS}.tmp"
        beside = open_folder()
        where = None if beside is None else os.path.relpath(beside, folder.resolve().parent.parent)
        temporary.write_text(json.dumps({**_facts(parts), BESIDE: where}, indent=1), encoding="utf-8")
        temporary.replace(folder / FACTS)
        yield


def work(folder: str | Path, *, reporter: Reporter | None = None) -> Joined:
    """Join the search of the run in `folder` until it ends.

    Raises `UsageError` where the folder is no run, its target has no search stage, the user's own modules cannot be reached from here, this process
    would evaluate differently from the run, the search was removed or begun anew meanwhile, or its run was stopped and not started again.
    """
    folder, reporter = Path(folder), reporter or Silent()
    target = _target_of(folder)
    stage = next(stage for stage in target.stages if isinstance(stage, SearchConfig))
    torch.set_num_threads(thread_count(target))
    made = plan(target)
    name = target.stage_names()[target.stages.index(stage)]
    parts = made.key_parts(name, stage, model_digest(made.start_spec, made.start.state_dict()))
    cache = Cache(folder.parent / "cache")
    if cache.has(parts):
        return Joined(search_was_over=True)
    try:
        shared = _agreed(folder, parts, reporter)
        study = _trained(shared, lambda: cache.has(parts), reporter)
        return Joined(search_was_over=True) if study is None else _evaluate(made, stage, shared, study, reporter)
    except FileNotFoundError as error:
        raise UsageError(f"the search in '{folder}' was removed or begun anew while this worker was in it ({error}); join it again") from error


def _target_of(folder: Path) -> Target:
    path = folder / "target.yaml"
    if not path.is_file():
        raise UsageError(f"'{folder}' is not a run: it has no target.yaml. Give the folder of a run in progress, runs/<target>-<digest>")
    target = load_target(path)
    if not any(isinstance(stage, SearchConfig) for stage in target.stages):
        stages = ", ".join(target.stage_names()) or "none"
        raise UsageError(f"the target of '{folder}' has no search stage, so there is nothing to join; its stages: {stages}")
    _open_own_modules(folder, target)
    return target.model_copy(update={"exports": ()})  # a worker needs no backend


def _open_own_modules(folder: Path, target: Target) -> None:
    """Let the target's own networks be imported from where the run imports them: from beside its target file, if they lie there."""
    networks = [network.network for network in (target.model.teacher, target.model.student) if network is not None and ":" in network.network]
    deadline = time.monotonic() + START_S
    while networks:
        late, searches = time.monotonic() > deadline, _facts_in(folder)
        led = [shared for shared in searches if _led(shared)]
        recorded = [facts.get(BESIDE) for shared, facts in searches.items() if shared in led or not led]
        places = [folder.resolve() / str(where) if where else None for where in recorded]
        # Without a search, the run took its own from the cache; the networks may be installed.
        for place in places or ([None] if late else []):
            import_beside(place)
            if all(sources_of(network.partition(":")[0]) for network in networks):
                return
        if late and not places:
            raise UsageError(f"no search is going on in '{folder}'; start it with mcompress run, then join it")
        if late:
            where = " or ".join(f"'{os.path.normpath(place)}'" if place else "Python's own path" for place in places)
            raise UsageError(
                f"this process cannot join the search in '{folder}': it imports {' and '.join(networks)} from {where}, and there is no such module "
                "for this process. Share that folder, at the same place relative to the run's folder; or install the network as a package on both "
                "machines, and start the run again"
            )
        time.sleep(POLL_S)
    import_beside(None)


def _facts_in(folder: Path) -> dict[Path, dict[str, JsonValue]]:
    """Folder of a search -> its facts."""
    return {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"search/[!.]*/{FACTS}"))}


def _agreed(folder: Path, parts: dict[str, JsonValue], reporter: Reporter) -> Path:
    """The folder of the search whose facts are this process's facts."""
    shared, mine, deadline = search_folder(folder, parts), _facts(parts), time.monotonic() + START_S
    reporter.note(f"joining the search in {folder}")
    while True:
        found = {path: {name: fact for name, fact in facts.items() if name != BESIDE} for path, facts in _facts_in(folder).items()}
        if found.get(shared) == mine:
            return shared
        # One that no run is in may be an earlier search, which the run that is just starting will remove.
        late = time.monotonic() > deadline
        other = next((path for path in found if late or _led(path)), None)
        if other is not None:
            raise UsageError(
                f"this process cannot join the search in '{folder}', because the result would depend on who evaluated. "
                f"Different: {_differences(mine, found[other])}"
            )
        if late:
            raise UsageError(f"no search is going on in '{folder}'; start it with mcompress run, then join it")
        time.sleep(POLL_S)


def _facts(parts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {"mcompress": package_versions()["mcompress"], **parts}


def _differences(mine: dict[str, JsonValue], theirs: dict[str, JsonValue]) -> str:
    """One phrase per fact that differs; digests and tables by name only."""
    said = []
    for name in sorted(mine.keys() | theirs.keys()):
        here, there = mine.get(name), theirs.get(name)
        if here != there:
            short = all(len(str(value)) < 64 for value in (here, there))
            said.append(f"{name} ({here} here, {there} in the run)" if short else name)
    return ", ".join(said)


def _trained(shared: Path, over: Callable[[], bool], reporter: Reporter) -> Study | None:
    """The study, once its supernet is there; None if the search ended before."""
    patience, said = _Patience(shared), False
    while not over():
        study = join_study(shared / JOURNAL)
        if study is not None and (shared / WEIGHTS).is_file():
            return study
        if not said:
            reporter.note("waiting for the run to train the supernet")
            said = True
        patience.wait()
    return None


def _evaluate(made: Plan, stage: SearchConfig, shared: Path, study: Study, reporter: Reporter) -> Joined:
    if finished(study):
        return Joined(wanted=wanted(study), search_was_over=True)
    quality_of = CandidateQuality(made.task, space_of(stage, made.teacher_spec), read_weights(shared / WEIGHTS))
    report, chance = reporter.progress("joined search: evaluating candidates"), random.Random(os.urandom(8))
    patience, evaluated = _Patience(shared), 0
    while not finished(study):
        counted = help_once(study, quality_of, chance)
        if counted is None:
            patience.wait()
            continue
        patience.renew()
        evaluated += counted
        report(len(trials_in(study, TrialState.COMPLETE)), wanted(study), f"{evaluated} by this worker")
    return Joined(evaluated, wanted(study))


class _Patience:
    """Waits a little at a time, as long as the run is alive or was not long ago."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.renew()

    def renew(self) -> None:
        """There was a sign of life."""
        self.alive_at = time.monotonic()

    def wait(self) -> None:
        """Raises `UsageError` when the run has been gone too long."""
        time.sleep(POLL_S)
        if _led(self.shared):
            self.renew()
        elif time.monotonic() - self.alive_at > PATIENCE_S:
            raise UsageError(
                f"the run in '{self.shared.parent.parent}' was stopped and not started again within {PATIENCE_S:.0f} s. What this worker evaluated "
                "is kept; start the run with mcompress run, then join it again"
            )


def _led(shared: Path) -> bool:
    """Whether a run is in the search: then it holds the lock."""
    with (shared / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove(folder: Path) -> None:
    """Out of the workers' way first, so that none of them writes into a folder that is being deleted."""
    gone = folder if folder.name.startswith(".") else folder.rename(folder.with_name(f".{folder.name}.removed"))
    shutil.rmtree(gone)
