"""Loss terms: tensors in, one scalar out. Each docstring has the equation and its source; weights are the caller's.

Every term is a mean over the batch, so doubling the batch with the same samples leaves its value alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mcompress.errors import UsageError

EPSILON = 1e-12
"""Smallest norm that is divided by."""
SSIM_WINDOW = 11  # pixels; Wang et al. 2004


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """mean |s - t|; any shape, both the same."""
    _check_same_shape("l1", student, teacher)
    return functional.l1_loss(student, teacher)


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s - t)^2 of one shape; a student's features have been through an adaptor (FitNets, Romero et al. 2015, arXiv 1412.6550)."""
    _check_same_shape("feature_mse", student, teacher)
    return functional.mse_loss(student, teacher)


def channel_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_c (mean_hw s - mean_hw t)^2: channel distillation (OMGD, arXiv 2108.06908, eq. 8); the student's features have been through an adaptor.

    (N, C, H, W) and (N, C, H', W'): only means over positions are compared, so the sizes may differ.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise UsageError(f"channel_mse: shapes are {tuple(student.shape)} and {tuple(teacher.shape)}; they must be (N, C, H, W), N and C the same")
    return functional.mse_loss(student.mean((2, 3)), teacher.mean((2, 3)))


def kernel_alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - KA(X, Y), KA = <XX^T, YY^T>_F / (|XX^T|_F |YY^T|_F) (CAT, Jin et al. 2021, arXiv 2103.03467); 0 to 1.

    X is (N, anything) and Y is (N, anything), each flattened per sample, so widths may differ and no adaptor is needed. It compares how samples are
    similar to one another; with one sample it would always be 0, so N must be at least 2 (`UsageError`).
    """
    if student.shape[0] != teacher.shape[0] or student.shape[0] < 2:
        raise UsageError(
            f"kernel alignment compares the samples of a batch with one another; the batches are {student.shape[0]} and {teacher.shape[0]}, "
            "they must be equal and at least 2. Set batch_size to 2 or more, or kernel_alignment to 0."
        )
    # With A and B of norm one, 1 - <A, B> = |A - B|^2 / 2, which rounding cannot make negative.
    return (_unit_kernel(student) - _unit_kernel(teacher)).square().sum() / 2


def _unit_kernel(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    # The alignment does not change when X is scaled; without this the fourth powers below leave fp32's range.
    flat = flat / torch.linalg.vector_norm(flat).clamp_min(EPSILON)
    kernel = flat @ flat.T
    unit: Tensor = kernel / torch.linalg.vector_norm(kernel).clamp_min(EPSILON)
    return unit


def gram_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """mean |G(s) - G(t)|, G(F) = F F^T / (C H W) per sample (Johnson et al. 2016, arXiv 1603.08155, with OMGD's absolute difference).

    (N, C, H, W) and (N, C, H', W'): the sizes may differ, because a Gram matrix knows nothing of positions.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise UsageError(f"gram_l1: shapes are {tuple(student.shape)} and {tuple(teacher.shape)}; they must be (N, C, H, W) with the same N and C")
    return functional.l1_loss(gram(student), gram(teacher))


def gram(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, C): F F^T / (C H W)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def ssim(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - SSIM with an 11x11 Gaussian window, sigma 1.5 (Wang et al. 2004), borders reflected; 0 to 2.

    (N, C, H, W) in [0, 1], H and W at least 11.
    """
    _check_same_shape("ssim", student, teacher)
    if student.dim() != 4 or min(student.shape[2:]) < SSIM_WINDOW:
        raise UsageError(f"ssim: the images are {tuple(student.shape)}; they must be (N, C, H, W) with H and W at least {SSIM_WINDOW}")
    # Imported here: torchmetrics costs a second, and only this term needs it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    with torch.autocast(student.device.type, enabled=False):  # a variance is a difference of means: in bf16 nothing of it would be left
        similarity = structural_similarity_index_measure(student.float(), teacher.float(), data_range=1.0, kernel_size=SSIM_WINDOW)
    if not isinstance(similarity, Tensor):
        raise TypeError(f"ssim: torchmetrics returned a {type(similarity).__name__} where a tensor was asked for")
    return 1.0 - similarity


def total_variation(image: Tensor) -> Tensor:
    """mean |x[i+1, j] - x[i, j]| + mean |x[i, j+1] - x[i, j]| (anisotropic, Rudin et al. 1992); (N, C, H, W), H and W at least 2."""
    if image.dim() != 4 or min(image.shape[2:]) < 2:
        raise UsageError(f"total_variation: the image is {tuple(image.shape)}; it must be (N, C, H, W) with H and W at least 2")
    return (image[:, :, 1:] - image[:, :, :-1]).abs().mean() + (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean()


def lsgan_generator(fake: Tensor) -> Tensor:
    """E[(D(G(z)) - 1)^2] / 2 (LSGAN, Mao et al. 2017, arXiv 1611.04076, labels 0 and 1); logits of any shape; 0 when every fake is taken for real."""
    return (fake - 1.0).square().mean() / 2


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E[(D(x) - 1)^2] / 2 + E[D(G(z))^2] / 2 (LSGAN); logits of any shape; 0 when all are told apart."""
    return (real - 1.0).square().mean() / 2 + fake.square().mean() / 2


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E[log s(D(x) - E D(G))] - E[log(1 - s(D(G) - E D(x)))], s the sigmoid (ESRGAN, arXiv 1809.00219, eq. 1); logits of any shape.

    2 log 2 when real and fake cannot be told apart; approaches 0 when all are.
    """
    return functional.softplus(-(real - fake.mean())).mean() + functional.softplus(fake - real.mean()).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E[log(1 - s(D(x) - E D(G)))] - E[log s(D(G) - E D(x))], s the sigmoid (ESRGAN, eq. 2): the discriminator's term with the roles exchanged."""
    return relativistic_discriminator(fake, real)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G))] (Lim & Ye 2017, arXiv 1705.02894); logits of any shape; 0 when all are apart by 2."""
    return functional.relu(1.0 - real).mean() + functional.relu(1.0 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-E[D(G)]: the generator's side of the hinge form, linear, so without a least value; logits of any shape."""
    return -fake.mean()


