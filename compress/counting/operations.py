"""What one ATen operator is: its kind, and its multiply-adds, read from its name and arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor

from mcompress.compress.counting.describing import Window, describe_attention, describe_convolution, describe_elementwise
from mcompress.compress.counting.steps import BAGS, Step, as_matrices, as_matrix, is_interleaved, with_kept_axes
from mcompress.targets.operators import ACTIVATIONS, RECURRENT, Kind

SOFTMAXES = ("_softmax", "_log_softmax", "_safe_softmax")
_BATCH_NORMS = frozenset(
    ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_batch_norm_no_update", "cudnn_batch_norm")
)
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_int_mm", "addbmm", "_addmm_activation", "_cdist_forward"), "matmul"),
    **dict.fromkeys(RECURRENT, "matmul"),
    **dict.fromkeys(("cat", "stack"), "concatenate"),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), "shuffle"),
    **dict.fromkeys(("clone", "copy", "_to_copy", "constant_pad_nd", "contiguous", "repeat", "roll", "flip", "tril", "triu"), "copy"),
    **dict.fromkeys(("embedding", "index_select", "gather", "index", "_unsafe_index", "take", "masked_select", "im2col", "col2im", "fill"), "copy"),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "index_put", "_index_put_impl", "_unsafe_index_put"), "copy"),
    **dict.fromkeys(("slice_scatter", "select_scatter", "index_add", "index_copy", "repeat_interleave", "zero", "max_unpool2d"), "copy"),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "prod"), "reduction"),
    **dict.fromkeys(
        ("argmax", "argmin", "linalg_vector_norm", "logsumexp", "any", "all", "cumsum", "cumprod", "topk", "sort", "argsort"), "reduction"
    ),
    **dict.fromkeys(("aminmax", "median", "kthvalue", "count_nonzero", "bincount", "histc", "nansum", "cummax", "cummin"), "reduction"),
    **dict.fromkeys(("rot90", "masked_scatter", "diag_embed", "nonzero", "index_fill", "put", "slice_copy", "view_copy", "permute_copy"), "copy"),
    **dict.fromkeys(("expand_copy", "select_copy", "split_with_sizes_copy", "transpose_copy", "diagonal_scatter", "as_strided_scatter"), "copy"),
    **dict.fromkeys(("_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"), "copy"),
    **dict.fromkeys(("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "mode", "nanmedian"), "reduction"),
    **dict.fromkeys(("_cummax_helper", "_cummin_helper", "_logcumsumexp", "logcumsumexp", *BAGS), "reduction"),
    **dict.fromkeys(("masked_fill", "searchsorted", "bucketize", "complex", "polar", "linalg_cross", "isin", "bernoulli"), "elementwise"),
    **dict.fromkeys(("native_dropout", "_fused_dropout"), "elementwise"),
    **dict.fromkeys(SOFTMAXES, "normalization"),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm", "layer_norm", "group_norm", "renorm"), "normalization"),
    **dict.fromkeys(("instance_norm", "batch_norm", "_batch_norm_with_update", "miopen_batch_norm"), "normalization"),
    **dict.fromkeys(_BATCH_NORMS, "normalization"),
    **dict.fromkeys(("_prelu_kernel", "prelu", "rrelu_with_noise", "log_sigmoid_forward"), "activation"),
}
FILLED = frozenset(
    ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "scalar_tensor")
)
"""What they make depends on nothing but a shape: a constant, which exporters fold."""
NOISE = frozenset(
    ("randn_like", "rand_like", "randint_like", "randn", "rand", "randint", "randperm", "normal", "uniform", "exponential", "cauchy", "geometric",
     "log_normal", "random", "normal_functional", "multinomial")
)  # fmt: skip
"""What they write depends on nothing that they read: of a tensor they take the shape."""
_OWN_NAMESPACES = frozenset(("aten", "prims"))
_FOREIGN: dict[str, Kind] = {
    "torchvision::roi_align": "resize",
    "torchvision::ps_roi_align": "resize",
    "torchvision::roi_pool": "pooling",
    "torchvision::ps_roi_pool": "pooling",
    **{
        f"quantized_decomposed::{way}_{each}": "copy"
        for way in ("quantize", "dequantize")
        for each in ("per_tensor", "per_channel", "per_token", "per_channel_group")
    },
}
"""Operators of other libraries that are known; of all others the name says nothing, whatever it sounds like."""
_PLAIN_NAMES = {
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "log_sigmoid",
    "native_layer_norm": "layer_norm",
    "_fused_rms_norm": "rms_norm",
    "native_group_norm": "group_norm",
}
_ONE_NAME = (
    ("max_pool", "max_pool"),
    ("avg_pool", "avg_pool"),
    ("upsample_bilinear", "upsample_bilinear"),
    ("upsample_linear", "upsample_bilinear"),
    ("upsample_trilinear", "upsample_bilinear"),
    ("upsample_nearest", "upsample_nearest"),
    ("upsample_bicubic", "upsample_bicubic"),
    ("reflection_pad", "reflection_pad"),
    ("replication_pad", "replication_pad"),
)
"""What the name of an operator of any number of dimensions contains -> the one name."""
_REDUCED = frozenset(
    ("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "logsumexp", "prod", "norm", "max", "min", "argmax",
     "argmin", "any", "all", "median", "nanmedian", "nansum", "count_nonzero")
)  # fmt: skip
"""Their second argument is the axis or axes; of norms the third."""
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
_MKLDNN_ARGUMENTS = ("input", "weight", "bias", "padding", "stride", "dilation", "groups")
_PREFIXES: tuple[tuple[str, Kind], ...] = (
    ("upsample_", "resize"),
    ("_upsample_", "resize"),
    ("grid_sampler", "resize"),
    ("avg_pool", "pooling"),
    ("max_pool", "pooling"),
    ("fractional_max_pool", "pooling"),
    ("_adaptive_avg_pool", "pooling"),
    ("adaptive_", "pooling"),
    ("reflection_pad", "copy"),
    ("replication_pad", "copy"),
)


def tensors_in(values: Sequence[object] | Iterator[object]) -> Iterator[Tensor]:
    """All tensors among an operator's arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def named(namespace: str, operation: str) -> str:
    """The name of an operator of PyTorch itself as it is, that of any other library with the library before it."""
    return operation if namespace in _OWN_NAMESPACES else f"{namespace}::{operation}"


