"""A .tflite file as objects that can be changed, and written again: tensors and operators are added, what is no longer used is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from mcompress.export import tflite_large
from mcompress.export.tflite_names import marked, shortened

IDENTIFIER = b"TFL3"
RUNTIME_NOTE = "min_runtime_version"
ALIGNMENT = 16
"""Of constants, as the format's schema demands."""
_LARGEST_OLD_CODE = 127
TensorObject: TypeAlias = "schema.TensorT"
OperatorObject: TypeAlias = "schema.OperatorT"


@cache
def numbers(enumeration: str) -> Mapping[str, int]:
    """Name -> number of an enumeration of the schema."""
    return {name: value for name, value in vars(getattr(schema, enumeration)).items() if isinstance(value, int)}


@cache
def named(enumeration: str) -> Mapping[int, str]:
    """Number -> name of an enumeration of the schema."""
    return {value: name for name, value in numbers(enumeration).items()}


@dataclass
class Sheet:
    """The first graph of a file. Tensors are numbered as in the file; operators are in execution order."""

    model: schema.ModelT
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def tensors(self) -> list[TensorObject]:
        """All tensors."""
        return self.model.subgraphs[0].tensors  # type: ignore[no-any-return]  # the schema has no types

    @property
    def operators(self) -> list[OperatorObject]:
        """All operators."""
        return self.model.subgraphs[0].operators  # type: ignore[no-any-return]

    @operators.setter
    def operators(self, operators: Sequence[OperatorObject]) -> None:
        self.model.subgraphs[0].operators = list(operators)

    @property
    def inputs(self) -> list[int]:
        """Tensors that the graph is given."""
        return [int(index) for index in self.model.subgraphs[0].inputs]

    @property
    def outputs(self) -> list[int]:
        """Tensors that the graph gives."""
        return [int(index) for index in self.model.subgraphs[0].outputs]

    def replace_port(self, old: int, new: int) -> None:
        """Let tensor `new` be the input or output of the graph that `old` was."""
        graph = self.model.subgraphs[0]
        graph.inputs = [new if index == old else index for index in self.inputs]
        graph.outputs = [new if index == old else index for index in self.outputs]
        for signature in self.model.signatureDefs or []:
            for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
                if entry.tensorIndex == old:
                    entry.tensorIndex = new

    def kind(self, operator: OperatorObject) -> str:
        """`CONV_2D`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return named("BuiltinOperator").get(number, f"BUILTIN_{number}")

    def version(self, operator: OperatorObject) -> int:
        """Of the operator's definition."""
        return int(self.model.operatorCodes[operator.opcodeIndex].version)

    def names(self, tensor: int) -> tuple[str, ...]:
        """The operators in the tensor's name, as the converter wrote it."""
        return marked((self.tensors[tensor].name or b"").decode("utf-8", errors="replace"))

    def constant(self, tensor: int) -> NDArray[np.generic] | None:
        """What a float32 constant holds, in its shape; None for another tensor."""
        if tensor < 0 or self.tensors[tensor].type != numbers("TensorType")["FLOAT32"]:
            return None
        data = self.model.buffers[self.tensors[tensor].buffer].data
        return None if data is None else np.asarray(data, dtype=np.uint8).view("<f4").reshape(shape_of(self.tensors[tensor]))

    def is_float(self, tensor: int) -> bool:
        """Whether it holds float32 numbers."""
        return tensor >= 0 and self.tensors[tensor].type == numbers("TensorType")["FLOAT32"]

    def add_tensor(
        self,
        name: bytes,
        shape: Sequence[int],
        kind: str,
        quantization: schema.QuantizationParametersT | None,
        data: NDArray[np.generic] | None = None,
    ) -> int:
        """Add a tensor, with a buffer if it is a constant; gives its number."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.quantization = name, list(shape), numbers("TensorType")[kind], quantization
        tensor.buffer = 0
        if data is not None:
            tensor.buffer = self._add_buffer(np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8))
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _add_buffer(self, data: NDArray[np.uint8]) -> int:
        buffer = schema.BufferT()
        buffer.data = data
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def code(self, kind: str, version: int) -> int:
        """Number of the operator's definition, added where it is new."""
        found = self._codes.get((kind, version))
        if found is None:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = numbers("BuiltinOperator")[kind], version
            code.deprecatedBuiltinCode = min(code.builtinCode, _LARGEST_OLD_CODE)
            self.model.operatorCodes.append(code)
            found = self._codes[kind, version] = len(self.model.operatorCodes) - 1
        return found

    def operator(self, kind: str, version: int, inputs: Sequence[int], outputs: Sequence[int]) -> OperatorObject:
        """A new operator without options, which stands nowhere yet."""
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.code(kind, version), list(inputs), list(outputs)
        return made

    def metadata(self, name: str) -> bytes | None:
        """A note of the file, or None."""
        for entry in self.model.metadata or []:
            if entry.name == name.encode():
                data = self.model.buffers[entry.buffer].data
                return None if data is None else bytes(np.asarray(data, dtype=np.uint8))
        return None

    def note(self, name: str, value: bytes) -> None:
        """Set a note of the file."""
        entries = [entry for entry in self.model.metadata or [] if entry.name != name.encode()]
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), self._add_buffer(np.frombuffer(value, np.uint8))
        self.model.metadata = [*entries, entry]

    def at_least_runtime(self, versions: Iterable[str]) -> None:
        """Raise the runtime version that the file asks for to the newest of these; the note keeps the length of 16 bytes that readers expect."""
        stated = (self.metadata(RUNTIME_NOTE) or b"").rstrip(b"\0").decode("ascii", errors="replace")
        newest = max([*versions, stated or "0"], key=lambda text: [int(part) for part in text.split(".") if part.isdigit()])
        self.note(RUNTIME_NOTE, newest.encode().ljust(ALIGNMENT, b"\0"))