def pseudo_huber(student: Tensor, teacher: Tensor, c: float = 1e-3) -> Tensor:
    """mean sqrt((s - t)^2 + c^2) - c: squared for errors far below c, absolute far above it (latent consistency models, arXiv 2310.04378)."""
    _check_same_shape("pseudo_huber", student, teacher)
    # The same as in the equation, without the difference of nearly equal numbers.
    squared = (student - teacher).square()
    return (squared / ((squared + c * c).sqrt() + c)).mean()


def _check_same_shape(term: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:  # they would be broadcast, and the loss would mean something else
        raise UsageError(f"{term}: shapes are {tuple(student.shape)} and {tuple(teacher.shape)}; they must be the same")


@dataclass(frozen=True)
class Term:
    """A loss term: what it takes, how to compute it, and its least value, if it has one."""

    takes: Literal["student and teacher", "image", "fake logits", "real and fake logits"]
    compute: Callable[..., Tensor]
    least: float | None = 0.0


TERMS: dict[str, Term] = {
    "l1": Term("student and teacher", l1),
    "feature_mse": Term("student and teacher", feature_mse),
    "channel_mse": Term("student and teacher", channel_mse),
    "pseudo_huber": Term("student and teacher", pseudo_huber),
    "kernel_alignment": Term("student and teacher", kernel_alignment),
    "gram_l1": Term("student and teacher", gram_l1),
    "ssim": Term("student and teacher", ssim),
    "total_variation": Term("image", total_variation),
    "lsgan_generator": Term("fake logits", lsgan_generator),
    "lsgan_discriminator": Term("real and fake logits", lsgan_discriminator),
    "relativistic_generator": Term("real and fake logits", relativistic_generator),
    "relativistic_discriminator": Term("real and fake logits", relativistic_discriminator),
    "hinge_generator": Term("fake logits", hinge_generator, None),
    "hinge_discriminator": Term("real and fake logits", hinge_discriminator),
}
"""Every term by name; objectives take their terms from here. A term of student and teacher is 0 when the student is the teacher."""


def mean_over(term: str, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The mean of a term of student and teacher over pairs of feature maps, so that its weight means the same for any number of them."""
    return torch.stack([TERMS[term].compute(one, other) for one, other in zip(made, wanted, strict=True)]).mean()


ADVERSARIAL: dict[str, tuple[str, str]] = {
    "least_squares": ("lsgan_discriminator", "lsgan_generator"),
    "relativistic": ("relativistic_discriminator", "relativistic_generator"),
    "hinge": ("hinge_discriminator", "hinge_generator"),
}
"""Form of the adversarial game -> the terms of its two players, discriminator and generator."""
