"""One set of weights for every network of a space: how it is trained, and how good a candidate is with its share of them.

Each step trains the largest network, the smallest and a few random ones on the same weights (the sandwich rule, Yu & Huang 2019, arXiv 1903.05134).
The largest learns from the truth and the teacher; the others from the truth and from the largest (in-place distillation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import functional_call

from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.space import Args, SearchSpace, cut
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.likeness import picture_l1
from mcompress.compress.tasks.task import Inputs, Task
from mcompress.compress.taught import TaughtBatches, batch_generator
from mcompress.compress.train import Objective
from mcompress.errors import StageError
from mcompress.targets.stages import SupernetSearchConfig, TrainingConfig

STATISTICS_BATCHES = 32
"""From which the batch normalizations of a network that was cut out take their statistics."""


class SupernetTraining(Objective):
    """Objective: one set of weights for every network of a space. `seed` is the run's."""

    def __init__(self, task: Task, config: SupernetSearchConfig, space: SearchSpace, supernet: nn.Module, teacher: nn.Module, seed: int) -> None:
        self.task, self.config, self.space = task, config, space
        self.supernet, self.teacher = supernet, teacher
        self.lessons = TaughtBatches(task, config, teacher, seed)

    def players(self) -> Mapping[str, nn.Module]:
        """The supernet."""
        return {"supernet": self.supernet}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw the batch with the teacher's answer, and the random candidates."""
        self.lesson = self.lessons.draw(generator, device)
        self.candidates = [self.space.smallest, *(self.space.random(generator) for _ in range(self.config.random_candidates))]

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """The largest against truth and teacher, the others against truth and the largest."""
        inputs, truth, taught = self.lesson.inputs, self.lesson.truth, self.lesson.taught
        largest = self.supernet(*inputs).float()
        terms = {"truth": picture_l1(self.task, largest, truth), "teacher": 0.5 * picture_l1(self.task, largest, taught)}
        weights = state_of(self.supernet)
        share = 1.0 / len(self.candidates)
        for index, args in enumerate(self.candidates):
            output = apply_candidate(self.space, args, weights, inputs).float()
            loss = picture_l1(self.task, output, truth) + 0.5 * picture_l1(self.task, output, largest.detach())
            terms["smallest" if index == 0 else f"random{index}"] = share * loss
        return terms


class CandidateQuality:
    """The task's metric on fixed validation crops of any candidate, with weights cut from a trained supernet."""

    def __init__(self, task: Task, space: SearchSpace, weights: Mapping[str, Tensor]) -> None:
        self.task, self.space, self.weights = task, space, weights
        self.inputs, self.truth = task.validation_batch()

    def __call__(self, args: Args) -> float:
        """Quality of one candidate. Raises `StageError` where it is NaN."""
        with torch.no_grad():
            quality = self.task.call_quality(apply_candidate(self.space, args, self.weights, self.inputs), self.truth)
        if math.isnan(quality):
            raise StageError(f"stage search: the supernet gives NaN for {args}; lower learning_rate, then run again")
        return quality


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, to which gradients flow, and buffers."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def write_weights(network: nn.Module, path: Path) -> None:
    """Write beside, then rename: the file is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save({name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}))
    temporary.replace(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights as everybody evaluates with them: the same values in the same memory layout in every process."""
    return {name: value.clone() for name, value in load_file(path).items()}


def apply_candidate(space: SearchSpace, args: Args, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """The output of a candidate with its share of the supernet's weights, to which gradients flow.

    A batch normalization normalizes with the statistics of `inputs`: those that the supernet has gathered are of its largest network, and no other's.
    """
    return apply_cut(build_meta(ModelSpec(space.network, args)).train(), weights, inputs)


def apply_cut(shape: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """The same for a network that is given as it is built, in training mode and perhaps on the meta device."""
    statistics = {name for name, _ in shape.named_buffers()}
    own = {name: value.detach().clone() if name in statistics else value for name, value in cut(weights, shape).items()}
    output = functional_call(shape, own, inputs)
    if not isinstance(output, Tensor):
        raise StageError(f"the network {type(shape).__name__} returns a {type(output).__name__}; one that is cut from another must return one tensor")
    return output


def cut_out(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of its own with its share of the weights; the statistics of its batch normalizations are still another network's."""
    network = build(spec)
    network.load_state_dict(cut(weights, network))
    return network


def with_own_statistics(network: nn.Module, task: Task, config: TrainingConfig, seed: int) -> nn.Module:
    """The network in evaluation mode, its batch normalizations with statistics of their own, from inputs that are the same for every network of a
    run.
    """
    numbers = range(STATISTICS_BATCHES)
    gather_statistics(network, (task.unlabelled_batch(config.batch_size, config.crop_size, batch_generator(seed, number)) for number in numbers))
    return network.eval()


@torch.no_grad()
def gather_statistics(network: nn.Module, batches: Iterable[Inputs]) -> None:
    """Give the batch normalizations of a network that was cut from another statistics of their own, the mean over `batches` (Yu & Huang 2019)."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.eval()  # all but the normalizations: dropout would make the statistics those of noise
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        network(*batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
