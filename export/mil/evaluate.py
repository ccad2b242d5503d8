"""Computes a MIL program with numpy, operation by operation.

Arithmetic `as written` keeps every tensor in the type that the file states: results of fp16 operators are rounded to half precision after each
operator (to the nearest, ties to even, beyond 65504 to infinity), and constants are what the file holds. Inside one operator everything is computed
in fp32, also the sums of convolutions and matrix products: Apple does not document in which width its units accumulate. Arithmetic `fp32` rounds
nothing: all floating-point tensors are fp32, so that what is left is the error of the conversion, and of the weights as the file holds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.mil import convolutions, gathering, pointwise, pooling, products, quantization, reductions, resizing, shapes
from mcompress.export.mil.arguments import Arguments, Given, Operator
from mcompress.export.mil.program import Argument, Block, Constant, Function, MilProgram, Operation
from mcompress.export.mil.types import FLOATS, Array, ValueType

Arithmetic = Literal["as written", "fp32"]

OPERATORS: dict[str, Operator] = {
    **convolutions.OPERATORS,
    **gathering.OPERATORS,
    **pointwise.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **quantization.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **shapes.OPERATORS,
}
"""MIL's name of an operator -> what computes it; `const` is read, not computed."""

KEPT_BYTES = 2**28
"""So much of constants that are not simply read from the file stays between runs; what is beyond it is made again in each."""
CONSTANTS = ("const", "constexpr_")
"""Beginnings of the names of operations that give constants."""


def is_constant(operation: Operation) -> bool:
    """Whether the operation gives a constant: it is stored, or unpacked from what is stored."""
    return operation.type.startswith(CONSTANTS)


def check_operators(program: MilProgram) -> None:
    """Raise `ExportError` naming all operations that cannot be computed, and where they are."""
    unknown = list(_unknown(program.main.block))
    if unknown:
        kinds = Counter(operation.type for operation in unknown)
        places = "; ".join(f"{operation.type} '{operation.name}' ({operation.place})" for operation in unknown[:20])
        more = f"; and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise ExportError(
            f"{program.path} has operations that cannot be computed here: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}. "
            f"They are: {places}{more}. Nothing was computed; only Core ML itself can run this program, or replace these operators in the network"
        )


