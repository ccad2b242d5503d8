"""Loss terms: the paper's value on small numbers, and what must hold for every line of the table."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcompress.compress import losses
from mcompress.compress.losses import TERMS, Term
from mcompress.errors import UsageError

PAIRS = [name for name, term in TERMS.items() if term.takes == "student and teacher"]
PIXEL_PERMUTABLE = [name for name in PAIRS if name != "ssim"]
BATCH, SHAPE = 3, (3, 4, 12, 13)


def inputs(term: Term, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def logits() -> Tensor:
        return torch.randn((BATCH, 1, 5, 5), generator=generator) * 3

    if term.takes == "student and teacher":
        return torch.rand(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator)
    return {
        "image": lambda: (torch.rand(SHAPE, generator=generator),),
        "fake logits": lambda: (logits(),),
        "real and fake logits": lambda: (logits(), logits()),
    }[term.takes]()


over_terms = pytest.mark.parametrize("name", list(TERMS))
seeds = given(seed=st.integers(0, 2**31))
few = settings(max_examples=10, deadline=None, derandomize=True)


@over_terms
@few
@seeds
def test_a_term_is_a_finite_scalar_not_below_0_with_finite_gradients(name: str, seed: int) -> None:
    term = TERMS[name]
    given_inputs = [value.requires_grad_() for value in inputs(term, seed)]
    value = term.compute(*given_inputs)
    assert value.shape == ()
    assert math.isfinite(float(value.detach()))
    least = TERMS[name].least
    assert least is None or float(value.detach()) >= least - 1e-6
    value.backward()
    for tensor in given_inputs:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("name", PAIRS)
@few
@seeds
def test_a_student_that_is_the_teacher_loses_nothing_and_does_not_move(name: str, seed: int) -> None:
    student, teacher = inputs(TERMS[name], seed)
    assert float(TERMS[name].compute(student, teacher)) > 1e-7
    same = teacher.clone().requires_grad_()
    value = TERMS[name].compute(same, teacher)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)
    value.backward()
    assert same.grad.abs().max() < 1e-6


@over_terms
@few
@seeds
def test_the_batch_written_twice_has_the_same_value(name: str, seed: int) -> None:
    values = inputs(TERMS[name], seed)
    twice = [torch.cat((value, value)) for value in values]
    assert float(TERMS[name].compute(*twice)) == pytest.approx(float(TERMS[name].compute(*values)), rel=1e-4, abs=1e-6)


@over_terms
@few
@seeds
def test_the_order_of_the_samples_does_not_matter(name: str, seed: int) -> None:
    values = inputs(TERMS[name], seed)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed))
    assert float(TERMS[name].compute(*(value[order] for value in values))) == pytest.approx(float(TERMS[name].compute(*values)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", PIXEL_PERMUTABLE)
def test_pixels_may_be_permuted_together(name: str) -> None:
    student, teacher = inputs(TERMS[name], 1)
    order = torch.randperm(student[0, 0].numel())
    moved = [value.flatten(2)[:, :, order].reshape(value.shape) for value in (student, teacher)]
    assert float(TERMS[name].compute(*moved)) == pytest.approx(float(TERMS[name].compute(student, teacher)), rel=1e-4)


def test_gram_and_kernel_do_not_know_where_pixels_are_and_the_kernel_not_even_the_width() -> None:
    features = torch.rand(4, 6, 5, 5)
    moved = features.flatten(2)[:, :, torch.randperm(25)].reshape(features.shape)
    assert float(losses.gram_l1(moved, features)) < 1e-6
    assert float(losses.kernel_alignment(moved, features)) < 1e-6
    assert float(losses.kernel_alignment(3.5 * features, features)) < 1e-6
    assert float(losses.kernel_alignment(torch.cat((features, features), 1), features)) < 1e-6
    assert 0 < float(losses.kernel_alignment(torch.rand(4, 2, 3, 3), features)) < 1


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_kernel_alignment_is_the_papers_formula_at_any_scale(scale: float) -> None:
    x, y = torch.randn(5, 2, 3, 3), torch.randn(5, 7)
    a, b = (np.asarray(v.flatten(1), dtype=np.float64) for v in (x, y))
    kx, ky = a @ a.T, b @ b.T
    expected = 1 - (kx * ky).sum() / np.sqrt((kx**2).sum() * (ky**2).sum())
    assert float(losses.kernel_alignment(x * scale, y)) == pytest.approx(expected, abs=1e-5 if scale > 1e-12 else 1e-2)


def test_kernel_alignment_of_dead_features_has_finite_gradients() -> None:
    dead = torch.zeros(3, 2, 4, 4, requires_grad=True)
    losses.kernel_alignment(dead, torch.rand(3, 5)).backward()
    assert torch.isfinite(dead.grad).all()


def test_values_by_hand() -> None:
    a, b = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0], [0.0, 3.0]]]])
    assert float(losses.l1(a, b)) == pytest.approx(3 / 4)
    assert float(losses.feature_mse(a, b)) == pytest.approx(5 / 4)
    assert float(losses.total_variation(a)) == pytest.approx(2 + 1)
    assert float(losses.gram(a)) == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert float(losses.gram_l1(a, b)) == pytest.approx(abs(14 - 11) / 4)
    real, fake = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    assert float(losses.lsgan_discriminator(real, fake)) == pytest.approx((0 + 0.25) / 4 + (0 + 4) / 4)
    assert float(losses.lsgan_generator(fake)) == pytest.approx((1 + 1) / 4)


def test_relativistic_terms_are_the_papers_formula() -> None:
    real, fake = torch.randn(7), torch.randn(5)

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    mean_real, mean_fake = float(real.mean()), float(fake.mean())
    on_real = [sigmoid(float(v) - mean_fake) for v in real]
    on_fake = [sigmoid(float(v) - mean_real) for v in fake]
    discriminator = -np.mean(np.log(on_real)) - np.mean(np.log([1 - v for v in on_fake]))
    generator = -np.mean(np.log([1 - v for v in on_real])) - np.mean(np.log(on_fake))
    assert float(losses.relativistic_discriminator(real, fake)) == pytest.approx(discriminator, rel=1e-5)
    assert float(losses.relativistic_generator(real, fake)) == pytest.approx(generator, rel=1e-5)
    assert float(losses.relativistic_discriminator(real, real)) >= 2 * math.log(2) - 1e-6
    assert float(losses.relativistic_discriminator(torch.ones(3), torch.ones(3))) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(
    ("discriminator", "generator"),
    [
        (losses.lsgan_discriminator, lambda _real, fake: losses.lsgan_generator(fake)),
        (losses.relativistic_discriminator, losses.relativistic_generator),
        (losses.hinge_discriminator, lambda _real, fake: losses.hinge_generator(fake)),
    ],
)
def test_the_two_players_pull_a_fake_in_opposite_directions(
    discriminator: Callable[[Tensor, Tensor], Tensor], generator: Callable[[Tensor, Tensor], Tensor]
) -> None:
    real, fake = torch.full((4,), 0.9), torch.full((4,), 0.2)
    slopes = []
    for term in (discriminator, generator):
        moved = fake.clone().requires_grad_()
        term(real, moved).backward()
        slopes.append(float(moved.grad.sum()))
    assert slopes[0] > 0 > slopes[1]


def test_ssim_is_the_windowed_formula() -> None:
    """Against numpy in double precision: one window around every pixel, the image reflected at its borders."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand((1, 1, 14, 17), generator=generator), torch.rand((1, 1, 14, 17), generator=generator)
    axis = np.arange(11) - 5
    line = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y = (np.pad(np.asarray(v[0, 0], dtype=np.float64), 5, mode="reflect") for v in (a, b))
    similarity = []
    for row in range(14):
        for column in range(17):
            p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2, (window * p * q).sum() - mp * mq
            similarity.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert float(losses.ssim(a, b)) == pytest.approx(1 - np.mean(similarity), abs=1e-5)


