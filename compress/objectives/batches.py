"""What one step of semi-supervised training is about: labelled pairs, and as many inputs with or without a label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcompress.compress.tasks.task import Inputs, Task, joined, moved
from mcompress.targets.stages import TrainingConfig


@dataclass(frozen=True)
class MixedBatch:
    """Labelled inputs with their truths (N, C, H, W), and further inputs."""

    inputs: Inputs
    truth: Tensor
    others: Inputs

    @property
    def all_inputs(self) -> Inputs:
        """Both, the labelled ones first."""
        return joined(self.inputs, self.others)

    @property
    def source(self) -> Tensor:
        """The pictures of the labelled inputs."""
        return self.inputs[0]


def mixed_batch(task: Task, config: TrainingConfig, generator: torch.Generator, device: torch.device) -> MixedBatch:
    """The batch of one step; everything random comes from `generator`."""
    inputs, truth = task.training_batch(config.batch_size, config.crop_size, generator)
    others = task.unlabelled_batch(config.batch_size, config.crop_size, generator)
    return MixedBatch(moved(inputs, device), truth.to(device), moved(others, device))
