"""The search stage, method `evolve`: architecture evolving of SnapFusion (Li et al. 2023, arXiv 2306.00980, algorithm 1).

1. Robust training (`objectives/stochastic_depth.py`): the UNet learns to do without any of its blocks.
2. Every attention and residual block is valued: by how much the error of the prediction rises without it (`evolving_error.py`; the paper samples
   pictures for their CLIP score), per millisecond that it takes on the device, from a table of all blocks (`evolving_costs.py`).
3. While the network is over budget, the group of blocks of the lowest value goes; of its milliseconds those count that are still to be saved, lest
   the last to go saves much more than is needed (an addition of ours). As soon as the budget is met, those of the group for which there is room stay.
   Then the block of the highest value for which there is room is doubled, again and again; a copy without which the error is no higher is taken back.
   Robust training goes on after every action.

Every latency that decides is that of the whole network, counted anew. The paper gives neither the probability of stochastic depth, nor the size of a
group, nor for how long training goes on between actions: those are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import JsonValue

from mcompress.compress.candidates import CandidateCost
from mcompress.compress.evolving_actions import Action, Journal, Phase, ScoredBlock, Training, What
from mcompress.compress.evolving_costs import UnetCosts, evolve_problems
from mcompress.compress.evolving_error import PredictionError
from mcompress.compress.models.spec import ModelSpec, Sampling
from mcompress.compress.models.unet_blocks import UnetBlock, blocks_of, doubled, passed_by, standing, with_copy, without, without_blocks
from mcompress.compress.models.unet_weights import repeats_of
from mcompress.compress.objectives.stochastic_depth import StochasticDepth
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import EvolveSearchConfig

__all__ = ["Order", "block_map", "by_value", "evolve", "evolve_problems"]

MOST_PHASES = 1009
"""A prime above the number of actions; trainings of different phases and seeds then draw different batches."""
Order = Callable[[list[ScoredBlock]], list[ScoredBlock]]


def by_value(scored: list[ScoredBlock]) -> list[ScoredBlock]:
    """The least valuable first."""
    return sorted(scored, key=lambda one: (one.value, one.loss_rise, one.block))


def evolve(config: EvolveSearchConfig, context: StageContext, order: Order = by_value) -> StageOutput:
    """Evolve the network until the budget is met and nothing more fits.

    `order` says which blocks go first; any other than by value is there to be compared with. The result's specification is that of the network with
    other `repeats`. Raises `PlanError` with the nearest that can be reached where no evolution meets the budget, and for a task or a network that is
    no diffusion UNet; `TrainingDiverged`.
    """
    problems = evolve_problems(context.spec, context.budget, context.device, context.unit, config.costed_as or context.ships_as)
    diffusion, sampling = context.task.diffusion(), context.spec.sampling
    if diffusion is None:
        problems.append("stage search, method evolve: the task has no diffusion network; use another method, or remove the stage")
    if problems or diffusion is None or sampling is None:
        raise PlanError(problems)
    return _Evolution(config, context, diffusion, sampling, order).run()


class _Evolution:
    """The network as it is now, and what brought it there."""

    def __init__(self, config: EvolveSearchConfig, context: StageContext, diffusion: Diffusion, sampling: Sampling, order: Order) -> None:
        self._config, self._context, self._diffusion, self._sampling, self._order = config, context, diffusion, sampling, order
        self._spec, self._network = context.spec, context.model.eval()
        self._costs = UnetCosts(context.device, context.unit, config.costed_as or context.ships_as)
        self._error = PredictionError(config, diffusion, sampling, context.seed, self._network)
        self._error_before = self._error.of(self._network)
        self._journal, self._weights = Journal(context.checkpoints("evolving")), context.checkpoints("evolving_weights")

    def run(self) -> StageOutput:
        """Act until there is nothing left to do, from wherever a killed search had come to."""
        self._train(0)
        done = 0
        while done < len(self._journal.actions) or self._decide():
            self._apply(self._journal.actions[done])
            done += 1
            self._train(done)
        cost = self._costs.of(self._spec)
        fallbacks = tuple(
            Fallback(where="stage search", what=one.blocks[0].block, reason="its copy did not lower the error of the prediction, and was taken back")
            for one in self._journal.actions
            if one.what == "taken back"
        )
        return StageOutput(self._network.eval(), self._spec, None, (cost.latency,), fallbacks, self._details(cost))

    def _train(self, phase: int) -> None:
        config, steps = self._config, self._config.steps_between if phase else self._config.steps
        state = Phase(self._weights, phase)
        if not steps or state.past(len(self._journal.actions)):
            return
        objective = StochasticDepth(
            self._network, self._spec, self._diffusion, self._sampling.prediction, batch_size=config.batch_size, keep=config.keep_probability
        )
        settings = TrainSettings(
            steps,
            config.learning_rate,
            self._context.seed * MOST_PHASES + phase,
            precision=config.precision,
            checkpoint_every_s=config.checkpoint_every_s,
        )
        title = "search: robust training" if phase == 0 else f"search: robust training after action {phase}"
        trained = train(objective, settings, state, self._context.progress(title))
        self._journal.trained(Training(phase, trained.seconds, trained.curve))

    def _apply(self, action: Action) -> None:
        names = [one.block for one in action.blocks]
        if action.what == "doubled":
            self._spec, self._network = with_copy(self._spec, self._network, names[0])
        else:
            self._spec, self._network = without_blocks(self._spec, self._network, names)

    def _decide(self) -> bool:
        """Decide on the next action; False where there is none."""
        cost, milliseconds = self._costs.by_block(self._spec)
        last = self._journal.actions[-1] if self._journal.actions else None
        if last is not None and last.what == "doubled":
            (copy,) = self._scored([f"{last.blocks[0].block}.1"], milliseconds)
            if copy.loss_rise <= 0:
                return self._act("taken back", [copy], cost, without(self._spec, [copy.block]))
        return self._remove(cost, milliseconds) if cost.exceeded(self._context.budget) else self._double(cost, milliseconds)

    def _remove(self, cost: CandidateCost, milliseconds: dict[str, float]) -> bool:
        limit = self._context.budget.latency_ms
        over_ms = None if limit is None or cost.latency.value <= limit else cost.latency.value - limit
        ranked = self._order([replace(one, needed_ms=over_ms) for one in self._scored(list(milliseconds), milliseconds)])
        chosen: list[ScoredBlock] = []
        for one in ranked[: self._config.group]:
            chosen.append(one)
            if self._fits(without(self._spec, [gone.block for gone in chosen])):
                chosen = self._needed(chosen)
                break
        return self._act("removed", chosen, cost, without(self._spec, [one.block for one in chosen]), ranked)

    def _needed(self, chosen: list[ScoredBlock]) -> list[ScoredBlock]:
        """Those without which the budget is missed, the others being back from the most valuable on."""
        for one in reversed(chosen):
            others = [other for other in chosen if other != one]
            if others and self._fits(without(self._spec, [other.block for other in others])):
                chosen = others
        return chosen

    def _double(self, cost: CandidateCost, milliseconds: dict[str, float]) -> bool:
        before = [one.blocks[0].block for one in self._journal.actions if one.what == "doubled"]
        limit = self._context.budget.latency_ms
        if len(before) >= self._config.most_doubled or limit is None:
            return False
        room = limit - cost.latency.value
        able = [
            name
            for name, block in standing(self._spec).items()
            if block.repeatable and name == block.name and name not in before and milliseconds[name] <= room
        ]
        for one in reversed(self._order(self._scored(able, milliseconds))):
            if one.value > 0 and self._fits(changed := doubled(self._spec, one.block)):
                return self._act("doubled", [one], cost, changed)
        return False

    def _fits(self, spec: ModelSpec) -> bool:
        return not self._costs.of(spec).exceeded(self._context.budget)

    def _act(self, what: What, blocks: list[ScoredBlock], cost: CandidateCost, changed: ModelSpec, ranked: list[ScoredBlock] | None = None) -> bool:
        after = self._costs.of(changed)
        action = Action(what, tuple(blocks), self._whole_error(), cost.latency.value, after.latency.value)
        self._journal.act(action, ranked or [])
        return True

    def _whole_error(self) -> float:
        return self._journal.error("", lambda: self._error.of(self._network))

    def _scored(self, names: list[str], milliseconds: dict[str, float]) -> list[ScoredBlock]:
        whole, blocks = self._whole_error(), standing(self._spec)
        report, found = self._context.progress("search: valuing blocks"), []
        for done, name in enumerate(names):
            with passed_by(self._network, [(name, blocks[name])]):
                rise = self._journal.error(name, lambda: self._error.of(self._network)) - whole
            found.append(ScoredBlock(name, rise, milliseconds[name]))
            report(done + 1, len(names), f"{name} {rise:+.2g}")
        return found

    def _details(self, cost: CandidateCost) -> dict[str, JsonValue]:
        before, journal = self._costs.of(self._context.spec), self._journal
        return {
            "blocks": block_map(self._context.spec, self._spec),
            "repeats": dict(repeats_of(self._spec)),
            "actions": [one.as_json() for one in journal.actions],
            "scores": [one.as_json() for one in journal.first],
            "trainings": [one.as_json() for one in journal.trainings],
            "measure": self._config.measure,
            "before": {"latency_ms": before.latency.value, "macs": before.macs, "size_mb": before.size_mb, "error": self._error_before},
            "after": {"latency_ms": cost.latency.value, "macs": cost.macs, "size_mb": cost.size_mb, "error": self._whole_error()},
        }


def block_map(before: ModelSpec, after: ModelSpec) -> list[JsonValue]:
    """How many attention and residual blocks stand at each stage of two networks, as in SnapFusion's table 3; stages are those of the one before.

    The one after may have fewer stages; they correspond from the outermost inwards.
    """
    places = _places(before)
    stages = {place: block.stage for place, block in places.values()}
    found: dict[tuple[str, bool], dict[str, JsonValue]] = {}
    counts: dict[tuple[str, bool], list[int]] = {}
    for _, block in places.values():
        found.setdefault(
            (block.stage, block.attention),
            {"stage": block.stage, "side": block.side, "channels": block.channels, "kind": "attention" if block.attention else "residual"},
        )
    for index, spec in enumerate((before, after)):
        for name, (place, block) in _places(spec).items():
            counts.setdefault((stages[place], block.attention), [0, 0])[index] += repeats_of(spec).get(name, 1)
    return [{**facts, "before": counts[place][0], "after": counts[place][1]} for place, facts in found.items()]


def _places(spec: ModelSpec) -> dict[str, tuple[tuple[str, int], UnetBlock]]:
    """Every block with its place: the way down, the middle or the way up, and how many stages are outside of its own."""
    blocks = {block.name: block for block in blocks_of(spec)}
    last = max((int(name.split(".")[1]) for name in blocks if name.startswith("up_blocks")), default=0)
    found = {}
    for name, block in blocks.items():
        part, stage, *_ = name.split(".")
        outside = {"down_blocks": int(stage), "up_blocks": last - int(stage)}[part] if stage.isdigit() else 0
        found[name] = ((part, outside), block)
    return found
