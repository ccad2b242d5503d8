"""Ranges of activations from streamed calibration samples: one pass, one histogram per tensor, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx

from mcompress.calibration.observers import Method, Observer
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import ActivationRange
from mcompress.compress.quantize.representable import representable
from mcompress.compress.tasks.task import Sample
from mcompress.compress.train import Progress
from mcompress.errors import StageError

RANGE_TOLERANCE = 1e-3
"""Calibration inputs may leave the network's input range by this share of it, as what was resampled does."""


def checked(samples: Iterable[Sample], input_shape: tuple[int, ...], input_range: tuple[float, float]) -> Iterator[Sample]:
    """The samples, each looked at before it is used.

    Raises `StageError`, naming the sample, for another shape than `input_shape`, for NaN or infinity, for values outside `input_range`, and if
    there is no sample at all.
    """
    low, high = input_range
    slack = RANGE_TOLERANCE * (high - low)
    empty = True
    for sample in samples:
        empty = False
        value, where = sample.input, f"calibration sample '{sample.name}'"
        if tuple(value.shape) != tuple(input_shape):
            raise StageError(
                f"{where} has shape {tuple(value.shape)}; the network is compressed for {tuple(input_shape)}. Give samples of that shape"
            )
        if not bool(torch.isfinite(value).all()):
            raise StageError(f"{where} holds NaN or infinity; calibration needs finite values. Remove or repair it")
        least, greatest = float(value.min()), float(value.max())
        if least < low - slack or greatest > high + slack:
            raise StageError(
                f"{where} has values between {least:.4g} and {greatest:.4g}; the network's input range is {low:g} to {high:g}. "
                "Scale the sample as the network's training data were (model.input_range)"
            )
        yield sample
    if empty:
        raise StageError("the task gave no calibration samples; quantization needs at least one")


def calibrate(
    module: fx.GraphModule, inputs: Iterator[Tensor], method: Method, input_range: tuple[float, float], total: int, progress: Progress
) -> tuple[dict[str, ActivationRange], int]:
    """One pass over `inputs`: the range of every tensor that an INT8 operator could read or write, by node name; and the number of inputs.

    The network's input has exactly `input_range`. Raises `StageError` for NaN or infinite activations, and if there is no input.
    """
    groups = kinds.scale_groups(module.graph)
    observed = {node: representative for node, representative in groups.items() if _needs_observer(node)}
    observers = {representative: Observer() for representative in observed.values()}
    recorder = _Recorder(module, {node: observers[representative] for node, representative in observed.items()})
    seen = 0
    with torch.no_grad():
        for value in inputs:
            recorder.run(value)
            seen += 1
            progress(seen, total, "")
    if seen == 0:
        raise StageError("the task gave no calibration samples; quantization needs at least one")
    bounds = {representative: observer.bounds(method) for representative, observer in observers.items()}
    of_input: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            representative = groups.get(node, node)
            low, high = bounds.get(representative, input_range)
            bounds[representative] = min(low, input_range[0]), max(high, input_range[1])
            groups[node] = representative
            of_input.add(representative)
    ranges = {
        representative: (ActivationRange.of_pictures if representative in of_input else ActivationRange.from_bounds)(*limits)
        for representative, limits in bounds.items()
    }
    found = {node.name: ranges[groups[node]] for node in groups if groups[node] in bounds}
    return representable(module, found), seen


def _needs_observer(node: fx.Node) -> bool:
    """A tensor that is clipped by its only reader takes the range of what comes out there."""
    return node.op == "call_function" and kinds.borrowed_range(node) is None


class _Recorder(fx.Interpreter):
    """Runs the graph and shows every tensor to its observer."""

    def __init__(self, module: fx.GraphModule, observers: dict[fx.Node, Observer]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # our errors name the operator themselves
        self._observers = observers

    def run_node(self, n: fx.Node) -> object:
        """Compute `n`, then observe it."""
        value = super().run_node(n)
        observer = self._observers.get(n)
        if observer is not None and isinstance(value, Tensor):
            try:
                observer.observe(value)
            except ValueError as problem:
                raise StageError(f"calibration stopped at operator '{n.name}' ({kinds.module_of(n) or 'network'}): {problem}") from problem
        return value
