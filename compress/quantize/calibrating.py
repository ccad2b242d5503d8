"""Ranges of activations from streamed calibration samples: one pass, one histogram per tensor, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx

from mcompress.calibration.observers import Method, Observer
from mcompress.compress.models.spec import InputSpec
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import ActivationRange
from mcompress.compress.quantize.representable import representable
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.train import Progress
from mcompress.errors import StageError
from mcompress.targets.activations import Activations

RANGE_TOLERANCE = 1e-3
"""Calibration inputs may leave the network's input range by this share of it, as what was resampled does."""


def checked(samples: Iterable[Sample], specs: Sequence[InputSpec]) -> Iterator[Sample]:
    """The samples, each looked at before it is used.

    Raises `StageError`, naming the sample, for another number of inputs than `specs`, for another shape, for NaN or infinity, for values outside the
    range, and if there is no sample at all.
    """
    empty = True
    for sample in samples:
        empty = False
        where = f"calibration sample '{sample.name}'"
        if len(sample.inputs) != len(specs):
            raise StageError(f"{where} has {len(sample.inputs)} inputs; the network takes {len(specs)}: {', '.join(one.name for one in specs)}")
        for value, spec in zip(sample.inputs, specs, strict=True):
            _check(value, spec, where if len(specs) == 1 else f"input '{spec.name}' of {where}")
        yield sample
    if empty:
        raise StageError("the task gave no calibration samples; quantization needs at least one")


def _check(value: Tensor, spec: InputSpec, where: str) -> None:
    low, high = spec.value_range
    slack = RANGE_TOLERANCE * (high - low)
    if tuple(value.shape) != tuple(spec.shape):
        raise StageError(f"{where} has shape {tuple(value.shape)}; the network is compressed for {tuple(spec.shape)}. Give samples of that shape")
    if not bool(torch.isfinite(value).all()):
        raise StageError(f"{where} holds NaN or infinity; calibration needs finite values. Remove or repair it")
    least, greatest = float(value.min()), float(value.max())
    if least < low - slack or greatest > high + slack:
        raise StageError(
            f"{where} has values between {least:.4g} and {greatest:.4g}; the network's input range is {low:g} to {high:g}. "
            "Scale the sample as the network's training data were (model.input_range)"
        )


def calibrate(
    module: fx.GraphModule,
    samples: Iterator[Inputs],
    method: Method,
    input_ranges: Sequence[tuple[float, float]],
    total: int,
    progress: Progress,
    activations: Activations = "asymmetric",
) -> tuple[dict[str, ActivationRange], int]:
    """One pass over `samples`: the range of every tensor that an INT8 operator could read or write, by node name; and the number of samples.

    The network's inputs have exactly `input_ranges`; with symmetric `activations`, the least magnitude that holds them. Raises `StageError` for NaN
    or infinite activations, and if there is no sample.
    """
    groups = kinds.scale_groups(module.graph)
    observed = {node: representative for node, representative in groups.items() if _needs_observer(node)}
    observers = {representative: Observer() for representative in observed.values()}
    recorder = _Recorder(module, {node: observers[representative] for node, representative in observed.items()})
    seen = 0
    with torch.no_grad():
        for inputs in samples:
            recorder.run(*inputs)
            seen += 1
            progress(seen, total, "")
    if seen == 0:
        raise StageError("the task gave no calibration samples; quantization needs at least one")
    symmetric = activations == "symmetric"
    bounds = {one: _mirrored(observer.magnitude(method)) if symmetric else observer.bounds(method) for one, observer in observers.items()}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, (least, greatest) in zip(placeholders, input_ranges, strict=True):
        representative = groups.get(node, node)
        low, high = bounds.get(representative, (least, greatest))
        bounds[representative] = min(low, least), max(high, greatest)
        groups[node] = representative
    picture = groups[placeholders[0]]  # what else a network takes has no grey levels
    ranges = {
        representative: ActivationRange.from_magnitude(max(-limits[0], limits[1]))
        if symmetric
        else (ActivationRange.of_pictures if representative is picture else ActivationRange.from_bounds)(*limits)
        for representative, limits in bounds.items()
    }
    found = {node.name: ranges[groups[node]] for node in groups if groups[node] in bounds}
    return representable(module, found), seen


def _mirrored(magnitude: float) -> tuple[float, float]:
    return -magnitude, magnitude


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
