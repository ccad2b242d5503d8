"""The trainings that `text_to_image.py` compares, and what a U-Net is worth: the pictures that it draws for held-out captions.

All begin with the embedded original. `steps`: the ladder of step distillation with several probabilities of the guidance-aware loss. `evolving`:
blocks that are removed by their value, at random, or the largest first, until the same latency is met, with the same robust training.
`consistency`: a latent consistency model in 4 steps and in 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from comparing_trainings import digest_of, stage_context
from torch import Tensor, nn

from mcompress.compress.attention_layout import fastest_attention
from mcompress.compress.evolving import by_value, evolve
from mcompress.compress.evolving_actions import ScoredBlock
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec, Sampling
from mcompress.compress.sampling import further_noises, sample
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.step_distillation import distill_consistency, distill_steps
from mcompress.compress.tasks.text_to_image.data import held_out_scenes, training_scenes
from mcompress.compress.tasks.text_to_image.gallery import psnr_db
from mcompress.compress.tasks.text_to_image.judge import attributes_right, embedded_judge, scene_distance
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy
from mcompress.compress.tasks.text_to_image.loading import embedded_original
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.compress.train import step_generator
from mcompress.targets.schema import Budget
from mcompress.targets.stages import ConsistencyDistillConfig, EvolveSearchConfig, StepDistillConfig

DEVICE, PRECISION = "apple-a16", "fp16"
TEACHER_STEPS, STUDENT_STEPS, GUIDANCE = 32, 8, 7.5
NOISES = 3
"""Sets of noise for the pictures, one of each caption in each set; the original's spread is over them."""
AT_ONCE = 45
LATENCY_RATIO = 0.88
"""Of the original's estimate, which all ways to remove blocks meet."""
VANILLA, MIX, HALF = "vanilla", "mix", "half guided"
PROBABILITIES = {VANILLA: 0.0, MIX: 0.1, HALF: 0.5}
"""Of the guidance-aware loss; SnapFusion's is 0.1."""
BY_VALUE, AT_RANDOM, BY_SIZE = "by value", "at random", "by size"
CONSISTENT = {"4 steps": 4, "1 step": 1}
"""Sampling steps of the latent consistency model, which is the same one for both."""


@dataclass(frozen=True)
class Training:
    """One training that is compared; `steps` are those of the last leg of the ladder, or of robust training."""

    part: str
    way: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Worth:
    """Pictures of all held-out captions, for one set of noise each; accuracies in %, likeness to the original's pictures with 32 steps in dB."""

    attribute_accuracy: tuple[float, ...]
    whole_captions: tuple[float, ...]
    scene_distance: tuple[float, ...]
    psnr_db: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """What came of a training, and processor time of one thread, seconds."""

    training: Training
    worth: Worth
    seconds: float
    latency_ms: float


def read(row: dict[str, object]) -> Trained:
    """As `Results` wrote it."""
    worth = {name: tuple(values) for name, values in row["worth"].items()}  # type: ignore[attr-defined]
    return Trained(Training(**row["training"]), Worth(**worth), row["seconds"], row["latency_ms"])  # type: ignore[arg-type]


@cache
def task() -> TextToImage:
    """The embedded scenes, drawn by the original with 32 steps and guidance."""
    original = embedded_original()
    sampling = Sampling(original.prediction, TEACHER_STEPS, GUIDANCE)
    return TextToImage(original, training_scenes(), held_out_scenes(), AttributeAccuracy(embedded_judge()), sampling)


@cache
def originals() -> tuple[Tensor, ...]:
    """The original's pictures with all its steps, by set of noise."""
    return tuple(_drawn(task().original.unet.module, task().sampling, place) for place in range(NOISES))


