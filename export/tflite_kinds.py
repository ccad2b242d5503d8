"""The format's operators that take INT8: which they are, and since which version of their definition and of the runtime."""

from __future__ import annotations

from collections.abc import Mapping

from ai_edge_litert import schema_py_generated as schema

WEIGHTED: Mapping[str, tuple[int, int, int, int]] = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
"""Kind -> which inputs are the activation, the weights and the bias, and the axis of the output channels in the weights."""
ARITHMETIC = frozenset(("ADD", "SUB", "MUL", "LEAKY_RELU"))
MOVING = frozenset(
    (
        *("TRANSPOSE", "RESHAPE", "PAD", "MIRROR_PAD", "SLICE", "STRIDED_SLICE", "CONCATENATION", "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE"),
        *("SPACE_TO_DEPTH", "MAX_POOL_2D", "SQUEEZE", "EXPAND_DIMS"),
    )
)
"""They copy values, so that inputs and output have one scale."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    "RELU": (0.0, float("inf")),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}
LIMITS = frozenset(("MAXIMUM", "MINIMUM"))
"""With a constant, half of a clamp."""
IMAGE = 4
SINGLE_POOLS = int(schema.BuiltinOptions.Pool2DOptions)
_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "LEAKY_RELU": 1,
    "RESHAPE": 1,
    "SQUEEZE": 1,
    "EXPAND_DIMS": 1,
    "RELU_N1_TO_1": 1,
    "RELU_0_TO_1": 1,
    "MUL": 3,
}
"""Versions of the definitions that take INT8; 2 for the others."""
_RUNTIMES = {
    "TRANSPOSE_CONV": "2.3.0",
    "MIRROR_PAD": "2.3.0",
    "DEPTH_TO_SPACE": "2.5.0",
    "RELU": "2.1.0",
    "RELU_0_TO_1": "2.10.0",
    "MUL": "1.15.0",
}
"""TensorFlow versions that first had them; 1.14.0 for the others (tensorflow/lite/tools/versioning/runtime_version.cc)."""
_RUNTIME = "1.14.0"


def version_of(kind: str) -> int:
    """The first version of the operator's definition that takes INT8."""
    return _VERSIONS.get(kind, 2)


def runtime_of(kind: str) -> str:
    """The first TensorFlow version that has it."""
    return _RUNTIMES.get(kind, _RUNTIME)


def single_pool() -> schema.Pool2DOptionsT:
    """Options of a pooling of single elements, with a ReLU in it."""
    made = schema.Pool2DOptionsT()
    made.filterHeight = made.filterWidth = made.strideH = made.strideW = 1
    made.padding, made.fusedActivationFunction = schema.Padding.VALID, schema.ActivationFunctionType.RELU
    return made
