"""The MIL program of a saved Core ML package as its files state it: functions, operations in order, types, constants.

Everything comes from `Manifest.json`, the protobuf that it names and the weight files; nothing from a converter. What does not fit together is an
`ExportError`: a name that nothing defines, a constant whose bytes do not fit its type, an offset outside the weight file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.mil.blob import Blob
from mcompress.export.mil.types import Array, ValueType

MAIN = "main"


@dataclass(frozen=True)
class Constant:
    """A value that the files hold. Values in the weight file are read when asked for, each time; nothing is kept."""

    type: ValueType
    held: Array | Blob | str | tuple[str, ...]

    @property
    def in_weight_file(self) -> bool:
        """Whether the bytes are in a weight file, not in the program."""
        return isinstance(self.held, Blob)

    @property
    def array(self) -> Array:
        """The values, of the constant's shape; fp16 stays fp16. Raises `ExportError` for text."""
        if isinstance(self.held, Blob):
            return self.held.read()
        if isinstance(self.held, np.ndarray):
            return self.held
        raise ExportError(f"a constant of type {self.type} holds the text {self.held!r}; numbers are needed")

    @property
    def text(self) -> str:
        """A constant of one string. Raises `ExportError` for anything else."""
        if isinstance(self.held, str):
            return self.held
        raise ExportError(f"a constant of type {self.type} is not a text")


Argument = str | Constant
"""The name of a value, or a constant written in its place."""


@dataclass(frozen=True)
class Value:
    """What an operation gives, or a function takes."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Operation:
    """One operation of a block."""

    name: str
    """Its attribute `name`; the name of its first output where it has none."""
    type: str
    """MIL's name: `conv`, `const`, `constexpr_affine_dequantize`."""
    inputs: Mapping[str, tuple[Argument, ...]]
    """Argument name -> one value, or several for arguments such as `values` of `concat`."""
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Constant]
    """`val` of a `const`, the arguments of a `constexpr_*` operation of iOS 16 and 17, and others, without `name`."""
    blocks: tuple[Block, ...]
    place: str
    """Where it is, for messages: `main, operation 12`."""

    def names_read(self) -> Iterator[str]:
        """Names of the values that it reads, in no promised order, twice if read twice; those that its blocks read from outside included."""
        for arguments in self.inputs.values():
            yield from (argument for argument in arguments if isinstance(argument, str))
        for block in self.blocks:
            yield from block.names_read_from_outside()


@dataclass(frozen=True)
class Block:
    """Operations in execution order; every name is defined before it is read."""

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    def names_read_from_outside(self) -> Iterator[str]:
        """Names that the block does not define itself."""
        inside = {value.name for value in self.inputs} | {value.name for operation in self.operations for value in operation.outputs}
        for operation in self.operations:
            yield from (name for name in operation.names_read() if name not in inside)
        yield from (name for name in self.outputs if name not in inside)


@dataclass(frozen=True)
class Function:
    """A function of the program."""

    name: str
    opset: str
    """For example `CoreML7`."""
    inputs: tuple[Value, ...]
    block: Block

    @property
    def operations(self) -> tuple[Operation, ...]:
        """In execution order, constants included."""
        return self.block.operations

    def producers(self) -> dict[str, Operation]:
        """Name of a value -> the operation that gives it; the function's inputs have none."""
        return {value.name: operation for operation in self.operations for value in operation.outputs}

    def readers(self) -> dict[str, tuple[Operation, ...]]:
        """Name of a value -> the operations that read it, in order, each once; values that nothing reads are missing."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for name in dict.fromkeys(operation.names_read()):
                found.setdefault(name, []).append(operation)
        return {name: tuple(operations) for name, operations in found.items()}

    def types(self) -> dict[str, ValueType]:
        """Name of every value -> its type as the file states it."""
        given = {value.name: value.type for value in self.inputs}
        return given | {value.name: value.type for operation in self.operations for value in operation.outputs}

    def constant(self, argument: Argument) -> Constant | None:
        """The constant that stands in an argument, or that its `const` operation holds; None for a computed value."""
        if isinstance(argument, Constant):
            return argument
        producer = next((operation for operation in self.operations if any(value.name == argument for value in operation.outputs)), None)
        return producer.attributes["val"] if producer is not None and producer.type == "const" else None


@dataclass(frozen=True)
class MilProgram:
    """A package as read."""

    path: Path
    specification_version: int
    """7 for iOS 16, 8 for iOS 17, 9 for iOS 18."""
    inputs: tuple[Value, ...]
    """Of the package, as apps see it."""
    outputs: tuple[Value, ...]
    functions: Mapping[str, Function]

    @property
    def main(self) -> Function:
        """The function that apps call."""
        return self.functions[MAIN]


def read_program(path: Path) -> MilProgram:
    """Read a saved `.mlpackage`; the models of a pipeline are read as one program.

    Raises `ExportError` for a package that is damaged, edited so that it does not fit together, or not an ML program, and `MissingBackendError`
    without coremltools, whose protobuf classes are used.
    """
    from mcompress.export.mil.reading import PackageReader

    return PackageReader(path).program()
