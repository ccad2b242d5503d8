"""What ONNX calls the operators that the table knows: kind and name by ONNX's, and which of their inputs are data."""

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
    **{name: name.lower() for name in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Ceil", "Floor")},
    **{name: name.lower() for name in ("Round", "Where", "IsNaN", "IsInf", "Bernoulli")},
    **{f"Bitwise{name}": f"bitwise_{name.lower()}" for name in ("And", "Or", "Xor", "Not")},
    **{name: f"logical_{name.lower()}" for name in ("And", "Or", "Xor", "Not")},
    "Equal": "eq", "Greater": "gt", "Less": "lt", "GreaterOrEqual": "ge", "LessOrEqual": "le", "Mod": "remainder", "Max": "maximum", "Min": "minimum",
    "BiasAdd": "add",
    # ATen's `sum` and `mean` are reductions of one tensor; these are of several.
    "Sum": "add", "Mean": "mean_of",
    # ATen has one for each direction, or none.
    "BitShift": "bit_shift", "RotaryEmbedding": "rotary_embedding", "SwiGLU": "swiglu",
}  # fmt: skip
_COPIES = {
    **{name: name.lower() for name in ("Scatter", "Trilu", "Col2Im", "NonZero", "Compress")},
    "Cast": "_to_copy", "CastLike": "_to_copy", "Tile": "repeat", "Gather": "index_select", "GatherElements": "gather", "GatherND": "index",
    "ScatterElements": "scatter", "ScatterND": "index_put", "TensorScatter": "index_put", "OneHot": "one_hot",
    "ReverseSequence": "reverse_sequence", "CenterCropPad": "center_crop_pad", "DynamicQuantizeLinear": "quantize",
}  # fmt: skip
"""What only moves, looks up or writes in another format."""
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
    **{name: (aten, "copy") for name, aten in _COPIES.items()},
    **{name: (name.lower(), "reduction") for name in ("ArgMax", "ArgMin", "TopK", "CumSum", "CumProd", "Unique")},
}
"""ONNX operator -> ATen's name, one in the same style where ATen has none, and the kind; what multiplies or only moves names is not here."""
REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL2": "linalg_vector_norm",
    "ReduceL1": "linalg_vector_norm", "ReduceLogSumExp": "logsumexp", "ReduceSumSquare": "sum", "ReduceLogSum": "sum", "GlobalAveragePool": "mean",
}  # fmt: skip
WITHOUT_AXES = {"ReduceL1": "abs", "ReduceL2": "abs", "ReduceSumSquare": "square", "ReduceLogSum": "log"}
"""What reductions are where there is no axis to reduce; all others give back what they read."""
AROUND = {"constant": "constant_pad_nd", "reflect": "reflection_pad", "edge": "replication_pad", "wrap": "circular_pad"}
"""Mode of Pad -> ATen's name, without the number of axes; its circular one has none."""
ENLARGED = {"linear": "upsample_bilinear", "cubic": "upsample_bicubic"}
"""Mode of Resize -> ATen's name; nearest where a file says nothing."""
RECURRENT = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
LIMITS = {"Max", "Min"}
"""Clamps where one side is a number."""
RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
PARTS = {"Split", "Slice"}
SAME = {"Identity", "Dropout", "BitCast", *CONVERSIONS}
FROM_SHAPES = {"Shape", "Size", "Range", "ConstantOfShape", "EyeLike"}
NOISE = {
    "RandomNormal": "randn",
    "RandomUniform": "rand",
    "RandomNormalLike": "randn_like",
    "RandomUniformLike": "rand_like",
    "Multinomial": "multinomial",
}
"""Operators that give other numbers every time, whatever enters them; ATen's names."""
PARAMETERS_FROM = {"Clip": 1, "Resize": 1, "Upsample": 1, "Tile": 1, "TopK": 1, "CumSum": 1, "CumProd": 1, "OneHot": 1, "Trilu": 1}
"""Operators whose inputs from here on are parameters, no data."""
QUANTIZED_INPUTS = {
    "QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3), "ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QLinearAdd": (0, 3), "QLinearMul": (0, 3),
    "DynamicQuantizeMatMul": (0, 1, 4), "MatMulIntegerToFloat": (0, 1, 6), "QGemm": (0, 3, 6), "QLinearSigmoid": (0,), "QLinearLeakyRelu": (0,),
    "QLinearSoftmax": (0,), "QLinearAveragePool": (0,), "QLinearGlobalAveragePool": (0,), "DynamicQuantizeLinear": (0,),
}  # fmt: skip
QUANTIZED_AS = {
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "ConvInteger": "Conv",
    "MatMulInteger": "MatMul",
    "QGemm": "Gemm",
    "DynamicQuantizeLinear": "DynamicQuantizeLinear",
    **{f"QLinear{name}": name for name in ("Conv", "MatMul", "Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "AveragePool", "GlobalAveragePool")},
}
FUSED_AS = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "TransposeMatMul": "MatMul", "FusedMatMulActivation": "MatMul"}
"""Operators of ONNX Runtime that compute an activation too."""
