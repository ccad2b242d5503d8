"""Targets with unpaired data: the original's outputs stand for the truth, from plan to exported file, and what needs true pairs is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import mcompress
from mcompress.cache import Cache
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACES
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.prune import prune
from mcompress.compress.stage import StageContext
from mcompress.compress.supernet import apply_candidate, read_weights
from mcompress.compress.tasks.photographs import Photo, PhotoSet
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.compress.taught import TaughtBatches
from mcompress.console import Silent
from mcompress.errors import PlanError
from mcompress.evaluate import mean, score_network
from mcompress.planning import plan
from mcompress.record import HIGHEST_DB
from mcompress.staging import run_stages
from mcompress.targets.load import load_target
from mcompress.targets.stages import DistillConfig, PruneConfig

SHAPE = (1, 3, 32, 32)
ARGS = {"features": 4, "depths": [1, 1, 1]}
TARGET = """\
name: unpaired
device: snapdragon865
threads: 1
model:
  task: translation
  teacher: {{network: resnet_generator, checkpoint: {folder}/teacher.safetensors}}
  input_shape: [1, 3, 32, 32]
data: {{pairing: unpaired, training: {folder}/training, held_out: {folder}/held_out}}
budget: {{quality: {{metric: teacher_psnr_db, at_least: 15}}}}
stages:
  - {{stage: distill, truth: 0, output: 1, ssim: 0.1, adversarial: 0.01, steps: 3, batch_size: 2, crop_size: 32, discriminator_features: 4}}
  - {{stage: quantize, samples: 2, sensitivity_samples: 1, verify_samples: 1}}
exports: [{{backend: onnx}}]
"""


def picture(seed: int, low: int, high: int, side: int = 40) -> Tensor:
    """Soft spots of colour between two levels, uint8 (3, side, side)."""
    spots = torch.rand((1, 3, 5, 5), generator=torch.Generator().manual_seed(seed))
    soft = functional.interpolate(spots, size=side, mode="bilinear")[0]
    return (low + soft * (high - 1 - low)).round().to(torch.uint8)


def original(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build(ModelSpec("resnet_generator", ARGS))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4.0)  # weights as they start give a picture that is nearly grey
    return network.eval()


def write_weights(network: nn.Module, folder: Path) -> None:
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "teacher.safetensors")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A target file, with its original and its folders beside it."""
    for place, low, high, count in (("training/A", 0, 100, 6), ("training/B", 150, 256, 3), ("held_out", 0, 100, 2)):
        (tmp_path / place).mkdir(parents=True)
        for number in range(count):
            pixels = picture(10 * len(place) + number, low, high)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / place / f"{number}.png")
    write_weights(original(1), tmp_path)
    path = tmp_path / "target.yaml"
    path.write_text(TARGET.format(folder=tmp_path))
    return path


def test_an_unpaired_target_is_distilled_quantized_and_exported(made: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(0, 0, 100, 32).permute(1, 2, 0).numpy()).save(tmp_path / "training" / "A" / "small.png")
    outcome = mcompress.run(made, ["stages[0].crop_size=36"], out=tmp_path / "runs")
    outcome.raise_for_status()
    record = outcome.record
    (about_data,) = (fallback.reason for fallback in record.fallbacks if fallback.where == "data")
    assert about_data == "stages[0] (distill): 1 of 9 training pictures are smaller than crop_size 36"
    assert record.models["teacher"].quality == {"teacher_psnr_db": HIGHEST_DB}
    assert any("200 dB, equal to the bit, by definition" in line for line in record.not_measured)
    assert 15.0 < record.models["compressed"].quality["teacher_psnr_db"] < 100.0
    assert {export.parity.passed for export in record.exports} == {True}
    assert [line.met for line in record.budget] == [True]
    samples = outcome.folder / "samples"
    held_out = load_pixels(next(samples.rglob("truth.png")))
    with torch.no_grad():
        answers = [original(1)(load_pixels(path)) for path in sorted(samples.rglob("input.png"))]
    assert min(float((answer - held_out).abs().max()) for answer in answers) < 0.01


