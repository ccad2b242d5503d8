"""What a TFLite file holds, decoded with the flatbuffer schema that LiteRT ships, and checked: its operators, its tensors, and what constants hold.

A flatbuffer is offsets, so whatever is wrong with a file shows here, when they are followed; who works on a `File` works on facts that fit together.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import UsageError
from mcompress.export.tables.graph import Shape
from mcompress.export.tables.tflite_operators import LEAST_INPUTS, RANKS, SAME_AS, WITHOUT_RESULT

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
LEFT_OUT = -1
"""Stands for an input that an operator does without."""
_FORMATS = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "i1", "UINT8": "u1"}
"""Types of constants whose numbers are looked at, as numpy writes them."""
_OPTIONS = (
    *("FusedActivationFunction", "StrideD", "StrideH", "StrideW", "AdjX", "KeepDims", "ReduceFunction"),
    *("InputFeatureDimension", "OutputFeatureDimension", "KernelInputFeatureDimension", "KernelOutputFeatureDimension", "FeatureGroupCount"),
)
_LISTS = ("LhsDilation", "WindowStrides")
"""Options with a number for each axis, of which the largest is kept."""
_INSIDE = 2
"""Smallest offset of a constant that stands behind the flatbuffer; 0 and 1 say that it stands inside."""
_MOST_ELEMENTS = 2**40
"""Of a tensor; no device has memory for more."""
_DAMAGED = (struct.error, IndexError, ValueError, TypeError, AttributeError)
"""What following offsets raises that lead nowhere."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """`shape` is as the file states it; `content` has the bytes of a constant, mapped and not read, and none for anything else."""

    name: str
    """Unique in the file."""
    shape: Shape
    signature: Shape
    """`shape` with -1 where it is open; empty where nothing is."""
    type: str
    """As the schema calls it, for example `FLOAT32`."""
    content: NDArray[np.uint8]

    def numbers(self) -> NDArray[np.generic] | None:
        """What a constant holds, flat; None for a tensor that is no constant, and for types that are not looked at."""
        if self.type not in _FORMATS or (not self.content.size and 0 not in self.shape):
            return None
        return self.content.view(_FORMATS[self.type])


@dataclass(frozen=True)
class Operator:
    """Inputs and outputs are indices of tensors; an input can be `LEFT_OUT`."""

    kind: str
    """As the schema calls it, one of its names where it has two (`SAME_AS`); a custom operator by its own, `BUILTIN_9999` for one newer than it."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, int] = field(default_factory=dict)
    """Those of `_OPTIONS` and `_LISTS` that the operator has."""


@dataclass(frozen=True, eq=False)
class File:
    """The first graph of a file. All indices are in range, operators stand behind those whose results they read, and each has its inputs."""

    path: Path
    version: int
    """Of the schema."""
    least_runtime: str
    """What the converter noted, empty where it noted nothing."""
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def decode(path: Path) -> File:
    """Read what `path` holds; weights stay where they are. Raises `UsageError` for a file that is not TFLite, or is damaged."""
    from ai_edge_litert import schema_py_generated as schema

    # Mapped, not read: most of a file is weights, of which only biases and parameters are looked at.
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(data[4:8]) != IDENTIFIER:
        raise UsageError(f"{path} is no TFLite file: it does not have the mark {IDENTIFIER.decode()} at byte 4")
    try:
        model = schema.Model.GetRootAsModel(data, 0)
        file = _file(path, model, data)
    except _DAMAGED as error:
        raise _damage(path, f"{type(error).__name__}: {error}") from error
    wrong = next(_wrong(file), "")
    if wrong:
        raise _damage(path, wrong)
    return file


def stated_sizes(file: File) -> list[tuple[str, Shape]]:
    """The name and the sizes of each input, below 1 where the file leaves them open."""
    tensors = [file.tensors[index] for index in file.inputs]
    return [(tensor.name, tensor.signature if len(tensor.signature) == len(tensor.shape) else tensor.shape) for tensor in tensors]


