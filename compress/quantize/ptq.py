"""INT8 post-training quantization: ranges from streamed calibration data, and a precision for every operator from its measured sensitivity.

The rule is a threshold: every operator is quantized alone, and those that on their own leave the output's SQNR below the limit stay float.
Operators that only move or clip values follow their inputs: they add no error, and splitting them off would cost a conversion for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import JsonValue
from torch import Tensor, fx

from mcompress.calibration.observers import Method, Observer
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import fake_quantize, fake_quantize_weight, sqnr_db
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.train import Progress
from mcompress.errors import StageError
from mcompress.targets.schema import Fallback, Measurement
from mcompress.targets.stages import QuantizeConfig

SENSITIVITY_SAMPLES = 2
FOLLOWS = "moves or clips values: keeps the precision of its input"
BETWEEN_INT8 = "everything that it reads and everything that reads it is INT8, so are its tensors"


def quantize(config: QuantizeConfig, context: StageContext) -> StageOutput:
    """Make the precision plan of `context.model`; the model itself is unchanged, exporters apply the plan."""
    model = context.model.eval()
    shape = context.spec.input_shape
    inputs = list(context.task.calibration_inputs(min(config.samples, SENSITIVITY_SAMPLES), shape, context.seed))
    if not inputs:
        raise StageError("the task gave no calibration inputs; quantization needs at least one")
    module = graph_of(export_program(model, inputs[0]))
    stream = context.task.calibration_inputs(config.samples, shape, context.seed)
    ranges, seen = calibrate(module, stream, config.range, context.spec.input_range, config.samples, context.progress("calibrate"))
    sensitivity = measure_sensitivity(module, inputs, ranges, context.progress("sensitivity"))
    plan = make_plan(module, ranges, sensitivity, config.keep_float_below_db)
    together = _reference_sqnr_db(context, plan, inputs)
    fallbacks = tuple(
        Fallback(where="quantize", what=operator.name, reason=operator.reason) for operator in plan.operators if operator.precision != "int8"
    )
    details: dict[str, JsonValue] = {
        "sensitivity": [_row(operator) for operator in plan.operators],
        "output_sqnr_db": _finite(together),
        "calibration_samples": seen,
        "range": config.range,
        "keep_float_below_db": config.keep_float_below_db,
        "counts": dict(plan.counts()),
    }
    measurement = Measurement(
        what="output SQNR of the quantized network",
        value=min(together, 200.0),
        unit="dB",
        how="host",
        on="PyTorch, fake-quantized reference against float",
        n=len(inputs),
        source="calibration inputs",
    )
    return StageOutput(model, context.spec, plan, (measurement,), fallbacks, details)


def calibrate(
    module: fx.GraphModule, inputs: Iterator[Tensor], method: Method, input_range: tuple[float, float], total: int, progress: Progress
) -> tuple[dict[str, ActivationRange], int]:
    """One pass over `inputs`: the range of every tensor that an INT8 operator could read or write, by node name; and the number of inputs.

    The network's input has exactly `input_range`. Raises `StageError` for NaN or infinite activations.
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
        raise StageError("the task gave no calibration inputs; quantization needs at least one")
    bounds = {representative: observer.bounds(method) for representative, observer in observers.items()}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            representative = groups.get(node, node)
            low, high = bounds.get(representative, input_range)
            bounds[representative] = min(low, input_range[0]), max(high, input_range[1])
            groups[node] = representative
    return {node.name: ActivationRange.from_bounds(*bounds[groups[node]]) for node in groups if groups[node] in bounds}, seen


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


def measure_sensitivity(module: fx.GraphModule, inputs: list[Tensor], ranges: dict[str, ActivationRange], progress: Progress) -> dict[str, float]:
    """Operator -> output SQNR in dB when this operator alone (with the ReLU fused into it) is INT8.

    Only weighted and arithmetic operators are measured. Everything in front of the operator is computed once and kept.
    """
    measured = [node for node in kinds.operators(module.graph) if kinds.group_of(node) in ("weighted", "arithmetic")]
    signal, noise = 0.0, dict.fromkeys((node.name for node in measured), 0.0)
    with torch.no_grad():
        for position, value in enumerate(inputs):
            tape = _Tape(module, value)
            signal += float(tape.output.double().square().sum())
            for done, node in enumerate(measured):
                difference = tape.output_with(node, ranges).double() - tape.output.double()
                noise[node.name] += float(difference.square().sum())
                progress(position * len(measured) + done + 1, len(inputs) * len(measured), node.name)
    return {name: math.inf if value == 0 else (10 * math.log10(signal / value) if signal else -math.inf) for name, value in noise.items()}