def test_a_search_judges_candidates_by_their_likeness_to_the_original(made: Path, tmp_path: Path) -> None:
    search = '{"stage": "search", "steps": 2, "trials": 4, "batch_size": 1, "crop_size": 32, "checkpoint_every_s": 0.001}'
    ready = plan(load_target(made, [f"stages=[{search}]"]))
    (found,) = run_stages(ready, tmp_path, Cache(tmp_path / "cache"), (), Silent())
    (picked,) = (trial for trial in json.loads((found.entry.folder / "details.json").read_text())["trials"] if trial["picked"])
    inputs, truth = ready.task.validation_batch()
    with torch.no_grad():
        assert torch.equal(truth, ready.teacher(*inputs))
        weights = read_weights(next(tmp_path.rglob("supernet.safetensors")))
        output = apply_candidate(SPACES["resnet_generator"], picked["spec_args"], weights, inputs)
    assert picked["quality"] == pytest.approx(ready.task.quality(output, truth), abs=1e-6)


def load_pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def test_what_is_cached_of_one_originals_truths_is_not_taken_for_anothers(made: Path, tmp_path: Path) -> None:
    first = plan(load_target(made))
    write_weights(original(2), tmp_path)
    second = plan(load_target(made))
    assert first.task.data_digest == second.task.data_digest
    assert first.data_digest != second.data_digest
    assert not torch.equal(first.task.held_out()[0].truth, second.task.held_out()[0].truth)
    for ready in (first, second):
        assert mean(score_network(ready.task, ready.teacher, None, "teacher")) == {"teacher_psnr_db": HIGHEST_DB}


