"""A precision plan executed in PyTorch: every operator computed as planned, without converting the graph.

INT8 operators read and write values on the plan's grids and have per-channel weights; with FP16 operators their inputs, weights and results are
rounded to half precision and the sum itself is FP32, as in kernels with FP32 accumulators. For plans of INT8 and FP32 the result is that of
`reference_program`, of which this is the fast form: weights are quantized once, and gradients pass straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX, fake_quantize, fake_quantize_weight
from mcompress.compress.quantize.plan import ActivationRange, PrecisionPlan
from mcompress.errors import StageError

Watch = Callable[[fx.Node, Tensor], None]
"""Shown every operator's result as the other operators read it."""


def simulate(module: fx.GraphModule, plan: PrecisionPlan, *inputs: Tensor) -> Tensor:
    """The output of the network under `plan` for `inputs`; nothing is kept. For many inputs make one `Simulated`."""
    with torch.no_grad():
        return Simulated(module, plan)(*inputs)


class Simulated(fx.Interpreter):
    """Runs `module` (from `graph_of(export_program(...))`) as `plan` says. The parameters must not change while it is in use."""

    def __init__(self, module: fx.GraphModule, plan: PrecisionPlan, watch: Watch | None = None) -> None:
        """`watch` sees every floating-point result, the network's input included."""
        super().__init__(module)
        self.extra_traceback = False  # our errors name the operator themselves
        self._precision = {operator.name: operator.precision for operator in plan.operators}
        self._ranges = plan.ranges
        self._watch = watch
        self._on_grid: dict[fx.Node, ActivationRange] = {}
        self._constants: dict[tuple[str, str], Tensor] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output. Raises `StageError` when the network does not return one tensor."""
        self._on_grid.clear()
        output = self.run(*inputs)
        if not isinstance(output, Tensor):
            raise StageError(f"the network returns a {type(output).__name__}; quantization needs one tensor")
        return output

    def compute(self, nodes: Sequence[fx.Node], values: Mapping[fx.Node, object]) -> dict[fx.Node, object]:
        """Only `nodes`, which follow one another, in their planned precision; `values` has the float value of everything else that they read."""
        self._on_grid.clear()
        found: dict[fx.Node, object] = {}
        for node in nodes:
            self.env = {source: found[source] if source in found else values[source] for source in node.all_input_nodes}
            found[node] = self.run_node(node)
        return found

    def run_node(self, n: fx.Node) -> object:
        """Compute one node in its planned precision."""
        precision = self._precision.get(n.name, "fp32") if n.op == "call_function" else "fp32"
        if precision == "int8":
            value = self._int8(n)
        elif precision == "fp16":
            value = self._fp16(n)
        else:
            value = super().run_node(n)
        if self._watch is not None and isinstance(value, Tensor) and n.op in ("call_function", "placeholder"):
            self._watch(n, value)
        return value

    def quantized(self, name: str, value: Tensor) -> Tensor:
        """`value` on the grid of the tensor `name`. Training overrides it with ranges that are learned."""
        return fake_quantize(value, self._range(name))

    def quantized_weight(self, name: str, weight: Tensor, axis: int) -> Tensor:  # noqa: ARG002  (for those who override it)
        """The weight of the operator `name` on its grid, per output channel."""
        return fake_quantize_weight(weight, axis)

    def bias(self, name: str, bias: Tensor) -> Tensor:  # noqa: ARG002  (for those who override it)
        """The bias of the INT8 operator `name`, which integer kernels add to their 32-bit sums: not rounded here."""
        return bias

    def _range(self, name: str) -> ActivationRange:
        found = self._ranges.get(name)
        if found is None:
            raise StageError(f"the precision plan has no range for '{name}', which an INT8 operator reads or writes; quantize the network again")
        return found

    def _int8(self, n: fx.Node) -> object:
        args = tuple(self._exact(value) if self._is_operand(n, value) else value for value in n.args)
        value = self._call(n, args, lambda source: self._read_int8(n, source))
        fused = kinds.fused_activation(n)
        if fused is not None and self._precision.get(fused.name) == "int8":
            return value  # it is rounded behind the activation
        found = self._range(n.name)
        moved = kinds.group_of_target(n) == "moving" and all(self._on_grid.get(source) == found for source in kinds.activations(n))
        self._on_grid[n] = found
        return value if moved else self.quantized(n.name, _tensor(n, value))

    def _read_int8(self, n: fx.Node, source: fx.Node) -> object:
        value = self.env[source]
        if n.target in kinds.WEIGHTED and source is not n.args[0]:
            return self._weight(n, source, _tensor(source, value)) if source is n.args[1] else self.bias(n.name, _tensor(source, value))
        if kinds.is_constant(source):
            return self._exact_tensor(_tensor(source, value))
        if kinds.is_fused(n) and self._precision.get(source.name) == "int8":
            return value
        return value if self._on_grid.get(source) == self._range(source.name) else self.quantized(source.name, _tensor(source, value))

    def _weight(self, n: fx.Node, source: fx.Node, value: Tensor) -> Tensor:
        axis = kinds.WEIGHTED[n.target]
        if torch.is_grad_enabled():
            return self.quantized_weight(n.name, value, axis)
        key = (source.name, n.name)
        if key not in self._constants:
            self._constants[key] = self.quantized_weight(n.name, value, axis)
        return self._constants[key]

    def _fp16(self, n: fx.Node) -> object:
        value = self._call(n, n.args, self._read_fp16)
        return half(value) if isinstance(value, Tensor) else value

    def _call(self, n: fx.Node, args: tuple[Argument, ...], read: Callable[[fx.Node], object]) -> object:
        """Compute `n` with the values that `read` gives for the nodes among its arguments."""
        values, keywords = fx.node.map_arg((args, dict(n.kwargs)), cast("Callable[[fx.Node], Argument]", read))
        return self.call_function(n.target, values, keywords)

    def _read_fp16(self, source: fx.Node) -> object:
        value = self.env[source]
        if not isinstance(value, Tensor):
            return value
        if not kinds.is_constant(source) or torch.is_grad_enabled():
            return half(value)
        key = (source.name, "fp16")
        if key not in self._constants:
            self._constants[key] = half(value)
        return self._constants[key]

    @staticmethod
    def _is_operand(n: fx.Node, value: object) -> bool:
        return n.target in kinds.ARITHMETIC and n.target != torch.ops.aten.leaky_relu.default and isinstance(value, int | float)

    def _exact(self, value: object) -> float:
        """A scalar operand at the scale at which it is the integer +-127."""
        return float(self._exact_tensor(torch.tensor([float(value)])))  # type: ignore[arg-type]  # _is_operand has looked

    @staticmethod
    def _exact_tensor(value: Tensor) -> Tensor:
        return fake_quantize(value, ActivationRange(max(abs(float(value.detach().reshape(-1)[0])), 1e-12) / WEIGHT_MAX, 0))


def half(value: Tensor) -> Tensor:
    """`value` rounded to half precision, as FP32; integers as they are. What is larger than 65504 becomes infinite."""
    return value.half().float() if value.is_floating_point() else value


def _tensor(node: fx.Node, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise StageError(f"'{node.name}' computes a {type(value).__name__}; INT8 operators need tensors")
    return value
