"""Training batches with the teacher's answer.

Asking the teacher at every step is what makes distillation slow: the embedded one costs twice a student's own step, ESRGAN fifty times. With
`teacher_batches` set it answers that many batches once; later steps draw from them again, reoriented (`Task.reorient`): distillation from stored
answers (Shen & Xing 2021, arXiv 2112.01528). A batch is a function of the run's seed and its number alone, so a training that was killed finds the
same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcompress.compress.tasks.task import Inputs, Task, moved
from mcompress.compress.train import step_generator
from mcompress.targets.stages import TaughtConfig


def batch_generator(seed: int, number: int) -> torch.Generator:
    """The source of a stored batch. Batches count down from the run's first step as steps count up, so that no batch is drawn under two names.

    PyTorch's generator keeps the lowest 32 bits of a seed: a hash would meet some step's seed by chance; these meet after 2^32 steps and batches.
    """
    return step_generator(seed, -1 - number)


@dataclass(frozen=True)
class Lesson:
    """One batch: the network's inputs, the truth, and the teacher's output, which is the truth of unpaired data; the latter two (N, C, H, W)."""

    inputs: Inputs
    truth: Tensor
    taught: Tensor


class TaughtBatches:
    """Draws lessons; keeps the teacher's answers in fp16 (at most `teacher_batches` of them) where they are reused. `seed` is the run's."""

    def __init__(self, task: Task, config: TaughtConfig, teacher: Callable[..., Tensor], seed: int) -> None:
        self._task, self._config, self._teacher, self._seed = task, config, teacher, seed
        self._answers: dict[int, Tensor] = {}

    def draw(self, generator: torch.Generator, device: torch.device) -> Lesson:
        """The lesson of one step; everything random comes from `generator`."""
        if self._config.teacher_batches is None:
            inputs, truth = self._batch(generator, device)
            taught = self._ask(inputs)
            return Lesson(inputs, taught if truth is None else truth, taught)
        number = int(torch.randint(self._config.teacher_batches, (1,), generator=generator))
        (picture, *rest), truth = self._batch(batch_generator(self._seed, number), device)
        if number not in self._answers:
            self._answers[number] = self._ask((picture, *rest)).half()
        taught = self._answers[number].float()
        picture, truth, taught = self._task.reorient((picture, taught if truth is None else truth, taught), generator)
        return Lesson((picture, *rest), truth, taught)

    def _batch(self, generator: torch.Generator, device: torch.device) -> tuple[Inputs, Tensor | None]:
        if not self._task.paired:  # the teacher's answer is the truth, and is asked for once
            return moved(self._task.unlabelled_batch(self._config.batch_size, self._config.crop_size, generator), device), None
        inputs, truth = self._task.training_batch(self._config.batch_size, self._config.crop_size, generator)
        return moved(inputs, device), truth.to(device)

    @torch.no_grad()
    def _ask(self, inputs: Inputs) -> Tensor:
        return self._teacher(*inputs).float()
