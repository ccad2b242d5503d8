"""Notes every operator that computes or copies while a network runs, with the buffers that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcompress.compress.counting.operations import FILLED, NOISE, describe, kind_of, named, tensors_in
from mcompress.compress.counting.steps import Step, Trace


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers values by storage and notes every operator that computes or copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.paths: list[tuple[str, bool]] = [("", False)]
        self.paused = False
        self._value_of: dict[int, int] = {}
        self._shape_of: dict[int, tuple[int, ...]] = {}
        self._copies: dict[int, Step] = {}
        """Values that copies wrote and that nothing has looked at."""
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
            name = named(func.namespace, func.overloadpacket.__name__)
            if name == "glu":
                self._note_gate(args, keywords, cast("Tensor", result))
            else:
                self.note(name, args, keywords, result, pointwise=torch.Tag.pointwise in func.tags)
        return result

    def _note_gate(self, args: Sequence[object], kwargs: Mapping[str, object], result: Tensor) -> None:
        """`glu` as runtimes and exported files have it, none of which knows it: the sigmoid of one half, and its product with the other."""
        axis = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        value, gate = cast("Tensor", args[0]).chunk(2, cast("int", axis))
        opened = torch.empty_like(gate)
        self.note("sigmoid", (gate,), {}, opened, pointwise=True)
        self.note("mul", (value, opened), {}, result, pointwise=True)

    def note(self, operation: str, args: Sequence[object], kwargs: Mapping[str, object], result: object, *, pointwise: bool) -> None:
        """Add a step for an operator, unless it is a view or depends on parameters only."""
        results = list(tensors_in((result,)))
        inputs = list(tensors_in(chain(args, kwargs.values())))
        parts: dict[int, dict[tuple[int, int], int]] = {}
        weights: dict[int, int] = {}
        shape: tuple[int, ...] | None = None
        input_keys: set[int] = set()
        for tensor in inputs:
            key = self._key(tensor)
            input_keys.add(key)
            number = self._value_of.get(key)
            if number is None:
                weights[key] = min(tensor.numel(), _storage_elements(tensor))
                continue
            shape = shape or tuple(tensor.shape)
            # Views of different places of one buffer are all read (queries, keys and values of one product); the same view twice is fetched once.
            parts.setdefault(number, {})[int(tensor.storage_offset()), tensor.numel()] = tensor.numel()
        # An expanded view repeats what it reads; no more than the storage is fetched.
        read = {number: min(sum(views.values()), self.trace.elements_of[self.trace.buffer_of[number]]) for number, views in parts.items()}
        base, in_place = operation.rstrip("_"), operation.endswith("_") and not operation.endswith("__")
        if len(results) == 1 and not in_place and _changes_nothing(base, args, results[0]):
            number = self.value(inputs[0])
            if number is not None:
                self._value_of[self._key(results[0])] = number
            return
        in_place = in_place and base not in _VIEWS_IN_PLACE
        if base in NOISE and results:
            shape, read, weights = shape or tuple(results[0].shape), {}, {}
        elif not read or base in FILLED:
            return
        if shape is None or not results:
            self.trace.looked_at.update(read)
            return
        if not in_place and all(self._key(tensor) in input_keys for tensor in results):
            self._note_view(operation, inputs[0], results[0])
            return
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
            # `buffer.copy_(x)` writes the buffer without reading it, and without holding it where it was a constant.
            overwritten = self.trace.buffer_of[next(iter(written))]
            read = {v: n for v, n in read.items() if self.trace.buffer_of[v] != overwritten} or read
            weights.pop(self._key(results[0]), None)
        path, leaf = self.paths[-1]
        step = Step(base, kind_of(base, pointwise=pointwise), path, leaf, read, written, sum(weights.values()), shape, tuple(results[0].shape))
        step.held.update(weights)
        describe(step, args, kwargs, weighted=bool(weights))
        for value in written:
            self._shape_of[value] = step.output_shape
        if base == "clone":
            # What is copied is the buffer, whatever axes show it; and what is written has the axes in which it is read next.
            step.input_shape = self._shape_of.get(next(iter(read)), shape)
            self._copies.update(dict.fromkeys(written, step))
        self.trace.steps.append(step)

    def _note_view(self, operation: str, source: Tensor, result: Tensor) -> None:
        number = self.value(source)
        copy = self._copies.pop(number, None) if number is not None and operation in ("view", "_unsafe_view", "reshape") else None
        if copy is not None and number is not None and result.numel() == source.numel():
            copy.output_shape = self._shape_of[number] = tuple(result.shape)


_NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0}
"""Operator -> the second operand that leaves the first as it is."""
_VIEWS_IN_PLACE = frozenset(("as_strided", "squeeze", "unsqueeze", "transpose", "t", "swapaxes", "swapdims", "detach", "resize", "set"))
_ATTENTION = cast("object", functional.scaled_dot_product_attention)
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_RECURRENT = {cast("object", getattr(torch, name)): gates for name, gates in _GATES.items()}
_LISTED_WEIGHTS = 9
"""Arguments of a recurrent operator on an unpacked sequence: input, states, weights, bias, layers, dropout, training, bidirectional, batch first."""


class WholeOperators(TorchFunctionMode):
    """Notes attention as one operator, and a layer of a recurrent network as one, whatever kernels they are made of on this device."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        keywords = kwargs or {}
        recurrent = func in _RECURRENT and len(args) == _LISTED_WEIGHTS
        if self.recorder.paused or not (recurrent or func is _ATTENTION):
            return func(*args, **keywords)
        self.recorder.paused = True
        try:
            result = func(*args, **keywords)
        finally:
            self.recorder.paused = False
        if recurrent:
            self._note_layers(func.__name__, args, cast("tuple[Tensor, ...]", result))
        else:
            self.recorder.note("scaled_dot_product_attention", args, keywords, result, pointwise=False)
        return result

    def _note_layers(self, operation: str, args: tuple[object, ...], result: tuple[Tensor, ...]) -> None:
        sequence, weights, layers = cast("Tensor", args[0]), cast("Sequence[Tensor]", args[2]), cast("int", args[4])
        per_layer = len(weights) // layers
        for layer in range(layers):
            # Between layers stands a sequence as wide as the last one's.
            made = result if layer == layers - 1 else (torch.empty_like(result[0]),)
            held = weights[layer * per_layer : (layer + 1) * per_layer]
            self.recorder.note(operation, (sequence, *held), {}, made, pointwise=False)
            sequence = made[0]


def _changes_nothing(operation: str, args: Sequence[object], result: Tensor) -> bool:
    """Whether it multiplies or divides by 1, or adds 0: exporters leave that out."""
    if operation not in _NEUTRAL or len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], int | float):
        return False
    return args[1] == _NEUTRAL[operation] and (result.shape, result.dtype) == (args[0].shape, args[0].dtype)


def _storage_elements(tensor: Tensor) -> int:
    return max(tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1), tensor.numel() if tensor.is_contiguous() else 0)
