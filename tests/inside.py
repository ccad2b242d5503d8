"""A candidate of a search space, and the largest network with everything outside the candidate at zero."""

from __future__ import annotations

import torch
from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.space import Args, SearchSpace, cut
from mcompress.compress.models.spec import ModelSpec


def inside_of(space: SearchSpace, args: Args, seed: int) -> tuple[nn.Module, nn.Module]:
    """The candidate `args` with weights cut from a largest network, and that network with every number that was not cut at zero.

    What was cut is found by differentiation: a number that the candidate uses once has the gradient 1.
    """
    torch.manual_seed(seed)
    largest, candidate = (build(ModelSpec(space.network, each)) for each in (space.largest, args))
    for parameter in largest.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    weights = dict(largest.named_parameters())
    taken = cut({**weights, **dict(largest.named_buffers())}, candidate)
    torch.autograd.backward([value.sum() for value in taken.values() if value.requires_grad])
    candidate.load_state_dict({name: value.detach() for name, value in taken.items()})
    used = 0
    with torch.no_grad():
        for parameter in weights.values():
            mask = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
            used += int(mask.sum())
            parameter.mul_(mask)
    assert used == sum(value.numel() for value in candidate.parameters())
    return candidate.eval(), largest.eval()
