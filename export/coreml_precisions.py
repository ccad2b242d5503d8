"""Which operations of coremltools' program become FP16 and which stay FP32, so that the file has the precisions of the plan.

INT8 operators compute between `dequantize` and `quantize`; the tensors there are FP16, unless FP16 cannot tell a scale apart from its neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.coreml_names import SourceNode, is_conversion

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Block, Operation, Program, Var

    from mcompress.compress.quantize.plan import PrecisionPlan

FP16_SCALE_ERROR = 1 / 256  # relative; half of the step of a weight of 127. Scales below 6e-5 have fewer bits in fp16
INSIDE = frozenset(("relu", "relu6", "clip", "crop"))
"""What may stand between an INT8 operator and the quantization of its result; `crop` cuts off what a transposed convolution with `output_padding`
gives too much."""
NAMESPACE, SPLIT = "mcompress", "dequantize_for_each_precision"


class Precisions:
    """Says of every operation of coremltools' program whether it becomes FP16. All is decided before the first one is changed."""

    def __init__(self, nodes: Mapping[str, SourceNode], handles: Mapping[int, str], plan: PrecisionPlan) -> None:
        """`handles`: debug handle of an operation -> operator of the program that `nodes` describes."""
        self._nodes, self._handles = nodes, handles
        self._planned = {operator.name: operator.precision for operator in plan.operators}
        self._merged: dict[str, list[str]] = {}
        self._decided: dict[Operation, bool] = {}

    def in_fp16(self, operation: Operation) -> bool:
        """What `op_selector` wants."""
        if operation not in self._decided:
            self.decide(list(operation.enclosing_block.operations))
        return self._decided[operation]

    def decide(self, operations: Sequence[Operation]) -> None:
        """Decide for all operations of a block, in execution order."""
        self._merged = self._find_merged(operations)
        self._decided = {operation: self._decide(operation) for operation in operations}

    def _decide(self, operation: Operation) -> bool:
        kind = operation.op_type
        if kind == "const":
            return False  # the operations that read it have it cast
        if kind == "quantize":
            maker = operation.input.op
            return _fits(operation.scale) and (maker is None or is_conversion(maker.op_type) or self._computes_fp16(maker))
        if kind == "dequantize" or kind.startswith("constexpr_"):
            readers = operation.outputs[0].child_ops
            return _fits(operation.scale) and all(is_conversion(reader.op_type) or self._computes_fp16(reader) for reader in readers)
        return self._computes_fp16(operation)

    def _computes_fp16(self, operation: Operation) -> bool:
        name = self._name_of(operation)
        if name is None:
            return True
        merged = [name, *self._merged.get(name, ())]
        planned = {self._planned.get(part) for whole in merged for part in (whole, *self._parts(whole))}
        if "fp32" in planned:
            return False
        return "int8" not in planned or all(_fits(scale) for scale in _scales_around(operation))

    def _parts(self, name: str) -> tuple[str, ...]:
        return self._nodes[name].parts if name in self._nodes else ()

    def _name_of(self, operation: Operation) -> str | None:
        from coremltools.converters.mil.mil.scope import ScopeSource

        found = operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or [None]
        return self._handles.get(found[0])

    def _find_merged(self, operations: Sequence[Operation]) -> dict[str, list[str]]:
        """Operators that coremltools has merged into a later one: they have no operation of their own any more. By the name of the later one."""
        written = {name for each in operations if not is_conversion(each.op_type) and (name := self._name_of(each)) is not None}
        merged: dict[str, list[str]] = {}
        for name, node in self._nodes.items():
            if node.in_plans and node.kind != "getitem" and name not in written:
                later = later_of(name, self._nodes, written)
                if later is not None:
                    merged.setdefault(later, []).append(name)
        return merged


def register_split(precisions: Precisions) -> str:
    """Register the pass that gives a tensor that FP16 and FP32 operations read dequantized one `dequantize` for each, and return its name.

    coremltools merges the two that the program has. One of the readers would then be cast, and no longer stand behind a `dequantize`.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    class _Split(AbstractGraphPass):  # type: ignore[misc]  # coremltools ships no types
        def apply(self, prog: Program) -> None:
            block_context_manager(_split)(prog.functions["main"], precisions)

    _Split.__name__ = SPLIT
    register_pass(namespace=NAMESPACE, override=True)(_Split)
    return f"{NAMESPACE}::{SPLIT}"


def _split(block: Block, precisions: Precisions) -> None:
    from coremltools.converters.mil.mil import Builder

    precisions.decide(list(block.operations))
    for operation in [each for each in block.operations if each.op_type == "dequantize"]:
        value = operation.outputs[0]
        wide = [reader for reader in value.child_ops if not precisions.in_fp16(reader)]
        if not wide or len(wide) == len(value.child_ops):
            continue
        given = {key: argument for key, argument in operation.inputs.items() if argument is not None}
        other = Builder.dequantize(**given, name=f"{operation.name}_fp32", before_op=operation)
        other.op.scopes = operation.scopes
        for reader in wide:
            changed = {key: _replaced(argument, value, other) for key, argument in reader.inputs.items()}
            reader.set_inputs(type_inference=False, **changed)
    precisions.decide(list(block.operations))


def _replaced(argument: Var | tuple[Var, ...], old: Var, new: Var) -> Var | tuple[Var, ...]:
    if isinstance(argument, list | tuple):
        return tuple(new if each is old else each for each in argument)
    return new if argument is old else argument


def later_of(name: str, nodes: Mapping[str, SourceNode], written: Collection[str]) -> str | None:
    """The first operator behind `name` that is in `written`, along operators whose result has one reader; None if there is none."""
    while len(nodes[name].readers) == 1:
        name = nodes[name].readers[0]
        if name not in nodes:
            return None
        if name in written:
            return name
    return None


def _scales_around(operation: Operation) -> Iterator[object]:
    """The scales of the quantized tensors that an INT8 operation reads, and that its result becomes, through a ReLU between the two."""
    first = operation
    while first.op_type in INSIDE and first.x.op is not None and not is_conversion(first.x.op.op_type):
        first = first.x.op
    for inputs in first.inputs.values():
        for value in inputs if isinstance(inputs, list | tuple) else [inputs]:
            if value.op is not None and (value.op.op_type == "dequantize" or value.op.op_type.startswith("constexpr_affine")):
                yield value.op.scale
    readers = list(operation.outputs[0].child_ops)
    while len(readers) == 1 and readers[0].op_type in INSIDE:
        readers = list(readers[0].outputs[0].child_ops)
    yield from (reader.scale for reader in readers if reader.op_type == "quantize")


def _fits(scale: object) -> bool:
    """Whether FP16 tells the scales apart from their neighbours well enough; zero and infinity are far off as well."""
    value = np.asarray(getattr(scale, "val", None), dtype=np.float64)
    with np.errstate(over="ignore"):
        return bool(np.all(np.abs(value.astype(np.float16).astype(np.float64) - value) <= FP16_SCALE_ERROR * np.abs(value)))
