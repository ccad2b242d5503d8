"""What every operator of a file should give, and whether what it gives is within its tolerance.

INT8: two steps of its scale, because integer kernels round sums to the other side now and then. FP16 and FP32: a share of the largest value, and
four times what the rounding to FP16 itself changes, because some runtimes compute in FP32 what the file holds in FP16. Behind many operators:
the noise of quantization itself and 6 dB. Two roundings of one network whose errors have nothing in common are 3 dB further from each other than each
is from FP32; twice that is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.export.backend import FloatArray
from mcompress.export.honoured import FileOperator
from mcompress.targets.speeds import PrecisionName

STEPS = 2.0
"""An INT8 result may be so many steps of its scale from PyTorch's."""
ROOT_STEPS = 0.75
"""And by so much in root mean square: healthy files of four runtimes were seen at 0.24, a bias that is one step off is at 1."""
SHARES: dict[PrecisionName, float] = {"fp16": 2.0**-8, "fp32": 1e-4}
"""A float result may differ by this share of its largest value."""
ROUNDING = 4.0
"""And by this much of what rounding to the planned precision changes."""
MARGIN_DB, EXACT_DB = 6.0, 60.0
NOT_FINITE, OF_LARGEST, SQNR = "values that are not finite", "difference / largest value", "sqnr_db"
IN_STEPS, ROOT_IN_STEPS = "steps of its scale", "root mean square in steps of its scale"


@dataclass(frozen=True)
class Found:
    """An operator outside its tolerance. `exact` is its result in FP32, `given` what the file has."""

    nodes: tuple[fx.Node, ...]
    """The operators that gave the result together, in execution order."""
    measure: str
    value: float
    limit: float
    alone: bool
    exact: Tensor
    given: Tensor
    seen: frozenset[str]
    """Operators that were looked at, and those computed together with one of them."""
    whole_file: bool = False


