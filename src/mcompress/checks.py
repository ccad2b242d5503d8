"""What is wrong with the stages of a target, before anything expensive: a function per subject gives its problems as text. `planning.plan` asks them
all, beside those of `checks_data` and `checks_networks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from mcompress.compress.candidates import space_of, spec_of
from mcompress.compress.models.blocks import block_problem
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.space import SearchSpace
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import PlanError
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    AdaptiveDistillConfig,
    DistillConfig,
    LikenessConfig,
    PruneConfig,
    SearchConfig,
    SemiSupervisedSearchConfig,
)

Network = tuple[ModelSpec, nn.Module]

ORDER = {"search": 0, "prune": 1, "distill": 1, "slim": 2, "quantize": 3}
"""Search comes first because it makes a new network, slim behind what changes the widest one, quantize last because it fixes what the numbers are."""

LEARNS_FROM_THE_ORIGINAL = {
    "search": "Use method supernet, which learns from the original",
    "distill": "Use method online, which learns from the original",
}
"""What to do on data without pairs instead of what learns from labelled ones."""


def order_problems(target: Target) -> list[str]:
    """Stages that stand in the wrong order, or too often, or beside what does their work."""
    kinds = [stage.stage for stage in target.stages]
    problems = [
        f"stages: '{second}' stands behind '{first}'; the order is search, then prune and distill as you like, then slim, then quantize"
        for first, second in pairwise(kinds)
        if ORDER[second] < ORDER[first]
    ]
    problems += [
        f"stages: '{kind}' stands {kinds.count(kind)} times; once is all it can do"
        for kind in ("search", "slim", "quantize")
        if kinds.count(kind) > 1
    ]
    if target.model.student is not None and "search" in kinds:
        problems.append("model.student and a search stage exclude each other: the search makes the student; remove one of them")
    return problems


def lesson_problems(target: Target, teacher: Network | None) -> list[str]:
    """Adaptive distillation that nobody teaches."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, AdaptiveDistillConfig) or stage.original:
            continue
        where = f"stages[{index}].method is adaptive, and it has no teacher"
        search = next((before for before in target.stages[:index] if isinstance(before, SemiSupervisedSearchConfig)), None)
        if search is None:
            problems.append(f"{where}; put a search of method semi_supervised before it, or set original: true")
            continue
        space = known_space(search, teacher)
        if space is not None and not space.larger:
            problems.append(f"{where}: the search space of '{space.network}' has no networks larger than its students; set original: true")
    return problems


def block_problems(target: Target, teacher: Network, start: Network) -> list[str]:
    """Residual blocks that are to be removed where it is not known which can go, or behind what fixes their names."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, PruneConfig) or not stage.blocks:
            continue
        where = f"stages[{index}].blocks is true, and"
        if any(isinstance(before, PruneConfig) for before in target.stages[:index]):
            problems.append(f"{where} a prune stage stands before it, whose edits name layers that would move; set blocks in the first prune stage")
        reasons = [block_problem(spec) for spec, _ in students(target, teacher, start)]
        problems += [f"{where} {reason}; or set it to false" for reason in reasons if reason]
    return problems


def known_space(search: SearchConfig, teacher: Network | None) -> SearchSpace | None:
    """None for a search without one, which is a problem of its own, or of an original that is not known."""
    try:
        return None if teacher is None else space_of(search, teacher[0])
    except PlanError:
        return None


def students(target: Target, teacher: Network, start: Network) -> Iterator[Network]:
    """The network that is compressed; of a search, the smallest that it may find."""
    search = next((one for one in target.stages if isinstance(one, SearchConfig)), None)
    if search is None:
        yield start
        return
    space = known_space(search, teacher)
    if space is not None:
        spec = spec_of(space, space.smallest, teacher[0])
        yield spec, build_meta(spec)


def unpaired_problems(target: Target) -> list[str]:
    """What needs the true output of an input, where no input has one."""
    if target.data.pairing != "unpaired":
        return []
    problems = []
    for index, stage in enumerate(target.stages):
        if isinstance(stage, LikenessConfig):
            problems.append(
                f"stages[{index}].method is {stage.method}, which learns from labelled pairs, and data.pairing is unpaired: no input has a target. "
                f"{LEARNS_FROM_THE_ORIGINAL.get(stage.stage, 'Remove the stage')}, or give aligned pairs (data.pairing: aligned)"
            )
        elif isinstance(stage, DistillConfig):
            problems += [
                f"stages[{index}].{name} is {weight:g}{'' if name in stage.model_fields_set else ', its default'}; it compares with targets, "
                f"which unpaired data do not have. Set {name}: 0 and a weight of output, or give aligned pairs (data.pairing: aligned)"
                for name, weight in (("truth", stage.truth), ("squared", stage.squared))
                if weight
            ]
    floor = target.budget.quality
    if floor is not None and floor.within is not None:
        problems.append(
            f"budget.quality.within is {floor.within:g}, a loss against the original; with unpaired data the original is what quality is measured "
            "against, so it has none to lose. Use at_least, the least acceptable likeness to it in dB"
        )
    return problems