def test_ssim_in_mixed_precision_is_what_it_is_in_fp32() -> None:
    teacher = torch.rand(1, 3, 32, 32) * 0.2 + 0.7
    student = teacher + 0.001 * torch.randn_like(teacher)
    expected = float(losses.ssim(student, teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(losses.ssim(student, teacher)) == expected > 0


@pytest.mark.parametrize("name", ["l1", "feature_mse", "ssim"])
def test_different_shapes_are_refused_and_not_broadcast(name: str) -> None:
    with pytest.raises(UsageError, match=r"shapes are \(2, 3, 16, 16\) and \(2, 1, 16, 16\); they must be the same"):
        TERMS[name].compute(torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16))


def test_inputs_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must be equal and at least 2\. Set batch_size to 2 or more"):
        losses.kernel_alignment(torch.rand(1, 3), torch.rand(1, 3))
    with pytest.raises(UsageError, match=r"gram_l1: shapes are \(2, 3, 4, 4\) and \(2, 5, 4, 4\)"):
        losses.gram_l1(torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4))
    with pytest.raises(UsageError, match="H and W at least 11"):
        losses.ssim(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    with pytest.raises(UsageError, match="total_variation: the image is"):
        losses.total_variation(torch.rand(1, 3, 1, 8))


def test_the_hinge_game_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert float(losses.hinge_discriminator(real, fake)) == pytest.approx((0.0 + 0.5) / 2 + (0.0 + 1.5) / 2)
    assert float(losses.hinge_generator(fake)) == pytest.approx(1.25)


def test_channel_distillation_knows_no_positions() -> None:
    features = torch.rand(2, 3, 8, 8)
    assert float(losses.channel_mse(features.flip(2), features)) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.channel_mse(features + 0.5, features)) == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(UsageError, match="channel_mse: shapes are"):
        losses.channel_mse(features[:, :2], features)