PAIRED = r"which learns from labelled pairs, and data\.pairing is unpaired"


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ['stages=[{"stage": "search", "method": "semi_supervised", "crop_size": 32}]'],
            [rf"stages\[0\]\.method is semi_supervised, {PAIRED}.*Use method supernet"],
        ),
        (
            ['stages=[{"stage": "distill", "method": "adaptive", "crop_size": 32, "original": true}]'],
            [rf"stages\[0\]\.method is adaptive, {PAIRED}.*Use method online"],
        ),
        (
            ['stages=[{"stage": "slim", "crop_size": 32}]'],
            [rf"stages\[0\]\.method is stepwise, {PAIRED}.*Remove the stage", "the widths 1 and 0.5 give the same network"],
        ),
        (
            ["stages[0].truth=0.5", "budget.quality={metric: psnr_db, within: 0.5}"],
            [
                r"stages\[0\]\.truth is 0\.5; it compares with targets, which unpaired data do not have\. Set truth: 0",
                r"budget\.quality\.within is 0\.5, a loss against the original.*Use at_least",
                r"budget\.quality\.metric is 'psnr_db'; translation measures teacher_psnr_db, because data\.pairing is unpaired.*write metric: teach",
            ],
        ),
        (
            ['stages=[{"stage": "prune", "ratio": 0.1}, {"stage": "distill", "crop_size": 32}]'],
            [r"stages\[1\]\.truth is 1, its default; it compares with targets"],
        ),
        (
            ['stages=[{"stage": "distill", "crop_size": 32, "truth": 0, "squared": 2}]'],
            [r"stages\[0\]\.squared is 2; it compares with targets, .* Set squared: 0 and a weight of output"],
        ),
    ],
)
def test_paired_losses_are_refused_with_advice_all_at_once(made: Path, overrides: list[str], messages: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        plan(load_target(made, overrides))
    found = str(refused.value).splitlines()
    assert len(found) == len(messages)
    for message in messages:
        assert any(re.search(message, line) for line in found), (message, found)


class Counting(nn.Module):
    """Brightens; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.asked = nn.Parameter(torch.tensor(0.5)), 0

    def forward(self, image: Tensor) -> Tensor:
        self.asked += 1
        return torch.tanh(image * self.gain)


def taught(teacher: nn.Module) -> UnpairedTranslation:
    def photos(low: int, high: int) -> PhotoSet:
        return PhotoSet(tuple(Photo(f"{low} {n}", picture(n, low, high)) for n in range(4)))

    return UnpairedTranslation(photos(0, 100), photos(150, 256), photos(0, 90)).taught_by(teacher)


@pytest.mark.parametrize("teacher_batches", [None, 1])
def test_a_lesson_asks_the_original_once(teacher_batches: int | None) -> None:
    teacher = Counting()
    config = DistillConfig(truth=0.0, batch_size=2, crop_size=16, teacher_batches=teacher_batches)
    lessons = TaughtBatches(taught(teacher), config, teacher, 0)
    for _ in range(2):
        lesson = lessons.draw(torch.Generator().manual_seed(3), torch.device("cpu"))
        assert torch.equal(lesson.truth, lesson.taught)
        assert torch.allclose(lesson.taught, torch.tanh(lesson.inputs[0] * 0.5), atol=1e-3)
    assert teacher.asked == (2 if teacher_batches is None else 1)


@pytest.mark.parametrize(
    "weights", [{"adversarial": 0.1}, {"adversarial": 0.1, "adversarial_loss": "relativistic", "discriminator": 0.1}, {"gram": 0.1}]
)
def test_real_is_what_the_target_domain_has(weights: dict[str, float]) -> None:
    teacher = Counting()
    config = DistillConfig.model_validate({"truth": 0.0, "batch_size": 2, "crop_size": 16, "discriminator_features": 4, **weights})
    objective = Distillation(taught(teacher), config, Counting(), teacher, 0)
    objective.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    assert float(objective.real.min()) > 0.1 > float(objective.teacher_output.max())
    for player in objective.players():
        assert all(bool(torch.isfinite(term)) for term in objective.terms(player).values())
    discriminator = objective.teacher_discriminator if "gram" in weights else objective.discriminator
    fake = objective.teacher_output if "gram" in weights else objective.output.detach()
    seen: list[Tensor] = []
    handle = discriminator.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    objective.terms("teacher_discriminator" if "gram" in weights else "discriminator")
    handle.remove()
    assert torch.equal(seen[0], objective.real)
    assert torch.equal(seen[1], fake)


def test_without_a_game_no_picture_of_the_target_domain_is_drawn() -> None:
    teacher = Counting()
    task = taught(teacher)
    objective = Distillation(task, DistillConfig(truth=0.0, batch_size=2, crop_size=16), Counting(), teacher, 0)
    generator = torch.Generator().manual_seed(0)
    objective.begin_step(generator, torch.device("cpu"))
    assert objective.real is objective.truth
    afterwards = torch.Generator().manual_seed(0)
    task.unlabelled_batch(2, 16, afterwards)
    assert torch.equal(generator.get_state(), afterwards.get_state())


def test_pruning_the_original_itself_finds_the_channels_that_nobody_misses(make_context: Callable[..., StageContext]) -> None:
    spec = ModelSpec("resnet_generator", ARGS, (), SHAPE, (-1.0, 1.0))
    network = original(1)
    with torch.no_grad():
        network.get_submodule("groups.1.0.conv2").weight[:, ::2] = 0.0
    context = replace(make_context(spec), model=original(1), task=taught(network), teacher=network)
    context.model.load_state_dict(network.state_dict())
    output = prune(PruneConfig(ratio=0.1, round_to=8, importance_batches=2), context)
    removed = {edit.module: edit.channels for edit in output.spec.edits if edit.is_output}
    assert removed["groups.1.0.conv1"] == tuple(range(0, 16, 2))
    assert output.model(torch.zeros(SHAPE)).shape == SHAPE