class Expected:
    """The network in PyTorch, as planned and in FP32, for one test input."""

    def __init__(
        self,
        module: nn.Module,
        plan: PrecisionPlan | None,
        operators: Sequence[FileOperator],
        values: Sequence[FloatArray],
        read: Sequence[FloatArray],
    ) -> None:
        """`values` are the network's inputs; `read` is what the file makes of them, which are others where its inputs are INT8."""
        examples = [torch.from_numpy(value) for value in values]
        self.graph = graph_of(export_program(module, *examples))
        self.operators: tuple[fx.Node, ...] = tuple(kinds.operators(self.graph.graph))
        (last,) = (node for node in self.graph.graph.nodes if node.op == "output")
        self.end: fx.Node = last.all_input_nodes[0]
        self.plan = plan
        self._stated = {name: operator.precision for operator in operators for name in operator.stands_for}
        self._as_written = self._written_plan()
        self._as_planned = plan or self._as_written
        self._float = PrecisionPlan((), {})
        sources = [node.name for node in self.graph.graph.nodes if node.op == "placeholder"]
        self._inputs = {source: torch.from_numpy(one) for source, one in zip(sources, read, strict=True)}
        self.results = self._run(self._as_planned, examples)
        self.exact = self._run(self._float, examples)
        self._seen, self._alone = set[str](), set[str]()

    def planned(self, name: str) -> PrecisionName | None:
        """The precision that the plan has for an operator; None without a plan."""
        return None if self.plan is None else self.plan.precision_of(name)

    def stated(self, name: str) -> PrecisionName:
        """The precision that the file holds it in; the plan's where nothing in the file stands for it."""
        return self._stated.get(name) or self.planned(name) or "fp32"

    def module_of(self, node: fx.Node) -> str:
        """Path of the module that an operator came from; a network with recovered parameters has it in its plan only."""
        planned = () if self.plan is None else self.plan.operators
        return next((one.module for one in planned if one.name == node.name and one.module), kinds.module_of(node))

    def rounds(self, node: fx.Node) -> bool:
        """Whether the plan rounds the operator's result to INT8; a ReLU that is fused into it does so instead."""
        fused = kinds.fused_activation(node)
        return self._as_planned.precision_of(node.name) == "int8" and not (fused is not None and self._as_planned.precision_of(fused.name) == "int8")

    def behind(self, node: fx.Node, known: Container[str]) -> tuple[fx.Node, ...]:
        """What has to be computed for the result of `node` from results that are `known`, in execution order."""
        wanted, pending = {node}, [node]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source.op == "call_function" and source.name not in known and source not in wanted:
                    wanted.add(source)
                    pending.append(source)
        return tuple(each for each in self.graph.graph.nodes if each in wanted)

    def first_alone(self, values: Mapping[str, Tensor]) -> Found | None:
        """The first operator with a result among the file's `values` that leaves its tolerance when it is recomputed from them."""
        judged = (self.judge_alone(node, values) for node in self.operators if node.name in values)
        return next((found for found in judged if found is not None), None)

    def first_grown(self, values: Mapping[str, Tensor]) -> Found | None:
        """The first result among the file's `values` that is too far from PyTorch's for the whole network.

        Only where the last of them is: in between, a difference may be harmless.
        """
        seen = [node for node in self.operators if node.name in values]
        if not seen or self.judge_grown(seen[-1], values[seen[-1].name]) is None:
            return None
        return next((found for node in seen if (found := self.judge_grown(node, values[node.name])) is not None), None)

    def not_alone(self) -> tuple[str, ...]:
        """Operators that were not recomputed from the file's own values so far, neither alone nor with one whose result is known."""
        return tuple(node.name for node in self.operators if node.name not in self._alone)

    def judge_alone(self, node: fx.Node, values: Mapping[str, Tensor]) -> Found | None:
        """Recompute `node` from the file's `values`; None within its tolerance."""
        nodes = self.behind(node, values)
        given = values[node.name]
        exact = self._compute(self._float, nodes, values)
        self._seen.update(each.name for each in nodes)
        self._alone.update(each.name for each in nodes)
        strange = int((~torch.isfinite(given) & torch.isfinite(exact)).sum())
        if strange:
            return self._found(nodes, NOT_FINITE, (float(strange), 0.0), exact, given)
        plans = [self._as_planned]
        if self.plan is not None and any(self.stated(each.name) != self.plan.precision_of(each.name) for each in nodes):
            plans.append(self._as_written)
        judged = [self._distance(node, plan, self._compute(plan, nodes, values), exact, given) for plan in plans]
        measure, value, limit = min(judged, key=lambda one: one[1] / one[2])
        return self._found(nodes, measure, (value, limit), exact, given) if value > limit else None

    def judge_grown(self, node: fx.Node, given: Tensor) -> Found | None:
        """Compare what is `given` for `node` with that of the whole network in PyTorch; None within its tolerance."""
        result, exact = self.results[node.name], self.exact[node.name]
        self._seen.add(node.name)
        strange = int((~torch.isfinite(given) & torch.isfinite(exact)).sum())
        if strange:
            return replace(self._found((node,), NOT_FINITE, (float(strange), 0.0), exact, given), alone=False)
        found, limit = sqnr_db(result, given), min(EXACT_DB, sqnr_db(exact, result) - MARGIN_DB)
        return replace(self._found((node,), SQNR, (found, limit), exact, given), alone=False) if found < limit else None

    def _found(self, nodes: Sequence[fx.Node], measure: str, numbers: tuple[float, float], exact: Tensor, given: Tensor) -> Found:
        tensors = tuple(node for node in nodes if kinds.is_float_tensor(node))
        return Found(tensors, measure, *numbers, alone=True, exact=exact, given=given, seen=frozenset(self._seen))

    def _distance(self, node: fx.Node, plan: PrecisionPlan, result: Tensor, exact: Tensor, given: Tensor) -> tuple[str, float, float]:
        precision = plan.precision_of(node.name)
        if not bool(torch.isfinite(result).all()):
            result = exact  # FP16 overflows, and the runtime computes in FP32
        difference = _largest(given - result)
        if precision == "int8":
            step = self._step(node, plan)
            if step is not None:
                root = float((given - result).square().mean().sqrt())
                judged = ((IN_STEPS, difference / step, STEPS), (ROOT_IN_STEPS, root / step, ROOT_STEPS))
                return max(judged, key=lambda one: one[1] / one[2])
        largest = max(_largest(result), torch.finfo(torch.float32).tiny)
        allowed = SHARES["fp32" if precision == "fp32" else "fp16"] * largest + ROUNDING * _largest(result - exact)
        return OF_LARGEST, difference / largest, allowed / largest

    def _step(self, node: fx.Node, plan: PrecisionPlan) -> float | None:
        """The coarsest of the steps that its result is rounded to, and a copy's inputs were."""
        fused = kinds.fused_activation(node)
        sources = kinds.activations(node) if kinds.group_of_target(node) in ("moving", "clamping") else []
        names = [node.name, *([fused.name] if fused is not None else []), *(source.name for source in sources)]
        return max((plan.ranges[name].scale for name in names if name in plan.ranges), default=None)

    def _compute(self, plan: PrecisionPlan, nodes: Sequence[fx.Node], values: Mapping[str, Tensor]) -> Tensor:
        simulated = Simulated(self.graph, plan)
        known: dict[fx.Node, object] = {}
        for source in (source for node in nodes for source in node.all_input_nodes):
            if source.op == "get_attr":
                known[source] = simulated.fetch_attr(str(source.target))
            elif source.name in values:
                known[source] = values[source.name]
            elif source.name in self._inputs:
                known[source] = self._inputs[source.name]
        with torch.no_grad():
            result = simulated.compute(nodes, known)[nodes[-1]]
        if not isinstance(result, Tensor):
            raise TypeError(f"'{nodes[-1].name}' gives a {type(result).__name__}")
        return result

    def _run(self, plan: PrecisionPlan, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            Simulated(self.graph, plan, lambda node, result: found.update({node.name: result}))(*inputs)
        return found

    def _written_plan(self) -> PrecisionPlan:
        """The precisions that the file holds, as a plan; INT8 where there are ranges for it."""
        ranges = {} if self.plan is None else self.plan.ranges
        made = []
        for node in self.operators:
            stated = self.stated(node.name)
            precision: Precision = "fp16" if stated == "w8a16" else stated  # 8-bit weights alone do not round results
            if precision == "int8" and not {node.name, *(source.name for source in kinds.activations(node))} <= ranges.keys():
                precision = "fp32"
            made.append(PlannedOperator(node.name, self.module_of(node), kinds.kind_of(node), precision, ""))
        return PrecisionPlan(tuple(made), ranges)


def _largest(value: Tensor) -> float:
    """Largest magnitude; infinite where one is no number."""
    return float(value.abs().nan_to_num(nan=math.inf).max()) if value.numel() else 0.0