class _Tape:
    """The float value of every node for one input, and the output when one operator is replaced by its INT8 form."""

    def __init__(self, module: fx.GraphModule, value: Tensor) -> None:
        self._module = module
        interpreter = fx.Interpreter(module, garbage_collect_values=False)
        interpreter.run(value)
        self._interpreter = interpreter
        self._values: dict[fx.Node, object] = dict(interpreter.env)
        self._output_node = next(node for node in module.graph.nodes if node.op == "output")
        self.output = self._output_of(self._values)

    def _output_of(self, values: dict[fx.Node, object]) -> Tensor:
        (node,) = self._output_node.all_input_nodes
        value = values[node]
        if not isinstance(value, Tensor):
            raise StageError(f"the network returns a {type(value).__name__}; quantization needs one tensor")
        return value

    def output_with(self, node: fx.Node, ranges: dict[str, ActivationRange]) -> Tensor:
        """The network's output when `node` and the ReLU fused into it are INT8; only what lies behind it is computed again."""
        changed: dict[fx.Node, object] = {}
        end = kinds.fused_activation(node) or node
        local = {source: self._quantized_input(node, source, ranges) for source in node.all_input_nodes}
        value = self._compute(node, local)
        if end is not node:
            value = self._compute(end, {node: value})
        changed[end] = fake_quantize(_tensor(value), ranges[end.name])
        for later in self._module.graph.nodes:
            if later in changed or later.op != "call_function" or not any(source in changed for source in later.all_input_nodes):
                continue
            changed[later] = self._compute(later, changed)
        return self._output_of({**self._values, **changed})

    def _quantized_input(self, node: fx.Node, source: fx.Node, ranges: dict[str, ActivationRange]) -> object:
        value = self._values[source]
        if source in kinds.activations(node):
            return fake_quantize(_tensor(value), ranges[source.name])
        if node.target in kinds.WEIGHTED and source is node.args[1]:
            return fake_quantize_weight(_tensor(value), kinds.WEIGHTED[node.target])
        return value

    def _compute(self, node: fx.Node, replaced: dict[fx.Node, object]) -> object:
        self._interpreter.env = {source: replaced.get(source, self._values[source]) for source in node.all_input_nodes}
        return self._interpreter.run_node(node)


def make_plan(module: fx.GraphModule, ranges: dict[str, ActivationRange], sensitivity: dict[str, float], keep_float_below_db: float) -> PrecisionPlan:
    """Decide every operator's precision by the threshold; see the module's docstring for the rule."""
    planned: dict[fx.Node, PlannedOperator] = {}
    for node in kinds.operators(module.graph):
        planned[node] = _decide(node, planned, sensitivity, keep_float_below_db)
    _close_gaps(planned)
    needed = _tensors(planned)
    return PrecisionPlan(tuple(planned.values()), {name: found for name, found in ranges.items() if name in needed})


def _decide(node: fx.Node, planned: dict[fx.Node, PlannedOperator], sensitivity: dict[str, float], limit_db: float) -> PlannedOperator:
    name, module, kind = node.name, kinds.module_of(node), kinds.kind_of(node)
    reason = kinds.why_float(node)
    if reason is not None:
        return PlannedOperator(name, module, kind, "fp16", reason)
    if name in sensitivity:
        value = sensitivity[name]
        if value < limit_db:
            return PlannedOperator(
                name, module, kind, "fp16", f"alone in INT8 it leaves {value:.1f} dB at the output, below {limit_db:g} dB", _known(value)
            )
        return PlannedOperator(name, module, kind, "int8", f"at least {limit_db:g} dB", _known(value))
    sources = kinds.activations(node)
    if kinds.is_fused(node):
        return PlannedOperator(name, module, kind, planned[sources[0]].precision, f"fused into {sources[0].name}")
    from_int8 = all(source.op == "placeholder" or (source in planned and planned[source].precision == "int8") for source in sources)
    return PlannedOperator(name, module, kind, "int8" if sources and from_int8 else "fp16", FOLLOWS)


def _close_gaps(planned: dict[fx.Node, PlannedOperator]) -> None:
    """An operator without weights between INT8 operators computes on INT8 tensors whatever it is called, so call it INT8."""
    again = True
    while again:
        again = False
        for node, operator in list(planned.items()):
            if operator.precision == "int8" or kinds.group_of(node) in (None, "weighted"):
                continue
            end = kinds.fused_activation(node) or node
            sources, users = kinds.activations(node), list(end.users)
            if users and all(_is_int8(other, planned) for other in [*sources, *users]):
                for member in {node, end}:
                    found = planned[member]
                    planned[member] = PlannedOperator(found.name, found.module, found.kind, "int8", BETWEEN_INT8, found.sqnr_db)
                again = True


def _is_int8(node: fx.Node, planned: dict[fx.Node, PlannedOperator]) -> bool:
    return node in planned and planned[node].precision == "int8"


def _tensors(planned: dict[fx.Node, PlannedOperator]) -> set[str]:
    """Names of all tensors that an INT8 operator reads or writes."""
    found: set[str] = set()
    for node, operator in planned.items():
        if operator.precision == "int8":
            found.update(source.name for source in kinds.activations(node))
            found.add(node.name)
    return found


def _reference_sqnr_db(context: StageContext, plan: PrecisionPlan, inputs: list[Tensor]) -> float:
    """SQNR of the whole fake-quantized network; building it also checks that the plan can be applied."""
    reference = reference_program(context.model, inputs[0], plan)
    with torch.no_grad():
        return sqnr_db(torch.cat([context.model(value) for value in inputs]), torch.cat([reference(value) for value in inputs]))


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise StageError(f"expected a tensor in the network's graph, found a {type(value).__name__}")
    return value


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _row(operator: PlannedOperator) -> dict[str, JsonValue]:
    return {
        "operator": operator.name,
        "module": operator.module,
        "kind": operator.kind,
        "precision": operator.precision,
        "sqnr_db": None if operator.sqnr_db is None else round(operator.sqnr_db, 3),
        "reason": operator.reason,
    }
