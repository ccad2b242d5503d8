"""INT8 tensors and compressed constants, as the MIL specification defines them.

quantize: clip(round(x / scale) + zero_point), halves to the even number, the quotient in fp32. dequantize: scale * (x - zero_point).
"""

from __future__ import annotations

import math

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import NUMPY, Array, FloatArray

LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


def quantize(arguments: Arguments) -> Array:
    """Floating-point numbers to int8 or uint8; scale and zero point are scalars, or vectors along `axis`."""
    x, dtype = arguments.floats("input"), arguments.text("output_dtype")
    if dtype not in LIMITS:
        raise arguments.wrong(f"its output_dtype is '{dtype}'; known are int8 and uint8")
    scale = _along(arguments, "scale", x)
    if not np.all(scale > 0):
        raise arguments.wrong(f"its scale is {scale.min()}; scales are positive")
    codes = np.rint(x / scale)
    if arguments.has("zero_point"):
        codes += _along(arguments, "zero_point", x)
    return np.asarray(np.clip(np.nan_to_num(codes, nan=0.0), *LIMITS[dtype]).astype(NUMPY[dtype]))


def dequantize(arguments: Arguments) -> Array:
    """int8 or uint8 to floating-point numbers."""
    return _dequantized(arguments, "input")


def constexpr_affine_dequantize(arguments: Arguments) -> Array:
    """Weights of 8 bits with a scale and a zero point for all, or per slice along `axis`."""
    return _dequantized(arguments, "quantized_data")


def _dequantized(arguments: Arguments, name: str) -> FloatArray:
    x = arguments.floats(name)
    shifted = x - _along(arguments, "zero_point", x) if arguments.has("zero_point") else x
    return np.asarray(shifted * _along(arguments, "scale", x))


def _along(arguments: Arguments, name: str, x: Array) -> FloatArray:
    """A scalar, or a vector ready to broadcast along `axis`."""
    value = arguments.floats(name)
    arguments.without_meaning("axis")  # of scalars
    if value.ndim == 0 or value.size == 1:
        return value.reshape(())
    axis = arguments.integer("axis") % x.ndim
    if value.shape != (x.shape[axis],):
        raise arguments.wrong(f"its {name} has the shape {value.shape}, and axis {axis} of its input has {x.shape[axis]} slices")
    return value.reshape(-1, *(1,) * (x.ndim - 1 - axis))


def constexpr_blockwise_shift_scale(arguments: Arguments) -> Array:
    """scale * (data - offset) with one scale and offset per block."""
    data, scale = arguments.floats("data"), arguments.floats("scale")
    if scale.ndim != data.ndim or any(size % blocks for size, blocks in zip(data.shape, scale.shape, strict=True)):
        raise arguments.wrong(f"scales of shape {scale.shape} do not divide data of shape {data.shape} into blocks")
    if arguments.has("offset"):
        data = data - _blown_up(arguments.floats("offset"), data.shape)
    return data * _blown_up(scale, data.shape)


def constexpr_lut_to_dense(arguments: Arguments) -> Array:
    """Weights as places in a table of values: of iOS 16 (one table, packed indices) or iOS 18 (tables per block, also of vectors)."""
    lut, indices = arguments.stored("lut"), arguments.stored("indices")
    if arguments.has("shape"):
        shape = arguments.integers("shape")
        bits, count = int(math.log2(lut.size)), math.prod(arguments.integers("shape"))
        stream = np.unpackbits(indices.astype(np.uint8).ravel(), bitorder="little", count=count * bits).reshape(count, bits)
        return np.asarray(lut[(stream << np.arange(bits, dtype=np.uint8)).sum(axis=1)].reshape(shape))
    tables = _blown_up(lut, (*indices.shape, *lut.shape[-2:]))
    taken = np.take_along_axis(tables, indices.astype(np.int64)[..., None, None], axis=-2)[..., 0, :]
    arguments.without_meaning("vector_axis")  # of tables of single values
    if taken.shape[-1] == 1:
        return taken[..., 0]
    axis = arguments.integer("vector_axis") % indices.ndim
    vectors = np.moveaxis(taken, -1, axis + 1)
    return vectors.reshape(*indices.shape[:axis], -1, *indices.shape[axis + 1 :])


def constexpr_sparse_to_dense(arguments: Arguments) -> Array:
    """Zeros, except where the mask has a bit."""
    values, mask = arguments.stored("nonzero_data"), arguments.stored("mask")
    if arguments.has("shape"):
        shape = tuple(arguments.integers("shape"))
        kept = np.unpackbits(mask.astype(np.uint8), bitorder="little", count=math.prod(shape)).astype(np.bool_)
    else:
        shape, kept = mask.shape, mask.astype(np.bool_).ravel()
    if int(kept.sum()) != values.size:
        raise arguments.wrong(f"its mask has {int(kept.sum())} bits and its values are {values.size}")
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[kept] = values
    return dense.reshape(shape)


def constexpr_cast(arguments: Arguments) -> Array:
    """A constant kept in half precision, to fp32."""
    if (wanted := arguments.text("output_dtype", "fp32")) != "fp32":
        raise arguments.wrong(f"its output_dtype is '{wanted}'; known is fp32")
    return arguments.floats("source_val")


def _blown_up(values: Array, shape: tuple[int, ...]) -> Array:
    """Every element repeated until the array has the shape."""
    for axis, size in enumerate(shape):
        if values.shape[axis] != size:
            values = np.repeat(values, size // values.shape[axis], axis=axis)
    return values


OPERATORS: dict[str, Operator] = {
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_cast": constexpr_cast,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "constexpr_sparse_to_dense": constexpr_sparse_to_dense,
    "dequantize": dequantize,
    "quantize": quantize,
}
