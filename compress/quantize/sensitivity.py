"""What quantizing costs, operator by operator: the noise that it adds to the network's output, and the task's quality that it takes.

Samples are streamed. Of each one, every activation is captured once; then one operator after the other is quantized alone, and only what lies behind
it is computed again. What is kept are sums, so memory does not depend on the number of samples. Besides whole operators, their parts are measured:
rounding one tensor for all that read it or for one of them, and rounding one operator's weights. Operators share tensors, and a planner must not pay
twice for rounding one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import fake_quantize, fake_quantize_weight
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.train import Progress
from mcompress.errors import StageError
from mcompress.record import HIGHEST_DB

Quality = Callable[[Tensor, Tensor], float]
"""The task's metric of an output (first) against its truth; higher is better."""


@dataclass
class Sensitivity:
    """Noise is energy added to the output as a share of the output's own energy: -10 log10 of it is the output's SQNR in dB."""

    samples: int = 0
    signal: float = 0.0
    """Energy of the float network's outputs."""
    quality: float = 0.0
    """The task's metric of the float network, mean over samples."""
    alone: dict[str, dict[Precision, float]] = field(default_factory=dict)
    """Operator -> precision -> noise when this operator alone, with the ReLU fused into it, is computed so."""
    quality_lost: dict[str, dict[Precision, float]] = field(default_factory=dict)
    """The same, of the task's metric, mean over samples; negative where rounding happened to help."""
    tensors: dict[str, float] = field(default_factory=dict)
    """Tensor (by the name of what makes it) -> noise when it is rounded to INT8 for everything that reads it, and nothing else is."""
    reads: dict[str, dict[str, float]] = field(default_factory=dict)
    """Operator -> tensor that it reads -> noise when the tensor is rounded for this operator alone: a skip connection beside it stays exact."""
    weights: dict[str, float] = field(default_factory=dict)
    """Operator -> noise when only its weights are INT8."""

    def sqnr_db(self, operator: str, precision: Precision) -> float | None:
        """Output SQNR when `operator` alone is `precision`; None where it was not measured or nothing changed."""
        noise = self.alone.get(operator, {}).get(precision)
        return None if noise is None else decibels(noise)

    def to_json(self) -> str:
        """For the cache."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


def decibels(noise: float) -> float | None:
    """SQNR of a noise share, dB; None without any noise, for JSON has no infinity. No noise is worse than -`HIGHEST_DB`."""
    if noise <= 0.0:
        return None
    return -10.0 * math.log10(noise) if math.isfinite(noise) else -HIGHEST_DB


def measure_sensitivity(
    module: fx.GraphModule, samples: Iterator[Sample], ranges: dict[str, ActivationRange], quality: Quality, total: int, progress: Progress
) -> Sensitivity:
    """One pass over `samples`. Operators: all that compute a floating-point tensor, INT8 only where they can be.

    Raises `StageError` if the network does not return one tensor, or there is no sample.
    """
    variants = list(_variants(module, ranges))
    found = Sensitivity()
    with torch.no_grad():
        for sample in samples:
            tape = _Tape(module, sample.inputs)
            found.samples += 1
            found.signal += float(tape.output.double().square().sum())
            before = quality(tape.output, sample.truth)
            found.quality += before
            for done, variant in enumerate(variants):
                output = tape.output_with(variant.changed(tape))
                noise = float((output.double() - tape.output.double()).square().sum())
                variant.noise += noise if math.isfinite(noise) else math.inf
                if variant.precision is not None:
                    variant.lost += before - quality(output, sample.truth) if math.isfinite(noise) else math.inf
                progress((found.samples - 1) * len(variants) + done + 1, total * len(variants), variant.name)
    if not found.samples:
        raise StageError("the task gave no calibration samples; quantization needs at least one")
    found.quality /= found.samples
    for variant in variants:
        variant.note(found)
    return found


class _Tape:
    """The float value of every node for one sample, and the output when some of them are replaced."""

    def __init__(self, module: fx.GraphModule, inputs: Inputs) -> None:
        self._module = module
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._interpreter.run(*inputs)
        self.values: dict[fx.Node, object] = dict(self._interpreter.env)
        self._output_node = next(node for node in module.graph.nodes if node.op == "output")
        self.output = self._output_of(self.values)

    def _output_of(self, values: dict[fx.Node, object]) -> Tensor:
        sources = self._output_node.all_input_nodes
        value = values[sources[0]] if len(sources) == 1 else None
        if not isinstance(value, Tensor):
            raise StageError(f"the network returns {len(sources)} values or none that is a tensor; quantization needs one tensor")
        return value

    def tensor(self, node: fx.Node) -> Tensor:
        """The float value of a node that is a tensor."""
        value = self.values[node]
        if not isinstance(value, Tensor):
            raise StageError(f"expected a tensor in the network's graph at '{node.name}', found a {type(value).__name__}")
        return value

    def output_with(self, replaced: dict[fx.Node, object]) -> Tensor:
        """The network's output with these values in place of their own; only what lies behind them is computed again."""
        changed = dict(replaced)
        for node in self._module.graph.nodes:
            if node in changed or node.op != "call_function" or not any(source in changed for source in node.all_input_nodes):
                continue
            changed[node] = self.compute(node, changed)
        return self._output_of({**self.values, **changed})

    def compute(self, node: fx.Node, replaced: dict[fx.Node, object]) -> object:
        """One node in float, from the values on tape but for those replaced."""
        self._interpreter.env = {source: replaced.get(source, self.values[source]) for source in node.all_input_nodes}
        return self._interpreter.run_node(node)


