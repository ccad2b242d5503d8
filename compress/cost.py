"""What a network costs: run it without data, record every ATen operator, fuse as runtimes fuse, plan its memory.

The network runs once on the meta device: shapes and aliasing are real, numbers are not, so a network of fifty operators costs milliseconds whatever
its resolution. A network that needs numbers to find its way (`.item()` in the forward pass) runs on the CPU instead.

Rules, all visible in the resulting `OperatorTable`:

- A view costs nothing. What copies is a row: concatenation, pixel shuffle, padding, `contiguous`.
- What only depends on parameters is folded before deployment and costs nothing: transposed or normalized weights, position tables.
- A convolution (or matrix product) takes in the batch normalization, the bias and the activation that follow it, and an addition or a normalization
  the activation that follows it, as long as nothing else reads what is between them.
- Memory is live from the row that writes it to the last row that reads it, in execution order. Weights are not counted; the input is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcompress.errors import StageError
from mcompress.targets.operators import Kind, Operator, OperatorTable

# What a forward pass of a user's network may raise where tensors hold no numbers.
_FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)

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
_ACTIVATIONS = frozenset(
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
_WEIGHTED: frozenset[Kind] = frozenset(("convolution", "depthwise_convolution", "grouped_convolution", "transposed_convolution", "matmul"))
_TAKES_ACTIVATION: frozenset[Kind] = _WEIGHTED | {"normalization", "elementwise"}


def operator_table(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> OperatorTable:
    """Cost of one forward pass of `model` on an input of `input_shape`, batch first.

    `model` may lie on any device, the meta device included; it is not changed. `dtype` is that of the input; left out, that of the parameters.
    Raises `StageError`, naming the module, if the forward pass fails on an input of that shape.
    """
    if not input_shape or any(size < 1 for size in input_shape):
        raise StageError(f"input shape {input_shape} cannot be counted: every size must be at least 1, batch first, for example (1, 3, 128, 128)")
    parameters = list(model.parameters())
    chosen = dtype or next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    trace = _trace(model, input_shape, chosen)
    return OperatorTable(tuple(_rows(trace)), sum(p.numel() for p in parameters))


def count(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """The five figures of `mcompress count`: parameters, MACs in both conventions, peak and moved activation bytes (fp32) of one forward pass."""
    table = operator_table(model, input_shape)
    return {
        "params": table.params,
        "macs": table.macs,
        "macs_output_convention": table.macs_output_convention,
        "peak_activation_bytes": 4 * table.peak_activation_elements,
        "activation_traffic_bytes": 4 * table.activation_traffic_elements,
    }


# --- recording -------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Step:
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


@dataclass
class _Trace:
    steps: list[_Step] = field(default_factory=list)
    buffer_of: list[int] = field(default_factory=list)
    """Value -> buffer."""
    elements_of: list[int] = field(default_factory=list)
    """Buffer -> elements."""
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    """Values that leave the network."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers values by storage and notes every operator that computes or copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = _Trace()
        self.paths: list[tuple[str, bool]] = [("", False)]
        self.paused = False
        self._value_of: dict[int, int] = {}
        self._alive: dict[int, StorageWeakRef] = {}

    def value(self, tensor: Tensor) -> int | None:
        """The value that `tensor` is or views; None for what depends on parameters only."""
        return self._value_of.get(self._key(tensor))

    def new_buffer(self, tensor: Tensor) -> int:
        """Start a value in a buffer of its own."""
        self.trace.elements_of.append(_storage_elements(tensor))
        return self._new_value(tensor, len(self.trace.elements_of) - 1)

    def _new_value(self, tensor: Tensor, buffer: int) -> int:
        self.trace.buffer_of.append(buffer)
        number = len(self.trace.buffer_of) - 1
        self._value_of[self._key(tensor)] = number
        return number

    def _key(self, tensor: Tensor) -> int:
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        key: int = reference.cdata
        # A weak reference that is kept makes sure that the address is not given to another storage.
        self._alive.setdefault(key, reference)
        return key

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        keywords = kwargs or {}
        result: object = func(*args, **keywords)
        if not self.paused:
            self.note(func.overloadpacket.__name__, torch.Tag.pointwise in func.tags, args, keywords, result)
        return result

    def note(self, operation: str, pointwise: bool, args: Sequence[object], kwargs: Mapping[str, object], result: object) -> None:
        """Add a step for an operator, unless it is a view or depends on parameters only."""
        results = list(_tensors((result,)))
        inputs = list(_tensors(chain(args, kwargs.values())))
        read: dict[int, int] = {}
        weights: dict[int, int] = {}
        shape: tuple[int, ...] | None = None
        for tensor in inputs:
            number = self.value(tensor)
            if number is None:
                weights[self._key(tensor)] = tensor.numel()
                continue
            shape = shape or tuple(tensor.shape)
            # An expanded view repeats what it reads; no more than the storage is fetched.
            read[number] = max(read.get(number, 0), min(tensor.numel(), self.trace.elements_of[self.trace.buffer_of[number]]))
        if not read or shape is None or not results:
            return
        base, in_place = operation.rstrip("_"), operation.endswith("_") and not operation.endswith("__")
        input_keys = {self._key(tensor) for tensor in inputs}
        if not in_place and all(self._key(tensor) in input_keys for tensor in results):
            return  # a view
        written: dict[int, int] = {}
        for tensor in results:
            if tensor.numel() == 0:
                continue
            old = self.value(tensor)
            in_place_number = self._new_value(tensor, self.trace.buffer_of[old]) if in_place and old is not None else self.new_buffer(tensor)
            written[in_place_number] = tensor.numel()
        if not written:
            return
        if base == "copy" and in_place:
            # `buffer.copy_(x)` writes the buffer without reading it.
            overwritten = self.trace.buffer_of[next(iter(written))]
            read = {v: n for v, n in read.items() if self.trace.buffer_of[v] != overwritten} or read
        path, leaf = self.paths[-1]
        kind = _kind(base if base in _ACTIVATIONS else operation, pointwise)
        step = _Step(base, kind, path, leaf, read, written, sum(weights.values()), shape, tuple(results[0].shape))
        _describe(step, args, kwargs, weighted=bool(weights))
        self.trace.steps.append(step)


