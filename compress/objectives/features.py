"""The feature maps on which distillation compares two networks, taken during one forward pass with hooks, because any network may be a student.

A network of ours names its points in `feature_taps` (ends of its down-samplings and of its groups of blocks): two networks of one family then have as
many, in the same sizes; of pictures four, as in GAN Compression, OMGD and DCD. Any other network has one: the input of its last convolution at the
resolution of its input, the richest feature map that two arbitrary networks have in the same size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcompress.compress.tasks.task import Inputs, moved
from mcompress.errors import PlanError


def with_features(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network's output for `inputs` and its feature maps (N, C_k, H_k, W_k), from the input to the output."""
    found: dict[str, Tensor] = {}
    names: tuple[str, ...] = getattr(network, "feature_taps", ())
    handles = []
    for name in names:
        handles.append(network.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: found.update({name: output})))
    if not names:
        picture = inputs[0]
        size = picture.shape[2:]

        def record(_module: nn.Module, given: tuple[Tensor, ...], _output: Tensor) -> None:
            if given[0].shape[2:] == size and given[0].shape[1] > picture.shape[1]:
                found["deepest"] = given[0]

        handles.extend(module.register_forward_hook(record) for module in network.modules() if isinstance(module, nn.Conv2d))
    try:
        output: Tensor = network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, list(found.values())


def widths_of(network: nn.Module, inputs: Inputs) -> list[tuple[int, ...]]:
    """(C_k, H_k, W_k) of the feature maps for inputs like `inputs`."""
    with torch.no_grad():
        _, features = with_features(network, *moved(inputs, next(network.parameters()).device))
    return [tuple(feature.shape[1:]) for feature in features]


def matched(student: nn.Module, teacher: nn.Module, inputs: Inputs, stage: str) -> list[tuple[int, int]]:
    """(student's width, teacher's width) of every pair of feature maps.

    Raises `PlanError` for networks whose feature maps do not correspond; `stage` and its terms are named.
    """
    made, wanted = widths_of(student, inputs), widths_of(teacher, inputs)
    if not made or len(made) != len(wanted) or any(one[1:] != other[1:] for one, other in zip(made, wanted, strict=True)):
        raise PlanError(
            [
                f"{stage}: terms of features need feature maps that correspond; the student has {_shown(made)}, the teacher {_shown(wanted)}. "
                "Set these weights to 0, or take two networks of one family"
            ]
        )
    return [(one[0], other[0]) for one, other in zip(made, wanted, strict=True)]


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "none"
