"""How like a teacher's picture a student's is: the distillation loss of OMGD and UGC between two pictures of one input, without any truth.

    L_KD(s, t) = a |w (s - t)| + b (1 - SSIM(s, t)) + c mean_l |Gram_l(s) - Gram_l(t)| + d mean_l |phi_l(s) - phi_l(t)| + e TV(s)

(OMGD, Ren et al. 2021, arXiv 2108.06908, eq. 7, plus the first term; w are the weights that the task gives to places). OMGD's phi are layers of
VGG16; here they are the blocks of a discriminator that is trained along on labelled pairs, the feature transform that DCD argues for (arXiv
2212.14169).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mcompress.compress.losses import TERMS, mean_over
from mcompress.compress.tasks.task import Task
from mcompress.targets.stages import DistillConfig, LikenessConfig

Features = Callable[[Tensor], Sequence[Tensor]]


def picture_l1(task: Task, made: Tensor, wanted: Tensor) -> Tensor:
    """mean |w (s - t)|: the mean absolute error, in which the places that matter to the task count more."""
    return TERMS["l1"].compute(task.weighted(made), task.weighted(wanted))


def truth_terms(task: Task, made: Tensor, truth: Tensor, absolute: float = 1.0, squared: float = 0.0) -> dict[str, Tensor]:
    """`truth`, mean |w (s - t)|, and `squared`, mean (s - t)^2, times their weights; a term whose weight is 0 is not computed.

    The squared error has no weights of places: it is what PSNR is of, and where a picture is far off it counts by itself.
    """
    terms: dict[str, Tensor] = {}
    if absolute:
        terms["truth"] = absolute * picture_l1(task, made, truth)
    if squared:
        terms["squared"] = squared * TERMS["feature_mse"].compute(made, truth)
    return terms


def pixel_terms(config: LikenessConfig | DistillConfig, task: Task, made: Tensor, wanted: Tensor) -> Mapping[str, Tensor]:
    """Weighted terms of the student's pictures `made` to pictures of a teacher, both (N, 3, H, W) in the task's range, that compare pixels."""
    terms: dict[str, Tensor] = {}
    if config.output:
        terms["output"] = config.output * picture_l1(task, made, wanted)
    if config.ssim:
        terms["ssim"] = config.ssim * TERMS["ssim"].compute(from_0_to_1(made, task.output_range), from_0_to_1(wanted, task.output_range))
    if config.total_variation:
        terms["total_variation"] = config.total_variation * TERMS["total_variation"].compute(made)
    return terms


def feature_terms(config: LikenessConfig, made: Tensor, wanted: Tensor, features: Features) -> Mapping[str, Tensor]:
    """Weighted terms that compare what `features` sees in the pictures of student and teacher; no gradient reaches `wanted`."""
    terms: dict[str, Tensor] = {}
    if not (config.gram or config.feature):
        return terms
    of_made = features(made)
    with torch.no_grad():
        of_wanted = features(wanted)
    for name, weight, term in (("gram", config.gram, "gram_l1"), ("feature", config.feature, "l1")):
        if weight:
            terms[name] = weight * mean_over(term, of_made, of_wanted)
    return terms


def from_0_to_1(image: Tensor, output_range: tuple[float, float]) -> Tensor:
    """The values of `output_range` as 0 to 1."""
    low, high = output_range
    return (image - low) / (high - low)
