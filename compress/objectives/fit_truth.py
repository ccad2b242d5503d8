"""One network learns from the truth alone: the from-scratch baseline of every claim, and how embedded teachers are made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.objectives.likeness import truth_terms
from mcompress.compress.tasks.task import Task, moved, with_expert
from mcompress.compress.train import Objective
from mcompress.targets.stages import TrainingConfig


class FitTruth(Objective):
    """Generator: mean absolute error to the truth, mean squared error and what the task's expert says, each where its weight is not 0."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        network: nn.Module,
        *,
        truth: float = 1.0,
        squared: float = 0.0,
        expert: float = 0.0,
        fixed: str = "",
    ) -> None:
        """`fixed`: a child of the network that stays as it is. Raises `ValueError` where there is none of that name."""
        children = dict(network.named_children())
        if fixed and (fixed not in children or any("." not in name for name, _ in network.named_parameters())):
            raise ValueError(f"'{fixed}' cannot be fixed: every parameter must belong to a child of the network, and these are {', '.join(children)}")
        self.task, self.expert = with_expert(task, expert, "training")
        self.config, self.network, self.fixed = config, network, fixed
        self.absolute, self.squared, self.weight = truth, squared, expert

    def players(self) -> Mapping[str, nn.Module]:
        """The network, without the part that is fixed."""
        if not self.fixed:
            return {"generator": self.network}
        return {"generator": nn.ModuleDict({name: part for name, part in self.network.named_children() if name != self.fixed})}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The expert, and the part that is fixed."""
        fixed = {"fixed": self.network.get_submodule(self.fixed)} if self.fixed else {}
        return fixed if self.expert is None else {**fixed, "expert": self.expert}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch."""
        inputs, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.inputs, self.truth = moved(inputs, device), truth.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`truth`, `squared` and `expert`, those that have a weight; weights applied."""
        output = self.network(*self.inputs).float()
        terms = truth_terms(self.task, output, self.truth, self.absolute, self.squared)
        if self.expert is not None:
            terms["expert"] = self.weight * self.expert(self.inputs, output)
        return terms
