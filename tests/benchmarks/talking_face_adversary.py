"""Wav2Lip's own training, with its discriminator (Prajwal et al. 2020, arXiv 2008.10010, eq. 8): the rival of distillation without one.

    (1 - w_s - w_d) |s - t| + w_s sync - w_d log D(lower half of s)

|s - t| stands for the same errors to the truth that its rivals learn from. The discriminator sees lower halves alone. It is narrowed like the
networks that are compared; the frozen expert is the embedded one.
"""

from __future__ import annotations

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


class AgainstQuality(Objective):
    """Players: the `generator`, then the `discriminator`, on what the generator made in this step."""

    def __init__(self, task: TalkingFace, config: TrainingConfig, network: nn.Module, truth: float, squared: float) -> None:
        """`truth`, `squared`: weights of the mean absolute and the mean squared error."""
        self.task, self.config, self.network = task.for_expert(), config, network
        self.absolute, self.squared = ((1 - SYNC - QUALITY) * weight for weight in (truth, squared))
        self.discriminator, self.expert = quality_discriminator(width=WIDTH), task.expert()

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
        """Draw a batch."""
        inputs, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.inputs, self.truth = moved(inputs, device), truth.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        if player == "discriminator":
            return {"gan": (self._said(self.truth, real=True) + self._said(self.made, real=False)) / 2}
        output = self.network(*self.inputs).float()
        self.made = output.detach()
        return {
            **truth_terms(self.task, output, self.truth, self.absolute, self.squared),
            "expert": SYNC * self.expert(self.inputs, output),
            "adversarial": QUALITY * self._said(output, real=True),
        }

    def _said(self, faces: Tensor, *, real: bool) -> Tensor:
        """Binary cross-entropy of the discriminator's probabilities to what it should, or is made to, say."""
        said: Tensor = self.discriminator(faces[:, :, MASKED_FROM:])
        return functional.binary_cross_entropy(said, torch.full_like(said, float(real)))
