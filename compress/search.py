"""The search stage: a weight-shared supernet, then a search under the device's budget.

1. Supernet. Each step trains the largest network, the smallest and a few random ones on the same weights (the sandwich rule, Yu & Huang 2019, arXiv
   1903.05134). The largest learns from the truth and the teacher; the others from the truth and from the largest (in-place distillation).
2. Search. Optuna's TPE proposes candidates, a third of them at random, which spreads them over the front. One over a limit is rejected from its
   operator table, before anything is evaluated. The others are evaluated with weights cut from the supernet on fixed training crops. The pick
   is the best within the budget; the front is all the candidates that no other beats in both quality and latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import optuna
import torch
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import JsonValue
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACE_OF_NETWORK, SPACES, Args, SearchSpace, cut
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import TrainSettings, step_generator, train
from mcompress.errors import PlanError, StageError
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Budget, Measurement
from mcompress.targets.stages import SearchConfig

PROPOSALS_PER_TRIAL = 50  # proposals over budget per wanted trial, after which the search stops with what it has
FP32_BYTES = 4


@dataclass(frozen=True)
class CandidateCost:
    """What a candidate costs on the target, known without weights."""

    latency: Measurement
    macs: int
    peak_memory_mb: float
    size_mb: float

    def over_budget(self, budget: Budget) -> list[tuple[str, float]]:
        """(limit, by how much relative to it) for each limit; positive is over."""
        pairs = (
            ("latency_ms", self.latency.value, budget.latency_ms),
            ("macs_g", self.macs / 1e9, budget.macs_g),
            ("peak_memory_mb", self.peak_memory_mb, budget.peak_memory_mb),
            ("size_mb", self.size_mb, budget.size_mb),
        )
        return [(name, value / limit - 1.0) for name, value, limit in pairs if limit is not None]


def table_cost(table: OperatorTable, device: Device, unit: Unit) -> CandidateCost:
    """The cost of a network as it will ship: INT8 latency and weights, peak memory as fp32 activations."""
    latency = estimate(table, device, unit.name, "int8")
    return CandidateCost(latency, table.macs, table.peak_activation_elements * FP32_BYTES / 1e6, table.params / 1e6)


def candidate_cost(spec: ModelSpec, device: Device, unit: Unit) -> CandidateCost:
    """Cost of a network that is never given weights."""
    with torch.device("meta"):
        candidate = build(spec)
    return table_cost(operator_table(candidate, spec.input_shape), device, unit)


class SupernetTraining:
    """Objective: one set of weights for every network of a space."""

    def __init__(self, task: Task, config: SearchConfig, space: SearchSpace, supernet: nn.Module, teacher: nn.Module) -> None:
        self.task, self.config, self.space = task, config, space
        self.supernet, self.teacher = supernet, teacher
        self._shapes: dict[str, nn.Module] = {}

    def players(self) -> Mapping[str, nn.Module]:
        """The supernet."""
        return {"supernet": self.supernet}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher}

    def learning_rates(self) -> Mapping[str, float]:
        """The settings' own."""
        return {}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw the batch and the random candidates."""
        source, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.source, self.truth = source.to(device), truth.to(device)
        self.candidates = [self.space.smallest, *(self.space.random(generator) for _ in range(self.config.random_candidates))]

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """The largest against truth and teacher, the others against truth and the largest."""
        largest = self.supernet(self.source).float()
        with torch.no_grad():
            taught = self.teacher(self.source).float()
        terms = {"truth": functional.l1_loss(largest, self.truth), "teacher": 0.5 * functional.l1_loss(largest, taught)}
        weights = dict(self.supernet.named_parameters())
        share = 1.0 / len(self.candidates)
        for index, args in enumerate(self.candidates):
            shape = self._shape(args)
            output = functional_call(shape, cut(weights, shape), self.source).float()
            loss = functional.l1_loss(output, self.truth) + 0.5 * functional.l1_loss(output, largest.detach())
            terms["smallest" if index == 0 else f"random{index}"] = share * loss
        return terms

    def _shape(self, args: Args) -> nn.Module:
        return _meta_network(self.space, args)


def _meta_network(space: SearchSpace, args: Args) -> nn.Module:
    with torch.device("meta"):
        return build(ModelSpec(space.network, args))


def space_of(config: SearchConfig, teacher: ModelSpec) -> SearchSpace:
    """The search space that a target asks for. Raises `PlanError` when there is none for its network."""
    name = config.space or SPACE_OF_NETWORK.get(teacher.network)
    if name is None:
        allowed = ", ".join(sorted(SPACES))
        raise PlanError(
            [f"stage search: the network '{teacher.network}' has no search space; set space to one of: {allowed}, or remove the search stage"]
        )
    return SPACES[name]


def smallest_cost(config: SearchConfig, teacher: ModelSpec, device: Device, unit: Unit) -> CandidateCost:
    """The cheapest network of the space; a budget below it cannot be met by any candidate."""
    space = space_of(config, teacher)
    return candidate_cost(ModelSpec(space.network, space.smallest, (), teacher.input_shape), device, unit)


def search(config: SearchConfig, context: StageContext) -> StageOutput:
    """Train the supernet, search, return the pick with the weights it inherits.

    Raises `PlanError` with the nearest candidate when none meets the budget.
    """
    space = space_of(config, context.teacher_spec)
    supernet = build(ModelSpec(space.network, space.largest))
    objective = SupernetTraining(context.task, config, space, supernet, context.teacher)
    settings = TrainSettings(
        config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s
    )
    trained = train(objective, settings, context.checkpoints("supernet"), context.progress("search: training the supernet"))
    study, rejected = _search_candidates(config, context, space, supernet)
    trials = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if not trials:
        raise PlanError([_nothing_fits(context, space)])
    best = max(trials, key=lambda t: (t.values[0], -_latency_ms(t)))
    front = _front(trials)
    spec = ModelSpec(space.network, cast("Args", best.user_attrs["args"]), (), context.teacher_spec.input_shape)
    student = build(spec)
    student.load_state_dict(cut(supernet.state_dict(), student))
    details: dict[str, JsonValue] = {
        "front": [_describe(t, picked=t.number == best.number) for t in front],
        "trials": [_describe(t, picked=t.number == best.number) for t in trials],
        "rejected_over_budget": rejected,
        "curve": cast("JsonValue", trained.curve),
        "supernet_seconds": trained.seconds,
    }
    latency = Measurement.model_validate(best.user_attrs["latency"])
    return StageOutput(student.eval(), spec, None, (latency,), (), details)


def _search_candidates(config: SearchConfig, context: StageContext, space: SearchSpace, supernet: nn.Module) -> tuple[optuna.Study, int]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="search", storage=_journal(context.study_journal), direction="maximize", load_if_exists=True)
    _forget_interrupted(study)
    source, truth = context.task.validation_batch()
    weights = supernet.state_dict()
    report = context.progress("search: evaluating candidates")
    limit = config.trials * PROPOSALS_PER_TRIAL
    while True:
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        evaluated = sum(t.state == TrialState.COMPLETE for t in finished)
        if evaluated >= config.trials or len(finished) >= limit:
            return study, len(finished) - evaluated
        report(evaluated, config.trials, f"{len(finished) - evaluated} over budget")
        # The sampler is seeded by how much is finished, not kept, so that a search that was killed proposes what it would have proposed.
        seed = step_generator(context.seed, len(finished)).initial_seed() % 2**31
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.trials // 3 + 1)
        trial = study.ask()
        args = space.suggest(trial)
        cost = candidate_cost(ModelSpec(space.network, args, (), context.teacher_spec.input_shape), context.device, context.unit)
        over = [(name, by) for name, by in cost.over_budget(context.budget) if by > 0]
        trial.set_user_attr("args", args)
        trial.set_user_attr("macs", cost.macs)
        trial.set_user_attr("peak_memory_mb", cost.peak_memory_mb)
        trial.set_user_attr("latency", cost.latency.model_dump())
        if over:
            trial.set_user_attr("over", over)
            study.tell(trial, state=TrialState.PRUNED)
            continue
        shape = _meta_network(space, args)
        with torch.no_grad():
            output = functional_call(shape, cut(weights, shape), source)
        quality = context.task.quality(output, truth)
        if math.isnan(quality):
            raise StageError(f"stage search: the supernet gives NaN for {args}; lower learning_rate, then run again")
        study.tell(trial, quality)


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """Open the journal; a line that a killed process left unfinished is cut off, and so is the lock it held (one process works on an entry)."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _forget_interrupted(study: optuna.Study) -> None:
    """A trial that was running when its process was killed never ends; proposals must not depend on it."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _latency_ms(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["latency"]["value"])


def _front(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Candidates that no other beats in both quality and latency, from fast to slow."""
    front: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda t: (_latency_ms(t), -t.values[0])):
        if not front or trial.values[0] > front[-1].values[0]:
            front.append(trial)
    return front


def _describe(trial: FrozenTrial, *, picked: bool) -> JsonValue:
    return {
        "quality": trial.values[0],
        "latency_ms": _latency_ms(trial),
        "macs": trial.user_attrs["macs"],
        "peak_memory_mb": trial.user_attrs["peak_memory_mb"],
        "spec_args": trial.user_attrs["args"],
        "picked": picked,
        "state": "complete",
    }


def _nothing_fits(context: StageContext, space: SearchSpace) -> str:
    cost = candidate_cost(ModelSpec(space.network, space.smallest, (), context.teacher_spec.input_shape), context.device, context.unit)
    over = ", ".join(f"{name} by {by:.0%}" for name, by in cost.over_budget(context.budget) if by > 0) or "nothing, so give more trials"
    return (
        f"stage search: no candidate meets the budget; the smallest network of the space '{space.network}' "
        f"({cost.latency.value:.2f} ms estimated, {cost.macs / 1e9:.3f} GMACs, {cost.peak_memory_mb:.1f} MB) is over: {over}"
    )
