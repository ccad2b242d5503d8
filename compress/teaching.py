"""The teachers of a searched student: a wider and a deeper network of the same trained supernet (UGC's G_T^W and G_T^D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from mcompress.compress.evolution import EvolutionSampler
from mcompress.compress.models.space import Args, SearchSpace
from mcompress.compress.rounds import PROPOSALS_PER_TRIAL
from mcompress.compress.train import Progress, step_generator

KINDS = ("wider", "deeper")
"""How a teacher can be larger than the student; a space may have only one kind of them, or none."""


@dataclass(frozen=True)
class FoundTeacher:
    """A network of the supernet that is larger than the student in one way."""

    args: Args
    macs: int
    quality: float


@dataclass(frozen=True)
class TeacherSearch:
    """What the search for teachers needs: at most `most_macs` each, `trials` evaluated candidates for each."""

    space: SearchSpace
    most_macs: float
    trials: int
    seed: int
    macs_of: Callable[[Args], int]
    quality_of: Callable[[Args], float]


def find_teachers(student: Args, search: TeacherSearch, report: Progress) -> dict[str, FoundTeacher]:
    """`wider` and `deeper` -> the best that evolution finds; a kind that the space does not have, or that nothing affordable is of, is left out."""
    found: dict[str, FoundTeacher] = {}
    kinds = search.space.larger
    for number, (kind, suggest) in enumerate(kinds.items()):
        study, seen = optuna.create_study(direction="maximize"), dict[str, FoundTeacher]()
        for proposed in range(search.trials * PROPOSALS_PER_TRIAL):
            if len(seen) >= search.trials:
                break
            study.sampler = EvolutionSampler(step_generator(search.seed, number * 1_000_003 + proposed).initial_seed() % 2**31)
            trial = study.ask()
            args = suggest(student, trial)
            macs = search.macs_of(args)
            if args == student or macs > search.most_macs or str(args) in seen:
                study.tell(trial, state=TrialState.PRUNED)
                continue
            quality = search.quality_of(args)
            study.tell(trial, quality)
            seen[str(args)] = FoundTeacher(args, macs, quality)
            report(number * search.trials + len(seen), len(kinds) * search.trials, f"{kind} teacher")
        if seen:
            found[kind] = max(seen.values(), key=lambda one: (one.quality, -one.macs))
    return found
