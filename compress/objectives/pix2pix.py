"""Supervised training with a discriminator and no teacher: pix2pix (Isola et al. 2017, arXiv 1611.07004, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.objectives.discriminators import SharedDiscriminator, supervised_terms
from mcompress.compress.tasks.task import Task, moved
from mcompress.compress.train import Objective
from mcompress.targets.stages import LikenessConfig

GENERATOR = "generator"


class Pix2Pix(Objective):
    """Players: the `generator`, by `truth` and `adversarial` of the configuration, then its `discriminator`."""

    def __init__(self, task: Task, config: LikenessConfig, network: nn.Module) -> None:
        self.task, self.config, self.network = task, config, network
        self.discriminator = SharedDiscriminator.for_task(task, config, (GENERATOR,))

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        return {GENERATOR: self.network, "discriminator": self.discriminator}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminator learns at its own rate."""
        return {"discriminator": self.config.discriminator_learning_rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch."""
        inputs, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.inputs, self.truth = moved(inputs, device), truth.to(device)
        self.output: Tensor | None = None

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        if player == "discriminator":
            if self.output is None:
                raise ValueError("the discriminator moves after the generator")
            return {"gan": self.discriminator.own_term(GENERATOR, self.inputs[0], self.truth, self.output)}
        output = self.network(*self.inputs).float()
        self.output = output.detach()
        return supervised_terms(self.config, self.task, self.discriminator, GENERATOR, self.inputs[0], self.truth, output)