def kind_of(operation: str, *, pointwise: bool) -> Kind:
    """The kind of an operator by its name (`named`); `pointwise` is its tag in ATen and decides where the name says nothing."""
    if "::" in operation:
        return _FOREIGN.get(operation, "other")
    if "scaled_dot_product" in operation:
        return "attention"
    if operation in NOISE:
        return "elementwise"
    if operation in ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"):
        return "convolution"
    if operation in ACTIVATIONS:
        return "activation"
    if operation in _KINDS:
        return _KINDS[operation]
    for prefix, kind in _PREFIXES:
        if operation.startswith(prefix):
            return kind
    return "elementwise" if pointwise else "other"


def describe(step: Step, args: Sequence[object], kwargs: Mapping[str, object], *, weighted: bool) -> None:
    """Fill in what depends on the operator's arguments: multiply-adds, shapes, groups, kernel, stride, foldability."""
    if "::" not in step.operation:
        step.operation = _PLAIN_NAMES.get(step.operation) or next((name for start, name in _ONE_NAME if start in step.operation), step.operation)
    if step.kind == "convolution":
        _describe_convolution(step, args, kwargs)
    elif step.kind == "matmul":
        _describe_product(step, args, weighted=weighted)
    elif step.kind == "attention":
        given = tensors_in((*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)))
        query, key = next(given), next(given)
        step.operation = "attention"
        describe_attention(step, query.shape, step.output_shape, key.shape[-2])
    elif step.operation in _BATCH_NORMS:
        _describe_batch_norm(step, args)
    elif step.kind in ("elementwise", "activation"):
        # x * x reads one value, and is no factor.
        describe_elementwise(step, has_constant=len(step.reads) == 1 and len(list(tensors_in(args))) == 1 + weighted)
    elif step.operation in _REDUCED:
        _describe_reduction(step, args, kwargs)
    elif step.operation == "constant_pad_nd":
        adds = all(size >= 0 for size in cast("Sequence[int]", args[1]))
        step.pads_with_zeros = adds and all(not isinstance(value, (int, float)) or value == 0 for value in (*args[2:], *kwargs.values()))
    elif step.operation == "clone":
        _describe_copy(step, args)
    elif step.operation in SOFTMAXES:
        step.axis = next((value for value in (*args[1:], kwargs.get("dim")) if isinstance(value, int) and not isinstance(value, bool)), None)


