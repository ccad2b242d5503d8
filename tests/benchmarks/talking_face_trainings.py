"""The trainings that `talking_face.py` compares: networks, ways, and what a trained network is worth on the held-out clips.

A network is the hand-made cut, the original without its residual blocks, or what a search or the prune stage found within the cut's cost
(`talking_face_cuts`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from comparing_trainings import digest_of, fit
from talking_face_adversary import DISCRIMINATOR_RATE, IN_SYNC, LOOKS_AT, LOOKS_EVERY, QUALITY, SYNC, WIDTH, AgainstQuality
from talking_face_cuts import SHAPE, Start, start_of, task_of_clips
from torch import nn

from mcompress.compress.models.wav2lip import FACE_SIDE
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.tasks.talking_face.clips import CLIPS
from mcompress.compress.tasks.talking_face.footage import known_footage
from mcompress.compress.tasks.talking_face.performance import ClipPerformance
from mcompress.compress.tasks.talking_face.task import TalkingFace, example
from mcompress.compress.train import TrainSettings
from mcompress.targets.stages import DistillConfig, TrainingConfig

BATCH = 10
"""Frames; of these five are neighbours in every way, as the expert needs them."""
RATES = (3e-3, 8e-3)
"""Every way is trained with each of these learning rates, and compared with its better one."""
TRUTH = {"truth": 0.0, "squared": 24.0}
TERMS = {**TRUTH, "output": 0.0, "feature": 0.1, "channel": 0.1}
"""Of distillation, as the target for Jetson Xavier NX has them; all ways but Wav2Lip's own see the truth alike."""


@dataclass(frozen=True)
class Training:
    """One training that is compared: which network, its way, learning rate, seed and steps."""

    network: str
    way: str
    rate: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Worth:
    """A network on the held-out clips.

    `psnr_db`: of the lower halves. Errors: mean distance to the exact mouths, neutral mouth widths. `lip_sync`: by the embedded expert, in [0, 1].
    """

    psnr_db: float
    mouth_opening_error: float
    mouth_width_error: float
    lip_sync: float


JUDGED = tuple(one.name for one in fields(Worth))[1:]


@dataclass(frozen=True)
class Trained:
    """What came of a training: its worth, and processor time of one thread, seconds, without that of the original and of a search."""

    training: Training
    worth: Worth
    seconds: float


def read(row: dict[str, object]) -> Trained:
    """As `Results` wrote it."""
    return Trained(Training(**row["training"]), Worth(**row["worth"]), row["seconds"])  # type: ignore[arg-type]


def worth(task: TalkingFace, network: nn.Module) -> Worth:
    """PSNR of the frames that reports show; the rest of every held-out clip, performed whole with its first frame as the reference."""
    network.eval()
    with torch.no_grad():
        psnr_db = statistics.mean(task.quality(network(*sample.inputs), sample.truth) for sample in task.held_out())
    found: dict[str, list[float]] = {}
    for seed in CLIPS["held_out"]:
        clip = ClipPerformance(known_footage(seed), example, task.expert())
        for one in clip.judge(clip.perform(network, BATCH), "host").measurements:
            found.setdefault(one.what, []).append(one.value)
    mean = {name: round(statistics.mean(found[name]), 5) for name in JUDGED}
    return Worth(round(psnr_db, 4), *mean.values())


def from_scratch(task: TalkingFace, start: Start, settings: TrainSettings) -> tuple[nn.Module, float]:
    """Random weights, and the truth alone."""
    return _fitted(task, start.fresh(settings.seed), settings)


def tuned(task: TalkingFace, start: Start, settings: TrainSettings) -> tuple[nn.Module, float]:
    """The weights that it inherits, and the truth alone."""
    return _fitted(task, start.inherited(settings.seed), settings)


def _fitted(task: TalkingFace, made: nn.Module, settings: TrainSettings) -> tuple[nn.Module, float]:
    return made, fit(FitTruth(task, config_of(settings), made, **TRUTH), settings)


def adversarial(task: TalkingFace, start: Start, settings: TrainSettings) -> tuple[nn.Module, float]:
    """The weights that it inherits, and Wav2Lip's own loss: absolute errors, the expert, and a discriminator of lower halves."""
    made = start.inherited(settings.seed)
    return made, fit(AgainstQuality(task, config_of(settings), made), settings)


def adversarial_squared(task: TalkingFace, start: Start, settings: TrainSettings) -> tuple[nn.Module, float]:
    """The same with the squared errors that the other ways learn from."""
    made = start.inherited(settings.seed)
    return made, fit(AgainstQuality(task, config_of(settings), made, **TRUTH), settings)


def distilled(task: TalkingFace, start: Start, settings: TrainSettings) -> tuple[nn.Module, float]:
    """The weights that it inherits, the truth, and the embedded original, whose own training is not counted."""
    made, (_, teacher) = start.inherited(settings.seed), task.embedded_teacher(start.spec.input_shape)
    config = DistillConfig(**config_of(settings).model_dump(), **TERMS)
    return made, fit(Distillation(task, config, made, teacher.eval(), settings.seed), settings)


def config_of(settings: TrainSettings) -> TrainingConfig:
    """What every way draws."""
    return TrainingConfig(steps=settings.steps, batch_size=BATCH, crop_size=FACE_SIDE, learning_rate=settings.learning_rate)


FROM_SCRATCH, TUNED, DISTILLED = "from scratch", "tuned", "distilled"
ADVERSARIAL, ADVERSARIAL_SQUARED = "adversarial", "adversarial, squared errors"
WAYS: dict[str, Callable[[TalkingFace, Start, TrainSettings], tuple[nn.Module, float]]] = {
    FROM_SCRATCH: from_scratch,
    TUNED: tuned,
    ADVERSARIAL: adversarial,
    ADVERSARIAL_SQUARED: adversarial_squared,
    DISTILLED: distilled,
}


def run(work: Path, training: Training) -> Trained:
    """Train and judge, in one thread; `work` holds the networks that were found."""
    torch.set_num_threads(1)
    task = task_of_clips()
    start = start_of(training.network, training.seed, work)
    settings = TrainSettings(training.steps, training.rate, training.seed)
    made, seconds = WAYS[training.way](task.for_expert(), start, settings)
    return Trained(training, worth(task, made), round(seconds, 1))


def recipe() -> dict[str, object]:
    """What every result depends on, besides the trainings' own names: results of another recipe are worth nothing beside these."""
    task = task_of_clips()
    _, teacher = task.embedded_teacher(SHAPE)
    return {
        "batch_size": BATCH,
        "learning_rates": list(RATES),
        "terms": TERMS,
        "adversarial": {
            "sync": SYNC,
            "quality": QUALITY,
            "discriminator_width": WIDTH,
            "discriminator_learning_rate": DISCRIMINATOR_RATE,
            "in_sync": [IN_SYNC, LOOKS_EVERY, LOOKS_AT],
        },
        "settings": {name: getattr(TrainSettings, name) for name in ("warmup_steps", "average", "clip_norm")},
        "weights_of_places": digest_of([task.weighted(torch.ones(1, 3, FACE_SIDE, FACE_SIDE))]),
        "data": task.data_digest,
        "teacher": digest_of(teacher.state_dict().values()),
    }
