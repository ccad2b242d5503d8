"""Distillation: every line of the loss table is reached by a configuration, and does what its weight says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from conftest import MemoryCheckpoints, silent
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.losses import TERMS
from mcompress.compress.models.build import build
from mcompress.compress.models.space import Args
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.train import TrainSettings, train
from mcompress.targets.stages import DistillConfig

SMALL: dict[str, object] = {"steps": 2, "batch_size": 2, "crop_size": 8, "discriminator_features": 4}
NOTHING: dict[str, object] = {"truth": 0.0, "output": 0.0}
REACHED_BY: dict[str, dict[str, object]] = {
    "l1": {},
    "feature_mse": {"feature": 0.1},
    "channel_mse": {"channel": 0.1},
    "kernel_alignment": {"kernel_alignment": 0.1},
    "gram_l1": {"gram": 0.1},
    "ssim": {**NOTHING, "ssim": 0.1},
    "total_variation": {"total_variation": 0.1},
    "lsgan_generator": {"adversarial": 0.1},
    "lsgan_discriminator": {"adversarial": 0.1},
    "relativistic_generator": {"adversarial": 0.1, "adversarial_loss": "relativistic"},
    "relativistic_discriminator": {"adversarial": 0.1, "adversarial_loss": "relativistic"},
    "hinge_generator": {"adversarial": 0.1, "adversarial_loss": "hinge"},
    "hinge_discriminator": {"adversarial": 0.1, "adversarial_loss": "hinge"},
}


def student() -> nn.Module:
    return build(ModelSpec("mfagan", {"channels": 8, "blocks": [[2, 8]]}))


def teacher() -> nn.Module:
    return build(ModelSpec("rrdb", {"features": 8, "blocks": 1, "growth": 4})).eval()


def objective(task: SuperResolution, weights: Mapping[str, object], made: nn.Module | None = None) -> Distillation:
    return Distillation(task, DistillConfig.model_validate({**SMALL, **weights}), made or student(), teacher(), 0)


def fit(what: Distillation) -> dict[str, Tensor]:
    trained = train(what, TrainSettings(2, 1e-3, 0), MemoryCheckpoints(), silent)
    return trained.averaged["generator"]


def test_a_configuration_reaches_every_term() -> None:
    assert set(REACHED_BY) == set(TERMS) - {"pseudo_huber"}  # that of consistency distillation; see tests/test_consistency.py


@pytest.mark.parametrize("name", list(REACHED_BY))
def test_its_configuration_computes_the_term_and_the_defaults_only_l1(name: str, task: SuperResolution, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: Counter[str] = Counter()

    def counting(term_name: str) -> None:
        term = TERMS[term_name]

        def compute(*inputs: Tensor) -> Tensor:
            computed[term_name] += 1
            return term.compute(*inputs)

        monkeypatch.setitem(TERMS, term_name, replace(term, compute=compute))

    for each in list(TERMS):
        counting(each)
    weights = fit(objective(task, REACHED_BY[name]))
    assert computed[name] >= 2
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    computed.clear()
    fit(objective(task, {}))
    assert set(computed) == {"l1"}


@pytest.mark.parametrize(
    "weight",
    [
        "truth",
        "squared",
        "output",
        "feature",
        "kernel_alignment",
        "channel",
        "discriminator_feature",
        "gram",
        "ssim",
        "total_variation",
        "adversarial",
    ],
)
def test_a_term_is_proportional_to_its_weight(weight: str, task: SuperResolution) -> None:
    values = []
    for scale in (0.25, 0.5):
        torch.manual_seed(0)
        made = objective(task, {"truth": 1.0, "output": 0.0, weight: scale})
        made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
        terms = made.terms("generator")
        assert set(terms) == {"truth", weight}
        values.append(float(terms[weight].detach()))
    assert values[1] == pytest.approx(2 * values[0], rel=1e-6)
    assert values[0] > 0


@pytest.mark.parametrize(
    ("weights", "players"),
    [
        ({}, ["generator"]),
        ({"gram": 0.1}, ["teacher_discriminator", "generator"]),
        ({"discriminator_feature": 0.1}, ["teacher_discriminator", "generator"]),
        ({"adversarial": 0.1}, ["discriminator", "generator"]),
        ({"adversarial": 0.1, "discriminator": 0.1}, ["teacher_discriminator", "discriminator", "generator"]),
    ],
)
def test_who_no_term_needs_does_not_play(weights: dict[str, object], players: list[str], task: SuperResolution) -> None:
    made = objective(task, weights)
    assert list(made.players()) == players
    assert {name for name in ("discriminator", "teacher_discriminator") if hasattr(made, name)} == set(players) - {"generator"}
    assert all(bool(torch.isfinite(value).all()) for value in fit(made).values())


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(task: SuperResolution) -> None:
    torch.manual_seed(0)
    original = teacher()
    made = Distillation(task, DistillConfig.model_validate({**SMALL, "truth": 0.0, "output": 1.0, "ssim": 1.0, "gram": 1.0}), original, original, 0)
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    assert {name: float(value.detach()) for name, value in made.terms("generator").items()} == pytest.approx(
        {"output": 0.0, "ssim": 0.0, "gram": 0.0}, abs=1e-6
    )


def generator(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    args: Args = {"widths": [width] * 8, "depths": [1, 1, 1], "convolutions": "separable", "normalization": "batch"}
    return build(ModelSpec("resnet_generator", args)).eval()


def of_generators(pairs: Translation, weight: str) -> tuple[Distillation, dict[str, Tensor], list[Tensor], list[Tensor]]:
    """One term of features between two generators: the objective, its terms, and the feature maps of student and teacher at the four taps."""
    config = DistillConfig.model_validate({**SMALL, **NOTHING, "crop_size": 32, weight: 0.5})
    made = Distillation(pairs, config, generator(4, 0), generator(6, 1), 0)
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    made.generator.eval()  # batch normalizations of adaptors as they begin: mean 0, variance 1
    made.teacher_discriminator.eval() if made.with_teacher_discriminator else None
    return made, dict(made.terms("generator")), made.made, made.wanted


def test_features_are_compared_as_gan_compression_does(pairs: Translation) -> None:
    """Mean squared error through a 1x1 convolution of the student's features, at four taps."""
    made, terms, student_maps, teacher_maps = of_generators(pairs, "feature")
    layers = made.generator["adaptors"]
    assert len(student_maps) == len(teacher_maps) == len(layers) == 4
    by_hand = [
        ((functional.conv2d(s, layer.weight, layer.bias) - t) ** 2).mean() for layer, s, t in zip(layers, student_maps, teacher_maps, strict=True)
    ]
    torch.testing.assert_close(terms["feature"], 0.5 * sum(by_hand) / 4)


