"""Adaptive online semi-supervised distillation (UGC-style).

Facts from UGC (Ren et al. 2023, arXiv 2309.09310) and its base OMGD (arXiv 2108.06908): a wider and a deeper teacher keep learning on labelled pairs
with a discriminator whose first blocks they share; the student sees neither truth nor discriminator, only what the teachers make of images with and
without a label; channel distillation comes from the wider teacher alone. UGC's weights and its rule for weighting the teachers are not published.
The rule here is ours: teachers are estimates of one picture, and independent estimates are best combined by the inverse of their squared errors.
These are measured while training, on labelled pairs that nothing is trained on. Pixels are compared with the mean of the teachers' pictures so
weighted, which is nearer to the truth than either picture (between two, an absolute difference would have no preference). Features are compared with
each teacher's, because a mean of textures is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mcompress.compress.losses import mean_over
from mcompress.compress.objectives.adaptors import adapted, rectified_adaptors
from mcompress.compress.objectives.batches import mixed_batch
from mcompress.compress.objectives.discriminators import SharedDiscriminator, supervised_terms
from mcompress.compress.objectives.features import matched, with_features
from mcompress.compress.objectives.likeness import Features, feature_terms, pixel_terms
from mcompress.compress.objectives.mean_teacher import AveragedTeacher
from mcompress.compress.tasks.task import Inputs, Task, moved
from mcompress.compress.train import Objective
from mcompress.targets.stages import AdaptiveDistillConfig

WIDER, ORIGINAL = "wider", "original"
QUALITY_EVERY = 20
"""Steps between two measurements of the teachers' quality."""
MEMORY = 0.5
"""Share of the earlier quality that a new measurement leaves: a batch of a few pairs is a noisy judge."""


class TeacherQuality(nn.Module):
    """How good each teacher is at present; a module, so that a training that continues from a checkpoint weights them as it would have."""

    steps: Tensor
    squared_error: Tensor

    def __init__(self, teachers: int, weighting: Literal["quality", "equal"]) -> None:
        super().__init__()
        self.weighting = weighting
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("squared_error", torch.zeros(teachers, dtype=torch.float64))

    @torch.no_grad()
    def note(self, squared_errors: list[float]) -> None:
        """New measurements, one per teacher."""
        new = torch.tensor(squared_errors, dtype=torch.float64).clamp_min(1e-12)
        first = bool((self.squared_error == 0).all())
        self.squared_error.copy_(new if first else MEMORY * self.squared_error + (1.0 - MEMORY) * new)

    def weights(self) -> list[float]:
        """Per teacher the inverse of its squared error, as shares of 1; equal ones where the target asks for them. One alone has all."""
        if len(self.squared_error) == 1:
            return [1.0]
        inverse = 1.0 / self.squared_error if self.weighting == "quality" else torch.ones_like(self.squared_error)
        return [float(share) for share in inverse / inverse.sum()]


