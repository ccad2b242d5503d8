"""What a task owes the pipeline: data, metric, baseline, and the objective of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.tasks.performance import Performance, Run
from mcompress.errors import PlanError

Inputs = tuple[Tensor, ...]
"""What a network is called with, in order: the picture (N, C, H, W), then whatever else it takes, each batch first."""


SMALLEST_CROP = 8
"""Pixels; on less, most of what a network computes is its padding."""


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on a device."""
    return tuple(one.to(device) for one in inputs)


def joined(inputs: Inputs, others: Inputs) -> Inputs:
    """Two batches as one."""
    return tuple(torch.cat(pair) for pair in zip(inputs, others, strict=True))


@dataclass(frozen=True)
class Sample:
    """One sample: its name, the network's inputs, and the truth (N, C, H, W); N is 1 for held-out ones."""

    name: str
    inputs: Inputs
    truth: Tensor

    @property
    def picture(self) -> Tensor:
        """The first input."""
        return self.inputs[0]


class Expert(nn.Module):
    """A frozen network that judges a generator's outputs beside the truth: the lip-sync expert of talking faces."""

    title: str
    """What it is and what it was made from, for reports."""
    least_batch: int
    """So many samples, the first of a batch, are judged together."""

    def forward(self, inputs: Inputs, output: Tensor) -> Tensor:
        """What it says against `output` (N, C, H, W), made for `inputs`: a scalar, 0 at best; gradients reach the output. Subclasses say how."""
        raise NotImplementedError


