"""What a task owes the pipeline: data, objective, metric, search space, and pictures for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.train import Objective
from mcompress.targets.stages import DistillConfig


@dataclass(frozen=True)
class Sample:
    """One held-out sample: its name, the network's input, and the truth; (1, C, H, W)."""

    name: str
    input: Tensor
    truth: Tensor


class Task(Protocol):
    """A kind of generator: super-resolution, translation, talking face, text to image."""

    name: str
    metric: str
    """The quality metric with its unit, for example `psnr_db`; higher is better."""

    @property
    def data_digest(self) -> str:
        """SHA-256 of training and held-out data."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Data that could not be used: `name: why`."""

    def held_out(self) -> tuple[Sample, ...]:
        """Samples that nothing is trained, searched or calibrated on."""

    def validation_batch(self) -> tuple[Tensor, Tensor]:
        """(inputs, truths) from the training data, fixed, for choosing between candidates; never held out."""

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(inputs, truths) drawn from the training data with augmentation."""

    def calibration_inputs(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
        """`count` inputs of `input_shape` from the training data, streamed one at a time."""

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """The metric of one output against its truth."""

    def baseline(self, sample: Sample) -> Tensor:
        """What costs nothing: the trivial reference for the sample (bicubic enlargement)."""

    def distillation(self, config: DistillConfig, student: nn.Module, teacher: nn.Module, spec: ModelSpec) -> Objective:
        """The objective that trains `student` from `teacher`."""

    def supernet_loss(self, output: Tensor, truth: Tensor, teacher_output: Tensor) -> Mapping[str, Tensor]:
        """Loss terms of the largest network of a search space."""