def test_channels_are_compared_as_omgd_does(pairs: Translation) -> None:
    """Squared error of the means over positions, the student's features through a 1x1 convolution, batch normalization and ReLU, at four taps."""
    made, terms, student_maps, teacher_maps = of_generators(pairs, "channel")
    layers = made.generator["channel_adaptors"]
    assert [type(part) for part in layers[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    by_hand = []
    for (conv, norm, _), s, t in zip(layers, student_maps, teacher_maps, strict=True):
        seen = functional.relu(functional.conv2d(s, conv.weight, conv.bias) / (1 + norm.eps) ** 0.5)
        by_hand.append(((seen.mean((2, 3)) - t.mean((2, 3))) ** 2).mean())
    torch.testing.assert_close(terms["channel"], 0.5 * sum(by_hand) / 4)


def test_the_discriminator_sees_features_as_dcd_shows_them(pairs: Translation) -> None:
    """|D4(t_T(T_k)) - D4(t_S(S_k))|, t a 1x1 convolution to three channels, batch normalization and ReLU, D4 the fourth block; at four taps."""
    made, terms, student_maps, teacher_maps = of_generators(pairs, "discriminator_feature")
    blocks = made.teacher_discriminator.blocks
    assert len(blocks) == 4

    def seen(views: nn.Module, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for view, one in zip(views, maps, strict=True):
            picture = functional.interpolate(view(one), size=(32, 32), mode="nearest")
            assert picture.shape[1] == 3
            for block in blocks:
                picture = block(picture)
            found.append(picture)
        return found

    both = zip(seen(made.generator["student_views"], student_maps), seen(made.generator["teacher_views"], teacher_maps), strict=True)
    torch.testing.assert_close(terms["discriminator_feature"], 0.5 * sum((s - t).abs().mean() for s, t in both) / 4)
    made.teacher_discriminator.requires_grad_(False)
    made.terms("generator")["discriminator_feature"].backward()
    assert all(parameter.grad is None for network in (made.teacher_discriminator, made.teacher) for parameter in network.parameters())
    for moved in ("student_views", "teacher_views"):
        assert all(bool(layer[0].weight.grad.abs().sum() > 0) for layer in made.generator[moved])


def test_kernels_are_aligned_as_cat_does_over_a_batch_without_adaptors(pairs: Translation) -> None:
    made, terms, student_maps, teacher_maps = of_generators(pairs, "kernel_alignment")
    assert list(made.generator) == ["student"]
    by_hand = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        x, y = (one.flatten(1).double() @ one.flatten(1).double().T for one in (s, t))
        by_hand.append(1 - (x * y).sum() / (x.norm() * y.norm()))
    assert float(terms["kernel_alignment"].detach()) == pytest.approx(float(0.5 * sum(by_hand).detach() / 4), abs=1e-6)


def test_stored_answers_and_terms_of_features_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="feature and channel needs the teacher's features; remove teacher_batches, or set feature and channel to 0"):
        DistillConfig.model_validate({"teacher_batches": 2, "feature": 1.0, "channel": 1.0})


def test_the_relativistic_game_sends_no_gradient_into_the_discriminator_with_the_generators_move(task: SuperResolution) -> None:
    made = objective(task, {**NOTHING, "adversarial": 1.0, "adversarial_loss": "relativistic"})
    made.begin_step(torch.Generator().manual_seed(0), torch.device("cpu"))
    made.discriminator.requires_grad_(False)
    made.terms("generator")["adversarial"].backward()
    assert all(parameter.grad is None for parameter in made.discriminator.parameters())
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in made.student.parameters() if parameter.grad is not None)


def test_total_variation_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="every weight is 0, so nothing would be learned"):
        DistillConfig.model_validate({**NOTHING, "total_variation": 1.0})
