"""Convolutions and quantization of the Core ML evaluator for parameters that hypothesis chooses, without writing a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mcompress.errors import ExportError
from mcompress.export.mil import convolutions
from mcompress.export.mil.arguments import Arguments, Given
from mcompress.export.mil.evaluate import OPERATORS
from mcompress.export.mil.program import Operation, Value
from mcompress.export.mil.types import Array, ValueType


def compute(kind: str, out: ValueType, given: Mapping[str, Given]) -> Array:
    operation = Operation("it", kind, {}, (Value("out", out),), {}, (), "test")
    result = OPERATORS[kind](Arguments(operation, {name: (value,) for name, value in given.items()}))
    return result[0] if isinstance(result, tuple) else result


def int32(*values: int) -> Array:
    return np.array(values, dtype=np.int32)


ANY = ValueType("fp32", (None,) * 4)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), inputs=st.integers(1, 3), outputs=st.integers(1, 3), kernel=PAIRS, stride=PAIRS, dilation=PAIRS,
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)), size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    floats=st.sampled_from([64, 1 << 18]),
)  # fmt: skip
def test_any_convolution(
    groups: int, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pad: tuple[int, int],
    size: tuple[int, int], floats: int,
) -> None:  # fmt: skip
    x, weight, bias = torch.randn(2, groups * inputs, *size), torch.randn(groups * outputs, inputs, *kernel), torch.randn(groups * outputs)
    expected = F.conv2d(x, weight, bias, stride, pad, dilation, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "COLUMN_FLOATS", floats)  # small: every row is a chunk of its own
        found = compute(
            "conv",
            ANY,
            {
                "x": x.numpy(), "weight": weight.numpy(), "bias": bias.numpy(), "groups": np.array(groups, np.int32), "pad_type": "custom",
                "strides": int32(*stride), "dilations": int32(*dilation), "pad": int32(pad[0], pad[0], pad[1], pad[1]),
            },
        )  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), inputs=st.integers(1, 3), outputs=st.integers(1, 3), kernel=PAIRS, stride=PAIRS, dilation=PAIRS,
    pad=st.integers(0, 1), extra=st.integers(0, 2), size=st.tuples(st.integers(3, 6), st.integers(3, 6)), floats=st.sampled_from([8, 1 << 18]),
)  # fmt: skip
def test_any_transposed_convolution(
    groups: int, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pad: int, extra: int,
    size: tuple[int, int], floats: int,
) -> None:  # fmt: skip
    x, weight = torch.randn(1, groups * inputs, *size), torch.randn(groups * inputs, outputs, *kernel)
    allowed = min(extra, min(max(s, d) for s, d in zip(stride, dilation, strict=True)) - 1)
    expected = F.conv_transpose2d(x, weight, None, stride, pad, allowed, groups, dilation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "COLUMN_FLOATS", floats)
        found = compute(
            "conv_transpose",
            ANY,
            {
                "x": x.numpy(), "weight": weight.numpy(), "groups": np.array(groups, np.int32), "pad_type": "custom", "strides": int32(*stride),
                "dilations": int32(*dilation), "pad": int32(pad, pad, pad, pad), "output_shape": int32(*expected.shape),
            },
        )  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-3, 1.0), zero=st.integers(-128, 127), seed=st.integers(0, 1000))
def test_quantization_is_pytorchs(scale: float, zero: int, seed: int) -> None:
    x: Tensor = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) * 50
    grid = float(np.float32(scale))
    expected = torch.round(torch.fake_quantize_per_tensor_affine(x, grid, zero, -128, 127) / grid) + zero
    given = {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.int8)}
    codes = compute("quantize", ValueType("int8", (2, 3, 4)), {"input": x.numpy(), "output_dtype": "int8", **given})
    # PyTorch multiplies by the reciprocal of the scale, the specification divides: at a tie of fp32 they may part by one.
    difference = np.abs(codes.astype(int) - expected.numpy().astype(int))
    assert difference.max() <= 1
    assert difference.sum() <= 1
    back = compute("dequantize", ValueType("fp32", (2, 3, 4)), {"input": codes, **given})
    np.testing.assert_array_equal(back, np.float32(scale) * (codes.astype(np.float32) - np.float32(zero)))


def test_halves_are_rounded_to_even_and_ends_are_clipped() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e9, -1e9], dtype=np.float32)
    one = np.array(1, np.float32)
    signed = compute("quantize", ValueType("int8", (8,)), {"input": x, "scale": one, "output_dtype": "int8"})
    assert signed.tolist() == [-2, -2, 0, 0, 2, 2, 127, -128]
    zero = np.array(10, np.uint8)
    unsigned = compute("quantize", ValueType("uint8", (8,)), {"input": x, "scale": one, "zero_point": zero, "output_dtype": "uint8"})
    assert unsigned.tolist() == [8, 8, 10, 10, 12, 12, 255, 0]


def test_a_vector_of_scales_runs_along_its_axis() -> None:
    codes = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    scale, zero = np.array([0.5, 1, 2], np.float32), np.array([0, 1, 2], np.int8)
    given = {"quantized_data": codes, "scale": scale, "zero_point": zero, "axis": np.array(-2, np.int32)}
    found = compute("constexpr_affine_dequantize", ValueType("fp32", (2, 3, 4)), given)
    np.testing.assert_array_equal(found, scale[:, None] * (codes.astype(np.float32) - zero[:, None]))
    with pytest.raises(ExportError, match="axis 0 of its input has 2 slices"):
        compute("constexpr_affine_dequantize", ValueType("fp32", (2, 3, 4)), {**given, "axis": np.array(0, np.int32)})


def test_packed_tables_of_ios_16() -> None:
    lut = np.array([1.0, 5.0, 9.0, 13.0], np.float32)
    packed = np.array([0b01_10_11_00, 0b11], np.uint8)  # the example of the specification: 0, 3, 2, 1, 3
    given = {"lut": lut, "indices": packed, "shape": np.array([5], np.uint32)}
    assert compute("constexpr_lut_to_dense", ValueType("fp32", (5,)), given).tolist() == [1, 13, 9, 5, 13]
    given = {"nonzero_data": np.array([7.0, 8.0], np.float32), "mask": np.array([0b01100], np.uint8), "shape": np.array([5], np.uint32)}
    assert compute("constexpr_sparse_to_dense", ValueType("fp32", (5,)), given).tolist() == [0, 0, 7, 8, 0]


def test_tables_per_group_and_of_vectors_of_ios_18() -> None:
    """The two examples of the specification."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    found = compute("constexpr_lut_to_dense", ValueType("fp32", (6, 2)), {"indices": indices, "lut": lut})
    assert found.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    indices = np.array([0, 0, 1, 0, 1, 1, 0, 0], np.uint8).reshape(2, 2, 2)
    lut = np.array([0, 1, 2, 10, 11, 12], np.float32).reshape(1, 1, 1, 2, 3)
    given = {"indices": indices, "lut": lut, "vector_axis": np.array(1, np.int32)}
    found = compute("constexpr_lut_to_dense", ValueType("fp32", (2, 6, 2)), given)
    assert found[0].tolist() == [[0, 0], [1, 1], [2, 2], [10, 0], [11, 1], [12, 2]]
    found = compute("constexpr_lut_to_dense", ValueType("fp32", (2, 2, 6)), {**given, "vector_axis": np.array(2, np.int32)})
    assert found[0].tolist() == [[0, 1, 2, 0, 1, 2], [10, 11, 12, 0, 1, 2]]


