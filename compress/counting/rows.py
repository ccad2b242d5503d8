"""From the steps of a network to its operator table: recognise, fuse, plan memory, name. The same for a module and for a file; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mcompress.compress.counting.axes import channel_axes, with_channels_moved
from mcompress.compress.counting.fusing import fused, weight_elements, weights_read
from mcompress.compress.counting.memory import live_elements, plan_memory
from mcompress.compress.counting.patterns import recognise
from mcompress.compress.counting.steps import Step, Trace, assumed_macs
from mcompress.targets.operators import Operator, OperatorTable

FP32_BYTES = 4


def table_of(trace: Trace, params: int) -> OperatorTable:
    """The rows of `trace`, which is rewritten on the way, and the parameter count beside them."""
    return rows_of(trace, params)[0]


def rows_of(trace: Trace, params: int) -> tuple[OperatorTable, list[Step]]:
    """The same, and of each row the step that computes."""
    recognise(trace)
    groups = fused(trace)
    plan = plan_memory(trace, groups, FP32_BYTES)
    table = OperatorTable(_rows(trace, groups, live_elements(trace, groups)), params, plan.arena_bytes // FP32_BYTES)
    return table, [group[0] for group in groups]


def figures(table: OperatorTable) -> dict[str, int]:
    """What `mcompress count` prints of a table: parameters, multiply-adds in both conventions, and bytes (fp32) of activations."""
    return {
        "params": table.params,
        "macs": table.macs,
        "macs_output_convention": table.macs_output_convention,
        "peak_activation_bytes": FP32_BYTES * table.peak_activation_elements,
        "planned_peak_bytes": FP32_BYTES * table.planned_peak_elements,
        "activation_traffic_bytes": FP32_BYTES * table.activation_traffic_elements,
    }


def _rows(trace: Trace, groups: Sequence[list[Step]], live: Sequence[int]) -> tuple[Operator, ...]:
    names = _names([group[0] for group in groups])
    consumed = {value for group in groups for step in group for value in step.reads} | trace.outputs
    rows: list[Operator] = []
    holder: dict[int | str, str] = {}
    maker = {value: index for index, group in enumerate(groups) for step in group for value in step.writes}
    for group, name, elements, (read_axis, axis) in zip(groups, names, live, channel_axes(groups), strict=True):
        head, last = group[0], group[-1]
        macs, macs_output_convention = head.macs, head.macs_output_convention
        if head.kind == "other":
            macs = macs_output_convention = max(macs, assumed_macs(head.reads.values(), head.weight_elements, head.output_shape, axis))
        holders = {holder.get(held, "") for held in head.held} if head.weight_elements else set()
        shared = next(iter(holders)) if len(holders) == 1 else ""
        holder |= {held: name for held in head.held if held not in holder}
        # Side results that nobody reads (indices of a pooling, statistics of a normalization) are never written by a runtime.
        written = sum(n for i, (v, n) in enumerate(last.writes.items()) if i == 0 or v in consumed)
        rows.append(
            Operator(
                name=name,
                kind=head.kind,
                operation=head.operation,
                fused=(*head.absorbed, *(step.operation for step in group[1:])),
                # A copy that moves the channels reads them where it writes them.
                input_shape=head.input_shape if read_axis == axis else with_channels_moved(head.input_shape, read_axis),
                output_shape=head.output_shape,
                groups=head.groups,
                kernel=head.kernel,
                stride=head.stride,
                macs=macs,
                macs_output_convention=macs_output_convention,
                elements_read=sum(head.reads.values()),
                elements_written=written,
                weight_elements=weight_elements(group),
                live_elements=elements,
                channel_axis=axis,
                weights_of=shared,
                weights_read=weights_read(group),
                sources=tuple((maker[value], count) for value, count in head.reads.items() if value in maker),
            )
        )
    return tuple(rows)


def _names(heads: Sequence[Step]) -> list[str]:
    """Module path where the module is one operator, else path and operator."""
    return numbered([step.module if step.module and step.module_is_leaf else ".".join(filter(None, (step.module, step.operation))) for step in heads])


def numbered(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """The names in their order, with a number where one is not the first of its kind, or in `taken`."""
    used: dict[str, int] = {}
    unique: list[str] = []
    given = set(taken)
    for base in names:
        number = used.get(base, 0)
        name = base if number == 0 else f"{base}_{number}"
        while name in given:
            number += 1
            name = f"{base}_{number}"
        used[base] = number + 1
        given.add(name)
        unique.append(name)
    return unique
