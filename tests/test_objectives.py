"""Distillation: every line of the loss table is reached by a configuration, and does what its weight says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mcompress.compress.losses import TERMS
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.tasks.super_resolution.task import SuperResolution
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


class Nowhere:
    def load(self) -> dict[str, object] | None:
        return None

    def save(self, state: dict[str, object]) -> None:
        pass


def student() -> nn.Module:
    return build(ModelSpec("mfagan", {"channels": 8, "blocks": [[2, 8]]}))


def teacher() -> nn.Module:
    return build(ModelSpec("rrdb", {"features": 8, "blocks": 1, "growth": 4})).eval()


def objective(task: SuperResolution, weights: Mapping[str, object], made: nn.Module | None = None) -> Distillation:
    return Distillation(task, DistillConfig.model_validate({**SMALL, **weights}), made or student(), teacher(), 0)


def fit(what: Distillation) -> dict[str, Tensor]:
    trained = train(what, TrainSettings(2, 1e-3, 0), Nowhere(), lambda _done, _total, _note: None)
    return trained.averaged["generator"]


def test_a_configuration_reaches_every_term() -> None:
    assert set(REACHED_BY) == set(TERMS)


@pytest.mark.parametrize("name", list(TERMS))
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
