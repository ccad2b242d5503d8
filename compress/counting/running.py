"""Runs a network once and records what it does: without data where that is possible, with random numbers where its forward pass reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from itertools import chain

import torch
from torch import Tensor, nn

from mcompress.compress.counting.recorder import Recorder, WholeOperators
from mcompress.compress.counting.steps import Trace
from mcompress.errors import StageError

# What a forward pass of a user's network may raise where tensors hold no numbers.
_FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


@dataclass(frozen=True)
class Input:
    """One tensor that the forward pass takes: by its name, or in its place where that is empty."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""

    def __str__(self) -> str:
        return f"{f'{self.name} ' if self.name else ''}{self.shape}"


def record(model: nn.Module, inputs: Sequence[Input]) -> Trace:
    """Everything that one forward pass of `model`, batch first, computes and copies; `model` is not changed.

    Raises `StageError`, naming the module, if the forward pass fails on inputs of those shapes and types.
    """
    given = f"an input of shape {inputs[0]}" if len(inputs) == 1 else f"inputs of shapes {' and '.join(map(str, inputs))}"
    held = list(chain(model.parameters(), model.buffers()))
    on_meta = bool(held) and all(tensor.is_meta for tensor in held)
    recorder = Recorder()
    try:
        return _run(_copy_to_meta(model), recorder, inputs, [torch.empty(one.shape, dtype=one.dtype, device="meta") for one in inputs])
    except _FORWARD_ERRORS as error:
        place = _place(recorder, model)
        if on_meta:
            raise StageError(
                f"{place} failed on {given} without data: {_first_line(error)}. Its weights lie on the meta device, so it "
                f"cannot be tried with numbers. Build it on the CPU, or use an input shape that it takes."
            ) from error
    recorder = Recorder()
    generator = torch.Generator().manual_seed(0)
    samples = [torch.rand(one.shape, generator=generator).to(one.dtype) for one in inputs]
    try:
        return _run(copy.deepcopy(model).to("cpu"), recorder, inputs, samples)
    except _FORWARD_ERRORS as error:
        raise StageError(
            f"{_place(recorder, model)} failed on {given} and type {' and '.join(str(one.dtype) for one in inputs)}: {_first_line(error)}. "
            f"{_needed(model, inputs)}"
        ) from error


def tensors_of(model: nn.Module) -> tuple[list[str], list[str]]:
    """What the forward pass of `model` takes: the names that it needs, and those that may be left out; nothing where it takes any number of them."""
    try:
        taken = signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a forward pass that is not written in Python
        return [], []
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in taken):
        return [], []
    return [one.name for one in taken if one.default is one.empty], [one.name for one in taken if one.default is not one.empty]


def _needed(model: nn.Module, inputs: Sequence[Input]) -> str:
    needed, _ = tensors_of(model)
    takes = f"takes {', '.join(needed)}" if needed and (len(needed) > 1 or len(inputs) > 1) else "must take one tensor"
    return f"Use an input shape that the network takes; its forward pass {takes}."


def _run(model: nn.Module, recorder: Recorder, inputs: Sequence[Input], samples: Sequence[Tensor]) -> Trace:
    """Run `model` (a copy that may be touched) and record it."""
    model.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    recorder.trace.inputs.update(recorder.new_buffer(sample) for sample in samples)
    placed = [sample for one, sample in zip(inputs, samples, strict=True) if not one.name]
    called = {one.name: sample for one, sample in zip(inputs, samples, strict=True) if one.name}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device(samples[0].device), _paths(model, recorder), WholeOperators(recorder), recorder:
            output = model(*placed, **called)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    recorder.trace.outputs.update(v for t in _result_tensors(output) if (v := recorder.value(t)) is not None)
    if recorder.trace.outputs:
        recorder.trace.drop_unread()
    return recorder.trace


@contextmanager
def _paths(model: nn.Module, recorder: Recorder) -> Iterator[None]:
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
                if tensor.is_meta:
                    memo[id(tensor)] = tensor  # holds nothing that a forward pass could change
                    continue
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


def _place(recorder: Recorder, model: nn.Module) -> str:
    name = recorder.paths[-1][0]
    return f"module '{name}' of {type(model).__name__}" if name else type(model).__name__


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
