"""What one training step computes: objectives for the one training loop, `mcompress.compress.train.train`.

Each objective names its players (trained modules) and gives the weighted loss terms of each on the present batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mcompress.compress.losses import ADVERSARIAL, TERMS
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.tasks.task import Task
from mcompress.compress.taught import TaughtBatches
from mcompress.errors import PlanError
from mcompress.targets.stages import DistillConfig, TrainingConfig


class FitTruth:
    """Generator: mean absolute error to the truth. The from-scratch baseline of every claim, and how embedded teachers are made."""

    def __init__(self, task: Task, config: TrainingConfig, network: nn.Module) -> None:
        self.task, self.config, self.network = task, config, network

    def players(self) -> Mapping[str, nn.Module]:
        """The network."""
        return {"generator": self.network}

    def frozen(self) -> Mapping[str, nn.Module]:
        """Nothing."""
        return {}

    def learning_rates(self) -> Mapping[str, float]:
        """The settings' own."""
        return {}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch."""
        source, truth = self.task.training_batch(self.config.batch_size, self.config.crop_size, generator)
        self.source, self.truth = source.to(device), truth.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`truth` alone."""
        return {"truth": TERMS["l1"].compute(self.network(self.source).float(), self.truth)}


class Distillation:
    """Generator and discriminator distillation (MFAGAN-style), on paired data.

    Players, in the order in which they move:

    - `teacher_discriminator` learns to tell truth from the *teacher's* outputs. It is trained along because published generators come without
      their discriminator. The gram and discriminator terms need it.
    - `discriminator` learns to tell truth from the *student's* outputs and keeps its features near the teacher discriminator's on truth, teacher
      output and student output, so that it stays in step with the small generator instead of overpowering it. The adversarial and discriminator
      terms need it.
    - `generator`, the student (with the 1x1 adaptors of the feature term).

    A term with weight 0 is not computed, and a player that no term needs does not play. `seed` is the run's.
    """

    def __init__(self, task: Task, config: DistillConfig, student: nn.Module, teacher: nn.Module, seed: int) -> None:
        self.task, self.config, self.teacher = task, config, teacher
        self.student = student
        self.lessons = TaughtBatches(task, config, teacher, seed)
        self.taps = _Taps(student, teacher) if config.feature or config.kernel_alignment else None
        adaptors: dict[str, nn.Module] = {}
        if self.taps is not None and config.feature:
            source, _ = task.training_batch(1, config.crop_size, torch.Generator().manual_seed(0))
            adaptors["adaptor"] = self.taps.adaptor(student, teacher, source)
        self.generator = nn.ModuleDict({"student": student, **adaptors})
        self.discriminator_term, self.generator_term = (TERMS[name] for name in ADVERSARIAL[config.adversarial_loss])
        self.with_discriminator = bool(config.adversarial or config.discriminator)
        self.with_teacher_discriminator = bool(config.discriminator or config.gram)
        if self.with_discriminator:
            self.discriminator = patchgan(features=config.discriminator_features)
        if self.with_teacher_discriminator:
            self.teacher_discriminator = patchgan(features=config.discriminator_features)

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        players: dict[str, nn.Module] = {}
        if self.with_teacher_discriminator:
            players["teacher_discriminator"] = self.teacher_discriminator
        if self.with_discriminator:
            players["discriminator"] = self.discriminator
        return {**players, "generator": self.generator}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminators learn at their own rate."""
        rate = self.config.discriminator_learning_rate
        return {"teacher_discriminator": rate, "discriminator": rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch with the teacher's answer and run the student on it once."""
        lesson = self.lessons.draw(generator, device)
        self.truth, self.teacher_output = lesson.truth, lesson.taught
        self.output = self.student(lesson.source).float()

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        if player == "teacher_discriminator":
            return {"gan": self._gan_of_discriminator(self.teacher_discriminator, self.teacher_output)}
        if player == "discriminator":
            return self._discriminator_terms()
        return self._generator_terms()

    def _discriminator_terms(self) -> dict[str, Tensor]:
        fake = self.output.detach()
        terms = {"gan": self._gan_of_discriminator(self.discriminator, fake)}
        if self.config.discriminator:
            distances = []
            for images in (self.truth, self.teacher_output, fake):
                with torch.no_grad():
                    wanted = self.teacher_discriminator.forward_features(images)
                distances.append(_mean_distance(self.discriminator.forward_features(images), wanted))
            terms["distill"] = self.config.discriminator * torch.stack(distances).mean()
        return terms

    def _generator_terms(self) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.truth:
            terms["truth"] = config.truth * TERMS["l1"].compute(self.output, self.truth)
        if config.output:
            terms["output"] = config.output * TERMS["l1"].compute(self.output, self.teacher_output)
        if config.ssim:
            terms["ssim"] = config.ssim * TERMS["ssim"].compute(self._from_0_to_1(self.output), self._from_0_to_1(self.teacher_output))
        if config.total_variation:
            terms["total_variation"] = config.total_variation * TERMS["total_variation"].compute(self.output)
        if self.taps is not None:
            terms.update(self._feature_terms(self.taps))
        if config.adversarial:
            terms["adversarial"] = config.adversarial * self._gan_of_generator()
        if config.gram:
            made = self.teacher_discriminator.forward_features(self.output)[:-1]
            with torch.no_grad():
                wanted = self.teacher_discriminator.forward_features(self.teacher_output)[:-1]
            terms["gram"] = config.gram * torch.stack([TERMS["gram_l1"].compute(a, b) for a, b in zip(made, wanted, strict=True)]).mean()
        return terms

    def _gan_of_discriminator(self, discriminator: nn.Module, fake: Tensor) -> Tensor:
        return self.discriminator_term.compute(discriminator(self.truth), discriminator(fake))

    def _gan_of_generator(self) -> Tensor:
        fake = self.discriminator(self.output)
        if self.generator_term.takes == "fake logits":
            return self.generator_term.compute(fake)
        return self.generator_term.compute(self.discriminator(self.truth), fake)

    def _from_0_to_1(self, image: Tensor) -> Tensor:
        low, high = self.task.output_range
        return (image - low) / (high - low)

    def _feature_terms(self, taps: _Taps) -> dict[str, Tensor]:
        made, wanted = taps.student_feature.float(), taps.teacher_feature.float()
        terms = {}
        if self.config.feature:
            terms["feature"] = self.config.feature * TERMS["feature_mse"].compute(self.generator["adaptor"](made), wanted)
        if self.config.kernel_alignment:
            terms["kernel_alignment"] = self.config.kernel_alignment * TERMS["kernel_alignment"].compute(made, wanted)
        return terms

    def close(self) -> None:
        """Take the feature hooks off the networks."""
        if self.taps is not None:
            self.taps.close()


