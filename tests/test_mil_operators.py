"""The Core ML evaluator, operator by operator, against PyTorch: the same functions converted, saved, read back and computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_packages import Outputs, outputs_of, relative_error, write_built, write_torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcompress.export.mil.evaluate import Evaluation

Function = Callable[[Tensor], Tensor]
HALF_ERROR = 4e-3
"""Four steps of half precision: what a handful of rounded operators may lose."""


def _conv(*arguments: int, **options: Any) -> nn.Module:
    return nn.Conv2d(*arguments, **options)


def _turned(*arguments: int, **options: Any) -> nn.Module:
    return nn.ConvTranspose2d(*arguments, **options)


def _attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ (x * 0.5).transpose(2, 3) / 8, dim=-1) @ x


FAMILIES: dict[str, list[Function]] = {
    "pointwise": [
        F.relu,
        F.relu6,
        lambda x: F.leaky_relu(x, 0.2),
        nn.PReLU(8),
        F.elu,
        F.silu,
        F.gelu,
        torch.sigmoid,
        torch.tanh,
        F.softplus,
        F.hardswish,
        F.hardsigmoid,
        F.softsign,
        torch.erf,
        torch.exp,
        torch.exp2,
        torch.sin,
        torch.cos,
        torch.atan,
        torch.abs,
        torch.square,
        lambda x: torch.sqrt(x.abs() + 0.1),
        lambda x: torch.rsqrt(x.abs() + 0.1),
        lambda x: torch.log(x.abs() + 0.5),
        lambda x: (x.abs() + 0.1) ** 1.5,
        lambda x: x / (x.abs() + 1.0),
        lambda x: torch.clamp(x, -0.5, 0.75),
        lambda x: torch.maximum(x, x.flip(3)) - torch.minimum(x, x.flip(2)),
        lambda x: torch.where(x > 0.1, x, 2.0 * x + 1.0),
        lambda x: torch.logical_and(x > 0.1, x <= 1.0).float() + torch.logical_not(x < 0).float(),
        lambda x: torch.floor(x * 3.0) + torch.ceil(x * 2.0),
        lambda x: torch.round(x * 4.0),
        torch.sign,
    ],
    "convolutions": [
        _conv(8, 6, 3, padding=1),
        _conv(8, 6, 1, bias=False),
        _conv(8, 6, 3, stride=2, padding=1),
        _conv(8, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
        _conv(8, 16, 3, padding=1, groups=4),
        _conv(8, 8, 5, padding=2, groups=8),
        _conv(8, 16, 3, stride=2, groups=8),
        _conv(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 5, 5, stride=3, padding=2)),
        lambda x: F.conv3d(x[:, None], torch.linspace(-1, 1, 54).reshape(2, 1, 3, 3, 3), padding=1),
        _turned(8, 6, 2, stride=2),
        _turned(8, 6, 3, stride=2, padding=1),
        _turned(8, 6, 3, stride=2, padding=1, output_padding=1),
        _turned(8, 6, 4, stride=2, padding=1, bias=False),
        _turned(8, 8, 4, stride=3, padding=1, groups=4),
        _turned(8, 6, 3, padding=1, dilation=2),
        nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1)),
    ],
    "pooling": [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 2)),
    ],
    "normalizations": [
        nn.InstanceNorm2d(8),
        nn.InstanceNorm2d(8, affine=True),
        nn.BatchNorm2d(8),
        nn.GroupNorm(4, 8),
        nn.LayerNorm([10]),
        nn.LayerNorm([8, 9, 10]),
        lambda x: F.layer_norm(x.transpose(1, 3), (8,), torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)),
        lambda x: F.normalize(x, dim=1),
        lambda x: F.local_response_norm(x, 4),
    ],
    "reductions": [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.sum(1),
        lambda x: x.amax(3),
        lambda x: x.amin((1, 2)),
        lambda x: x.var((2, 3), unbiased=False),
        lambda x: x.std((2, 3), unbiased=False),
        lambda x: torch.logsumexp(x, 1),
        lambda x: torch.norm(x, dim=1),
        lambda x: torch.softmax(x, 1),
        lambda x: torch.log_softmax(x, 3),
        lambda x: torch.cumsum(x, 1),
        lambda x: torch.topk(x, 3, dim=1)[0],
        lambda x: torch.argmax(x, 1).float(),
        lambda x: torch.argsort(x, 3).float(),
    ],
    "shapes": [
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x[:, :, :8], 2),
        lambda x: torch.cat([x, x * 2.0, x[:, :3]], 1),
        lambda x: torch.stack([x, -x], 2),
        lambda x: x.chunk(4, 1)[2] * 2.0,
        lambda x: torch.split(x, [3, 5], 1)[1] + 1.0,
        lambda x: x[:, 1:6:2, 2:, :-3],
        lambda x: x[:, 3, -1],
        lambda x: x.flip(2),
        lambda x: x.repeat(1, 2, 1, 3),
        lambda x: x.permute(0, 2, 3, 1).reshape(9, -1, 4),
        lambda x: x[:, :1].squeeze(1).unsqueeze(3),
        lambda x: x[:, :1].expand(-1, 4, -1, -1) * 1.0,
        lambda x: F.pad(x, (1, 2, 3, 0)),
        lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
        lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
        lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
        lambda x: torch.roll(x, 2, 3),
        lambda x: torch.index_select(x, 1, torch.tensor([4, 0, 4])),
        lambda x: torch.gather(x, 2, torch.arange(80).reshape(1, 8, 1, 10) % 9),
        lambda x: torch.tril(x),
    ],
    "resizing": [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(13, 25)),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=3, mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, size=(5, 21), mode="bilinear"),
        lambda x: F.interpolate(x, size=(5, 21), mode="bilinear", align_corners=True),
        lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)) * 1.2, align_corners=True),
        lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)) * 1.2, align_corners=False, padding_mode="border"),
        lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)) * 1.7, align_corners=True, padding_mode="reflection"),
    ],
    "products": [
        nn.Linear(10, 7),
        nn.Linear(10, 7, bias=False),
        lambda x: x @ x.transpose(2, 3),
        lambda x: torch.einsum("nchw,nwhu->nchu", x, x.permute(0, 3, 2, 1)),
        _attention,
        lambda x: F.scaled_dot_product_attention(x[:, :4], x[:, 2:6], x[:, 4:]),
        nn.Sequential(nn.Flatten(1), nn.Linear(720, 3)),
    ],
}
"""Every function takes (1, 8, 9, 10)."""


@pytest.fixture
def example() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 8, 9, 10)


@pytest.mark.export
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_operators_computes_what_pytorch_computes(family: str, example: Tensor, tmp_path: Path) -> None:
    network = Outputs(FAMILIES[family]).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.linspace(-1, 1, 8))  # type: ignore[union-attr]
                module.running_var.copy_(torch.linspace(0.5, 2, 8))  # type: ignore[union-attr]
        expected = network(example)
    program = write_torch(network, example, tmp_path / "full.mlpackage")
    found = outputs_of(program, example, "fp32")
    errors = {number: relative_error(one, other) for number, (one, other) in enumerate(zip(found, expected, strict=True))}
    assert max(errors.values()) < 1e-5, {number: error for number, error in errors.items() if error >= 1e-5}


@pytest.mark.export
@pytest.mark.parametrize("family", ["convolutions", "normalizations", "pooling", "products", "shapes"])
def test_simulated_half_precision_is_close_and_rounded(family: str, example: Tensor, tmp_path: Path) -> None:
    network = Outputs(FAMILIES[family]).eval()
    with torch.no_grad():
        expected = network(example)
    program = write_torch(network, example, tmp_path / "half.mlpackage", half=True)
    found = outputs_of(program, example, "as written")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(one, other) < HALF_ERROR, number
        assert np.array_equal(one.astype(np.float16).astype(np.float32), one), number
    kinds = {array.dtype.name for _, results in Evaluation(program).steps({"x": example.numpy()}) for array in results.values()}
    assert "float16" in kinds
    kinds = {array.dtype.name for _, results in Evaluation(program, "fp32").steps({"x": example.numpy()}) for array in results.values()}
    assert "float16" not in kinds


@pytest.mark.export
def test_what_the_converter_changes_is_seen(example: Tensor, tmp_path: Path) -> None:
    """coremltools 9.0 writes the exact gelu in place of the tanh approximation, and adds 1e-4 in front of a reciprocal."""
    network = Outputs([lambda x: F.gelu(x, approximate="tanh"), lambda x: torch.reciprocal(x.abs() + 0.5)])
    gelu, reciprocal = outputs_of(write_torch(network, example, tmp_path / "net.mlpackage"), example, "fp32")
    assert relative_error(gelu, network(example)[0]) > 1e-4
    assert relative_error(gelu, F.gelu(example)) < 1e-6
    assert relative_error(reciprocal, network(example)[1]) > 1e-4
    assert relative_error(reciprocal, 1 / (example.abs() + 0.5 + 1e-4)) < 1e-6


def _numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _built(mb: Any, x: Any) -> list[Any]:
    weight, turned = _numbers(6, 8, 4, 3), _numbers(8, 6, 4, 3)
    return [
        mb.conv(x=x, weight=weight, strides=[2, 3], pad_type="same"),
        mb.conv(x=x, weight=weight, strides=[2, 3], pad_type="same_lower"),
        mb.conv_transpose(x=x, weight=turned, strides=[2, 3], pad_type="valid"),
        mb.conv_transpose(x=x, weight=turned, strides=[2, 3], pad_type="same"),
        mb.conv_transpose(x=x, weight=turned, strides=[2, 3], pad_type="custom", pad=[1, 1, 1, 0], output_shape=[1, 6, 19, 29]),
        mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        mb.clamped_relu(x=x, alpha=0.1, beta=0.5),
        mb.linear_activation(x=x, alpha=2.0, beta=-1.0),
        mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
        mb.scaled_tanh(x=x, alpha=1.5, beta=0.5),
        mb.thresholded_relu(x=x, alpha=0.25),
        mb.threshold(x=x, alpha=0.25),
        mb.inverse(x=mb.square(x=x), epsilon=0.5),
        mb.l2_norm(x=x, epsilon=1e-3),
        mb.reduce_l1_norm(x=x, axes=[2], keep_dims=True),
        mb.reduce_sum_square(x=x, axes=[-1]),
        mb.reduce_argmin(x=x, axis=2, keep_dims=True),
        mb.depth_to_space(x=x, block_size=2),
        mb.space_to_depth(x=mb.slice_by_size(x=x, begin=[0, 0, 1, 2], size=[-1, -1, 8, 8]), block_size=2),
        mb.space_to_batch(x=x, block_shape=[2, 2], paddings=[[1, 0], [0, 2]]),
        mb.concat(values=[x, mb.mul(x=x, y=2.0)], axis=1, interleave=True),
        mb.sliding_windows(x=x, axis=3, size=4, stride=2),
        mb.cumsum(x=x, axis=1, exclusive=False, reverse=True),
        mb.crop(x=x, crop_height=[1, 2], crop_width=[3, 0]),
        mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False, half_pixel_centers=True),
        mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"),
        mb.l2_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid"),
        mb.mod(x=x, y=0.7),
        mb.floor_div(x=x, y=0.7),
        mb.one_hot(indices=mb.reduce_argmax(x=x, axis=1), one_hot_vector_size=8, axis=1, on_value=2.0, off_value=-1.0),
        mb.flatten2d(x=x, axis=2),
        mb.reduce_log_sum(x=mb.square(x=x), axes=[1]),
        mb.softplus_parametric(x=x, alpha=np.linspace(0.5, 1, 8, dtype=np.float32), beta=np.linspace(1, 2, 8, dtype=np.float32)),
    ]


def _expected(x: Tensor) -> list[Tensor]:
    weight, turned = torch.from_numpy(_numbers(6, 8, 4, 3)), torch.from_numpy(_numbers(8, 6, 4, 3))
    full = F.conv_transpose2d(x, turned, stride=(2, 3))  # 20 by 30
    blocks = x.reshape(1, 2, 2, 2, 9, 10).permute(0, 3, 4, 1, 5, 2).reshape(1, 2, 18, 20)
    part = x[:, :, 1:, 2:].reshape(1, 8, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 32, 4, 4)
    spread = F.pad(x, (0, 2, 1, 0)).reshape(1, 8, 5, 2, 6, 2).permute(3, 5, 0, 1, 2, 4).reshape(4, 8, 5, 6)
    slope = (1, 8, 1, 1)
    return [
        F.conv2d(F.pad(x, (1, 1, 1, 2)), weight, stride=(2, 3)),
        F.conv2d(F.pad(x, (1, 1, 2, 1)), weight, stride=(2, 3)),
        full,
        full[:, :, 1:19],
        full[:, :, 1:20, 1:30],
        x * torch.sigmoid(1.702 * x),
        F.gelu(x, approximate="tanh"),
        torch.where(x >= 0, x, 0.1 * x).clamp(max=0.5),
        2 * x - 1,
        (0.3 * x + 0.4).clamp(0, 1),
        1.5 * torch.tanh(0.5 * x),
        torch.where(x >= 0.25, x, 0.0),
        x.clamp(min=0.25),
        1 / (x * x + 0.5),
        x / torch.sqrt((x * x).sum((1, 2, 3), keepdim=True) + 1e-3),
        x.abs().sum(2, keepdim=True),
        (x * x).sum(3),
        x.argmin(2, keepdim=True),
        blocks,
        part,
        spread,
        torch.stack([x, 2 * x], 2).reshape(1, 16, 9, 10),
        x.unfold(3, 4, 2),
        x.flip(1).cumsum(1).flip(1),
        x[:, :, 1:-2, 3:],
        F.interpolate(x, scale_factor=(2, 3), mode="bilinear"),
        F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=float("-inf")), 3, 2),
        F.lp_pool2d(x, 2, 3, 2),
        torch.remainder(x, 0.7),
        torch.floor_divide(x, 0.7),
        F.one_hot(x.argmax(1), 8).permute(0, 3, 1, 2) * 3.0 - 1,
        x.reshape(8, 90),
        torch.log((x * x).sum(1)),
        torch.linspace(0.5, 1, 8).reshape(slope) * F.softplus(x * torch.linspace(1, 2, 8).reshape(slope)),
    ]


@pytest.mark.export
def test_what_no_network_becomes_follows_the_specification(example: Tensor, tmp_path: Path) -> None:
    program = write_built(_built, tuple(example.shape), tmp_path / "built.mlpackage")
    found = outputs_of(program, example, "fp32")
    errors = {number: relative_error(one, other) for number, (one, other) in enumerate(zip(found, _expected(example), strict=True))}
    assert max(errors.values()) < 1e-5, {number: error for number, error in errors.items() if error >= 1e-5}


@pytest.mark.export
def test_the_operator_for_attention_and_blocks_of_scales(tmp_path: Path) -> None:
    codes = np.arange(-32, 32, dtype=np.int8).reshape(8, 8)
    scales = np.linspace(0.01, 0.1, 4, dtype=np.float32).reshape(2, 2)

    def build(mb: Any, x: Any) -> list[Any]:
        weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=scales)
        return [mb.scaled_dot_product_attention(query=x, key=x, value=x), mb.linear(x=x, weight=weight)]

    program = write_built(build, (1, 3, 5, 8), tmp_path / "blocks.mlpackage", ios=18)
    assert {operation.type for operation in program.main.operations} >= {"scaled_dot_product_attention", "constexpr_blockwise_shift_scale"}
    x = torch.randn(1, 3, 5, 8)
    attention, linear = outputs_of(program, x, "fp32")
    assert relative_error(attention, F.scaled_dot_product_attention(x, x, x)) < 1e-6
    weight = torch.from_numpy(codes * np.repeat(np.repeat(scales, 4, 0), 4, 1))
    assert relative_error(linear, x @ weight.T) < 1e-6


@pytest.mark.export
def test_the_documented_grids_of_linear_resizing(tmp_path: Path) -> None:
    grids = {
        "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
        "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "DEFAULT": [0, 0.4, 0.8, 1, 1],
        "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    }

    def build(mb: Any, x: Any) -> list[Any]:
        return [mb.resize_bilinear(x=x, target_size_height=1, target_size_width=5, sampling_mode=mode) for mode in grids]

    program = write_built(build, (1, 1, 1, 2), tmp_path / "grids.mlpackage")
    found = outputs_of(program, np.array([[[[0, 1]]]], dtype=np.float32), "fp32")
    for mode, one in zip(grids, found, strict=True):
        np.testing.assert_allclose(one[0, 0, 0], grids[mode], atol=1e-6, err_msg=mode)