def shape_of(tensor: TensorObject) -> tuple[int, ...]:
    """Its sizes; none for one number."""
    return tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()


def opened(path: Path) -> Sheet:
    """Read a file that a converter has just written; it is not checked."""
    whole = tflite_large.mapped(path)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(whole, 0))
    tflite_large.with_data_inside(model, whole)
    return Sheet(model)


def name_ports(sheet: Sheet, inputs: Sequence[str], output: str) -> None:
    """Give the graph's inputs the order of the network's arguments and these names, and its only output its own, in the signature as well.

    The converter calls them `args_0`, `args_1` and so on in the signature, and `serving_default_args_0` in the graph.
    """
    graph, (signature,) = sheet.model.subgraphs[0], sheet.model.signatureDefs
    places = {int(entry.name.rpartition(b"_")[2]): int(entry.tensorIndex) for entry in signature.inputs}
    graph.inputs = [places[number] for number in sorted(places)]
    names = dict(zip(graph.inputs, inputs, strict=True)) | {sheet.outputs[0]: output}
    for tensor, name in names.items():
        sheet.tensors[tensor].name = name.encode()
    for entry in [*signature.inputs, *signature.outputs]:
        entry.name = names[entry.tensorIndex].encode()


def save(sheet: Sheet, path: Path) -> None:
    """Write the file without what nothing uses, tensors named after their operators."""
    _without_unused(sheet)
    ports = {*sheet.inputs, *sheet.outputs}
    for index, tensor in enumerate(sheet.tensors):
        if index not in ports:
            tensor.name = shortened(sheet.names(index), index).encode()
    tflite_large.write(sheet.model, lambda: packed(sheet), path)


def packed(sheet: Sheet) -> bytes:
    """The bytes of the file as it is now."""
    builder = _Builder(0)
    builder.Finish(sheet.model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers ships no types
    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803  # names of the base class
        return int(super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment))


def _without_unused(sheet: Sheet) -> None:
    graph, model = sheet.model.subgraphs[0], sheet.model
    read = {int(index) for operator in sheet.operators for index in [*operator.inputs, *operator.outputs] if index >= 0}
    kept = sorted(read | set(sheet.inputs) | set(sheet.outputs))
    places = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in kept]
    for operator in graph.operators:
        operator.inputs = [places[int(index)] for index in operator.inputs]
        operator.outputs = [places[int(index)] for index in operator.outputs]
    graph.inputs, graph.outputs = [places[index] for index in sheet.inputs], [places[index] for index in sheet.outputs]
    for signature in model.signatureDefs or []:
        for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
            entry.tensorIndex = places[entry.tensorIndex]
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    sheet._codes.clear()
    # Buffer 0 is the empty one by convention, whether something uses it or not.
    buffers = sorted({0} | {tensor.buffer for tensor in graph.tensors} | {entry.buffer for entry in model.metadata or []})
    model.buffers = [model.buffers[index] for index in buffers]
    for holder in [*graph.tensors, *(model.metadata or [])]:
        holder.buffer = buffers.index(holder.buffer)