class AdaptiveDistillation(Objective):
    """Players, in the order in which they move: each learning teacher, `discriminator`, `student` (with adaptors and the teachers' quality).

    `teachers` learn, name -> network; `original`, if given, teaches as it is.
    """

    def __init__(
        self, task: Task, config: AdaptiveDistillConfig, student: nn.Module, teachers: Mapping[str, nn.Module], original: nn.Module | None
    ) -> None:
        self.task, self.config = task, config
        self.learning = dict(teachers)
        self.teachers = self.learning if original is None else {**self.learning, ORIGINAL: original}
        self.original = original
        self.judged = task.validation_batch()
        along: dict[str, nn.Module] = {"quality": TeacherQuality(len(self.teachers), config.weighting)}
        self.means = {name: AveragedTeacher(teacher) for name, teacher in self.learning.items()}
        along.update({f"mean of {name}": mean for name, mean in self.means.items()})
        self.with_channels = bool(config.channel) and WIDER in self.learning
        if self.with_channels:
            inputs, _ = task.training_batch(1, config.crop_size, torch.Generator().manual_seed(0))
            along["adaptors"] = rectified_adaptors(matched(student, self.learning[WIDER], inputs, "stage distill"))
        self.student = nn.ModuleDict({"student": student, **along})
        needed = config.with_discriminator and bool(self.learning)
        self.discriminator = SharedDiscriminator.for_task(task, config, tuple(self.learning), config.shared_blocks) if needed else None

    @property
    def left_out(self) -> dict[str, str]:
        """Terms with a weight that are not computed -> why. Of an original alone it was the target that left them out."""
        reasons: dict[str, str] = {}
        if not self.config.with_learning_teachers:
            return reasons
        if not self.learning:
            why = "no teacher learns, so there is no discriminator; put a search of method semi_supervised before this stage"
            reasons |= {name: why for name in ("adversarial", "gram", "feature") if getattr(self.config, name)}
        if self.config.channel and not self.with_channels:
            reasons["channel"] = "it compares with the wider teacher, and there is none"
        return reasons

    @property
    def quality(self) -> TeacherQuality:
        """The teachers' quality at present."""
        found = self.student["quality"]
        assert isinstance(found, TeacherQuality)  # noqa: S101  (put there above)
        return found

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        discriminator = {} if self.discriminator is None else {"discriminator": self.discriminator}
        return {**self.learning, **discriminator, "student": self.student}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The original, where it teaches."""
        return {} if self.original is None else {ORIGINAL: self.original}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminator learns at its own rate."""
        return {"discriminator": self.config.discriminator_learning_rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw labelled pairs and as many inputs of any kind; now and then measure the teachers."""
        self.batch = mixed_batch(self.task, self.config, generator, device)
        self.inputs = self.batch.all_inputs
        step = int(self.quality.steps)
        self.teachers_learn = step % self.config.teachers_every == 0
        self.answers: dict[str, Tensor] = {}
        if step % QUALITY_EVERY == 0 and len(self.teachers) > 1:
            self._measure(device)
        self.quality.steps.add_(1)

    @torch.no_grad()
    def _measure(self, device: torch.device) -> None:
        inputs, truth = moved(self.judged[0], device), self.judged[1].to(device)
        answers = {name: self._answer(name, inputs)[0] for name in self.teachers}
        self.quality.note([float((answer - truth).square().mean()) for answer in answers.values()])

    @torch.no_grad()
    def _answer(self, name: str, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """A teacher's pictures, and its feature maps."""
        if name in self.means:
            found: tuple[Tensor, list[Tensor]] = self.means[name](*inputs)
            return found
        return with_features(self.teachers[name], *inputs)

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        if player == "student":
            return self._student_terms()
        if not self.teachers_learn:
            return {}
        return self._discriminator_terms() if player == "discriminator" else self._teacher_terms(player)

    def _teacher_terms(self, name: str) -> dict[str, Tensor]:
        output = self.learning[name](*self.batch.inputs).float()
        self.answers[name] = output.detach()
        return supervised_terms(self.config, self.task, self.discriminator, name, self.batch.source, self.batch.truth, output)

    def _discriminator_terms(self) -> dict[str, Tensor]:
        if self.discriminator is None:
            return {}
        judge, batch = self.discriminator, self.batch
        return {f"gan of {name}": judge.own_term(name, batch.source, batch.truth, self.answers[name]) for name in self.learning}

    def _student_terms(self) -> dict[str, Tensor]:
        config = self.config
        if self.teachers_learn:  # they moved before the student
            for teacher in self.means.values():
                teacher.follow(int(self.quality.steps) - 1)
        student = self.student["student"]
        output, made = with_features(student, *self.inputs) if self.with_channels else (student(*self.inputs), [])
        output, terms, mean = output.float(), {}, torch.zeros(())
        for name, weight in zip(self.teachers, self.quality.weights(), strict=True):
            wanted, of_teacher = self._answer(name, self.inputs)
            mean = mean + weight * wanted
            if self.discriminator is not None:
                seen = feature_terms(config, output, wanted, self._features(self.discriminator, name))
                terms.update({f"{term} of {name}": weight * value for term, value in seen.items()})
            if name == WIDER and self.with_channels:
                seen_by_student = adapted(self.student["adaptors"], [one.float() for one in made])
                terms["channel"] = config.channel * mean_over("channel_mse", seen_by_student, [one.float() for one in of_teacher])
        return {**pixel_terms(config, self.task, output, mean), **terms}

    def _features(self, discriminator: SharedDiscriminator, name: str) -> Features:
        """Blocks of the discriminator in which pictures are compared; of the original's, those of the first teacher's."""
        owner = name if name in self.learning else next(iter(self.learning))
        return lambda picture: discriminator.forward_features(owner, self.inputs[0], picture)[:-1]
