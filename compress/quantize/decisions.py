"""What the planner decides: one precision for each operator together with the ReLU fused into it, and what follows from each choice."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from torch import Tensor, fx, nn

from mcompress.compress.cost import operator_table
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, Precision, PrecisionPlan
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.errors import StageError
from mcompress.targets.activations import Activations
from mcompress.targets.device import Device
from mcompress.targets.operators import OperatorTable
from mcompress.targets.precision_latency import PrecisionLatency, precision_latency

ALL: tuple[Precision, ...] = ("int8", "fp16", "fp32")


@dataclass(frozen=True)
class Decision:
    """One operator with the ReLU fused into it. Indices are positions in `Problem.decisions`."""

    nodes: tuple[str, ...]
    allowed: tuple[Precision, ...]
    noise: dict[Precision, float]
    """What the precision itself adds: INT8 the rounding of weights and result (nothing where values are only moved or clamped), FP16 everything."""
    reads: tuple[tuple[int | None, float], ...] = ()
    """Of each tensor that it reads: its maker, None for the network's input, and the noise of rounding it for this operator. Where both are INT8 the
    maker has rounded it."""
    between: tuple[int, ...] = ()
    """Makers and readers of its tensors, where INT8 of them all makes this INT8 too: an operator without weights between quantized tensors."""
    follows: int | None = None
    """The decision whose precision this one shares, because the operator table has both in one row."""
    kept: bool = False
    """Whether the target says its precision."""


@dataclass(frozen=True)
class Problem:
    """Everything that the planner needs to know of a network and a device."""

    decisions: tuple[Decision, ...]
    units: tuple[PrecisionLatency, ...]
    row_owner: tuple[int, ...]
    """Row of the operator table -> its decision."""

    def latency_ms(self, chosen: Sequence[Precision]) -> float:
        """The estimator's milliseconds, summed over the units."""
        return sum(self.latency_on(unit, chosen) for unit in self.units)

    def latency_on(self, unit: PrecisionLatency, chosen: Sequence[Precision]) -> float:
        """The estimator's milliseconds on one unit; infinite where it cannot run the assignment."""
        return unit.of(np.array([unit.precisions.index(chosen[owner]) for owner in self.row_owner]))

    def noise_of(self, chosen: Sequence[Precision]) -> float:
        """The additive prediction, as a share of the output's energy."""
        own = sum(decision.noise.get(precision, 0.0) for decision, precision in zip(self.decisions, chosen, strict=True))
        reading = (read for decision, precision in zip(self.decisions, chosen, strict=True) if precision == "int8" for read in decision.reads)
        return own + sum(noise for maker, noise in reading if maker is None or chosen[maker] != "int8")

    def uniform(self, precision: Precision) -> tuple[Precision, ...]:
        """`precision` for every operator that can have it; FP16 for those that cannot be INT8, FP32 where that is out of its range too."""
        order: tuple[Precision, ...] = (precision, *(p for p in ("fp16", "fp32", "int8") if p != precision))
        return tuple(next(p for p in order if p in decision.allowed and np.isfinite(decision.noise.get(p, 0.0))) for decision in self.decisions)

    def macs_share(self, table: OperatorTable, chosen: Sequence[Precision], precision: Precision = "int8") -> float:
        """Share of the multiply-adds that are computed in `precision`."""
        total = sum(row.macs for row in table.operators) or 1
        return sum(row.macs for row, owner in zip(table.operators, self.row_owner, strict=True) if chosen[owner] == precision) / total


def named_table(module: fx.GraphModule, *input_shapes: tuple[int, ...]) -> OperatorTable:
    """The operator table of a graph; rows have the names of the nodes that compute them. Of a node with several rows the last has its name, those
    before it have a number behind a point: a normalization that first copies what it reads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about the graph module that is copied to the meta device
        table = operator_table(_Named(module), *input_shapes)
    nodes = [row.name.partition(_END)[0] for row in table.operators]
    left, names = Counter(nodes), {"": ""}
    for row, node in zip(table.operators, nodes, strict=True):
        left[node] -= 1
        names[row.name] = f"{node}.{left[node]}" if left[node] else node
    rows = (replace(row, name=names[row.name], weights_of=names[row.weights_of]) for row in table.operators)
    return replace(table, operators=tuple(rows))


def node_of_row(name: str) -> str:
    """The node that computes the row of this name of a `named_table`."""
    return name.partition(".")[0]


_END = "!"
"""Ends the name of a node in the table: what stands behind it numbers the node's rows."""


