"""Notes every operator that computes or copies while a network runs, with the buffers that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcompress.compress.counting.operations import ACTIVATIONS, Step, describe, kind_of, tensors_in


@dataclass
class Trace:
    """One forward pass: its steps in the order of execution, and the buffers that they share."""

    steps: list[Step] = field(default_factory=list)
    buffer_of: list[int] = field(default_factory=list)
    """Value -> buffer."""
    elements_of: list[int] = field(default_factory=list)
    """Buffer -> elements."""
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    """Values that leave the network."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers values by storage and notes every operator that computes or copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
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
            self.note(func.overloadpacket.__name__, args, keywords, result, pointwise=torch.Tag.pointwise in func.tags)
        return result

    def note(self, operation: str, args: Sequence[object], kwargs: Mapping[str, object], result: object, *, pointwise: bool) -> None:
        """Add a step for an operator, unless it is a view or depends on parameters only."""
        results = list(tensors_in((result,)))
        inputs = list(tensors_in(chain(args, kwargs.values())))
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
        kind = kind_of(base if base in ACTIVATIONS else operation, pointwise=pointwise)
        step = Step(base, kind, path, leaf, read, written, sum(weights.values()), shape, tuple(results[0].shape))
        describe(step, args, kwargs, weighted=bool(weights))
        self.trace.steps.append(step)


_ATTENTION = cast("object", functional.scaled_dot_product_attention)


class AttentionNotes(TorchFunctionMode):
    """Notes scaled dot-product attention as one operator, whatever kernels it is made of on this device."""

    def __init__(self, recorder: Recorder) -> None:
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
        self.recorder.note("scaled_dot_product_attention", args, keywords, result, pointwise=False)
        return result


def _storage_elements(tensor: Tensor) -> int:
    return max(tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1), tensor.numel() if tensor.is_contiguous() else 0)
