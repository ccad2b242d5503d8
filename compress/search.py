"""The search stage: a weight-shared supernet, then a search under the device's budget.

1. Supernet (`supernet.py`; with few labels `objectives/semi_supervised.py`): one set of weights for every network of the space.
2. Search (`rounds.py`). Optuna's TPE, a third of its candidates at random, which spreads them over the front, or evolution (`evolution.py`) proposes
   candidates. One over a limit is rejected from its operator table, before anything is evaluated. The others are evaluated with weights cut from the
   supernet on fixed training crops, by this process and by any that joined. The pick is the best within the budget; the front is all the candidates
   that no other beats in both quality and latency.
3. With few labels, the pick's teachers (`teaching.py`).
"""

from __future__ import annotations

from typing import cast

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.candidates import CandidateCost, candidate_cost, smallest_cost, space_of, spec_of
from mcompress.compress.journal import open_study
from mcompress.compress.models.build import build
from mcompress.compress.models.space import Args, SearchSpace
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.semi_supervised import SemiSupervisedTraining
from mcompress.compress.rounds import Proposer, candidate_of, latency_of, lead, trials_in
from mcompress.compress.stage import CompanionNetwork, StageContext, StageOutput
from mcompress.compress.supernet import CandidateQuality, SupernetTraining, cut_out, read_weights, with_own_statistics, write_weights
from mcompress.compress.teaching import KINDS, TeacherSearch, find_teachers
from mcompress.compress.train import Objective, TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import SearchConfig, SemiSupervisedSearchConfig, SupernetSearchConfig

JOURNAL, WEIGHTS = "study.journal", "supernet.safetensors"
"""What lies in `StageContext.search_folder`: optuna's journal, and the trained supernet that workers need."""


def search(config: SearchConfig, context: StageContext) -> StageOutput:
    """Train the supernet, search, return the pick with the weights it inherits.

    Raises `PlanError` with the nearest candidate when none meets the budget.
    """
    space = space_of(config, context.teacher_spec)
    supernet = build(ModelSpec(space.network, space.largest))
    objective = _objective(config, context, space, supernet)
    settings = TrainSettings(
        config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s
    )
    trained = train(objective, settings, context.checkpoints("supernet"), context.progress("search: training the supernet"))
    study = open_study(context.search_folder / JOURNAL)
    write_weights(supernet, context.search_folder / WEIGHTS)  # last: workers start when it is there
    weights = read_weights(context.search_folder / WEIGHTS)

    def cost_of(args: Args) -> CandidateCost:
        return candidate_cost(spec_of(space, args, context.teacher_spec), context.device, context.unit, context.ships_as)

    quality_of = CandidateQuality(context.task, space, weights)
    proposer = Proposer(config.trials, context.seed, context.budget, space, cost_of, config.sampler)
    lead(study, proposer, quality_of, context.progress("search: evaluating candidates"))
    trials = trials_in(study, TrialState.COMPLETE)
    if not trials:
        raise PlanError([_nothing_fits(config, context)])
    best = max(trials, key=lambda t: (t.values[0], -latency_of(t).value))
    picked = candidate_of(best)
    student = _member(space, picked["args"], weights, config, context)
    details = {**_details(study, best), "curve": cast("JsonValue", trained.curve), "supernet_seconds": trained.seconds}
    if not isinstance(config, SemiSupervisedSearchConfig):
        return StageOutput(student.network, student.spec, None, (latency_of(best),), (), details)
    found = find_teachers(
        picked["args"],
        TeacherSearch(space, config.teacher_cost * picked["macs"], config.teacher_trials, context.seed, lambda args: cost_of(args).macs, quality_of),
        context.progress("search: finding teachers"),
    )
    teachers = {kind: _member(space, one.args, weights, config, context) for kind, one in found.items()}
    missing = tuple(
        Fallback(where="stage search", what=f"{kind} teacher", reason=_why_missing(kind, space, config)) for kind in KINDS if kind not in found
    )
    details["teachers"] = {kind: {"spec_args": one.args, "macs": one.macs, "quality": one.quality} for kind, one in found.items()}
    return StageOutput(student.network, student.spec, None, (latency_of(best),), missing, details, teachers=teachers)


def _objective(config: SearchConfig, context: StageContext, space: SearchSpace, supernet: nn.Module) -> Objective:
    if isinstance(config, SemiSupervisedSearchConfig):
        return SemiSupervisedTraining(context.task, config, space, supernet)
    if isinstance(config, SupernetSearchConfig):
        return SupernetTraining(context.task, config, space, supernet, context.teacher, context.seed)
    raise TypeError(f"a search is {SupernetSearchConfig.__name__} or {SemiSupervisedSearchConfig.__name__}, not {type(config).__name__}")


def _member(space: SearchSpace, args: Args, weights: dict[str, Tensor], config: SearchConfig, context: StageContext) -> CompanionNetwork:
    """A network of the space with its share of the supernet's weights, in evaluation mode."""
    spec = spec_of(space, args, context.teacher_spec)
    return CompanionNetwork(spec, with_own_statistics(cut_out(spec, weights), context.task, config, context.seed))


def _why_missing(kind: str, space: SearchSpace, config: SemiSupervisedSearchConfig) -> str:
    if kind not in space.larger:
        return f"the search space of '{space.network}' has no {kind} networks than its students"
    return f"no {kind} network costs at most {config.teacher_cost:g} times the student"


def _details(study: optuna.Study, best: FrozenTrial) -> dict[str, JsonValue]:
    trials, rejected = trials_in(study, TrialState.COMPLETE), trials_in(study, TrialState.PRUNED)
    return {
        "front": [_evaluated(t, best) for t in _front(trials)],
        "trials": [_evaluated(t, best) for t in trials],
        "rejected": [{**_costs(t), "over": cast("JsonValue", candidate_of(t)["over"])} for t in rejected],
        "rejected_over_budget": len(rejected),
    }


def _front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Candidates that no other beats in both quality and latency, from fast to slow."""
    front: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda t: (latency_of(t).value, -t.values[0])):
        if not front or trial.values[0] > front[-1].values[0]:
            front.append(trial)
    return front


def _evaluated(trial: FrozenTrial, best: FrozenTrial) -> JsonValue:
    picked = trial.number == best.number
    return {**_costs(trial), "quality": trial.values[0], "spec_args": candidate_of(trial)["args"], "picked": picked, "state": "complete"}


def _costs(trial: FrozenTrial) -> dict[str, JsonValue]:
    candidate = candidate_of(trial)
    return {"latency_ms": latency_of(trial).value, "macs": candidate["macs"], "peak_memory_mb": candidate["peak_memory_mb"]}


def _nothing_fits(config: SearchConfig, context: StageContext) -> str:
    cost = smallest_cost(config, context.teacher_spec, context.device, context.unit, context.ships_as)
    over = ", ".join(f"{name} by {by:.0%}" for name, by in cost.exceeded(context.budget).items()) or "nothing, so give more trials"
    return (
        f"stage search: no candidate meets the budget; the smallest network of the space '{space_of(config, context.teacher_spec).network}' "
        f"({cost.latency.value:.2f} ms estimated, {cost.latency.band}; {cost.macs / 1e9:.3f} GMACs, {cost.peak_memory_mb:.1f} MB) is over: {over}"
    )
