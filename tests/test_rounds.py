"""Rounds of a search in one journal: any number of evaluators, any of them killed anywhere, one outcome."""

from __future__ import annotations

import functools
import json
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from conftest import silent
from optuna.trial import TrialState

from mcompress.compress import rounds
from mcompress.compress.candidates import CandidateCost, candidate_cost
from mcompress.compress.journal import JournalLock, join_study, open_study
from mcompress.compress.models.space import SPACES, Args
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.rounds import Proposer, answer, candidate_of, finished, help_once, lead, trials_in, waiting
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget

SPACE = SPACES["mfagan"]
Outcome = list[tuple[str, str, list[float] | None]]


@functools.cache
def _cost(args: str) -> CandidateCost:
    device = load_device("snapdragon865")
    return candidate_cost(ModelSpec(SPACE.network, json.loads(args), (), (1, 3, 16, 16)), device, device.unit(None), "int8")


def cost_of(args: Args) -> CandidateCost:
    return _cost(json.dumps(args))


def quality_of(args: Args) -> float:
    """As good as it is large, with a little of its own: enough for the sampler to have something to learn."""
    return _cost(json.dumps(args)).macs / 1e6 + random.Random(json.dumps(args)).random()


PROPOSER = Proposer(20, 7, Budget(macs_g=0.02), SPACE, cost_of)


def outcome(study: optuna.Study) -> Outcome:
    return [(t.state.name, json.dumps(candidate_of(t)), t.values) for t in trials_in(study)]


EVOLUTION = replace(PROPOSER, trials=40, sampler="evolution")


@pytest.fixture(scope="module", params=[PROPOSER, EVOLUTION], ids=lambda proposer: proposer.sampler)
def proposer(request: pytest.FixtureRequest) -> Proposer:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(proposer: Proposer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, bytes]:
    """What one process finds alone, and its journal."""
    journal = tmp_path_factory.mktemp("alone") / "study.journal"
    study = open_study(journal)
    lead(study, proposer, quality_of, silent)
    return outcome(study), journal.read_bytes()


def test_evolution_proposes_nothing_twice_while_there_is_something_new(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.journal")
    lead(study, replace(EVOLUTION, budget=Budget()), quality_of, silent)
    proposed = [json.dumps(candidate_of(trial)["args"]) for trial in trials_in(study)]
    assert len(set(proposed)) == len(proposed) == EVOLUTION.trials


def test_a_space_that_is_used_up_ends_no_search(tmp_path: Path) -> None:
    only = replace(SPACE, suggest=lambda trial: {**SPACE.smallest, "channels": trial.suggest_categorical("channels", [16, 24])})
    study = open_study(tmp_path / "study.journal")
    lead(study, Proposer(4, 0, Budget(), only, cost_of, "evolution"), quality_of, silent)
    assert len({json.dumps(candidate_of(trial)["args"]) for trial in trials_in(study)}) == 2
    assert len(trials_in(study, TrialState.COMPLETE)) == 4


def test_alone(undisturbed: tuple[Outcome, bytes], proposer: Proposer) -> None:
    found, _ = undisturbed
    states = [state for state, _, _ in found]
    assert states.count("COMPLETE") == proposer.trials
    assert states.count("PRUNED") > 5
    for state, candidate, values in found:
        over = json.loads(candidate)["over"]
        assert (state == "PRUNED") == bool(over) == (values is None)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(undisturbed: tuple[Outcome, bytes], proposer: Proposer, tmp_path: Path, workers: int) -> None:
    journal, done, counts = tmp_path / "study.journal", threading.Event(), [0] * workers
    study = open_study(journal)

    def slowly(args: Args) -> float:
        done.wait(0.004)
        return quality_of(args)

    def join(index: int) -> None:
        joined, chance = join_study(journal), random.Random(index)
        assert joined is not None
        while not finished(joined):
            counts[index] += help_once(joined, slowly, chance) or 0
            done.wait(0.001)

    threads = [threading.Thread(target=join, args=(index,)) for index in range(workers)]
    for thread in threads:
        thread.start()
    lead(study, proposer, slowly, silent)
    for thread in threads:
        thread.join()
    assert sum(counts) > 0
    assert outcome(study) == undisturbed[0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.97])
@pytest.mark.parametrize("torn", [0, 17], ids=["between lines", "within a line"])
def test_wherever_a_run_was_killed_it_continues_with_the_same_outcome(
    undisturbed: tuple[Outcome, bytes], proposer: Proposer, tmp_path: Path, share: float, torn: int
) -> None:
    lines = undisturbed[1].splitlines(keepends=True)
    kept = int(share * len(lines))
    (tmp_path / "study.journal").write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
    study = open_study(tmp_path / "study.journal")
    lead(study, proposer, quality_of, silent)
    assert outcome(study) == undisturbed[0]