_ATTENTION = cast("object", functional.scaled_dot_product_attention)


class _Attention(TorchFunctionMode):
    """Notes scaled dot-product attention as one operator, whatever kernels it is made of on this device."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        keywords, attention = kwargs or {}, func is _ATTENTION
        if not attention or self.recorder.paused:
            return func(*args, **keywords)
        self.recorder.paused = True
        try:
            result = func(*args, **keywords)
        finally:
            self.recorder.paused = False
        self.recorder.note("scaled_dot_product_attention", False, args, keywords, result)
        return result


def _tensors(values: Sequence[object] | Iterator[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _storage_elements(tensor: Tensor) -> int:
    return max(tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1), tensor.numel() if tensor.is_contiguous() else 0)


def _kind(operation: str, pointwise: bool) -> Kind:
    if operation == "scaled_dot_product_attention":
        return "attention"
    if operation in ("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"):
        return "convolution"
    if operation in _ACTIVATIONS:
        return "activation"
    if operation in _KINDS:
        return _KINDS[operation]
    for prefix, kind in _PREFIXES:
        if operation.startswith(prefix):
            return kind
    if "_norm" in operation:
        return "normalization"
    return "elementwise" if pointwise else "other"


def _describe(step: _Step, args: Sequence[object], kwargs: Mapping[str, object], *, weighted: bool) -> None:
    """Fill in what depends on the operator's arguments: multiply-adds, groups, kernel, stride, foldability."""
    if step.kind == "convolution":
        _describe_convolution(step, args, kwargs)
    elif step.kind == "matmul":
        factors = [tensor for tensor in _tensors(tuple(args)) if tensor.dim() > 0][-2:]
        # The last two tensors are the factors (an added bias comes first); the inner size is the last of the left factor.
        step.macs = step.macs_output_convention = math.prod(step.output_shape) * factors[0].shape[-1]
        if step.operation == "addbmm":
            step.macs = step.macs_output_convention = factors[0].numel() * factors[1].shape[-1]
        step.input_shape = tuple(factors[0].shape)
    elif step.kind == "attention":
        given = _tensors((*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)))
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
    return flag or len(list(_tensors(tuple(args)))) < 3


