"""Proposing and evaluating the candidates of a search, in rounds, by any number of processes with one outcome.

The run proposes a whole round: candidates over budget are rejected at once, the others wait. Then it opens the round, and everybody evaluates what
has no result yet. When all have one, the next round is proposed from all results. So what is proposed never depends on who evaluated what, or when.

Nobody claims a candidate. The run takes them from the first on, workers elsewhere; an evaluation gives the same number everywhere, so the first
answer counts and a second one is dropped. A process that dies costs nothing but the candidate it was working on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from mcompress.compress.candidates import CandidateCost
from mcompress.compress.evolution import EvolutionSampler
from mcompress.compress.models.space import Args, SearchSpace
from mcompress.compress.train import Progress, step_generator
from mcompress.targets.schema import Budget, Measurement

ROUND = 8  # enough for a few workers; the sampler learns of results only between rounds
PROPOSALS_PER_TRIAL = 50  # proposals per wanted candidate, after which the search stops with what it has
DRAWS = 20  # evolution draws a candidate again that was proposed before; after so many it is taken all the same: there may be no other
_CANDIDATE, _OPEN_BEFORE, _FINISHED, _WANTED = "candidate", "open_before", "finished", "wanted"


class Candidate(TypedDict):
    """What the journal keeps of a proposal besides its parameters."""

    args: Args
    latency: dict[str, object]
    macs: int
    peak_memory_mb: float
    over: dict[str, float]
    """Limits that it is over: name -> by how much relative to the limit. Empty for a candidate that is evaluated."""


@dataclass(frozen=True)
class Proposer:
    """What the run needs to propose candidates; `trials` is how many are to be evaluated, `sampler` how they are chosen (`SearchConfig.sampler`)."""

    trials: int
    seed: int
    budget: Budget
    space: SearchSpace
    cost_of: Callable[[Args], CandidateCost]
    sampler: Literal["tpe", "evolution"] = "tpe"

    def sampler_for(self, proposed: int) -> optuna.samplers.BaseSampler:
        """The sampler of one proposal: seeded by how much is proposed, so that a killed run proposes what it would have proposed."""
        seed = step_generator(self.seed, proposed).initial_seed() % 2**31
        if self.sampler == "evolution":
            return EvolutionSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.trials // 3 + 1)


def candidate_of(trial: FrozenTrial) -> Candidate:
    """The proposal behind a trial."""
    return cast("Candidate", trial.user_attrs[_CANDIDATE])


def latency_of(trial: FrozenTrial) -> Measurement:
    """The estimated latency of a trial's candidate."""
    return Measurement.model_validate(candidate_of(trial)["latency"])


def trials_in(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Proposals in these states (none given: in any), in the order in which they were made."""
    return study.get_trials(deepcopy=False, states=states or None)


def finished(study: optuna.Study) -> bool:
    """Whether the run has ended the search."""
    return bool(study.user_attrs.get(_FINISHED, False))


def wanted(study: optuna.Study) -> int:
    """How many candidates are to be evaluated in all."""
    return int(study.user_attrs.get(_WANTED, 0))


def lead(study: optuna.Study, proposer: Proposer, quality_of: Callable[[Args], float], report: Progress) -> None:
    """Propose and evaluate until the search is finished, from wherever a killed run left it. One process at a time may do this."""
    if finished(study):
        return
    study.set_user_attr(_WANTED, proposer.trials)
    while True:
        while todo := waiting(study):
            evaluated, over = len(trials_in(study, TrialState.COMPLETE)), len(trials_in(study, TrialState.PRUNED))
            report(evaluated, proposer.trials, f"{over} over budget")
            answer(study, todo[0], quality_of)
        if not _propose_round(study, proposer):
            study.set_user_attr(_FINISHED, True)
            report(len(trials_in(study, TrialState.COMPLETE)), proposer.trials, f"{len(trials_in(study, TrialState.PRUNED))} over budget")
            return


def help_once(study: optuna.Study, quality_of: Callable[[Args], float], chance: random.Random) -> bool | None:
    """Evaluate one open candidate of somebody else's search; None if there is none now, else whether the answer counted."""
    todo = waiting(study)
    if not todo:
        return None
    # The run is at the first one; other workers draw as well, so two seldom meet.
    return answer(study, chance.choice(todo[1:] or todo), quality_of)


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Candidates of the open round without a result."""
    opened = int(study.user_attrs.get(_OPEN_BEFORE, 0))
    return [trial for trial in trials_in(study, TrialState.RUNNING) if trial.number < opened]


def answer(study: optuna.Study, trial: FrozenTrial, quality_of: Callable[[Args], float]) -> bool:
    """Evaluate a candidate and note its quality; whether this was the first answer."""
    quality = quality_of(candidate_of(trial)["args"])
    try:
        study.tell(trial.number, quality)
    except (UpdateFinishedTrialError, ValueError):  # the quality is a number, so both mean that the trial has a result: noticed late, or at once
        return False
    return True


def _propose_round(study: optuna.Study, proposer: Proposer) -> bool:
    """Fill and open the next round; False when there is nothing left to propose. A round that a killed run had begun is continued."""
    trials = trials_in(study)
    # The sampler works on a copy in memory: a proposal then goes to the journal in one line, which a killed process has written or has not.
    copy = optuna.create_study(direction="maximize")
    copy.add_trials(trials)
    within = sum(trial.state == TrialState.RUNNING for trial in trials)
    size = min(ROUND, proposer.trials - sum(trial.state == TrialState.COMPLETE for trial in trials))
    proposed = len(trials)
    known = {str(candidate_of(trial)["args"]) for trial in trials}
    while within < size and proposed < proposer.trials * PROPOSALS_PER_TRIAL:
        within += _propose(study, copy, proposer, proposed, known)
        proposed += 1
    if within:
        study.set_user_attr(_OPEN_BEFORE, proposed)
    return within > 0


def _propose(study: optuna.Study, copy: optuna.Study, proposer: Proposer, proposed: int, known: set[str]) -> bool:
    """One more candidate, which joins those that are `known`; whether it is within the budget."""
    copy.sampler = proposer.sampler_for(proposed)
    trial, args = _draw(copy, proposer, known)
    known.add(str(args))
    cost = proposer.cost_of(args)
    over = cost.exceeded(proposer.budget)
    if over:
        copy.tell(trial, state=TrialState.PRUNED)
    latency = cost.latency.model_dump(mode="json")
    candidate = Candidate(args=args, latency=latency, macs=cost.macs, peak_memory_mb=cost.peak_memory_mb, over=over)
    state = TrialState.PRUNED if over else TrialState.RUNNING
    study.add_trial(
        optuna.trial.create_trial(state=state, params=trial.params, distributions=trial.distributions, user_attrs={_CANDIDATE: candidate})
    )
    return not over


def _draw(copy: optuna.Study, proposer: Proposer, known: set[str]) -> tuple[optuna.Trial, Args]:
    """A candidate of the sampler. Children are often like a parent, whose quality is known: evolution draws until one is new.

    What it draws in vain is not in the journal. It need not be, because evolution learns from evaluated candidates alone.
    """
    for _ in range(DRAWS if proposer.sampler == "evolution" else 1):
        trial = copy.ask()
        args = proposer.space.suggest(trial)
        if str(args) not in known:
            break
    return trial, args
