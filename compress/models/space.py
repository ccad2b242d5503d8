"""Search spaces: which arguments a network family may take, and how a candidate's weights are cut from the largest network.

Every family here is elastic by leading slices: each parameter of a candidate is the leading block of the parameter with the same name in the
largest network (once-for-all, Cai et al. 2020, arXiv 1908.09791, without its kernel transformations).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from optuna.trial import BaseTrial
from pydantic import JsonValue
from torch import Tensor, nn

Args = dict[str, JsonValue]


@dataclass(frozen=True)
class SearchSpace:
    """A family of networks: its largest and smallest member, a random member, and a member proposed by a search."""

    network: str
    largest: Args
    smallest: Args
    random: Callable[[torch.Generator], Args]
    suggest: Callable[[BaseTrial], Args]


CHANNELS = (16, 24, 32, 40, 48)
DEPTHS = (1, 2, 3, 4, 5)
BRANCHES = (1, 2, 3)
WIDTHS = (16, 24, 32, 40, 48)  # the expansion: a block's inner width, independent of the trunk's


def _random_mfagan(generator: torch.Generator) -> Args:
    def pick(options: tuple[int, ...]) -> int:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    return {"channels": pick(CHANNELS), "blocks": [[pick(BRANCHES), pick(WIDTHS)] for _ in range(pick(DEPTHS))]}


def _suggest_mfagan(trial: BaseTrial) -> Args:
    channels = trial.suggest_categorical("channels", CHANNELS)
    depth = trial.suggest_int("depth", DEPTHS[0], DEPTHS[-1])
    blocks: list[JsonValue] = [
        [trial.suggest_int(f"branches{i}", BRANCHES[0], BRANCHES[-1]), trial.suggest_int(f"width{i}", WIDTHS[0], WIDTHS[-1], step=8)]
        for i in range(depth)
    ]
    return {"channels": channels, "blocks": blocks}


SPACES = {
    "mfagan": SearchSpace(
        network="mfagan",
        largest={"channels": CHANNELS[-1], "blocks": [[BRANCHES[-1], WIDTHS[-1]]] * DEPTHS[-1]},
        smallest={"channels": CHANNELS[0], "blocks": [[BRANCHES[0], WIDTHS[0]]] * DEPTHS[0]},
        random=_random_mfagan,
        suggest=_suggest_mfagan,
    )
}

SPACE_OF_NETWORK = {"rrdb": "mfagan", "mfagan": "mfagan", "imdn": "mfagan"}
"""The space in which a student for a teacher of this family is searched, unless the target names one."""


def cut(weights: Mapping[str, Tensor], candidate: nn.Module) -> dict[str, Tensor]:
    """The leading block of each weight, in the shapes of `candidate` (which may be on the meta device); gradients flow to `weights`."""
    return {name: weights[name][tuple(slice(size) for size in shape.shape)] for name, shape in candidate.state_dict().items()}
