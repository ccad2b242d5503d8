"""What pruning goes by: the loss on a few fixed batches, and its gradients.

The loss is the mean absolute error against the truth, weighted as in training (`Task.weighted`). Unpaired data have no truth but the original's
output. A removal can be measured against that as well, but gradients cannot: the original itself has no loss there. So the change of the output along
random signs takes the place of the loss in them (Hutchinson's estimate of what a weight does to all of the output).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcompress.compress.objectives.likeness import picture_l1
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks.task import Inputs
from mcompress.compress.train import step_generator
from mcompress.targets.stages import PruneConfig

BATCH, CROP = 8, 32


@dataclass(frozen=True)
class _Batch:
    inputs: Inputs
    truth: Tensor
    randomness: Tensor
    """State of the batch's generator behind what it drew."""


class PruningLoss:
    """The loss of a network in evaluation mode on the batches of a prune stage, which are drawn once."""

    def __init__(self, config: PruneConfig, context: StageContext) -> None:
        self._task = context.task
        crop = max(min(CROP, context.task.largest_crop()), context.task.smallest_crop())
        self._batches = [_drawn(context, crop, step_generator(context.seed, index)) for index in range(config.importance_batches)]

    def add_gradients(self, model: nn.Module) -> None:
        """Leave in the parameters the sum of the gradients over all batches."""
        model.requires_grad_(True)
        model.zero_grad(set_to_none=True)
        for batch in self._batches:
            output = model(*batch.inputs)
            if self._task.paired:
                torch.autograd.backward(picture_l1(self._task, output, batch.truth))
            else:
                generator = torch.Generator()
                generator.set_state(batch.randomness)
                signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
                torch.autograd.backward((output * signs).mean())

    @torch.no_grad()
    def of(self, model: nn.Module) -> float:
        """The error against the truth, or against the original's output where the data have none; the mean over the batches."""
        return sum(float(picture_l1(self._task, model(*batch.inputs), batch.truth)) for batch in self._batches) / len(self._batches)


def _drawn(context: StageContext, crop: int, generator: torch.Generator) -> _Batch:
    if context.task.paired:
        inputs, truth = context.task.training_batch(BATCH, crop, generator)
    else:
        inputs = context.task.unlabelled_batch(BATCH, crop, generator)
        with torch.no_grad():
            truth = context.teacher(*inputs)
    return _Batch(inputs, truth, generator.get_state())