def _describe_product(step: Step, args: Sequence[object], *, weighted: bool) -> None:
    given = list(tensors_in(tuple(args)))
    if step.operation in RECURRENT:
        # Every weight matrix is multiplied with a vector at every step of the sequence; biases have one axis.
        rows = math.prod(step.input_shape[:-1])
        step.macs = step.macs_output_convention = rows * sum(tensor.numel() for tensor in given[1:] if tensor.dim() > 1)
        step.input_shape, step.output_shape = as_matrix(step.input_shape), as_matrix(step.output_shape)
        return
    factors = [tensor for tensor in given if tensor.dim() > 0][-2:]
    # The last two tensors are the factors (an added bias comes first); the inner size is the last of the left factor.
    step.macs = math.prod(step.output_shape) * factors[0].shape[-1]
    if step.operation == "addbmm":
        step.macs = factors[0].numel() * factors[1].shape[-1]
    step.macs_output_convention = step.macs
    if factors[0].dim() > 2 and factors[1].dim() > 2 and not weighted:
        step.input_shape, step.output_shape = as_matrices(factors[0].shape), as_matrices(step.output_shape)
    else:
        step.input_shape, step.output_shape = as_matrix(factors[0].shape), as_matrix(step.output_shape)
    step.has_bias = step.operation in ("addmm", "_addmm_activation", "baddbmm", "addmv")


def _describe_batch_norm(step: Step, args: Sequence[object]) -> None:
    if _uses_batch_statistics(args):
        step.operation = "instance_norm"  # torch computes it as a batch normalization of a batch of channels
        return
    # In evaluation its four tables of numbers are one factor and one shift per channel.
    step.foldable = step.takes_over_bias = True
    step.weight_elements = 2 * (step.input_shape[1] if len(step.input_shape) > 1 else step.input_shape[0])


def _describe_reduction(step: Step, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    position = 2 if step.operation in ("linalg_vector_norm", "norm") else 1
    axes = args[position] if len(args) > position else kwargs.get("dim")
    named = (axes,) if isinstance(axes, int) and not isinstance(axes, bool) else axes if isinstance(axes, (list, tuple)) else ()
    step.output_shape = with_kept_axes(step.input_shape, tuple(cast("Sequence[int]", named)))


def _describe_copy(step: Step, args: Sequence[object]) -> None:
    source = next(tensors_in(tuple(args)))
    strides = [int(stride) for stride in source.stride()]
    order = sorted(range(source.dim()), key=lambda axis: (-strides[axis], axis))
    if is_interleaved([source.shape[axis] for axis in order], [order.index(axis) for axis in range(source.dim())]):
        step.kind = "shuffle"


def _uses_batch_statistics(args: Sequence[object]) -> bool:
    # native_batch_norm(input, weight, bias, running_mean, running_var, training, ...); the variants without statistics have fewer tensors.
    flag = next((a for a in args if isinstance(a, bool)), False)
    return flag or len(list(tensors_in(tuple(args)))) < 3


def _describe_convolution(step: Step, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    names = _MKLDNN_ARGUMENTS if step.operation == "mkldnn_convolution" else _CONVOLUTION_ARGUMENTS
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    weight = cast("Tensor", given["weight"])
    window = Window(
        transposed=bool(given.get("transposed")),
        kernel=tuple(weight.shape[2:]),
        stride=max(cast("Sequence[int]", given["stride"]), default=1),
        groups=cast("int", given["groups"]),
        per_group=weight.shape[1],
        has_bias=given.get("bias") is not None,
    )
    step.operation = "convolution"
    describe_convolution(step, window)
