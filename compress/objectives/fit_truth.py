"""One network learns from the truth alone: the from-scratch baseline of every claim, and how embedded teachers are made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.objectives.likeness import truth_terms
from mcompress.compress.tasks.task import Task, moved
from mcompress.compress.train import Objective
from mcompress.targets.stages import TrainingConfig


class FitTruth(Objective):
    """Generator: mean absolute error and mean squared error to the truth, each where its weight is not 0."""

    def __init__(self, task: Task, config: TrainingConfig, network: nn.Module, *, truth: float = 1.0, squared: float = 0.0, fixed: str = "") -> None:
        """`fixed`: a child of the network that stays as it is. Raises `ValueError` where there is none of that name, or a parameter has no child."""
        children = dict(network.named_children())
        if fixed and fixed not in children:
            raise ValueError(f"'{fixed}' cannot be fixed: the network's children are {', '.join(children)}")
        if fixed and (loose := [name for name, _ in network.named_parameters() if "." not in name]):
            raise ValueError(f"'{fixed}' cannot be fixed: the parameter '{loose[0]}' belongs to no child of the network, and would not learn")
        self.task, self.config, self.network, self.fixed = task, config, network, fixed
        self.absolute, self.squared = truth, squared

    def players(self) -> Mapping[str, nn.Module]:
        """The network, without the part that is fixed."""
        if not self.fixed:
            return {"generator": self.network}
        return {"generator": nn.ModuleDict({name: part for name, part in self.network.named_children() if name != self.fixed})}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The part that is fixed."""
        return {"fixed": self.network.get_submodule(self.fixed)} if self.fixed else {}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch."""
        inputs, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.inputs, self.truth = moved(inputs, device), truth.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`truth` and `squared`, those that have a weight; weights applied."""
        return truth_terms(self.task, self.network(*self.inputs).float(), self.truth, self.absolute, self.squared)