class _Named(nn.Module):
    """The graph with a module of its own for each operator, from whose name the table takes the row's."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = module
        for node in module.graph.nodes:
            if node.op == "call_function":
                self._modules[node.name + _END] = _Call(node.target)

    def call_of(self, node: fx.Node) -> _Call:
        found = self._modules[node.name + _END]
        if not isinstance(found, _Call):
            raise StageError(f"'{node.name}' is no operator of the graph")
        return found

    def forward(self, *inputs: Tensor) -> object:
        return _Stepwise(self.graph_module, self).run(*inputs)


class _Call(nn.Module):
    def __init__(self, target: object) -> None:
        super().__init__()
        self.target = target

    def forward(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return self.target(*args, **kwargs)  # type: ignore[operator]  # what a call_function node calls


class _Stepwise(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, named: _Named) -> None:
        super().__init__(module)
        self._named = named

    def run_node(self, n: fx.Node) -> object:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self._named.call_of(n)(args, kwargs)


def problem_of(
    module: fx.GraphModule,
    table: OperatorTable,
    ranges: Mapping[str, ActivationRange],
    sensitivity: Sensitivity,
    device: Device,
    units: Sequence[str],
    precisions: Sequence[Precision] = ALL,
    keep: Mapping[str, Precision] = MappingProxyType({}),
) -> Problem:
    """The decisions of a network (`table` from `named_table`) on units of a device; operators in `keep` have the precision that it says.

    Raises `StageError` if an operator of the table belongs to no operator of the graph, `TargetError` for an unknown unit.
    """
    owner = _owners(module)
    heads = list(dict.fromkeys(owner.values()))
    index = {head: position for position, head in enumerate(heads)}
    by_name = {node.name: made for node in module.graph.nodes if (made := _made_with(node, owner)) is not None}
    unknown = [row.name for row in table.operators if node_of_row(row.name) not in by_name]
    if unknown:
        raise StageError(f"the operator table has '{unknown[0]}', which is no operator of the exported program; this is a bug in mcompress")
    row_owner = tuple(index[owner[by_name[node_of_row(row.name)]]] for row in table.operators)
    latencies = tuple(precision_latency(table, device, unit, precisions) for unit in units)
    fused_rows = _rows_of_nodes(module, {row.name for row in table.operators})
    decisions = []
    for head in heads:
        members = tuple(node for node, of in owner.items() if of is head)
        end, group = members[-1], kinds.group_of(head)
        follows = _companion(head, owner, index, fused_rows)
        rows = [row for row, of in enumerate(row_owner) if of == (index[head] if follows is None else follows)]
        allowed = _allowed(head, ranges, rows, latencies, precisions, _alone(sensitivity, head, "fp16"), keep.get(head.name))
        rounding = sensitivity.weights.get(head.name, 0.0) + (sensitivity.tensors.get(end.name, 0.0) if group in ("weighted", "arithmetic") else 0.0)
        noise: dict[Precision, float] = {"int8": rounding, "fp16": _alone(sensitivity, head, "fp16"), "fp32": 0.0}
        of_tensor = sensitivity.reads.get(head.name, {})
        makers = {source: index[owner[source]] if source in owner else None for source in kinds.activations(head)}
        decisions.append(
            Decision(
                tuple(node.name for node in members),
                allowed,
                {precision: noise[precision] for precision in allowed},
                tuple((maker, of_tensor.get(source.name, 0.0)) for source, maker in makers.items()) if "int8" in allowed else (),
                _between(head, end, owner, index) if group not in (None, "weighted") else (),
                follows,
                head.name in keep,
            )
        )
    return Problem(tuple(decisions), latencies, row_owner)


def plan_of(
    module: fx.GraphModule,
    problem: Problem,
    chosen: Sequence[Precision],
    ranges: Mapping[str, ActivationRange],
    reasons: Sequence[str],
    sensitivity: Sensitivity,
    activations: Activations = "asymmetric",
) -> PrecisionPlan:
    """The plan that says what was `chosen`; `reasons` has one for each decision. `ranges` were calibrated for `activations`."""
    of_node = {name: position for position, decision in enumerate(problem.decisions) for name in decision.nodes}
    planned = []
    needed: set[str] = set()
    for node in kinds.operators(module.graph):
        position = of_node[node.name]
        precision, head = chosen[position], problem.decisions[position].nodes[0]
        reason = reasons[position] if node.name == head else f"fused into {head}"
        planned.append(
            PlannedOperator(node.name, kinds.module_of(node), kinds.kind_of(node), precision, reason, sensitivity.sqnr_db(node.name, "int8"))
        )
        if precision == "int8":
            needed.update((node.name, *(source.name for source in kinds.activations(node))))
    return PrecisionPlan(tuple(planned), {name: found for name, found in ranges.items() if name in needed}, activations)


def _owners(module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Operator -> the one that decides for it: itself, or the one that it is fused into."""
    return {node: node.all_input_nodes[0] if kinds.is_fused(node) else node for node in kinds.operators(module.graph)}