def test_a_gather_outside_the_array_is_refused() -> None:
    with pytest.raises(ExportError, match="indices run from 0 to 5, and the axis has 5 elements"):
        compute("gather", ValueType("fp32", (2,)), {"x": np.zeros(5, np.float32), "indices": int32(0, 5)})


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("conv", {"weight": np.ones((1, 1, 3, 3), np.float32), "pad_type": "same_upper"}, "pad_type is 'same_upper'"),
        ("conv_transpose", {"weight": np.ones((1, 1, 3, 3), np.float32), "pad_type": "same_lower"}, "pad_type is 'same_lower'"),
        ("max_pool", {"kernel_sizes": int32(2, 2), "pad_type": "reflect"}, "pad_type is 'reflect'"),
        ("pad", {"pad": int32(1, 1), "mode": "circular"}, "mode is 'circular'"),
        ("gelu", {"mode": "QUICK"}, "mode is 'QUICK'"),
        ("resize_bilinear", {"sampling_mode": "CUBIC"}, "sampling mode is 'CUBIC'"),
        ("resize", {"resized_dims": int32(2), "shape": int32(8, 8), "interpolation_mode": "CUBIC"}, "CUBIC with the sampling mode DEFAULT"),
        ("local_response_norm", {"size": int32(4)}, "its size is 4"),
        ("split", {"axis": int32(2), "split_sizes": int32(1, 3), "num_splits": int32(3)}, "not as many as its num_splits, 3"),
        ("cast", {"dtype": "int4"}, "its dtype is 'int4'"),
        ("reduce_argmax", {"output_dtype": "int4"}, "its output_dtype is 'int4'"),
        (
            "resample",
            {
                "coordinates": np.zeros((1, 1, 1, 2), np.float32),
                "sampling_mode": "bilinear",
                "padding_mode": "border",
                "coordinates_mode": "normalized",
            },
            "its coordinates_mode is 'normalized'",
        ),
        ("scatter", {"data": np.ones(4, np.float32), "updates": np.ones(1, np.float32), "indices": int32(0), "mode": "xor"}, "mode is 'xor'"),
    ],
)
def test_a_value_that_is_not_known_is_refused(kind: str, given: Mapping[str, Given], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compute(kind, ANY, {"x": np.ones((1, 1, 4, 4), np.float32), **given})


def test_an_odd_number_of_channels_is_normalized_as_pytorch_does() -> None:
    x = torch.randn(1, 8, 3, 3)
    given = {"x": x.numpy(), "size": int32(5), "alpha": np.array(0.5, np.float32), "beta": np.array(0.6, np.float32), "k": np.array(2.0, np.float32)}
    np.testing.assert_allclose(compute("local_response_norm", ANY, given), F.local_response_norm(x, 5, 0.5, 0.6, 2.0).numpy(), atol=1e-6)
