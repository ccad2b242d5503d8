"""What TFLite calls the operators that the table knows: kind and ATen's name by TFLite's, and which of them work on images."""

from __future__ import annotations

from mcompress.targets.operators import Kind

_ACTIVATIONS = {
    "RELU": "relu",
    "RELU6": "relu6", "RELU_N1_TO_1": "clamp", "RELU_0_TO_1": "clamp", "LEAKY_RELU": "leaky_relu", "PRELU": "prelu", "LOGISTIC": "sigmoid",
    "TANH": "tanh", "ELU": "elu", "GELU": "gelu", "HARD_SWISH": "hardswish", "STABLEHLO_CLAMP": "clamp",
}  # fmt: skip
FUSED = {1: "relu", 2: "clamp", 3: "relu6", 4: "tanh"}
"""ActivationFunctionType -> ATen's name."""
LARGEST = 4
"""ReduceWindowFunction that takes the maximum."""
_ELEMENTWISE = {
    **{name: name.lower() for name in ("ADD", "SUB", "MUL", "DIV", "POW", "SQRT", "RSQRT", "NEG", "ABS", "EXP", "LOG", "SIGN", "SIN", "COS")},
    **{name: name.lower() for name in ("MAXIMUM", "MINIMUM", "ROUND", "FLOOR", "CEIL", "SQUARE", "SQUARED_DIFFERENCE", "ATAN2", "BUCKETIZE")},
    **{name: name.lower() for name in ("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "BITWISE_XOR")},
    "EQUAL": "eq", "NOT_EQUAL": "ne", "GREATER": "gt", "GREATER_EQUAL": "ge", "LESS": "lt", "LESS_EQUAL": "le",
    "FLOOR_DIV": "floor_divide", "FLOOR_MOD": "remainder", "ADD_N": "add", "SELECT": "where", "SELECT_V2": "where",
    "RIGHT_SHIFT": "bitwise_right_shift", "COMPLEX_ABS": "abs", "FAKE_QUANT": "fake_quantize",
    "STABLEHLO_CBRT": "pow", "STABLEHLO_COMPARE": "compare", "STABLEHLO_REMAINDER": "fmod", "STABLEHLO_SHIFT_LEFT": "bitwise_left_shift",
}  # fmt: skip
_COPIES = {
    **{name: name.lower() for name in ("BITCAST", "FILL", "REAL", "IMAG", "ONE_HOT", "DILATE", "DENSIFY")},
    **{name: name.lower() for name in ("SPARSE_TO_DENSE", "DYNAMIC_UPDATE_SLICE", "REVERSE_SEQUENCE", "SKIP_GRAM")},
    **{name: name.lower() for name in ("HASHTABLE_LOOKUP", "HASHTABLE_FIND", "HASHTABLE_SIZE")},
    "CAST": "_to_copy", "TILE": "repeat", "GATHER": "index_select", "GATHER_ND": "index", "EMBEDDING_LOOKUP": "embedding", "REVERSE_V2": "flip",
    "WHERE": "nonzero", "SCATTER_ND": "index_put", "MATRIX_DIAG": "diag_embed", "MATRIX_SET_DIAG": "diagonal_scatter",
    "SEGMENT_SUM": "segment_reduce",
    **{f"UNSORTED_SEGMENT_{name}": "scatter_reduce" for name in ("SUM", "PROD", "MAX", "MIN")},
    "STABLEHLO_GATHER": "index", "STABLEHLO_SCATTER": "index_put", "STABLEHLO_TRANSPOSE": "permute", "STABLEHLO_BROADCAST_IN_DIM": "expand",
}  # fmt: skip
"""What only moves or looks up."""
PLAIN: dict[str, tuple[str, Kind]] = {
    **{name: (aten, "activation") for name, aten in _ACTIVATIONS.items()},
    **{name: (aten, "elementwise") for name, aten in _ELEMENTWISE.items()},
    **{name: (aten, "copy") for name, aten in _COPIES.items()},
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
    **dict.fromkeys(("CONCATENATION", "PACK", "CONCAT_EMBEDDINGS"), ("cat", "concatenate")),
    "ARG_MAX": ("argmax", "reduction"),
    "ARG_MIN": ("argmin", "reduction"),
    "TOPK_V2": ("topk", "reduction"),
    "CUMSUM": ("cumsum", "reduction"),
    "UNIQUE": ("unique", "reduction"),
    "STABLEHLO_SORT": ("sort", "reduction"),
    "EMBEDDING_LOOKUP_SPARSE": ("_embedding_bag", "reduction"),
}
"""TFLite operator -> ATen's name, its own where ATen has none, and the kind."""
SAME_AS = {
    "STABLEHLO_DIVIDE": "DIV",
    "STABLEHLO_MULTIPLY": "MUL",
    "STABLEHLO_SUBTRACT": "SUB",
    "STABLEHLO_AND": "LOGICAL_AND",
    "STABLEHLO_OR": "LOGICAL_OR",
    "STABLEHLO_COSINE": "COS",
    "STABLEHLO_EXPONENTIAL": "EXP",
    "STABLEHLO_NEGATE": "NEG",
    "STABLEHLO_POWER": "POW",
    "STABLEHLO_CONVERT": "CAST",
    "STABLEHLO_CONCATENATE": "CONCATENATION",
    "STABLEHLO_DYNAMIC_SLICE": "SLICE",
    **{
        f"STABLEHLO_{name}": name
        for name in ("ADD", "MAXIMUM", "MINIMUM", "ABS", "FLOOR", "LOG", "RSQRT", "SELECT", "LOGISTIC", "TANH", "RESHAPE", "SLICE")
    },
    "STABLEHLO_DYNAMIC_UPDATE_SLICE": "DYNAMIC_UPDATE_SLICE",
}
"""Operators that have two names."""
NOISE = {
    "RANDOM_UNIFORM": "rand",
    "RANDOM_STANDARD_NORMAL": "randn",
    "MULTINOMIAL": "multinomial",
    "STABLEHLO_RNG_BIT_GENERATOR": "random",
}
"""Operators that give other numbers every time, whatever enters them; ATen's names."""
FROM_SHAPES = {"SHAPE", "RANK", "RANGE", "ZEROS_LIKE", "BROADCAST_ARGS"}
"""What they give depends on sizes, not on what tensors hold."""
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
    *("CONCATENATION", "PAD", "PADV2", "STABLEHLO_PAD", "MIRROR_PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V"),
    *("QUANTIZE", "DEQUANTIZE", "CAST", "TILE", "STABLEHLO_REDUCE_WINDOW", "REDUCE_WINDOW"),
}
WITHOUT_KERNEL = {"STABLEHLO_CONVOLUTION"}
"""What converters write and LiteRT does not execute: the file does not load."""
RESHAPES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
PARTS = {"SLICE": 0, "STRIDED_SLICE": 0, "SPLIT": 1, "SPLIT_V": 0, "UNPACK": 0}
"""Operator -> position of the input that it takes parts of; the others say which parts."""
PADDED_WITH = {"PADV2": 2, "STABLEHLO_PAD": 1}
"""Operator -> position of the number around the tensor; PAD has zeros."""
PARAMETERS_FROM = {
    "RESIZE_BILINEAR": 1,
    "RESIZE_NEAREST_NEIGHBOR": 1,
    "TILE": 1,
    "CUMSUM": 1,
    "TOPK_V2": 1,
    "ARG_MAX": 1,
    "ARG_MIN": 1,
    "FILL": 0,
    "STABLEHLO_REDUCE_WINDOW": 1,
    "REDUCE_WINDOW": 1,
}
"""Operators whose inputs from here on are parameters, no data."""
DATA_AT = {"STABLEHLO_CLAMP": (1,), "EMBEDDING_LOOKUP_SPARSE": (0, 4)}
"""Operator -> positions of its data; the limits stand around the one, and places in a sparse tensor between the others."""
LIMITS = {"MAXIMUM", "MINIMUM"}
"""Clamps where one side is a number."""
RECURRENT = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": ("lstm", range(1, 9)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ("rnn_tanh", range(1, 3)),
    "RNN": ("rnn_tanh", range(1, 3)),
}
WITHOUT_RESULT = {"ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT"}
"""Operators that write no tensor."""
LEAST_INPUTS = {
    **dict.fromkeys((*RESHAPES, *PARTS, *REDUCTIONS, *PLAIN, "QUANTIZE", "DEQUANTIZE", "BROADCAST_TO", "READ_VARIABLE", "MIRROR_PAD", "PAD"), 1),
    **dict.fromkeys((*REDUCTIONS, "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE", "SPLIT"), 2),
    **dict.fromkeys(("STABLEHLO_CONVOLUTION", "STABLEHLO_REDUCE_WINDOW", "STABLEHLO_CLAMP", "STABLEHLO_PAD", "ASSIGN_VARIABLE"), 2),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE", "PADV2"), 3),
    **dict.fromkeys(RECURRENT, 1),
    "REDUCE_WINDOW": 1,
    "EMBEDDING_LOOKUP_SPARSE": 5,
}
"""Operator -> inputs, counted from the first, that it does not work without."""
RANKS = {
    "CONV_2D": {0: 4, 1: 4},
    "DEPTHWISE_CONV_2D": {0: 4, 1: 4},
    "TRANSPOSE_CONV": {1: 4, 2: 4},
    "CONV_3D": {0: 5, 1: 5},
    "CONV_3D_TRANSPOSE": {1: 5, 2: 5},
    "FULLY_CONNECTED": {1: 2},
}
"""Operator -> position of an input -> how many sizes it has."""
