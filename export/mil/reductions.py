"""Operators that sum, average or order along axes, and the normalizations built on them. Sums are in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import Array, FloatArray


class _Reduction(Protocol):
    def __call__(self, x: Array, /, *, axis: tuple[int, ...], keepdims: bool) -> Array: ...


def _reduce(function: _Reduction, before: Callable[[Array], Array] = lambda x: x, after: Callable[[Array], Array] = lambda x: x) -> Operator:
    def run(arguments: Arguments) -> Array:
        x = arguments.array("x")
        axes = tuple(arguments.integers("axes", range(x.ndim)))
        reduced = after(np.asarray(function(before(x), axis=axes, keepdims=arguments.flag("keep_dims", default=False))))
        return reduced.astype(x.dtype)

    return run


def _by(function: np.ufunc) -> _Reduction:
    def run(x: Array, /, *, axis: tuple[int, ...], keepdims: bool) -> Array:
        return np.asarray(function.reduce(x, axis=axis, keepdims=keepdims))

    return run


def _mean(x: Array, /, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.mean(x, axis=axis, keepdims=keepdims))


def _log_sum_exp(x: Array, /, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    top = np.max(x, axis=axis, keepdims=True)
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return np.asarray(total if keepdims else np.squeeze(total, axis=axis))


def _argument(function: Callable[[Array, int], Array]) -> Operator:
    def run(arguments: Arguments) -> Array:
        x, axis = arguments.array("x"), arguments.integer("axis", -1)
        found = np.asarray(function(x, axis))
        kept = np.expand_dims(found, axis) if arguments.flag("keep_dims", default=False) else found
        return kept.astype(arguments.dtype("output_dtype", "int32"))

    return run


def softmax(arguments: Arguments) -> Array:
    """exp(x) / sum(exp(x)) along one axis."""
    return soft(arguments.floats("x"), arguments.integer("axis", -1))


def soft(x: FloatArray, axis: int) -> FloatArray:
    """Softmax without overflow; makes one array of the size of x."""
    with np.errstate(invalid="ignore"):
        result: FloatArray = x - np.max(x, axis=axis, keepdims=True)
        np.exp(result, out=result)
        result /= np.sum(result, axis=axis, keepdims=True)
    return result


def cumsum(arguments: Arguments) -> Array:
    """Running sums along one axis."""
    x, axis = arguments.array("x"), arguments.integer("axis", 0)
    backwards = arguments.flag("reverse", default=False)
    x = np.flip(x, axis) if backwards else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if arguments.flag("exclusive", default=False):
        total = total - x
    return np.flip(total, axis) if backwards else total


def topk(arguments: Arguments) -> tuple[Array, ...]:
    """The k largest (or smallest) along one axis and where they are; among equal ones the first."""
    x, axis, k = arguments.stored("x"), arguments.integer("axis", -1), arguments.integer("k", 1)
    order = _ordered(x, axis, ascending=arguments.flag("ascending", default=False))
    arguments.without_meaning("sort", "output_indices_dtype")  # without `sort` any order is right; without indices they have no type
    places = np.take(order, np.arange(x.shape[axis] if k == -1 else k), axis=axis)
    values = np.take_along_axis(x, places, axis)
    if not arguments.flag("return_indices", default=True):
        return (values,)
    return values, places.astype(arguments.dtype("output_indices_dtype", "int32"))


def argsort(arguments: Arguments) -> Array:
    """Places in the order of their values; equal ones keep their order."""
    ordered = _ordered(arguments.stored("x"), arguments.integer("axis", -1), ascending=arguments.flag("ascending", default=False))
    return ordered.astype(np.int32)


def _ordered(x: Array, axis: int, *, ascending: bool) -> Array:
    key = x if ascending else -(x.astype(np.int64) if x.dtype.kind in "iub" else x.astype(np.float32))
    return np.argsort(key, axis=axis, kind="stable")


def batch_norm(arguments: Arguments) -> Array:
    """(x - mean) / sqrt(variance + epsilon) gamma + beta, per channel (axis 1)."""
    x = arguments.floats("x")
    scale = np.float32(1) / np.sqrt(arguments.floats("variance") + np.float32(arguments.number("epsilon", 1e-5)))
    shape = (-1, *(1,) * (x.ndim - 2))
    return _scaled((x - arguments.floats("mean").reshape(shape)) * scale.reshape(shape), arguments, shape)


def instance_norm(arguments: Arguments) -> Array:
    """Every channel of every sample to mean 0 and variance 1, then gamma and beta per channel."""
    x = arguments.floats("x")
    return _scaled(_normalized(x, tuple(range(2, x.ndim)), arguments.number("epsilon", 1e-5)), arguments, (-1, *(1,) * (x.ndim - 2)))


def layer_norm(arguments: Arguments) -> Array:
    """Mean 0 and variance 1 over `axes`, then gamma and beta of the shape of these axes."""
    x = arguments.floats("x")
    axes = tuple(sorted(axis % x.ndim for axis in arguments.integers("axes", range(x.ndim))))
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
    return _scaled(_normalized(x, axes, arguments.number("epsilon", 1e-5)), arguments, shape)


def l2_norm(arguments: Arguments) -> Array:
    """x / sqrt(sum of squares + epsilon) over the last three axes."""
    x = arguments.floats("x")
    squares = np.sum(x * x, axis=(-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(squares + np.float32(arguments.number("epsilon", 1e-6))))


def local_response_norm(arguments: Arguments) -> Array:
    """x / (k + alpha / size * sum of squares of `size` channels around)^beta, for odd sizes."""
    x, size = arguments.floats("x"), arguments.integer("size")
    if size % 2 != 1:
        raise arguments.wrong(f"its size is {size}; on which side of a channel an even number has one more is not documented")
    squares = np.pad(x * x, [(0, 0), (size // 2, size // 2)] + [(0, 0)] * (x.ndim - 2))
    total = sum((squares[:, offset : offset + x.shape[1]] for offset in range(size)), np.zeros_like(x))
    base = np.float32(arguments.number("k", 1.0)) + np.float32(arguments.number("alpha", 1e-4) / size) * total
    return x / base ** np.float32(arguments.number("beta", 0.75))


def _normalized(x: FloatArray, axes: tuple[int, ...], epsilon: float) -> FloatArray:
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(np.mean(centred * centred, axis=axes, keepdims=True) + np.float32(epsilon)))


def _scaled(x: FloatArray, arguments: Arguments, shape: tuple[int, ...]) -> FloatArray:
    gamma, beta = arguments.floats_if_given("gamma"), arguments.floats_if_given("beta")
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


OPERATORS: dict[str, Operator] = {
    "argsort": argsort,
    "batch_norm": batch_norm,
    "cumsum": cumsum,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "local_response_norm": local_response_norm,
    "reduce_argmax": _argument(lambda x, axis: np.argmax(x, axis)),
    "reduce_argmin": _argument(lambda x, axis: np.argmin(x, axis)),
    "reduce_l1_norm": _reduce(_by(np.add), before=np.abs),
    "reduce_l2_norm": _reduce(_by(np.add), before=np.square, after=np.sqrt),
    "reduce_log_sum": _reduce(_by(np.add), after=np.log),
    "reduce_log_sum_exp": _reduce(_log_sum_exp),
    "reduce_max": _reduce(_by(np.maximum)),
    "reduce_mean": _reduce(_mean),
    "reduce_min": _reduce(_by(np.minimum)),
    "reduce_prod": _reduce(_by(np.multiply)),
    "reduce_sum": _reduce(_by(np.add)),
    "reduce_sum_square": _reduce(_by(np.add), before=np.square),
    "softmax": softmax,
    "topk": topk,
}
