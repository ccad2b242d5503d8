"""Teachers that teach by the running mean of their weights (mean teacher, Tarvainen & Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mcompress.compress.objectives.features import with_features

AVERAGE = 0.99
"""Of a teacher's weights, how much of their mean a step leaves."""


class AveragedTeacher(nn.Module):
    """A learning teacher with the running mean of its weights, by which it teaches.

    While a network learns at a high rate its weights wander about a better network; their mean is about as good as the network will be at the end.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self._names = {f"mean {name}".replace(".", " "): name for name in teacher.state_dict()}
        self._teacher = [teacher]  # in a list, because it is a player of its own and no part of this module
        for own, name in self._names.items():
            self.register_buffer(own, teacher.state_dict()[name].detach().clone())

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the mean towards the teacher's present weights; in the first steps it follows closely."""
        decay, now = min(AVERAGE, (step + 1) / (step + 10)), self._teacher[0].state_dict()
        for own, name in self._names.items():
            mean = self.get_buffer(own)
            mean.lerp_(now[name], 1.0 - decay) if mean.is_floating_point() else mean.copy_(now[name])

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The picture that the mean network makes of `inputs`, and its feature maps."""
        teacher = self._teacher[0]
        training = teacher.training
        teacher.eval()
        with _weights_of(teacher, {name: self.get_buffer(own) for own, name in self._names.items()}):
            output, features = with_features(teacher, *inputs)
        teacher.train(training)
        return output.float(), features


@contextmanager
def _weights_of(network: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The network with other weights for a while; nothing is copied."""
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    kept = {name: own[name].data for name in state}
    try:
        for name, value in state.items():
            own[name].data = value
        yield
    finally:
        for name, value in kept.items():
            own[name].data = value