@dataclass
class _Variant:
    """One thing that is quantized alone, and what it has cost so far."""

    name: str
    changed: Callable[[_Tape], dict[fx.Node, object]]
    source: str = ""
    """Tensor that is rounded for the operator `name`."""
    part: Literal["alone", "tensor", "read", "weights"] = "alone"
    precision: Precision | None = None
    noise: float = 0.0
    lost: float = 0.0

    def note(self, found: Sensitivity) -> None:
        share = self.noise / found.signal if found.signal else (math.inf if self.noise else 0.0)
        if self.precision is not None:
            found.alone.setdefault(self.name, {})[self.precision] = share
            found.quality_lost.setdefault(self.name, {})[self.precision] = self.lost / found.samples
        elif self.part == "read":
            found.reads.setdefault(self.name, {})[self.source] = share
        else:
            (found.tensors if self.part == "tensor" else found.weights)[self.name] = share


def _variants(module: fx.GraphModule, ranges: dict[str, ActivationRange]) -> Iterator[_Variant]:
    for node in kinds.operators(module.graph):
        if kinds.is_fused(node):
            continue
        end = kinds.fused_activation(node) or node
        yield _Variant(node.name, _alone(module, node, end, "fp16", ranges), precision="fp16")
        group = kinds.group_of(node)
        if group is None:
            continue
        yield _Variant(node.name, _alone(module, node, end, "int8", ranges), precision="int8")
        if group == "weighted":
            yield _Variant(node.name, _with_weights(node), part="weights")
        if group in ("weighted", "arithmetic"):  # moving and clamping an INT8 tensor rounds nothing again
            yield _Variant(end.name, _rounded(end, ranges[end.name]), part="tensor")
        for source in kinds.activations(node):
            if source.name in ranges:
                yield _Variant(node.name, _read_rounded(node, source, ranges[source.name]), source.name, part="read")


def _alone(
    module: fx.GraphModule, node: fx.Node, end: fx.Node, precision: Precision, ranges: dict[str, ActivationRange]
) -> Callable[[_Tape], dict[fx.Node, object]]:
    members = (node,) if end is node else (node, end)
    plan = PrecisionPlan(tuple(PlannedOperator(member.name, "", kinds.kind_of(member), precision, "") for member in members), ranges)
    simulated = Simulated(module, plan)

    return lambda tape: {end: simulated.compute(members, tape.values)[end]}


def _rounded(node: fx.Node, found: ActivationRange) -> Callable[[_Tape], dict[fx.Node, object]]:
    return lambda tape: {node: fake_quantize(tape.tensor(node), found)}


def _read_rounded(node: fx.Node, source: fx.Node, found: ActivationRange) -> Callable[[_Tape], dict[fx.Node, object]]:
    return lambda tape: {node: tape.compute(node, {source: fake_quantize(tape.tensor(source), found)})}


def _with_weights(node: fx.Node) -> Callable[[_Tape], dict[fx.Node, object]]:
    weight = node.args[1]
    if not isinstance(weight, fx.Node):
        raise StageError(f"the weights of '{node.name}' are not in the graph")
    axis = kinds.WEIGHTED[node.target]

    def changed(tape: _Tape) -> dict[fx.Node, object]:
        return {node: tape.compute(node, {weight: fake_quantize_weight(tape.tensor(weight), axis)})}

    return changed
