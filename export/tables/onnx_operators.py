"""What ONNX calls the operators that the table knows: kind and ATen's name by ONNX's, and which of their inputs are data."""

from __future__ import annotations

from mcompress.export.onnx import CONVERSIONS
from mcompress.targets.operators import Kind

STANDARD = ("", "ai.onnx", "com.microsoft")
_ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu", "PRelu": "prelu", "ThresholdedRelu": "threshold", "Clip": "clamp", "Sigmoid": "sigmoid", "Tanh": "tanh",
    "Elu": "elu", "Selu": "selu", "Celu": "celu", "Gelu": "gelu", "FastGelu": "gelu", "Mish": "mish", "Swish": "silu", "Softplus": "softplus",
    "HardSigmoid": "hardsigmoid", "HardSwish": "hardswish", "QuickGelu": "silu", "Softsign": "softsign", "Shrink": "softshrink",
    "BiasGelu": "gelu",
}  # fmt: skip
_ELEMENTWISE = {
    **{name: name.lower() for name in ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Log", "Erf", "Sign")},
    **{name: name.lower() for name in ("Ceil", "Where", "Mod", "Sin", "Cos", "Tan", "Atan", "Acos", "Asin", "Sinh", "Cosh", "Not", "And")},
    **{name: name.lower() for name in ("Or", "Xor", "Round", "Floor", "Equal", "Greater", "Less", "IsNaN", "IsInf", "BitShift", "Sum", "Mean")},
    "Max": "maximum", "Min": "minimum", "GreaterOrEqual": "ge", "LessOrEqual": "le", "Bernoulli": "bernoulli", "BitwiseAnd": "bitwise_and",
    "BiasAdd": "add", "RotaryEmbedding": "rotary_embedding",
}  # fmt: skip
PLAIN: dict[str, tuple[str, Kind]] = {
    **{name: (aten, "activation") for name, aten in _ACTIVATIONS.items()},
    **{name: (aten, "elementwise") for name, aten in _ELEMENTWISE.items()},
    **dict.fromkeys(("BatchNormalization",), ("native_batch_norm", "normalization")),
    **dict.fromkeys(
        ("LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "MeanVarianceNormalization"), ("layer_norm", "normalization")
    ),
    **dict.fromkeys(("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LpNormalization", "LRN"), ("layer_norm", "normalization")),
    **dict.fromkeys(("GroupNormalization", "GroupNorm", "SkipGroupNorm"), ("group_norm", "normalization")),
    "InstanceNormalization": ("instance_norm", "normalization"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "BiasSoftmax"), ("_softmax", "normalization")),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "MaxRoiPool", "MaxUnpool"), ("max_pool", "pooling")),
    **dict.fromkeys(("AveragePool", "LpPool", "GlobalLpPool", "RoiAlign"), ("avg_pool", "pooling")),
    **dict.fromkeys(("GridSample", "AffineGrid"), ("grid_sampler", "resize")),
    "DepthToSpace": ("pixel_shuffle", "shuffle"),
    "SpaceToDepth": ("pixel_unshuffle", "shuffle"),
    "Concat": ("cat", "concatenate"),
    **{name: (name.lower(), "copy") for name in ("Cast", "CastLike", "Tile", "Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements")},
    **{name: (name.lower(), "copy") for name in ("Scatter", "ReverseSequence", "Trilu", "CenterCropPad", "Col2Im", "OneHot", "Compress", "NonZero")},
    **{name: (name.lower(), "reduction") for name in ("ArgMax", "ArgMin", "TopK", "CumSum", "Unique")},
}
"""ONNX operator -> ATen's name and the kind; what multiplies or only moves names is not here."""
REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL2": "linalg_vector_norm",
    "ReduceL1": "linalg_vector_norm", "ReduceLogSumExp": "logsumexp", "ReduceSumSquare": "sum", "ReduceLogSum": "sum", "GlobalAveragePool": "mean",
}  # fmt: skip
ENLARGED = {"linear": "upsample_bilinear", "cubic": "upsample_bicubic"}
"""Mode of Resize -> ATen's name; nearest where a file says nothing."""
RECURRENT = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
LIMITS = {"Max", "Min"}
"""Clamps where one side is a number."""
RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
PARTS = {"Split", "Slice"}
SAME = {"Identity", "Dropout", *CONVERSIONS}
FROM_SHAPES = {"Shape", "Size", "Range", "ConstantOfShape", "EyeLike"}
NOISE = {
    "RandomNormal": "randn",
    "RandomUniform": "rand",
    "RandomNormalLike": "randn_like",
    "RandomUniformLike": "rand_like",
    "Multinomial": "multinomial",
}
"""Operators that give other numbers every time, whatever enters them; ATen's names."""
PARAMETERS_FROM = {"Clip": 1, "Resize": 1, "Upsample": 1, "Tile": 1, "TopK": 1, "CumSum": 1, "OneHot": 1, "Trilu": 1}
"""Operators whose inputs from here on are parameters, no data."""
QUANTIZED_INPUTS = {
    "QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3), "ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QLinearAdd": (0, 3), "QLinearMul": (0, 3),
    "DynamicQuantizeMatMul": (0, 1, 4), "MatMulIntegerToFloat": (0, 1, 6), "QGemm": (0, 3, 6), "QLinearSigmoid": (0,), "QLinearLeakyRelu": (0,),
    "QLinearSoftmax": (0,), "QLinearAveragePool": (0,), "QLinearGlobalAveragePool": (0,),
}  # fmt: skip
QUANTIZED_AS = {
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "ConvInteger": "Conv",
    "MatMulInteger": "MatMul",
    "QGemm": "Gemm",
    **{f"QLinear{name}": name for name in ("Conv", "MatMul", "Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "AveragePool", "GlobalAveragePool")},
}
FUSED_AS = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "TransposeMatMul": "MatMul", "FusedMatMulActivation": "MatMul"}
"""Operators of ONNX Runtime that compute an activation too."""