def test_only_an_open_round_is_evaluated(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    study = open_study(journal)
    proposed = 0

    def dies_at_the_fifth(args: Args) -> CandidateCost:
        nonlocal proposed
        proposed += 1
        if proposed == 5:
            raise KeyboardInterrupt
        return cost_of(args)

    with pytest.raises(KeyboardInterrupt):
        lead(study, Proposer(20, 7, Budget(), SPACE, dies_at_the_fifth), quality_of, silent)
    joined = join_study(journal)
    assert joined is not None
    assert len(trials_in(joined, TrialState.RUNNING)) == 4
    assert waiting(joined) == []
    assert help_once(joined, quality_of, random.Random(0)) is None


def test_the_first_answer_counts(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.journal")
    rounds._propose_round(study, PROPOSER)
    first = waiting(study)[0]
    late = join_study(tmp_path / "study.journal")
    assert late is not None
    stale = waiting(late)[0]
    assert answer(study, first, lambda _: 1.0)
    assert not answer(late, stale, lambda _: 2.0)  # noticed at once
    assert trials_in(late)[first.number].values == [1.0]
    assert late._storage.get_trial(stale._trial_id).values == [1.0]

    # Both asked before either answered: the storage refuses the second when it replays the first.
    second = waiting(study)[0]

    def overtaken(args: Args) -> float:
        late._storage.get_trial(second._trial_id)
        assert answer(study, second, lambda _: 3.0)
        return 4.0

    assert not answer(late, waiting(late)[0], overtaken)
    for each in (study, late):
        assert trials_in(each)[second.number].values == [3.0]


def test_an_answer_that_overtakes_within_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, late = open_study(tmp_path / "study.journal"), open_study(tmp_path / "study.journal")
    rounds._propose_round(study, PROPOSER)
    trial = waiting(late)[0]
    write = late._storage._write_log

    def overtaken(*arguments: object) -> None:
        study.tell(trial.number, 1.0)
        write(*arguments)

    monkeypatch.setattr(late._storage, "_write_log", overtaken)
    assert not answer(late, trial, lambda _: 2.0)
    assert join_study(tmp_path / "study.journal").trials[trial.number].values == [1.0]


def test_the_run_and_a_worker_begin_at_different_candidates(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.journal")
    rounds._propose_round(study, PROPOSER)
    taken: list[Args] = []
    for seed in range(6):
        help_once(study, lambda args: taken.append(args) or 1.0, random.Random(seed))
    assert candidate_of(waiting(study)[0])["args"] not in taken
    assert waiting(study)[0].number == min(t.number for t in trials_in(study) if t.state != TrialState.PRUNED)


DIE_HOLDING = """\
import os, signal, sys
from pathlib import Path
from mcompress.compress.journal import JournalLock

JournalLock(Path(sys.argv[1])).acquire()
with Path(sys.argv[1]).open("ab") as file:
    file.write(b'{"op_code":6,"worker')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_while_it_wrote_blocks_nobody_and_breaks_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    study = open_study(journal)
    rounds._propose_round(study, PROPOSER)
    before = journal.read_bytes()
    died = subprocess.run([sys.executable, "-c", DIE_HOLDING, str(journal)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert journal.read_bytes() != before
    assert len(waiting(study)) == rounds.ROUND  # an unfinished line is no obstacle to reading
    assert answer(study, waiting(study)[0], quality_of)
    assert journal.read_bytes().startswith(before)
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert journal.read_bytes().count(b"\n") == before.count(b"\n") + 1


def test_a_live_writer_is_waited_for(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    open_study(journal)
    holder, got = JournalLock(journal), threading.Event()
    holder.acquire()
    with journal.open("ab") as file:
        file.write(b'{"half')
    other = JournalLock(journal)
    thread = threading.Thread(target=lambda: (other.acquire(), got.set(), other.release()))
    thread.start()
    assert not got.wait(0.2)
    assert journal.read_bytes().endswith(b'{"half')  # nobody but the holder of the lock mends
    holder.release()
    thread.join(5)
    assert got.is_set()
    assert journal.read_bytes().endswith(b"\n")


def test_a_journal_that_was_replaced_is_not_written(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    study = open_study(journal)
    rounds._propose_round(study, PROPOSER)
    trial = waiting(study)[0]
    journal.unlink()
    open_study(journal)
    fresh = journal.read_bytes()
    with pytest.raises(FileNotFoundError, match="was replaced by the journal of another search"):
        answer(study, trial, quality_of)
    assert journal.read_bytes() == fresh