def worth(network: nn.Module, sampling: Sampling) -> Worth:
    """What a U-Net draws, with the original's text encoder and decoder."""
    judge, scenes = embedded_judge(), task().held_out_pictures.scenes  # type: ignore[attr-defined]  # drawn scenes
    real = torch.cat([picture for some in (1, 2, 3, 4) for picture in replace(held_out_scenes(), seed=some).pictures()])
    rows = []
    for place in range(NOISES):
        pictures = _drawn(network.eval(), sampling, place)
        right = attributes_right(judge, pictures, scenes)
        rows.append(
            (
                round(100 * float(right.mean()), 3),
                round(100 * float(right.prod(1).mean()), 3),
                round(scene_distance(judge, pictures, real), 3),
                round(float(psnr_db(pictures, originals()[place]).clamp(max=200.0).mean()), 3),
            )
        )
    return Worth(*(tuple(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def _drawn(network: nn.Module, sampling: Sampling, place: int) -> Tensor:
    original, captions = task().original, task().held_out_pictures.captions
    noise = torch.randn((len(captions), *original.latents[1:]), generator=torch.Generator().manual_seed(100 + place))
    further = [torch.randn(noise.shape, generator=torch.Generator().manual_seed(1000 * step + place)) for step in range(further_noises(sampling))]
    latents = [
        sample(network, sampling, original.schedule, some, text, original.no_caption, added)
        for some, text, *added in zip(*(torch.split(one, AT_ONCE) for one in (noise, original.states(captions), *further)), strict=True)
    ]
    return original.decoded(torch.cat(latents))


def _context(seed: int, latency_ms: float | None) -> StageContext:
    """As the pipeline begins: with the original in the layout of attention that is fastest on the device."""
    spec, network = task().embedded_teacher(task().original.latents)
    found = stage_context(task(), DEVICE, Budget(latency_ms=latency_ms), (spec, network), seed, Path(tempfile.gettempdir()))
    laid_out = fastest_attention(spec, found.device, found.unit, PRECISION)[0]
    model = build(laid_out)
    model.load_state_dict(network.state_dict())
    return replace(found, spec=laid_out, model=model.eval(), ships_as=PRECISION)


def distilled(training: Training) -> StageOutput:
    """The whole ladder on the original itself."""
    return distill_steps(ladder(training), _context(training.seed, None))


def ladder(training: Training) -> StepDistillConfig:
    """From 32 to 16 in half as many training steps as from there to 8, all on predictions of the noise."""
    return StepDistillConfig(
        to_velocity=False,
        original_middle_training_steps=training.steps // 2,
        student_middle_training_steps=training.steps // 2,
        student_training_steps=training.steps,
        guidance_probability=PROBABILITIES[training.way],
        batch_size=32,
        learning_rate=5e-5,
    )


def consistent(training: Training) -> StageOutput:
    """A latent consistency model of the original itself, to be sampled in as many steps as the way says."""
    output = _consistency_model(training.seed, training.steps)
    sampling = output.spec.sampling
    assert sampling is not None
    return replace(output, spec=replace(output.spec, sampling=replace(sampling, steps=CONSISTENT[training.way])))


@cache
def _consistency_model(seed: int, steps: int) -> StageOutput:
    return distill_consistency(consistency(steps), _context(seed, None))


def consistency(steps: int) -> ConsistencyDistillConfig:
    """The scale of guidance from the range of the paper's training."""
    return ConsistencyDistillConfig(steps=steps, batch_size=32, learning_rate=2e-4)


def original_ms() -> float:
    """The estimate of the original's U-Net on the device."""
    from mcompress.compress.evolving_costs import UnetCosts

    context = _context(0, None)
    return UnetCosts(context.device, context.unit, context.ships_as).of(context.spec).latency.value


def evolved(training: Training) -> StageOutput:
    """Blocks go until the latency is met; nothing is doubled."""
    return evolve(evolution(training), _context(training.seed, LATENCY_RATIO * original_ms()), _orders(training.seed)[training.way])


def evolution(training: Training) -> EvolveSearchConfig:
    """Robust training, and a fifth of it after each action."""
    return EvolveSearchConfig(
        steps=training.steps,
        steps_between=training.steps // 5,
        group=2,
        most_doubled=0,
        evaluation_latents=32,
        batch_size=32,
        learning_rate=2e-4,
    )


def _orders(seed: int) -> dict[str, Callable[[list[ScoredBlock]], list[ScoredBlock]]]:
    def at_random(scored: list[ScoredBlock]) -> list[ScoredBlock]:
        names = sorted(one.block for one in scored)
        draw = torch.randperm(len(names), generator=step_generator(seed, len(names))).tolist()
        place = {name: draw[index] for index, name in enumerate(names)}
        return sorted(scored, key=lambda one: place[one.block])

    unet = task().original.unet.module

    def by_size(scored: list[ScoredBlock]) -> list[ScoredBlock]:
        sizes = {one.block: sum(weight.numel() for weight in unet.get_submodule(f"unet.{one.block}").parameters()) for one in scored}
        return sorted(scored, key=lambda one: (-sizes[one.block], one.block))

    return {BY_VALUE: by_value, AT_RANDOM: at_random, BY_SIZE: by_size}


PARTS: dict[str, tuple[Callable[[Training], StageOutput], tuple[str, ...]]] = {
    "steps": (distilled, tuple(PROBABILITIES)),
    "evolving": (evolved, (BY_VALUE, AT_RANDOM, BY_SIZE)),
    "consistency": (consistent, tuple(CONSISTENT)),
}
"""Part -> what trains, and the ways that are compared."""


def run(training: Training) -> Trained:
    """Train and judge, in one thread."""
    import time

    torch.set_num_threads(1)
    started = time.process_time()
    output = PARTS[training.part][0](training)
    seconds = time.process_time() - started
    sampling = output.spec.sampling or task().sampling
    return Trained(training, worth(output.model, sampling), round(seconds, 1), _latency_ms(output.spec))


def _latency_ms(spec: ModelSpec) -> float:
    from mcompress.compress.evolving_costs import UnetCosts

    context = _context(0, None)
    return round(UnetCosts(context.device, context.unit, context.ships_as).of(spec).latency.value, 5)


def recipe(part: str) -> dict[str, object]:
    """What every result of a part depends on, besides the trainings' own names."""
    original, any_ = task().original, Training(part, MIX, 0, 1000)
    ladders: dict[str, object] = {"ladder": ladder(any_).model_dump(mode="json")}
    evolutions: dict[str, object] = {"evolution": evolution(any_).model_dump(mode="json"), "latency_ratio": LATENCY_RATIO}
    return {
        **{"steps": ladders, "evolving": evolutions, "consistency": {"consistency": consistency(1000).model_dump(mode="json")}}[part],
        "device": f"{DEVICE} {PRECISION}",
        "teacher_steps": TEACHER_STEPS,
        "student_steps": [*CONSISTENT.values()] if part == "consistency" else STUDENT_STEPS,
        "guidance": GUIDANCE,
        "noises": NOISES,
        "data": task().data_digest,
        "teacher": digest_of(original.unet.module.state_dict().values()),
    }