def _describe_convolution(step: _Step, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
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


# --- running ---------------------------------------------------------------------------------------------------------------------------------------


def _trace(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> _Trace:
    held = list(chain(model.parameters(), model.buffers()))
    on_meta = bool(held) and all(tensor.is_meta for tensor in held)
    recorder = _Recorder()
    try:
        return _run(_copy_to_meta(model), recorder, torch.empty(input_shape, dtype=dtype, device="meta"))
    except _FORWARD_ERRORS as error:
        place = _place(recorder, model)
        if on_meta:
            raise StageError(
                f"{place} failed on an input of shape {input_shape} without data: {_first_line(error)}. Its weights lie on the meta device, so it "
                f"cannot be tried with numbers. Build it on the CPU, or use an input shape that it takes."
            ) from error
    recorder = _Recorder()
    sample = torch.rand(input_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        return _run(copy.deepcopy(model).to("cpu"), recorder, sample)
    except _FORWARD_ERRORS as error:
        raise StageError(
            f"{_place(recorder, model)} failed on an input of shape {input_shape} and type {dtype}: {_first_line(error)}. "
            f"Use an input shape that the network takes; its forward pass must take one tensor."
        ) from error


def _run(model: nn.Module, recorder: _Recorder, sample: Tensor) -> _Trace:
    """Run `model` (a copy that may be touched) and record it."""
    model.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    number = recorder.new_buffer(sample)
    recorder.trace.inputs.add(number)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device(sample.device), _paths(model, recorder), _Attention(recorder), recorder:
            output = model(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    recorder.trace.outputs.update(v for t in _result_tensors(output) if (v := recorder.value(t)) is not None)
    return recorder.trace


@contextmanager
def _paths(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep `recorder.paths` at the module that is running."""

    def enter(name: str, leaf: bool) -> Callable[[nn.Module, object], None]:
        return lambda _module, _inputs: recorder.paths.append((name, leaf))

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        recorder.paths.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name, not any(True for _ in module.children()))))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copy_to_meta(model: nn.Module) -> nn.Module:
    """A deep copy whose tensors lie on the meta device; no weight is copied."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for tensor in chain(module._parameters.values(), module._buffers.values(), vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                empty = torch.empty_like(tensor, device="meta", requires_grad=False)
                memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _result_tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(_result_tensors(item) for item in value.values())
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(_result_tensors(item) for item in value)
    elif is_dataclass(value):
        yield from chain.from_iterable(_result_tensors(getattr(value, f.name)) for f in fields(value))


def _place(recorder: _Recorder, model: nn.Module) -> str:
    name = recorder.paths[-1][0]
    return f"module '{name}' of {type(model).__name__}" if name else type(model).__name__


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


# --- fusing and planning ---------------------------------------------------------------------------------------------------------------------------


def _rows(trace: _Trace) -> list[Operator]:
    groups = _fused(trace)
    live = _live_elements(trace, groups)
    names = _names([group[0] for group in groups])
    consumed = {value for group in groups for step in group for value in step.reads} | trace.outputs
    rows = []
    for group, name, elements in zip(groups, names, live, strict=True):
        head, last = group[0], group[-1]
        # Side results that nobody reads (indices of a pooling, statistics of a normalization) are never written by a runtime.
        written = sum(n for i, (v, n) in enumerate(last.writes.items()) if i == 0 or v in consumed)
        rows.append(
            Operator(
                name=name,
                kind=head.kind,
                operation=head.operation,
                fused=tuple(step.operation for step in group[1:]),
                input_shape=head.input_shape,
                output_shape=last.output_shape,
                groups=head.groups,
                kernel=head.kernel,
                stride=head.stride,
                macs=head.macs,
                macs_output_convention=head.macs_output_convention,
                elements_read=sum(head.reads.values()),
                elements_written=written,
                weight_elements=sum(step.weight_elements for step in group),
                live_elements=elements,
            )
        )
    return rows


def _fused(trace: _Trace) -> list[list[_Step]]:
    """Group the steps: the first of a group computes, the others run on its result before it is written."""
    readers: dict[int, int] = {}
    for step in trace.steps:
        for value in step.reads:
            readers[value] = readers.get(value, 0) + 1
    group_of: dict[int, list[_Step]] = {}
    groups: list[list[_Step]] = []
    for step in trace.steps:
        group = _producer(step, group_of, readers, trace)
        if group is None:
            group = []
            groups.append(group)
        group.append(step)
        for value in step.writes:
            group_of[value] = group
    return groups


def _producer(step: _Step, group_of: Mapping[int, list[_Step]], readers: Mapping[int, int], trace: _Trace) -> list[_Step] | None:
    """The group that `step` can run inside, if any."""
    if len(step.reads) != 1 or not (step.kind == "activation" or step.foldable):
        return None
    value, elements = next(iter(step.reads.items()))
    group = group_of.get(value)
    if group is None or value != next(iter(group[-1].writes)) or readers[value] != 1 or value in trace.outputs:
        return None
    if elements != group[-1].writes[value]:
        return None
    has_activation = any(earlier.kind == "activation" for earlier in group)
    if step.foldable:
        return group if group[0].kind in _WEIGHTED and not has_activation else None
    return group if group[0].kind in _TAKES_ACTIVATION and not has_activation else None


def _live_elements(trace: _Trace, groups: Sequence[Sequence[_Step]]) -> list[int]:
    """Elements that exist while each group runs: a buffer lives from its first writer to its last reader."""
    read = {value for group in groups for value in group[0].reads} | trace.outputs
    born: dict[int, int] = {trace.buffer_of[v]: 0 for v in trace.inputs}
    last: dict[int, int] = dict.fromkeys(born, 0)
    for index, group in enumerate(groups):
        for value in group[0].reads:
            last[trace.buffer_of[value]] = index
        for position, value in enumerate(group[-1].writes):
            if position == 0 or value in read:
                born.setdefault(trace.buffer_of[value], index)
                last[trace.buffer_of[value]] = index
    for value in trace.outputs:
        last[trace.buffer_of[value]] = max(len(groups) - 1, 0)
    change = [0] * (len(groups) + 2)
    for buffer, first in born.items():
        change[first] += trace.elements_of[buffer]
        change[last[buffer] + 1] -= trace.elements_of[buffer]
    live, total = [], 0
    for step in change[: len(groups)]:
        total += step
        live.append(total)
    return live


def _names(heads: Sequence[_Step]) -> list[str]:
    """Module path where the module is one operator, else path and operator; numbered where that is not unique."""
    used: dict[str, int] = {}
    names = []
    for step in heads:
        base = step.module if step.module and step.module_is_leaf else ".".join(filter(None, (step.module, step.operation)))
        number = used.get(base, 0)
        used[base] = number + 1
        names.append(base if number == 0 else f"{base}_{number}")
    return names