class _Taps:
    """Records the deepest feature map at input resolution of student and teacher; hooks, because any network may be a student."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self._handles: list[RemovableHandle] = []
        self._tap(student, "student_feature")
        self._tap(teacher, "teacher_feature")

    def _tap(self, network: nn.Module, name: str) -> None:
        def at_start(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._size = inputs[0].shape[2:]

        def record(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            # The input of the last convolution at input resolution is the richest feature map that both networks have in the same size.
            if inputs[0].shape[2:] == self._size and inputs[0].shape[1] > 3:
                setattr(self, name, inputs[0])

        self._handles.append(network.register_forward_pre_hook(at_start))
        self._handles.extend(module.register_forward_hook(record) for module in network.modules() if isinstance(module, nn.Conv2d))

    student_feature: Tensor
    teacher_feature: Tensor

    def adaptor(self, student: nn.Module, teacher: nn.Module, source: Tensor) -> nn.Module:
        """A 1x1 convolution from the student's width to the teacher's."""
        with torch.no_grad():
            student(source.to(next(student.parameters()).device))
            teacher(source.to(next(teacher.parameters()).device))
        if not hasattr(self, "student_feature") or not hasattr(self, "teacher_feature"):
            raise PlanError(["stage distill: feature and kernel_alignment need a convolution at input resolution in both networks; set both to 0"])
        return nn.Conv2d(self.student_feature.shape[1], self.teacher_feature.shape[1], 1)

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()


def _mean_distance(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    return torch.stack([TERMS["l1"].compute(a, b) for a, b in zip(made, wanted, strict=True)]).mean()
