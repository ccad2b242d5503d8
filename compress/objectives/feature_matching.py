"""Distillation of a diffusion UNet with fewer blocks, stage by stage (BK-SDM, Kim et al. 2023, arXiv 2305.15798): L = L_task + L_out + L_feat.

L_task is denoising, L_out the squared distance to the original's prediction, L_feat the sum over stages of those to its features. Stages correspond
from the outermost inwards; what one of the two does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.diffusion import NoiseSchedule, noise_of, velocity_of
from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec, Prediction
from mcompress.compress.objectives.denoising import Denoising
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import Objective


@dataclass(frozen=True)
class FeatureLosses:
    """The weights of the terms, of which 0 leaves one out, and the size of batches; the weights are BK-SDM's."""

    batch_size: int
    task: float = 1.0
    output: float = 1.0
    features: float = 1.0


@dataclass(frozen=True)
class PredictingUnet:
    """A diffusion UNet, and what it predicts."""

    network: nn.Module
    prediction: Prediction


class FeatureMatching(Objective):
    """The student is trained, the teacher stays. Both take noisy latents, timesteps and text states; captions are left out one in ten times."""

    def __init__(self, student: PredictingUnet, teacher: PredictingUnet, data: Diffusion, losses: FeatureLosses) -> None:
        self.student, self.teacher, self.schedule, self.losses = student, teacher, data.schedule, losses
        self.stages = corresponding(student.network, teacher.network)
        self.denoising = Denoising(
            {"unet": student.network},
            student.network,
            data.training,
            data.no_caption,
            data.schedule,
            prediction=student.prediction,
            batch_size=losses.batch_size,
        )

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student.network}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw what denoising draws: latents with captions, noise and timesteps."""
        self.denoising.begin_step(generator, device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`task`, `output` and `features`, weighted."""
        losses, inputs = self.losses, self.denoising.inputs
        with features_of(self.student.network, [stage.student for stage in self.stages]) as made:
            predicted = self.student.network(*inputs).float()
        found = {"task": functional.mse_loss(predicted, self.denoising.wanted)} if losses.task else {}
        if losses.output or losses.features:
            with torch.no_grad(), features_of(self.teacher.network, [stage.teacher for stage in self.stages]) as wanted:
                answer = self.teacher.network(*inputs).float()
            if losses.output:
                given = converted(answer, inputs[0], inputs[1], self.schedule, self.teacher.prediction, self.student.prediction)
                found["output"] = functional.mse_loss(predicted, given)
            if losses.features:
                distances = [functional.mse_loss(made[one.student].float(), wanted[one.teacher].float()) for one in self.stages]
                found["features"] = torch.stack(distances).sum()
        return {name: getattr(losses, name) * value for name, value in found.items()}


@dataclass(frozen=True)
class Tap:
    """Behind a stage, or where it makes latents smaller behind it, before that."""

    name: str
    before_sampling: bool = False


@dataclass(frozen=True)
class StagePair:
    """A stage of the student and that of the teacher which it is compared with."""

    student: Tap
    teacher: Tap


def corresponding(student: nn.Module, teacher: nn.Module) -> tuple[StagePair, ...]:
    """The stages of two UNets that correspond, in the order in which they run.

    Behind the innermost stage of the one with fewer, nothing makes latents smaller, so there both are compared before the other one's does.
    """
    ours, theirs = (_stage_counts(network) for network in (student, teacher))
    down, up = (min(one, other) for one, other in zip(ours, theirs, strict=True))
    found = []
    for index in range(down):
        before = ours[0] != theirs[0] and index == down - 1
        tap = Tap(f"down_blocks.{index}", before)
        found.append(StagePair(tap, tap))
    if all(_part(network, "mid_block") is not None for network in (student, teacher)):
        found.append(StagePair(Tap("mid_block"), Tap("mid_block")))
    found += [StagePair(Tap(f"up_blocks.{ours[1] - index}"), Tap(f"up_blocks.{theirs[1] - index}")) for index in range(up, 0, -1)]
    return tuple(found)


@contextmanager
def features_of(network: nn.Module, taps: list[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Inside, a forward pass fills what this gives: each tap's feature map (N, C, H, W)."""
    found: dict[Tap, Tensor] = {}

    def record(tap: Tap, module: nn.Module, output: Tensor | tuple[Tensor, tuple[Tensor, ...]]) -> None:
        if isinstance(output, Tensor):
            found[tap] = output
        else:  # a stage on the way down: what it gives, and for the skips what each layer and the sampler gave
            sampled = tap.before_sampling and getattr(module, "downsamplers", None) is not None
            found[tap] = output[1][-2] if sampled else output[0]

    unet = network.get_submodule("unet")
    handles = [
        unet.get_submodule(tap.name).register_forward_hook(lambda module, _given, output, tap=tap: record(tap, module, output)) for tap in taps
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def feature_shapes(student: ModelSpec, teacher: ModelSpec) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Per pair of corresponding stages the student's name of it, and the student's and the teacher's (C, H, W); counted, not computed."""
    networks = build_meta(student), build_meta(teacher)
    stages, found = corresponding(*networks), list[dict[Tap, Tensor]]()
    for spec, network, taps in zip((student, teacher), networks, zip(*((one.student, one.teacher) for one in stages), strict=True), strict=True):
        device = next(network.parameters()).device
        with torch.no_grad(), features_of(network, list(taps)) as features:
            network(*(torch.zeros(shape, device=device) for shape in spec.input_shapes))
        found.append(features)
    return [(one.student.name, tuple(found[0][one.student].shape[1:]), tuple(found[1][one.teacher].shape[1:])) for one in stages]


def converted(answer: Tensor, latents: Tensor, timesteps: Tensor, schedule: NoiseSchedule, given: Prediction, wanted: Prediction) -> Tensor:
    """A prediction `given` for noisy latents, both (N, C, h, w), at timesteps (N,), as the one that is `wanted`.

    Of the noise, the velocity is (eps - sigma z) / alpha: at the noisiest timesteps an error of the teacher counts up to 1 / alpha times.
    """
    if given == wanted:
        return answer
    convert = velocity_of if wanted == "v_prediction" else noise_of
    return convert(answer, latents, *schedule.at(timesteps), given)


def _stage_counts(network: nn.Module) -> tuple[int, int]:
    down, up = (len(list(cast("nn.ModuleList", _part(network, name)))) for name in ("down_blocks", "up_blocks"))
    return down, up


def _part(network: nn.Module, name: str) -> nn.Module | None:
    return cast("nn.Module | None", getattr(network.get_submodule("unet"), name))
