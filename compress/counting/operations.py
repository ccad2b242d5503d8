"""What one ATen operator is: its kind, and its multiply-adds, read from its name and arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from mcompress.targets.operators import Kind

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_int_mm", "addbmm"), "matmul"),
    **dict.fromkeys(("cat", "stack"), "concatenate"),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), "shuffle"),
    **dict.fromkeys(("clone", "copy_", "_to_copy", "constant_pad_nd", "contiguous", "repeat", "roll", "flip"), "copy"),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "prod"), "reduction"),
    **dict.fromkeys(("argmax", "argmin", "linalg_vector_norm", "logsumexp", "any", "all", "cumsum"), "reduction"),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), "normalization"),
    **dict.fromkeys(("_prelu_kernel", "prelu", "rrelu_with_noise", "glu", "log_sigmoid_forward"), "activation"),
}
ACTIVATIONS = frozenset(
    ("relu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "gelu", "silu", "mish", "elu", "celu", "selu",
     "softplus", "hardswish", "hardsigmoid", "threshold", "softshrink", "hardshrink")
)  # fmt: skip
_PREFIXES: tuple[tuple[str, Kind], ...] = (
    ("upsample_", "resize"),
    ("_upsample_", "resize"),
    ("grid_sampler", "resize"),
    ("avg_pool", "pooling"),
    ("max_pool", "pooling"),
    ("_adaptive_avg_pool", "pooling"),
    ("adaptive_", "pooling"),
    ("reflection_pad", "copy"),
    ("replication_pad", "copy"),
)
_BATCH_NORMS = frozenset(
    ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_batch_norm_no_update", "cudnn_batch_norm")
)
WEIGHTED: frozenset[Kind] = frozenset(("convolution", "depthwise_convolution", "grouped_convolution", "transposed_convolution", "matmul"))


@dataclass
class Step:
    """One recorded operator. Values are numbered; a value is one version of one buffer."""

    operation: str
    kind: Kind
    module: str
    module_is_leaf: bool
    reads: dict[int, int]
    """Value -> elements read."""
    writes: dict[int, int]
    """Value -> elements written; the first is the result."""
    weight_elements: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: int = 1
    macs: int = 0
    macs_output_convention: int = 0
    foldable: bool = False
    """A per-channel scale and shift with constants: batch normalization in evaluation, or a bias."""


def tensors_in(values: Sequence[object] | Iterator[object]) -> Iterator[Tensor]:
    """All tensors among an operator's arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def kind_of(operation: str, *, pointwise: bool) -> Kind:
    """The kind of an ATen operator by its name; `pointwise` is its tag in ATen and decides where the name says nothing."""
    if operation == "scaled_dot_product_attention":
        return "attention"
    if operation in ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"):
        return "convolution"
    if operation in ACTIVATIONS:
        return "activation"
    if operation in _KINDS:
        return _KINDS[operation]
    for prefix, kind in _PREFIXES:
        if operation.startswith(prefix):
            return kind
    if "_norm" in operation:
        return "normalization"
    return "elementwise" if pointwise else "other"


def describe(step: Step, args: Sequence[object], kwargs: Mapping[str, object], *, weighted: bool) -> None:
    """Fill in what depends on the operator's arguments: multiply-adds, groups, kernel, stride, foldability."""
    if step.kind == "convolution":
        _describe_convolution(step, args, kwargs)
    elif step.kind == "matmul":
        factors = [tensor for tensor in tensors_in(tuple(args)) if tensor.dim() > 0][-2:]
        # The last two tensors are the factors (an added bias comes first); the inner size is the last of the left factor.
        step.macs = step.macs_output_convention = math.prod(step.output_shape) * factors[0].shape[-1]
        if step.operation == "addbmm":
            step.macs = step.macs_output_convention = factors[0].numel() * factors[1].shape[-1]
        step.input_shape = tuple(factors[0].shape)
    elif step.kind == "attention":
        given = tensors_in((*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)))
        query, key, value = next(given), next(given), next(given)
        # Query times key transposed, and the weights times value: both for every query and every key.
        step.macs = step.macs_output_convention = query.numel() * key.shape[-2] + math.prod(step.output_shape) * value.shape[-2]
    elif step.operation in _BATCH_NORMS:
        step.foldable = not _uses_batch_statistics(args)
    elif step.operation in ("add", "sub", "mul", "div"):
        step.foldable = step.operation == "add" and weighted and len(step.reads) == 1


def _uses_batch_statistics(args: Sequence[object]) -> bool:
    # native_batch_norm(input, weight, bias, running_mean, running_var, training, ...); the variants without statistics have fewer tensors.
    flag = next((a for a in args if isinstance(a, bool)), False)
    return flag or len(list(tensors_in(tuple(args)))) < 3


def _describe_convolution(step: Step, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    weight = cast("Tensor", given["weight"])
    transposed, step.groups = bool(given["transposed"]), cast("int", given["groups"])
    stride = cast("Sequence[int]", given["stride"])
    step.operation, step.stride, step.kernel = "convolution", max(stride, default=1), tuple(weight.shape[2:])
    window = math.prod(step.kernel)
    if transposed:
        step.kind = "transposed_convolution"
        step.macs = math.prod(step.input_shape) * weight.shape[1] * window
        step.macs_output_convention = math.prod(step.output_shape) * (weight.shape[0] // step.groups) * window
        return
    step.macs = step.macs_output_convention = math.prod(step.output_shape) * weight.shape[1] * window
    if step.groups > 1:
        step.kind = "depthwise_convolution" if weight.shape[1] == 1 else "grouped_convolution"