def _made_with(node: fx.Node, owner: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The operator itself; of what computes whole numbers the first operator that they reach, None where they reach none."""
    pending, seen = [node], set[fx.Node]()
    for each in pending:
        if each in owner:
            return each
        if each.op == "call_function" and each not in seen:
            seen.add(each)
            pending += each.users
    return None


def _allowed(
    head: fx.Node,
    ranges: Mapping[str, ActivationRange],
    rows: Sequence[int],
    units: Sequence[PrecisionLatency],
    precisions: Sequence[Precision],
    half: float,
    kept: Precision | None,
) -> tuple[Precision, ...]:
    """What the operator can be, and every unit can run; what it is `kept` in, where it is."""
    able = [p for p in precisions if all(np.isfinite(unit.own_ms[row, unit.precisions.index(p)]) for unit in units for row in rows)]
    if kept is not None:
        _check_kept(head, kept, able, units, half)
        return (kept,)
    if {"fp16", "fp32"} <= set(able) and _alike("fp16", "fp32", rows, units):
        # Where both are computed in one way, the file holds what is computed: fp32 for a GPU of FP16 only makes it larger, fp16 for other CPUs casts.
        computed = {str(unit.computed[unit.form[row, unit.precisions.index("fp16")]]) for unit in units for row in rows}
        able.remove("fp32" if computed == {"fp16"} and np.isfinite(half) else "fp16")
    has_ranges = all(node.name in ranges for node in (*kinds.activations(head), kinds.fused_activation(head) or head))
    if "int8" in able and (kinds.why_float(head) is not None or not has_ranges):
        able.remove("int8")
    if not able:
        raise StageError(
            f"no precision of {', '.join(precisions)} runs '{head.name}' ({kinds.kind_of(head)}) on {', '.join(unit.unit for unit in units)}"
        )
    if able == ["fp16"] and not np.isfinite(half):
        raise StageError(
            f"'{head.name}' ({kinds.kind_of(head)}) has values beyond what FP16 holds (65504), and {' and '.join(unit.unit for unit in units)} can "
            "run it in nothing else. Keep its values smaller when training, or plan for a unit that computes in FP32"
        )
    return tuple(able)


def _check_kept(head: fx.Node, kept: Precision, able: Sequence[Precision], units: Sequence[PrecisionLatency], half: float) -> None:
    what = f"the quantize stage keeps '{head.name}' ({kinds.kind_of(head)}) in {kept}"
    if kept not in able:
        raise StageError(f"{what}, which {' and '.join(unit.unit for unit in units)} cannot run; there it can be {', '.join(able) or 'nothing'}")
    if kept == "fp16" and not np.isfinite(half):
        raise StageError(f"{what}, and its values are beyond what FP16 holds (65504); keep it in fp32")


def _alike(one: Precision, other: Precision, rows: Sequence[int], units: Sequence[PrecisionLatency]) -> bool:
    """Whether every unit computes the rows in the same way for both."""
    return all(u.form[row, u.precisions.index(one)] == u.form[row, u.precisions.index(other)] for u in units for row in rows)


def _alone(sensitivity: Sensitivity, head: fx.Node, precision: Precision) -> float:
    return sensitivity.alone.get(head.name, {}).get(precision, 0.0)


def _between(head: fx.Node, end: fx.Node, owner: Mapping[fx.Node, fx.Node], index: Mapping[fx.Node, int]) -> tuple[int, ...]:
    others = [*kinds.activations(head), *end.users]
    if not end.users or any(other not in owner for other in others):
        return ()
    return tuple(dict.fromkeys(index[owner[other]] for other in others))


def _rows_of_nodes(module: fx.GraphModule, rows: set[str]) -> dict[fx.Node, str]:
    """Operator -> the row of the table that it is computed in; one that has none of its own is part of the row before it, or a view of its result."""
    found: dict[fx.Node, str] = {}
    for node in kinds.operators(module.graph):
        before = next((found[source] for source in kinds.activations(node) if source in found), "")
        found[node] = node.name if node.name in rows else before
    return found


def _companion(head: fx.Node, owner: Mapping[fx.Node, fx.Node], index: Mapping[fx.Node, int], rows: Mapping[fx.Node, str]) -> int | None:
    if rows[head] in ("", head.name):
        return None
    maker = next(node for node in owner if node.name == rows[head])
    return index[owner[maker]] if owner[maker] is not head else None
