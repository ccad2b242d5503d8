"""Batches with the teacher's answer: stored answers belong to their batch, cost the teacher nothing twice, and resume to the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcompress.compress.tasks.super_resolution.photos import degrade
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.taught import TaughtBatches, batch_generator
from mcompress.compress.train import step_generator
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TaughtConfig

TASK = SuperResolution.from_config(DataConfig())
CPU = torch.device("cpu")


class Teacher(nn.Module):
    """Enlarges by repetition, which every orientation commutes with, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, source: Tensor) -> Tensor:
        self.asked += 1
        return source.repeat_interleave(4, 2).repeat_interleave(4, 3)


def batches(count: int | None, seed: int = 0) -> tuple[TaughtBatches, Teacher]:
    teacher = Teacher()
    return TaughtBatches(TASK, TaughtConfig(batch_size=2, crop_size=8, teacher_batches=count), teacher, seed), teacher


def test_a_reoriented_answer_still_belongs_to_its_input() -> None:
    lessons, teacher = batches(3)
    oriented = set()
    for step in range(40):
        lesson = lessons.draw(step_generator(0, step), CPU)
        assert lesson.inputs[0].shape == (2, 3, 8, 8)
        assert lesson.truth.shape == lesson.taught.shape == (2, 3, 32, 32)
        torch.testing.assert_close(lesson.taught, teacher(lesson.inputs[0]), atol=1e-3, rtol=0)  # fp16
        # Degrading the truth gives the input, so the truth turned with it.
        torch.testing.assert_close(degrade(lesson.truth), lesson.inputs[0], atol=1.01 / 255, rtol=0)
        oriented.add(tuple(lesson.inputs[0].flatten().tolist()))
    assert len(oriented) > 3 * 4  # three batches in several of eight orientations


def test_the_teacher_is_asked_once_per_batch() -> None:
    lessons, teacher = batches(3)
    for step in range(40):
        lessons.draw(step_generator(0, step), CPU)
    assert teacher.asked == 3
    lessons, teacher = batches(None)
    for step in range(5):
        lessons.draw(step_generator(0, step), CPU)
    assert teacher.asked == 5


def test_a_step_gets_the_same_lesson_in_a_process_that_starts_there() -> None:
    running, _ = batches(3)
    for step in range(9):
        running.draw(step_generator(4, step), CPU)
    resumed, _ = batches(3)
    expected, found = running.draw(step_generator(4, 9), CPU), resumed.draw(step_generator(4, 9), CPU)
    assert torch.equal(expected.inputs[0], found.inputs[0])
    assert torch.equal(expected.truth, found.truth)
    assert torch.equal(expected.taught, found.taught)


def test_the_stored_batches_are_the_runs_own_and_no_steps() -> None:
    def first(generator: torch.Generator) -> tuple[int, ...]:
        return tuple(torch.randint(2**31, (4,), generator=generator).tolist())

    of_two_runs = [{first(batch_generator(seed, number)) for number in range(300)} for seed in (0, 1)]
    assert all(len(found) == 300 for found in of_two_runs)
    assert not of_two_runs[0] & of_two_runs[1]
    steps = {first(step_generator(0, step)) for step in (*range(300), *range(104_700, 105_100))}
    assert not steps & of_two_runs[0]
    assert not torch.equal(*(batches(1, seed)[0].draw(step_generator(0, 0), CPU).inputs[0] for seed in (0, 1)))


def test_a_generator_keeps_32_bits_of_its_seed() -> None:
    """Why a hash would not keep batches and steps apart."""
    assert torch.equal(*(torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32)))
