"""Evolution as a sampler of Optuna: mutation and crossover of the best candidates so far, as GAN Compression searches (arXiv 2003.08936).

Of the candidates that were evaluated the best quarter are parents. Half of the children are mutations of one parent, in which each choice is drawn
anew with probability 0.2; half take each choice from one of two parents. The first generation is random. What makes a candidate fail the budget is
decided outside; it is simply never evaluated, and so never a parent. A child like an earlier candidate is drawn again (`rounds.py`, `teaching.py`):
copies of the best would soon be all the parents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

PARENTS = 0.25
MUTATIONS = 0.5
CHANGED = 0.2
FIRST_GENERATION = 16


class EvolutionSampler(BaseSampler):
    """Proposes candidates; `seed` decides everything random in them."""

    def __init__(self, seed: int) -> None:
        self._chance = torch.Generator().manual_seed(seed)
        self._parents: tuple[dict[str, object], ...] | None = None
        self._mutation = False

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:  # noqa: ARG002  (Optuna's signature)
        """Every candidate has parents of its own."""
        self._parents, self._mutation = None, False

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002  (Optuna's signature)
        """None: every choice is drawn when it is asked for, because which ones there are depends on earlier ones."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, object]:  # noqa: ARG002
        """Nothing."""
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> object:  # noqa: ARG002
        """One choice: a parent's, or a random one where there are no parents, where the parent has none, or by mutation."""
        if self._parents is None:
            self._choose_parents(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        options = choices(param_distribution)
        inherited = [parent[param_name] for parent in self._parents or () if param_name in parent]
        if inherited and not (self._mutation and self._random() < CHANGED):
            value = inherited[self._index(len(inherited))]
            if value in options:
                return value
        return options[self._index(len(options))]

    def _choose_parents(self, evaluated: Sequence[FrozenTrial]) -> None:
        self._parents = ()
        if len(evaluated) < FIRST_GENERATION:
            return
        best = sorted(evaluated, key=lambda t: (-float(t.values[0]), t.number))[: max(2, int(PARENTS * len(evaluated)))]
        self._mutation = self._random() < MUTATIONS
        chosen = [best[self._index(len(best))] for _ in range(1 if self._mutation else 2)]
        self._parents = tuple(dict(one.params) for one in chosen)

    def _random(self) -> float:
        return float(torch.rand((), generator=self._chance))

    def _index(self, options: int) -> int:
        return int(torch.randint(options, (1,), generator=self._chance))


def choices(distribution: BaseDistribution) -> list[object]:
    """Everything that a choice can be. Raises `TypeError` for a continuous one, which no space of networks has."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    raise TypeError(f"a search space of networks has lists and whole numbers to choose from, not a {type(distribution).__name__}")
