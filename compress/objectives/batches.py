"""What one step of semi-supervised training is about: labelled pairs, and as many inputs with or without a label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcompress.compress.tasks.task import Task
from mcompress.targets.stages import TrainingConfig


@dataclass(frozen=True)
class MixedBatch:
    """Labelled inputs with their truths, and further inputs, each (N, C, H, W)."""

    source: Tensor
    truth: Tensor
    others: Tensor

    @property
    def images(self) -> Tensor:
        """All inputs, the labelled ones first."""
        return torch.cat([self.source, self.others])


def mixed_batch(task: Task, config: TrainingConfig, generator: torch.Generator, device: torch.device) -> MixedBatch:
    """The batch of one step; everything random comes from `generator`."""
    source, truth = task.training_batch(config.batch_size, config.crop_size, generator)
    others = task.unlabelled_batch(config.batch_size, config.crop_size, generator)
    return MixedBatch(source.to(device), truth.to(device), others.to(device))