def _damage(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is damaged or cut off ({what}); export or copy it again")


def _file(path: Path, model: schema.Model, data: NDArray[np.uint8]) -> File:
    buffers = [_content(model.Buffers(index), data) for index in range(model.BuffersLength())]
    codes = [_code(model.OperatorCodes(index)) for index in range(model.OperatorCodesLength())]
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
    names = _unique([tensor.Name() for tensor in tensors])
    types = _constants("TensorType")
    operators = (graph.Operators(index) for index in range(graph.OperatorsLength()))
    return File(
        path=path,
        version=model.Version(),
        least_runtime=_least_runtime(model, buffers),
        tensors=tuple(
            Tensor(
                name=name,
                shape=_vector(tensor.ShapeAsNumpy()),
                signature=_vector(tensor.ShapeSignatureAsNumpy()),
                type=types.get(tensor.Type(), f"TYPE_{tensor.Type()}"),
                content=buffers[tensor.Buffer()],
            )
            for name, tensor in zip(names, tensors, strict=True)
        ),
        operators=tuple(
            Operator(codes[one.OpcodeIndex()], _vector(one.InputsAsNumpy()), _vector(one.OutputsAsNumpy()), _options(one)) for one in operators
        ),
        inputs=_vector(graph.InputsAsNumpy()),
        outputs=_vector(graph.OutputsAsNumpy()),
    )


def _content(buffer: schema.Buffer, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    start, size = buffer.Offset(), buffer.Size()
    if start < _INSIDE:
        where = buffer._tab.Offset(4)
        start, size = (buffer._tab.Vector(where), buffer.DataLength()) if where else (0, 0)
    if start + size > len(data):
        raise ValueError(f"a constant of {size} bytes at {start} ends behind the file")
    return np.asarray(data[start : start + size])


def _code(code: schema.OperatorCode) -> str:
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    # An operator that is newer than the schema is unknown, and the file is sound.
    name = _constants("BuiltinOperator").get(number, f"BUILTIN_{number}")
    return str((code.CustomCode() or b"custom").decode("utf-8", errors="replace")) if name == "CUSTOM" else SAME_AS.get(name, name)


def _options(operator: schema.Operator) -> dict[str, int]:
    from ai_edge_litert import schema_py_generated as schema

    found: dict[str, int] = {}
    given = (
        ("BuiltinOptions", operator.BuiltinOptionsType(), operator.BuiltinOptions()),
        ("BuiltinOptions2", operator.BuiltinOptions2Type(), operator.BuiltinOptions2()),
    )
    for union, number, table in given:
        kind = getattr(schema, _constants(union).get(number, ""), None)
        if table is not None and kind is not None:
            options = kind()
            options.Init(table.Bytes, table.Pos)
            found.update({name: int(getattr(options, name)()) for name in _OPTIONS if hasattr(kind, name)})
            found.update({name: max(_vector(getattr(options, f"{name}AsNumpy")()), default=1) for name in _LISTS if hasattr(kind, name)})
    return found


def _least_runtime(model: schema.Model, buffers: Sequence[NDArray[np.uint8]]) -> str:
    for entry in (model.Metadata(index) for index in range(model.MetadataLength())):
        content = bytes(buffers[entry.Buffer()])
        if entry.Name() == b"min_runtime_version" and content:
            return f"TensorFlow Lite {content.rstrip(bytes(1)).decode('ascii', errors='replace')} or newer"
    return ""


@cache
def _constants(enumeration: str) -> Mapping[int, str]:
    """Number -> name of an enumeration of the schema."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(getattr(schema, enumeration)).items() if isinstance(value, int)}


def _vector(values: object) -> tuple[int, ...]:
    """A vector of a flatbuffer; the integer 0 stands for one that is not there."""
    return () if isinstance(values, int) else tuple(np.asarray(values).tolist())


def _unique(names: Sequence[bytes | None]) -> list[str]:
    used: dict[str, int] = {}
    unique = []
    for index, name in enumerate(names):
        text = (name or b"").decode("utf-8", errors="replace") or f"tensor_{index}"
        used[text] = used.get(text, 0) + 1
        unique.append(text if used[text] == 1 else f"{text}#{index}")
    return unique


def _wrong(file: File) -> Iterator[str]:
    """What contradicts itself in the file."""
    count = len(file.tensors)
    for one in (one for tensors in (file.inputs, file.outputs) for one in tensors):
        if not 0 <= one < count:
            yield f"the graph names tensor {one}, and there are {count}"
            return
    for index, operator in enumerate(file.operators):
        what = f"operator {index}, {operator.kind},"
        strange = [one for one in operator.inputs if not LEFT_OUT <= one < count] + [one for one in operator.outputs if not 0 <= one < count]
        if strange:
            yield f"{what} names tensor {strange[0]}, and there are {count}"
            return
        if not operator.outputs and operator.kind not in WITHOUT_RESULT:
            yield f"{what} has no output"
        if LEFT_OUT in _first(operator.inputs, LEAST_INPUTS.get(operator.kind, 0)):
            yield f"{what} has not the {LEAST_INPUTS[operator.kind]} inputs that it needs"
            return
        for position, rank in RANKS.get(operator.kind, {}).items():
            shape = file.tensors[operator.inputs[position]].shape
            if len(shape) != rank or 0 in shape:
                yield f"{what} has an input of the shape {shape}, and needs {rank} sizes"
    yield from _out_of_order(file)
    for tensor in file.tensors:
        if math.prod(tensor.shape) > _MOST_ELEMENTS:
            yield f"tensor '{tensor.name}' has the sizes {tensor.shape}"
        if tensor.content.size and tensor.type in ("INT32", "INT64") and tensor.content.size % np.dtype(_FORMATS[tensor.type]).itemsize:
            yield f"constant '{tensor.name}' of the type {tensor.type} has {tensor.content.size} bytes"


def _first(inputs: Sequence[int], count: int) -> tuple[int, ...]:
    return (*inputs, *[LEFT_OUT] * count)[:count]


def _out_of_order(file: File) -> Iterator[str]:
    maker = {tensor: index for index, operator in enumerate(file.operators) for tensor in operator.outputs}
    for index, operator in enumerate(file.operators):
        for tensor in operator.inputs:
            if maker.get(tensor, -1) >= index:
                yield f"operator {index}, {operator.kind}, reads tensor {tensor}, which operator {maker[tensor]} makes"
        for tensor in operator.outputs:
            if maker[tensor] != index or tensor in file.inputs:
                yield f"tensor {tensor} is made twice, the first time by operator {index}, {operator.kind}"