class Task(Protocol):
    """A kind of generator: super-resolution, translation, talking face, text to image."""

    name: str
    metric: str
    """The quality metric with its unit, for example `psnr_db`; higher is better."""
    metric_title: str
    baseline_name: str
    input_range: tuple[float, float]
    """Values of the inputs, which networks that mcompress builds for the task take."""
    output_range: tuple[float, float]
    input_channels: int
    """Of the picture that goes in."""
    scale: int
    """Sides of an output in sides of its input."""
    paired: bool
    """Whether inputs have truths; without them the original's outputs stand for them (`taught_by`), and quality is likeness to it."""

    @property
    def data_digest(self) -> str:
        """SHA-256 of training and held-out data."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Data that could not be used or were converted: `name: why`."""

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """What networks take where the picture, the first of them, has this shape."""

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The small teacher that ships with mcompress."""

    def taught_by(self, teacher: nn.Module) -> Task:
        """The task as it is with this original: itself, unless its data have no truth, for which the original's output then stands."""

    def expert(self) -> Expert | None:
        """What judges outputs beside the truth, frozen; None for tasks without one. Raises `PlanError` where the data need one that is not given."""

    def for_expert(self) -> Task:
        """The task with training batches that begin with samples which its expert judges together; itself without an expert."""

    def diffusion(self) -> Diffusion | None:
        """The data and the noise of a diffusion network; None for every other one."""

    def for_network(self, spec: ModelSpec) -> Task:
        """The task as it is for this network: itself, unless it matters how the network is called (`Sampling`)."""

    def answer(self, run: Run, sample: Sample) -> Tensor:
        """What `run`, a network or a file of the one that the task is for, makes of a sample: its output, or what many calls make."""

    def performance(self) -> Performance | None:
        """A held-out clip for networks to perform whole; None for tasks whose outputs are single pictures."""

    def held_out(self) -> tuple[Sample, ...]:
        """Samples that nothing is trained, searched or calibrated on."""

    @property
    def held_out_sizes(self) -> Mapping[str, tuple[int, int]]:
        """Name of a held-out sample -> height and width of its input, pixels; known without computing it."""

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """(inputs, truths) from the training data, fixed, for choosing between candidates; never held out."""

    @property
    def validation_side(self) -> int:
        """Side of the inputs of `validation_batch`, pixels."""

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """(inputs, truths) drawn from the labelled training data with augmentation; of unpaired data, only once `taught_by` gave truths."""

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Inputs drawn from all training data, whether or not their truth is known, with augmentation."""

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Real pictures of the kind that outputs should be of, drawn from the training data; of unpaired data they belong to no input."""

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The same random change of orientation for all of these pictures, which leaves an input, its truth and the teacher's output belonging
        together, and to whatever else the network takes.
        """

    def weighted(self, pictures: Tensor) -> Tensor:
        """Outputs or truths (N, C, H, W) with each pixel times its weight in mean absolute errors, on average 1: as they are, unless some places of
        the pictures matter more.
        """

    def example(self) -> tuple[Tensor, Tensor]:
        """The picture of one small training input, and what is as large as its truth: for their shapes."""

    def smallest_crop(self) -> int:
        """The smallest `crop_size` that means anything; the largest one, where pictures are never cut."""

    def largest_crop(self) -> int:
        """The largest `crop_size` that the training data can give."""

    def count_fitting(self, crop_size: int) -> tuple[int, int]:
        """How many training pictures can give a crop of this size, and how many there are; the others are left out of it."""

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """`count` samples with inputs of `input_shape` from the training data, streamed one at a time; the first are the same for any `count`."""

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """The metric of one answer against its truth."""

    def call_quality(self, output: Tensor, truth: Tensor) -> float:
        """What one call is worth against the truth of a training or calibration sample, higher is better: the metric, unless an answer takes several
        calls."""

    def shown(self, answer: Tensor) -> Tensor | None:
        """An answer as a picture (1, 3, H, W) in the output range; None for what nobody can look at."""

    def baseline(self, sample: Sample) -> Tensor:
        """What costs nothing: the trivial reference for the sample (bicubic enlargement)."""


class OneCall:
    """What tasks have in common whose networks make an answer with one call: nothing of them depends on how the network is called."""

    def expert(self) -> Expert | None:
        """None: answers are compared with the truth, or with the original's."""
        return None

    def diffusion(self) -> Diffusion | None:
        """None: one call makes the answer."""
        return None

    def for_network(self, spec: ModelSpec) -> Self:  # noqa: ARG002  (all are called alike)
        """Itself."""
        return self

    def answer(self, run: Run, sample: Sample) -> Tensor:
        """The output of the one call."""
        return run(*sample.inputs)

    def performance(self) -> Performance | None:
        """None: answers are single pictures."""
        return None

    def taught_by(self, teacher: nn.Module) -> Task:  # noqa: ARG002  (the truth is known)
        """Itself."""
        return cast("Task", self)

    def for_expert(self) -> Task:
        """Itself: there is no expert."""
        return cast("Task", self)

    def example(self) -> tuple[Tensor, Tensor]:
        """A crop, and a real picture as large as its truth is."""
        task = cast("Task", self)
        side, generator = min(task.smallest_crop(), task.largest_crop()), torch.Generator().manual_seed(0)
        return task.unlabelled_batch(1, side, generator)[0], task.domain_batch(1, side, generator)

    def weighted(self, pictures: Tensor) -> Tensor:
        """As they are: no place matters more."""
        return pictures

    def shown(self, answer: Tensor) -> Tensor | None:
        """Itself."""
        return answer

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """The metric of one answer against its truth."""
        raise NotImplementedError

    def call_quality(self, output: Tensor, truth: Tensor) -> float:
        """The metric."""
        return self.quality(output, truth)


def expert_of(task: Task, place: str) -> Expert:
    """The task's expert. Raises `PlanError`, naming `place`, for a task without one."""
    expert = task.expert()
    if expert is None:
        raise PlanError([f"{place}: expert has a weight, and {task.name} has no expert that could judge; set expert to 0"])
    return expert


def with_expert(task: Task, weight: float, place: str) -> tuple[Task, Expert | None]:
    """What a training needs in which the expert's word has this weight: the task that it can judge, and it; without a weight the task, and None.

    Raises `PlanError` like `expert_of`.
    """
    return (task.for_expert(), expert_of(task, place)) if weight else (task, None)
