"""INT8 arithmetic in floating point: exactly what quantize followed by dequantize does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, ActivationRange

WEIGHT_MAX = 127
"""Symmetric weights use -127..127, so that negation is exact and products fit the pairwise int16 sums of older Arm kernels."""


def fake_quantize(values: Tensor, found: ActivationRange) -> Tensor:
    """Round `values` to the INT8 grid of `found`, clipping what lies outside; same shape."""
    return torch.fake_quantize_per_tensor_affine(values, found.scale, found.zero_point, INT8_MIN, INT8_MAX)


def weight_scales(weight: Tensor, axis: int) -> Tensor:
    """One scale per output channel (dimension `axis`): the channel's largest magnitude is 127."""
    other = [dimension for dimension in range(weight.ndim) if dimension != axis]
    return (weight.abs().amax(other) / WEIGHT_MAX).clamp_min(torch.finfo(torch.float32).eps)


def fake_quantize_weight(weight: Tensor, axis: int) -> Tensor:
    """Round `weight` to symmetric INT8 per output channel; same shape."""
    scales = weight_scales(weight.detach(), axis)
    return torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros_like(scales, dtype=torch.int32), axis, -WEIGHT_MAX, WEIGHT_MAX)


def sqnr_db(reference: Tensor, value: Tensor) -> float:
    """Signal to quantization noise ratio of `value`, dB; infinite if it equals `reference`."""
    noise = float((reference.double() - value.double()).square().sum())
    signal = float(reference.double().square().sum())
    if noise == 0.0:
        return math.inf
    return -math.inf if signal == 0.0 else 10.0 * math.log10(signal / noise)
