"""Operators that compute every element on its own: arithmetic, comparisons, activations, casts.

Computed in fp32 from start to end, also where the operator has several steps inside (gelu): the evaluator rounds the result once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mcompress.export.mil.arguments import Arguments, Operator
from mcompress.export.mil.types import Array, FloatArray


def _unary(function: Callable[[Array], Array]) -> Operator:
    return lambda arguments: np.asarray(function(arguments.array("x")))


def _unary_float(function: Callable[[FloatArray], FloatArray]) -> Operator:
    return lambda arguments: np.asarray(function(arguments.floats("x")))


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    return lambda arguments: np.asarray(function(arguments.array("x"), arguments.array("y")))


def _shifted(function: Callable[[FloatArray], FloatArray], epsilon: float) -> Operator:
    """For operators that add `epsilon` in front."""
    return lambda arguments: np.asarray(function(arguments.floats("x") + np.float32(arguments.number("epsilon", epsilon))))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1)))


def _erf(x: FloatArray) -> FloatArray:
    from scipy.special import erf

    return np.asarray(erf(x), dtype=np.float32)


def _rsqrt(x: FloatArray) -> FloatArray:
    return np.asarray(np.float32(1) / np.sqrt(x))


def _round(x: FloatArray) -> FloatArray:
    return np.asarray(np.rint(x))


def _softplus(x: FloatArray) -> FloatArray:
    return np.asarray(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0))


def _per_channel(values: FloatArray, rank: int) -> FloatArray:
    """A vector over axis 1, ready to broadcast; scalars as they are."""
    return values.reshape(-1, *(1,) * (rank - 2)) if values.ndim == 1 and rank > 1 else values


def gelu(arguments: Arguments) -> Array:
    """Gaussian error linear unit: `EXACT`, `TANH_APPROXIMATION` or `SIGMOID_APPROXIMATION`."""
    x, mode = arguments.floats("x"), arguments.text("mode", "EXACT")
    if mode == "EXACT":
        return np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    if mode == "TANH_APPROXIMATION":
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))))
    if mode == "SIGMOID_APPROXIMATION":
        return x * _sigmoid(np.float32(1.702) * x)
    raise arguments.wrong(f"its mode is '{mode}'; known are EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")


def leaky_relu(arguments: Arguments) -> Array:
    """x where it is not negative, alpha x elsewhere."""
    x = arguments.floats("x")
    return np.where(x >= 0, x, x * np.float32(arguments.number("alpha")))


def prelu(arguments: Arguments) -> Array:
    """Leaky ReLU with one slope per channel (axis 1)."""
    x = arguments.floats("x")
    return np.where(x >= 0, x, x * _per_channel(arguments.floats("alpha"), x.ndim))


def elu(arguments: Arguments) -> Array:
    """x where it is positive, alpha (exp(x) - 1) elsewhere."""
    x = arguments.floats("x")
    return np.where(x > 0, x, np.float32(arguments.number("alpha")) * np.expm1(np.minimum(x, 0)))


def clip(arguments: Arguments) -> Array:
    """x within [alpha, beta]."""
    return np.clip(arguments.floats("x"), np.float32(arguments.number("alpha")), np.float32(arguments.number("beta")))


def clamped_relu(arguments: Arguments) -> Array:
    """min(beta, x) where x is not negative, min(beta, alpha x) elsewhere."""
    x = arguments.floats("x")
    return np.minimum(np.float32(arguments.number("beta")), np.where(x >= 0, x, x * np.float32(arguments.number("alpha"))))


def _linear_activation(arguments: Arguments) -> Array:
    return arguments.floats("x") * np.float32(arguments.number("alpha")) + np.float32(arguments.number("beta"))


def _sigmoid_hard(arguments: Arguments) -> Array:
    return np.clip(_linear_activation(arguments).astype(np.float32), 0, 1)


def _scaled_tanh(arguments: Arguments) -> Array:
    return np.asarray(np.float32(arguments.number("alpha")) * np.tanh(arguments.floats("x") * np.float32(arguments.number("beta"))))


def _softplus_parametric(arguments: Arguments) -> Array:
    x = arguments.floats("x")
    return _per_channel(arguments.floats("alpha"), x.ndim) * _softplus(x * _per_channel(arguments.floats("beta"), x.ndim))


def _threshold(arguments: Arguments) -> Array:
    return np.maximum(arguments.floats("x"), np.float32(arguments.number("alpha")))


def _thresholded_relu(arguments: Arguments) -> Array:
    x = arguments.floats("x")
    return np.where(x >= np.float32(arguments.number("alpha")), x, np.float32(0))


def _softsign(x: FloatArray) -> FloatArray:
    return np.asarray(x / (1 + np.abs(x)))


def select(arguments: Arguments) -> Array:
    """`a` where `cond`, `b` elsewhere, of the types of a and b."""
    return np.where(arguments.stored("cond").astype(np.bool_), arguments.array("a"), arguments.array("b"))


def cast(arguments: Arguments) -> Array:
    """To another type; floating-point numbers lose their fraction on the way to an integer. Half precision is made by the evaluator's rounding."""
    x, dtype = arguments.array("x"), arguments.dtype("dtype")
    if dtype.kind == "b":
        return np.asarray(x != 0)
    if dtype == np.float16:
        return x.astype(np.float32)
    return (np.trunc(x) if x.dtype.kind == "f" and dtype.kind != "f" else x).astype(dtype)