def _unknown(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        if operation.type != "const" and (operation.type not in OPERATORS or operation.blocks):  # none of those computed here has blocks
            yield operation
        for inner in operation.blocks:
            yield from _unknown(inner)


def evaluate(program: MilProgram, inputs: Mapping[str, Array], arithmetic: Arithmetic = "as written") -> dict[str, Array]:
    """Outputs by name, computed once; see `Evaluation.outputs`."""
    return Evaluation(program, arithmetic).outputs(inputs)


@dataclass(frozen=True)
class _Step:
    """An operation with what it reads that is the same in every run, the names of what is not, and the names that nobody reads after it."""

    operation: Operation
    fixed: Mapping[str, tuple[Given, ...]]
    read: tuple[tuple[str, tuple[Argument, ...]], ...]
    unread: tuple[str, ...]
    computes: bool
    """Whether it is no constant."""


class Evaluation:
    """A program that can be computed again and again: constants are worked out once, as far as `KEPT_BYTES` goes.

    Raises `ExportError` for operators that cannot be computed, and constants that are damaged.
    """

    def __init__(self, program: MilProgram, arithmetic: Arithmetic = "as written") -> None:
        check_operators(program)
        self._program, self._arithmetic = program, arithmetic
        self._constants: dict[str, Given] = {}
        self._steps = tuple(self._prepared())

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. `inputs` has an array for every input of the program, of its shape.

        Raises `ExportError` for inputs that do not fit, and results that are not what the file states.
        """
        wanted = set(self._program.main.block.outputs)
        return {name: value for _, results in self.steps(inputs) for name, value in results.items() if name in wanted}

    def steps(self, inputs: Mapping[str, Array]) -> Iterator[tuple[Operation, dict[str, Array]]]:
        """Every operation that computes (constants left out), in order, with its results by name. A result is freed after its last reader.

        What is given must not be changed in place: later operations read the same array. Raises as `outputs` does.
        """
        function, arithmetic = self._program.main, self._arithmetic
        given: dict[str, Given] = {value.name: _given(inputs, value.name, value.type, arithmetic) for value in function.inputs}
        strange = sorted(set(inputs) - set(given))
        if strange:
            raise ExportError(f"{self._program.path} has no inputs {', '.join(strange)}; it has {', '.join(given)}")
        values = {**self._constants, **given}
        for step in self._steps:
            read = {name: tuple([values[item] if isinstance(item, str) else _held(item, arithmetic) for item in items]) for name, items in step.read}
            results = _results(step.operation, {**step.fixed, **read}, arithmetic)
            values.update(results)
            if step.computes:
                yield step.operation, {name: value for name, value in results.items() if isinstance(value, np.ndarray)}
            for name in step.unread:
                del values[name]

    def _prepared(self) -> Iterator[_Step]:
        function, made_bytes = self._program.main, 0
        left = []
        for operation in function.operations:
            if is_constant(operation) and all(name in self._constants for name in operation.names_read()):
                results = _results(operation, _all_given(operation, self._constants, self._arithmetic), self._arithmetic)
                own = sum(value.nbytes for value in results.values() if isinstance(value, np.ndarray) and value.base is None)  # no view of the file
                if made_bytes + own <= KEPT_BYTES:
                    made_bytes += own
                    self._constants.update(results)
                    continue
            left.append(operation)
        last = _last_readers(left)
        for number, operation in enumerate(left):
            names = {*operation.names_read(), *(value.name for value in operation.outputs)} - self._constants.keys()
            same = {name: items for name, items in operation.inputs.items() if all(isinstance(i, Constant) or i in self._constants for i in items)}
            yield _Step(
                operation,
                {**_looked_up(same, self._constants, self._arithmetic), **_attributes(operation, self._arithmetic)},
                tuple((name, items) for name, items in operation.inputs.items() if name not in same),
                tuple(sorted(name for name in names if last.get(name, number) <= number)),
                not is_constant(operation),
            )


def _looked_up(read: Mapping[str, tuple[Argument, ...]], values: Mapping[str, Given], arithmetic: Arithmetic) -> dict[str, tuple[Given, ...]]:
    return {name: tuple(values[item] if isinstance(item, str) else _held(item, arithmetic) for item in items) for name, items in read.items()}


def _attributes(operation: Operation, arithmetic: Arithmetic) -> dict[str, tuple[Given, ...]]:
    """Of an operation that computes; what a constant holds is its result."""
    return {name: (_held(value, arithmetic),) for name, value in operation.attributes.items()} if operation.type != "const" else {}


def _all_given(operation: Operation, values: Mapping[str, Given], arithmetic: Arithmetic) -> dict[str, tuple[Given, ...]]:
    return {**_looked_up(operation.inputs, values, arithmetic), **_attributes(operation, arithmetic)}


def constant_value(function: Function, argument: Argument) -> Array | None:
    """What an argument holds if it is a constant, stored or unpacked (`constexpr_*`), as the file states its type; None for a computed value."""
    if isinstance(argument, Constant):
        return argument.array
    producer = function.producers().get(argument)
    if producer is None or not is_constant(producer):
        return None
    values: dict[str, Given] = {}
    for name in producer.names_read():
        value = constant_value(function, name)
        if value is None:
            return None
        values[name] = value
    result = _results(producer, _all_given(producer, values, "as written"), "as written")[argument]
    return result if isinstance(result, np.ndarray) else None


def _last_readers(operations: Sequence[Operation]) -> dict[str, int]:
    last: dict[str, int] = {}
    for number, operation in enumerate(operations):
        last.update(dict.fromkeys(operation.names_read(), number))
    return last


def _given(inputs: Mapping[str, Array], name: str, kind: ValueType, arithmetic: Arithmetic) -> Array:
    if name not in inputs:
        raise ExportError(f"the program needs the input '{name}', {kind}; given are {', '.join(inputs) or 'none'}")
    value = np.asarray(inputs[name])
    if not kind.fits(value.shape):
        raise ExportError(f"the input '{name}' has the shape {value.shape}; the program takes {kind}")
    with np.errstate(all="ignore"):
        return _kept(value, kind, arithmetic)


def _results(operation: Operation, given: Mapping[str, tuple[Given, ...]], arithmetic: Arithmetic) -> dict[str, Given]:
    if operation.type == "const":
        return {operation.outputs[0].name: _held(operation.attributes["val"], arithmetic)}
    arguments = Arguments(operation, given)
    with np.errstate(all="ignore"):  # infinities and NaN are results like others
        try:
            results = OPERATORS[operation.type](arguments)
        except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError) as problem:
            raise arguments.wrong(
                f"its arguments do not fit together ({problem}); the package was edited, or this reading of the operator is wrong"
            ) from problem
        arguments.check_all_known()
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(operation.outputs):
            raise arguments.wrong(f"it gives {len(results)} results, and the file states {len(operation.outputs)}")
        kept: dict[str, Given] = {}
        for output, result in zip(operation.outputs, results, strict=True):
            if not output.type.fits(result.shape):
                raise arguments.wrong(f"it gives an array of shape {result.shape}, and the file states {output.type}")
            floats = result.dtype.kind == "f"
            if floats != (output.type.dtype in FLOATS) or (not floats and result.dtype != output.type.numpy_dtype()):
                raise arguments.wrong(f"it gives {result.dtype} numbers, and the file states {output.type}")
            kept[output.name] = _kept(result, output.type, arithmetic)
    return kept


def _held(constant: Constant, arithmetic: Arithmetic) -> Given:
    if isinstance(constant.held, (str, tuple)):
        return constant.held
    value = constant.array
    return value.astype(np.float32) if arithmetic == "fp32" and value.dtype == np.float16 else value


def _kept(value: Array, kind: ValueType, arithmetic: Arithmetic) -> Array:
    """A result in the type that the file states; half precision stays single in `fp32`."""
    wanted = kind.numpy_dtype()
    if arithmetic == "fp32" and wanted == np.float16:
        wanted = np.dtype(np.float32)
    return value if value.dtype == wanted else value.astype(wanted)
