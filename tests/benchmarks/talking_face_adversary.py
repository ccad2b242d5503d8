"""Wav2Lip's own loss, with its discriminator (Prajwal et al. 2020, arXiv 2008.10010, eq. 8): the rival of distillation without one.

    (1 - w_s - w_d) |s - t| + w_s sync - w_d log D(lower half of s)

w_s is 0 until the expert's loss is below 0.75, as in its public training; this one looks every hundred steps, at training batches. The discriminator
sees lower halves alone. It is narrowed like the networks that are compared; the frozen expert is the embedded one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.lip_experts import quality_discriminator
from mcompress.compress.objectives.likeness import truth_terms
from mcompress.compress.tasks.talking_face.task import MASKED_FROM, TalkingFace
from mcompress.compress.tasks.task import moved
from mcompress.compress.train import Objective
from mcompress.targets.stages import TrainingConfig

SYNC, QUALITY = 0.03, 0.07
"""The published weights, w_s and w_d."""
WIDTH = 64
"""An eighth of the published channels."""
DISCRIMINATOR_RATE = 5e-4
IN_SYNC, LOOKS_EVERY, LOOKS_AT = 0.75, 100, 8
"""Below which loss of the expert its term is switched on, after how many steps that is looked at, and over how many batches."""


class AgainstQuality(Objective):
    """Players: the `generator`, then the `discriminator`, on what the generator made in this step."""

    def __init__(self, task: TalkingFace, config: TrainingConfig, network: nn.Module, truth: float = 1.0, squared: float = 0.0) -> None:
        """`truth` and `squared` weigh the absolute errors, which are Wav2Lip's, and squared ones."""
        self.task, self.config, self.network = task.for_expert(), config, network
        self.absolute, self.squared = truth, squared
        self.discriminator, self.expert = quality_discriminator(width=WIDTH), task.expert()
        self.steps, self.sync = 0, 0.0

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        return {"generator": self.network, "discriminator": self.discriminator}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The expert."""
        return {"expert": self.expert}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminator learns at its own rate."""
        return {"discriminator": DISCRIMINATOR_RATE}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch, and look whether the lips are in sync when it is time."""
        self.steps += 1
        if not self.sync and self.steps % LOOKS_EVERY == 0 and self._expert_loss(device) < IN_SYNC:
            self.sync = SYNC
        self._draw(generator, device)

    def _draw(self, generator: torch.Generator, device: torch.device) -> None:
        inputs, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.inputs, self.truth = moved(inputs, device), truth.to(device)

    @torch.no_grad()
    def _expert_loss(self, device: torch.device) -> float:
        """Mean over batches that are the same at every look."""
        self.network.eval()
        losses = []
        for seed in range(LOOKS_AT):
            self._draw(torch.Generator().manual_seed(seed), device)
            losses.append(float(self.expert(self.inputs, self.network(*self.inputs))))
        self.network.train()
        return statistics.mean(losses)

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        if player == "discriminator":
            return {"gan": (self._said(self.truth, real=True) + self._said(self.made, real=False)) / 2}
        output = self.network(*self.inputs).float()
        self.made = output.detach()
        rest = 1 - self.sync - QUALITY
        terms = truth_terms(self.task, output, self.truth, rest * self.absolute, rest * self.squared)
        terms["adversarial"] = QUALITY * self._said(output, real=True)
        if self.sync:
            terms["expert"] = self.sync * self.expert(self.inputs, output)
        return terms

    def _said(self, faces: Tensor, *, real: bool) -> Tensor:
        """Binary cross-entropy of the discriminator's probabilities to what it should, or is made to, say."""
        said: Tensor = self.discriminator(faces[:, :, MASKED_FROM:])
        return functional.binary_cross_entropy(said, torch.full_like(said, float(real)))