def identity(arguments: Arguments) -> Array:
    """x."""
    return arguments.stored("x")


def _logical(function: Callable[[Array, Array], Array]) -> Operator:
    return lambda arguments: np.asarray(function(arguments.stored("x").astype(np.bool_), arguments.stored("y").astype(np.bool_)))


OPERATORS: dict[str, Operator] = {
    "abs": _unary(np.abs),
    "acos": _unary_float(np.arccos),
    "add": _binary(np.add),
    "asin": _unary_float(np.arcsin),
    "atan": _unary_float(np.arctan),
    "atanh": _unary_float(np.arctanh),
    "cast": cast,
    "ceil": _unary_float(np.ceil),
    "clamped_relu": clamped_relu,
    "clip": clip,
    "cos": _unary_float(np.cos),
    "cosh": _unary_float(np.cosh),
    "elu": elu,
    "equal": _binary(np.equal),
    "erf": _unary_float(_erf),
    "exp": _unary_float(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary_float(np.floor),
    "floor_div": _binary(np.floor_divide),
    "gelu": gelu,
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "identity": identity,
    "inverse": _shifted(np.reciprocal, 1e-4),
    "leaky_relu": leaky_relu,
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "linear_activation": _linear_activation,
    "log": _shifted(np.log, 1e-45),
    "logical_and": _logical(np.logical_and),
    "logical_not": lambda arguments: np.logical_not(arguments.stored("x")),
    "logical_or": _logical(np.logical_or),
    "logical_xor": _logical(np.logical_xor),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.mod),
    "mul": _binary(np.multiply),
    "not_equal": _binary(np.not_equal),
    "pow": _binary(np.power),
    "prelu": prelu,
    "real_div": _binary(np.true_divide),
    "relu": _unary(lambda x: np.maximum(x, x.dtype.type(0))),
    "relu6": _unary_float(lambda x: np.clip(x, 0, 6)),
    "round": _unary_float(_round),
    "rsqrt": _shifted(_rsqrt, 1e-12),
    "scaled_tanh": _scaled_tanh,
    "select": select,
    "sigmoid": _unary_float(_sigmoid),
    "sigmoid_hard": _sigmoid_hard,
    "sign": _unary(np.sign),
    "silu": _unary_float(lambda x: x * _sigmoid(x)),
    "sin": _unary_float(np.sin),
    "sinh": _unary_float(np.sinh),
    "softplus": _unary_float(_softplus),
    "softplus_parametric": _softplus_parametric,
    "softsign": _unary_float(_softsign),
    "sqrt": _unary_float(np.sqrt),
    "square": _unary(np.square),
    "sub": _binary(np.subtract),
    "tan": _unary_float(np.tan),
    "tanh": _unary_float(np.tanh),
    "threshold": _threshold,
    "thresholded_relu": _thresholded_relu,
}
