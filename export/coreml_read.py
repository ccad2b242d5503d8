"""What a saved Core ML package holds, operator by operator, read from its files: which operators of the program each stands for, its precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.coreml_names import SourceNode, is_conversion, source_nodes, source_of
from mcompress.export.coreml_precisions import INSIDE, later_of
from mcompress.export.coreml_weights import WeightMatch
from mcompress.export.honoured import FileOperator
from mcompress.export.mil.program import Argument, Constant, Function, Operation
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mcompress.compress.quantize.plan import PrecisionPlan

UNIT = "decided on the device"
LARGEST_FP16 = float(np.finfo(np.float16).max)
COMPUTED = {"conv": ("x", "weight"), "conv_transpose": ("x", "weight"), "linear": ("x", "weight"), "concat": ("values",)} | dict.fromkeys(
    ("add", "sub", "mul"), ("x", "y")
)
"""The arguments that must be quantized for the operation to be INT8."""
INT8_KINDS = frozenset(
    (
        *COMPUTED,
        *INSIDE,
        "leaky_relu",
        "max_pool",
        "pad",
        "pixel_shuffle",
        "pixel_unshuffle",
        "upsample_nearest_neighbor",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice_by_index",
        "slice_by_size",
        "identity",
    )
)
"""Operations that are INT8 between `dequantize` and `quantize`, as plans know them; others (a sigmoid, a mean) are computed in float there too."""


def file_operators(main: Function, program: ExportedProgram, plan: PrecisionPlan | None, weights: Sequence[WeightMatch]) -> tuple[FileOperator, ...]:
    """Every operator of the file in execution order; `weights` is `match_weights` of the same file.

    An operator carries the name of the program's operator whose result it gives. One of the program that has no name in the file is looked for where
    its weights are, or in the operator that reads what it read; found in neither way, nothing stands for it.
    """
    nodes = source_nodes(program)
    graph = _Graph(main, [name for name, node in nodes.items() if node.kind == "input"])
    operations = [operation for operation in main.operations if not is_conversion(operation.type)]
    stands = _stands_for(operations, graph, nodes, weights)
    planned = {operator.name: operator.precision for operator in plan.operators} if plan is not None else {}
    found = []
    for operation in operations:
        precision = graph.precision(operation)
        stood = stands[operation.name]
        others = [name for name in stood if planned.get(name, precision) != precision]
        found.append(
            FileOperator(
                name=operation.name,
                kind=operation.type,
                stands_for=stood,
                precision=precision,
                computed=precision,
                unit=UNIT,
                output=operation.outputs[0].name if len(operation.outputs) == 1 else None,
                reason=_reason(operation, precision, stood, planned, graph) if others else "",
            )
        )
    _check_unique(found)
    return tuple(found)


def wide_int8(main: Function, operators: Sequence[FileOperator]) -> tuple[str, ...]:
    """INT8 operators of the file that stand between FP32 tensors, because their scales are none that FP16 tells apart."""
    types = main.types()
    return tuple(o.name for o in operators if o.precision == "int8" and o.output is not None and types[o.output].dtype == "fp32")


def _check_unique(found: Sequence[FileOperator]) -> None:
    names = [operator.name for operator in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExportError(f"two operators of the saved package are called '{twice}'; export it again")


def _stands_for(
    operations: Sequence[Operation], graph: _Graph, nodes: Mapping[str, SourceNode], weights: Sequence[WeightMatch]
) -> dict[str, tuple[str, ...]]:
    """Operation of the file -> operators of the program."""
    own = {operation.name: source_of(operation.name, nodes) for operation in operations}
    written = {name for name in own.values() if name is not None}
    stood: dict[str, set[str]] = {operation.name: set() for operation in operations}
    for operation, name in own.items():
        if name is not None:
            stood[operation].update(part for part in (name, *nodes[name].parts) if nodes[part].in_plans)
    of_weights = {match.source: match.operator for match in weights}
    first = {name: next(operation for operation in operations if own[operation.name] == name) for name in written}
    for name, node in nodes.items():
        if not node.in_plans or node.kind == "getitem" or name in written:
            continue
        if name in of_weights:
            stood[of_weights[name]].add(name)
            continue
        later = later_of(name, nodes, set(written))
        if later is not None and _origins(name, nodes, written) <= {*graph.origins(first[later], own), later}:
            stood[first[later].name].add(name)
    order = {name: index for index, name in enumerate(nodes)}
    return {operation: tuple(sorted(names, key=order.__getitem__)) for operation, names in stood.items()}


def _origins(name: str, nodes: Mapping[str, SourceNode], written: set[str]) -> set[str]:
    """The nearest operators in front of `name` that are in the file, and inputs."""
    found = set[str]()
    for source in nodes[name].sources:
        node = nodes.get(source)
        if node is None:
            continue
        if node.kind == "input" or source in written:
            found.add(source)
        else:
            found |= _origins(source, nodes, written)
    return found


def _reason(operation: Operation, precision: PrecisionName, stood: Sequence[str], planned: Mapping[str, str], graph: _Graph) -> str:
    wanted = {planned[name] for name in stood if name in planned}
    if len(wanted) > 1 and len(operation.outputs) > 1:
        return f"one {operation.type} of the file gives {' and '.join(stood)}; it has the widest precision that one of them was planned in"
    if len(wanted) > 1:
        return f"coremltools merged {' and '.join(stood)} into one operator; it has the widest precision that one of them was planned in"
    if "int8" in wanted:
        return f"in the file its tensors are {precision}: coremltools removed the quantization in front of it or behind it"
    if wanted == {"fp16"} and precision == "fp32":
        largest = graph.largest_constant(operation)
        if largest > LARGEST_FP16:
            return f"it has a constant of {largest:.4g}; FP16 ends at {LARGEST_FP16:g}"
    return ""


class _Graph:
    """A function of the file, and who reads and gives each value, conversions passed over."""

    def __init__(self, main: Function, inputs: Sequence[str]) -> None:
        """`inputs` are the program's names of the function's inputs, in order."""
        self._inputs = dict(zip((value.name for value in main.inputs), inputs, strict=False))
        self._producers, self._readers, self._types = main.producers(), main.readers(), main.types()
        self._returned = set(main.block.outputs)

    def precision(self, operation: Operation) -> PrecisionName:
        """INT8 where it computes between `dequantize` and `quantize` or on integers; otherwise the type of its result."""
        dtype = self._types[operation.outputs[0].name].dtype
        if dtype in ("int8", "uint8") or (operation.type in INT8_KINDS and self._between(operation)):
            return "int8"
        return "fp16" if dtype == "fp16" else "fp32"

    def _between(self, operation: Operation) -> bool:
        first = operation
        while first.type in INSIDE and (before := self._producer(first.inputs["x"][0])) is not None and before.type in (*COMPUTED, *INSIDE):
            first = before
        makers = [self._producer(argument) for key in COMPUTED.get(first.type, ("x",)) for argument in first.inputs.get(key, ())]
        quantized = all(maker is not None and (maker.type == "dequantize" or maker.type.startswith("constexpr_")) for maker in makers)
        activations = any(maker is not None and maker.type == "dequantize" for maker in makers)
        return quantized and activations and all(self._becomes_quantized(value.name) for value in operation.outputs)

    def _becomes_quantized(self, value: str) -> bool:
        readers = self._readers.get(value, ())
        if len(readers) == 1 and readers[0].type in INSIDE:
            return self._becomes_quantized(readers[0].outputs[0].name)
        return bool(readers) and value not in self._returned and all(reader.type == "quantize" for reader in readers)

    def _producer(self, argument: Argument) -> Operation | None:
        return self._producers.get(argument) if isinstance(argument, str) else None

    def origins(self, operation: Operation, own: Mapping[str, str | None]) -> Iterator[str]:
        """The operators of the program, and its inputs, whose results the operation reads, conversions passed over."""
        for argument in operation.names_read():
            yield from self._origin(argument, own)

    def _origin(self, value: str, own: Mapping[str, str | None]) -> Iterator[str]:
        maker = self._producers.get(value)
        if maker is None:
            if value in self._inputs:
                yield self._inputs[value]
        elif is_conversion(maker.type):
            for source in maker.names_read():
                yield from self._origin(source, own)
        else:
            name = own.get(maker.name)
            if name is not None:
                yield name

    def largest_constant(self, operation: Operation) -> float:
        """The largest finite magnitude among the operation's floating-point constants; 0 without any."""
        largest = 0.0
        for argument in (argument for arguments in operation.inputs.values() for argument in arguments):
            maker = self._producers.get(argument) if isinstance(argument, str) else None
            constant = argument if isinstance(argument, Constant) else maker.attributes.get("val") if maker is not None else None
            if constant is not None and constant.type.dtype in ("fp16", "fp32"):
                values = np.abs(constant.array.astype(np.float64))
                largest = max(largest, float(np.max(values, initial=0.0, where=np.isfinite(values))))
        return largest
