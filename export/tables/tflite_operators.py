"""What TFLite calls the operators that the table knows: kind and ATen's name by TFLite's, and which of them work on images."""

from __future__ import annotations

from mcompress.targets.operators import Kind

_ACTIVATIONS = {
    "RELU": "relu",
    "RELU6": "relu6", "RELU_N1_TO_1": "clamp", "RELU_0_TO_1": "clamp", "LEAKY_RELU": "leaky_relu", "PRELU": "prelu", "LOGISTIC": "sigmoid",
    "TANH": "tanh", "ELU": "elu", "GELU": "gelu", "HARD_SWISH": "hardswish",
}  # fmt: skip
FUSED = {1: "relu", 2: "clamp", 3: "relu6", 4: "tanh"}
"""ActivationFunctionType -> ATen's name."""
_ELEMENTWISE = {
    **{name: name.lower() for name in ("ADD", "SUB", "MUL", "DIV", "POW", "SQRT", "RSQRT", "NEG", "ABS", "EXP", "LOG", "SIGN")},
    **{name: name.lower() for name in ("SIN", "COS", "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "MAXIMUM", "MINIMUM")},
    **{name: name.lower() for name in ("ROUND", "FLOOR", "CEIL", "SQUARE", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD")},
    **{name: name.lower() for name in ("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "ADD_N", "ATAN2")},
    "SELECT": "where", "SELECT_V2": "where", "BITWISE_XOR": "bitwise_xor", "RIGHT_SHIFT": "rshift",
}  # fmt: skip
PLAIN: dict[str, tuple[str, Kind]] = {
    **{name: (aten, "activation") for name, aten in _ACTIVATIONS.items()},
    **{name: (aten, "elementwise") for name, aten in _ELEMENTWISE.items()},
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX"), ("_softmax", "normalization")),
    **dict.fromkeys(("L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION"), ("l2_norm", "normalization")),
    "MAX_POOL_2D": ("max_pool", "pooling"),
    **dict.fromkeys(("AVERAGE_POOL_2D", "L2_POOL_2D"), ("avg_pool", "pooling")),
    "RESIZE_BILINEAR": ("upsample_bilinear", "resize"),
    "RESIZE_NEAREST_NEIGHBOR": ("upsample_nearest", "resize"),
    "DEPTH_TO_SPACE": ("pixel_shuffle", "shuffle"),
    "SPACE_TO_DEPTH": ("pixel_unshuffle", "shuffle"),
    "SPACE_TO_BATCH_ND": ("space_to_batch", "shuffle"),
    "BATCH_TO_SPACE_ND": ("batch_to_space", "shuffle"),
    **dict.fromkeys(("CONCATENATION", "PACK"), ("cat", "concatenate")),
    **{
        name: (name.lower(), "copy") for name in ("CAST", "TILE", "GATHER", "GATHER_ND", "SCATTER_ND", "EMBEDDING_LOOKUP", "REVERSE_V2", "MIRROR_PAD")
    },
    **{
        name: (name.lower(), "copy")
        for name in ("ONE_HOT", "SEGMENT_SUM", "DYNAMIC_UPDATE_SLICE", "REVERSE_SEQUENCE", "MATRIX_DIAG", "FILL", "WHERE")
    },
    **{name: (name.lower(), "reduction") for name in ("ARG_MAX", "ARG_MIN", "TOPK_V2", "CUMSUM", "UNIQUE")},
}
"""TFLite operator -> ATen's name and the kind."""
REDUCTIONS = {
    "MEAN": "mean",
    "SUM": "sum",
    "REDUCE_MAX": "amax",
    "REDUCE_MIN": "amin",
    "REDUCE_PROD": "prod",
    "REDUCE_ANY": "any",
    "REDUCE_ALL": "all",
}
IMAGES = {
    *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"),
}
"""Operators whose tensors have channels last by definition."""
KEEP_LAYOUT = {
    *_ACTIVATIONS,
    *_ELEMENTWISE,
    "CONCATENATION",
    "PAD",
    "PADV2",
    "MIRROR_PAD",
    "SLICE",
    "STRIDED_SLICE",
    "SPLIT",
    "SPLIT_V",
    "QUANTIZE",
    "STABLEHLO_REDUCE_WINDOW",
} | {*("DEQUANTIZE", "CAST", "TILE")}
RESHAPES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
PARTS = {"SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "UNPACK"}
PARAMETERS_FROM = {
    "RESIZE_BILINEAR": 1,
    "RESIZE_NEAREST_NEIGHBOR": 1,
    "MIRROR_PAD": 1,
    "TILE": 1,
    "CUMSUM": 1,
    "TOPK_V2": 1,
    "ARG_MAX": 1,
    "ARG_MIN": 1,
    "FILL": 0,
    "STABLEHLO_REDUCE_WINDOW": 1,
}
"""Operators whose inputs from here on are parameters, no data."""
LIMITS = {"MAXIMUM", "MINIMUM"}
"""Clamps where one side is a number."""
RECURRENT = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": ("lstm", range(1, 9)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ("rnn_tanh", range(1, 3)),
    "RNN": ("rnn_tanh", range(1, 3)),
}
