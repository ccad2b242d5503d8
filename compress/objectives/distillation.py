"""Generator and discriminator distillation from a teacher that stays as it is, on labelled data, or on unpaired data, whose truth is what it makes.

In unpaired mode the discriminators' real pictures are those of the target domain, which belong to no input, as in CycleGAN; the teacher's outputs are
the student's lesson, but no example of what is real.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.losses import mean_over
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.objectives.adaptors import adapted, adaptors, rectified_adaptors
from mcompress.compress.objectives.discriminators import discriminator_term, generator_term, layers_for, needs_real
from mcompress.compress.objectives.features import matched, with_features
from mcompress.compress.objectives.likeness import pixel_terms, truth_terms
from mcompress.compress.tasks.task import Task, with_expert
from mcompress.compress.taught import TaughtBatches
from mcompress.compress.train import Objective
from mcompress.targets.stages import DistillConfig

D4 = 4
"""DCD compares the activations of the discriminator's fourth block; that of small pictures has fewer, and then the last one counts."""
IMAGE_CHANNELS = 3


class Distillation(Objective):
    """Generator and discriminator distillation (MFAGAN-style).

    Players, in the order in which they move:

    - `teacher_discriminator` learns to tell real pictures from the *teacher's* outputs. It is trained along because published generators come
      without their discriminator. The gram, discriminator and discriminator_feature terms need it.
    - `discriminator` learns to tell real pictures from the *student's* outputs and keeps its features near the teacher discriminator's on real
      pictures, teacher output and student output, so that it stays in step with the small generator instead of overpowering it. The adversarial and
      discriminator terms need it.
    - `generator`, the student (with the 1x1 adaptors of the terms that compare features).

    Real pictures are the truth, or, of unpaired data, pictures of the target domain. A term with weight 0 is not computed, and a player that no term
    needs does not play. `seed` is the run's.
    """

    def __init__(self, task: Task, config: DistillConfig, student: nn.Module, teacher: nn.Module, seed: int) -> None:
        self.task, self.expert = with_expert(task, config.expert, "stage distill")
        self.config, self.teacher, self.student = config, teacher, student
        self.lessons = TaughtBatches(self.task, config, self._ask, seed)
        self.with_features = bool(config.feature or config.kernel_alignment or config.channel or config.discriminator_feature)
        along: dict[str, nn.Module] = {}
        if self.with_features:
            inputs, _ = task.training_batch(1, config.crop_size, torch.Generator().manual_seed(0))
            widths = matched(student, teacher, inputs, "stage distill")
            if config.feature:
                along["adaptors"] = adaptors(widths)
            if config.channel:
                along["channel_adaptors"] = rectified_adaptors(widths)
            if config.discriminator_feature:
                along["student_views"] = rectified_adaptors([(made, IMAGE_CHANNELS) for made, _ in widths])
                along["teacher_views"] = rectified_adaptors([(wanted, IMAGE_CHANNELS) for _, wanted in widths])
        self.generator = nn.ModuleDict({"student": student, **along})
        self.with_discriminator = bool(config.adversarial or config.discriminator)
        self.with_teacher_discriminator = bool(config.discriminator or config.gram or config.discriminator_feature)
        layers = layers_for(config.crop_size * task.scale)
        if self.with_discriminator:
            self.discriminator = patchgan(features=config.discriminator_features, layers=layers)
        if self.with_teacher_discriminator:
            self.teacher_discriminator = patchgan(features=config.discriminator_features, layers=layers)

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        players: dict[str, nn.Module] = {}
        if self.with_teacher_discriminator:
            players["teacher_discriminator"] = self.teacher_discriminator
        if self.with_discriminator:
            players["discriminator"] = self.discriminator
        return {**players, "generator": self.generator}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher, and the task's expert where its term has a weight."""
        return {"teacher": self.teacher, **({} if self.expert is None else {"expert": self.expert})}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminators learn at their own rate."""
        rate = self.config.discriminator_learning_rate
        return {"teacher_discriminator": rate, "discriminator": rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw a batch with the teacher's answer and run the student on it once."""
        lesson = self.lessons.draw(generator, device)
        self.inputs, self.truth, self.teacher_output = lesson.inputs, lesson.truth, lesson.taught
        self.real = self._real_pictures(generator).to(device)
        if self.with_features:
            output, self.made = with_features(self.student, *lesson.inputs)
            self.output = output.float()
        else:
            self.output = self.student(*lesson.inputs).float()

    def _real_pictures(self, generator: torch.Generator) -> Tensor:
        if self.task.paired or not (self.with_discriminator or self.with_teacher_discriminator):
            return self.truth
        return self.task.domain_batch(self.config.batch_size, self.config.crop_size, generator)

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
            for images in (self.real, self.teacher_output, fake):
                with torch.no_grad():
                    wanted = self.teacher_discriminator.forward_features(images)
                distances.append(mean_over("l1", self.discriminator.forward_features(images), wanted))
            terms["distill"] = self.config.discriminator * torch.stack(distances).mean()
        return terms

    def _generator_terms(self) -> dict[str, Tensor]:
        config = self.config
        terms = truth_terms(self.task, self.output, self.truth, config.truth, config.squared)
        terms.update(pixel_terms(config, self.task, self.output, self.teacher_output))
        if self.expert is not None:
            terms["expert"] = config.expert * self.expert(self.inputs, self.output)
        if self.with_features:
            terms.update(self._feature_terms())
        if config.adversarial:
            terms["adversarial"] = config.adversarial * self._gan_of_generator()
        if config.gram:
            made = self.teacher_discriminator.forward_features(self.output)[:-1]
            with torch.no_grad():
                wanted = self.teacher_discriminator.forward_features(self.teacher_output)[:-1]
            terms["gram"] = config.gram * mean_over("gram_l1", made, wanted)
        return terms

    def _gan_of_discriminator(self, discriminator: nn.Module, fake: Tensor) -> Tensor:
        return discriminator_term(self.config.adversarial_loss, discriminator(self.real), discriminator(fake))

    def _gan_of_generator(self) -> Tensor:
        form = self.config.adversarial_loss
        fake = self.discriminator(self.output)
        return generator_term(form, fake, self.discriminator(self.real) if needs_real(form) else None)

    @torch.no_grad()
    def _ask(self, *inputs: Tensor) -> Tensor:
        if not self.with_features:
            answer: Tensor = self.teacher(*inputs)
            return answer
        answer, self.wanted = with_features(self.teacher, *inputs)
        return answer

    def _feature_terms(self) -> dict[str, Tensor]:
        """The terms that compare feature maps of both networks."""
        config, terms = self.config, {}
        made, wanted = [one.float() for one in self.made], [one.float() for one in self.wanted]
        if config.feature:
            terms["feature"] = config.feature * mean_over("feature_mse", adapted(self.generator["adaptors"], made), wanted)
        if config.kernel_alignment:
            terms["kernel_alignment"] = config.kernel_alignment * mean_over("kernel_alignment", made, wanted)
        if config.channel:
            terms["channel"] = config.channel * mean_over("channel_mse", adapted(self.generator["channel_adaptors"], made), wanted)
        if config.discriminator_feature:
            seen = [self._seen(view) for view in adapted(self.generator["student_views"], made)]
            to_see = [self._seen(view) for view in adapted(self.generator["teacher_views"], wanted)]
            terms["discriminator_feature"] = config.discriminator_feature * mean_over("l1", seen, to_see)
        return terms

    def _seen(self, view: Tensor) -> Tensor:
        """What the fourth block of the teacher's discriminator makes of a feature map that looks like a picture (DCD, arXiv 2212.14169)."""
        # Deep feature maps are smaller than what four blocks need; enlarging them shows the discriminator the same thing.
        side = self.truth.shape[2:]
        picture = view if view.shape[2:] == side else functional.interpolate(view, size=side, mode="nearest")
        seen: Tensor = self.teacher_discriminator.forward_features(picture)[:-1][:D4][-1]
        return seen
