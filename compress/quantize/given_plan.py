"""A precision plan that the target gives: read, held against the network, and applied instead of one that the planner makes.

Its precisions are taken as they are, and so are its ranges, unless the target asks for training (`distill_steps`), which may move them. Recovery may
have changed the network for which the ranges were measured, so the network that is recovered here, with the same steps, is compared under the plan
with the network as it is, and the better one is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.choosing import Choice, Floor, Tried
from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.planner import Solution
from mcompress.compress.quantize.recovery.recover import Recovered, RecoveryStep
from mcompress.compress.quantize.recovery.selecting import for_plan
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs
from mcompress.errors import StageError, UsageError
from mcompress.targets.schema import Fallback

COMPARED = 8  # calibration inputs on which the two networks are compared
MOST_BYTES = 100_000_000
_NAMED = 3
_MEND = "Give the plan of this network (precision_plan.json of its bundle), or leave `plan` out and one is made"


def read_plan(path: Path) -> PrecisionPlan:
    """The plan in a file. Raises `UsageError` with the file's name and what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(f"the precision plan {path} has {size} bytes; a plan has at most {MOST_BYTES}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the precision plan {path} is not a text file: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise UsageError(f"the precision plan {path} cannot be read: {error.strerror or error}") from error
    try:
        return PrecisionPlan.from_json(text)
    except UsageError as error:
        raise UsageError(f"the precision plan {path} cannot be used: {error}. Take precision_plan.json of a bundle") from error


def check_plan(plan: PrecisionPlan, module: fx.GraphModule) -> None:
    """Raise `StageError`, naming the first operators that differ, unless `plan` can be applied to `module`, the graph of an exported program."""
    problems = list(_other_operators(plan, module)) or list(_impossible(plan, module))
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise StageError(f"the given precision plan does not fit the network: {'; '.join(problems[:_NAMED])}{more}. {_MEND}")


def _other_operators(plan: PrecisionPlan, module: fx.GraphModule) -> Iterator[str]:
    nodes = {node.name: kinds.kind_of(node) for node in kinds.operators(module.graph)}
    planned = {operator.name: operator.kind for operator in plan.operators}
    counts = f" (the plan has {len(planned)} operators, the network {len(nodes)})"
    for name, kind in planned.items():
        if name not in nodes:
            yield f"'{name}' ({kind}) of the plan is not in the network{counts}"
        elif nodes[name] != kind:
            yield f"'{name}' is {kind} in the plan and {nodes[name]} in the network"
    for name, kind in nodes.items():
        if name not in planned:
            yield f"'{name}' ({kind}) of the network is not in the plan{counts}"


def _impossible(plan: PrecisionPlan, module: fx.GraphModule) -> Iterator[str]:
    int8 = plan.int8_names()
    for node in kinds.operators(module.graph):
        fused = kinds.is_fused(node)
        head = node.all_input_nodes[0] if fused else node
        if fused and plan.precision_of(node.name) != plan.precision_of(head.name):
            yield (
                f"'{node.name}' is {plan.precision_of(node.name)}, and '{head.name}', into which it is fused, is {plan.precision_of(head.name)}; "
                "the two have one precision"
            )
        if node.name not in int8:
            continue
        why = kinds.why_float(head)
        if why is not None:
            yield f"'{node.name}' is INT8 in the plan and cannot be: {why}"
            continue
        # Between an operator and the ReLU that is fused into it nothing is rounded.
        written = [] if kinds.fused_activation(node) is not None else [node.name]
        tensors = [*written, *(source.name for source in ([] if fused else kinds.activations(node)))]
        missing = [name for name in tensors if name not in plan.ranges]
        if missing:
            yield f"'{node.name}' is INT8 and the plan has no range for {', '.join(repr(name) for name in missing)}"
        elif not fused and kinds.group_of(node) in ("moving", "clamping") and len({plan.ranges[name] for name in tensors}) > 1:
            yield f"'{node.name}' ({kinds.kind_of(node)}) keeps the scale of what it reads, but the ranges of {', '.join(tensors)} are not equal"


def assigned(plan: PrecisionPlan, problem: Problem) -> Choice:
    """The plan as the only choice there was; what it loses is not known before it is run."""
    chosen = tuple(plan.precision_of(decision.nodes[0]) for decision in problem.decisions)
    solution = Solution(chosen, problem.latency_ms(chosen), math.nan, math.nan, 0.0)
    return Choice(Tried(solution, math.nan, math.nan), (), 0)


def network_for(
    plan: PrecisionPlan, original: fx.GraphModule, recovered: Recovered, inputs: Callable[[], Iterable[Inputs]]
) -> tuple[fx.GraphModule, tuple[RecoveryStep, ...]]:
    """The network that loses less under `plan`, the original or the recovered one, and by how much, measured on the first calibration inputs."""
    candidate = for_plan(recovered.twin, recovered.module, plan)
    seen = [value for _, value in zip(range(COMPARED), inputs(), strict=False)]
    with torch.no_grad():
        exact = torch.cat([original(*value) for value in seen])
        before, after = (
            sqnr_db(exact, torch.cat([simulated(*value) for value in seen])) for simulated in (Simulated(original, plan), Simulated(candidate, plan))
        )
    kept = after > before
    return candidate if kept else original, (*recovered.steps, RecoveryStep("use it for the given plan", before, after, kept))


def doubts_about_given(problem: Problem, choice: Choice, final: Tried, floor: Floor) -> Iterator[Fallback]:
    """Where the given plan is not what the target asks for, or cannot be estimated. It is applied all the same."""
    what = "the given precision plan"
    if not final.keeps(floor):
        reason = f"{final}; the target allows {floor}. It is applied all the same, because it was given"
        yield Fallback(where="quantize", what=what, reason=reason)
    for unit in problem.units:
        if not math.isfinite(problem.latency_on(unit, choice.taken.solution.chosen)):
            yield Fallback(
                where="quantize", what=what, reason=f"{unit.unit} cannot run every operator in its planned precision: no estimate of it there"
            )
