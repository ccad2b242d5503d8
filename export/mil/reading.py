"""From the files of a Core ML package to `MilProgram`, checking that they fit together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.mil import proto
from mcompress.export.mil.blob import ADVICE, Blob, WeightFile, bytes_of, unpacked
from mcompress.export.mil.joining import joined
from mcompress.export.mil.program import MAIN, Argument, Block, Constant, Function, MilProgram, Operation, Value
from mcompress.export.mil.types import DTYPES, FEATURE_DTYPES, Array, ValueType

if TYPE_CHECKING:
    from google.protobuf.message import Message

MODEL_PATH = "@model_path/"


class PackageReader:
    """Reads one package."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._weight_files: dict[Path, WeightFile] = {}
        self._model_folder = path
        self._part = ""  # which model of a pipeline is being read, for messages

    def program(self) -> MilProgram:
        """All functions of the package; a pipeline's models as one."""
        models, model = [], self._model()
        if model.WhichOneof("Type") != "pipeline":
            return self._program(model)
        for number, one in enumerate(model.pipeline.models, start=1):
            self._part = f"model {number} of its pipeline: "
            models.append(self._program(one))
        self._part = ""
        inputs, outputs = self._features(model.description.input), self._features(model.description.output)
        main = joined(models, inputs, outputs, self._wrong)
        self._check_fit(main, inputs, outputs)
        version = max(int(model.specificationVersion), *(one.specification_version for one in models))
        return MilProgram(self._path, version, inputs, outputs, {MAIN: main})

    def _program(self, model: Message) -> MilProgram:
        kind = model.WhichOneof("Type")
        if kind != "mlProgram":
            raise self._wrong(f"it holds a model of type {kind or 'none'}; only ML programs (`mlProgram`) can be read, and pipelines of them")
        description = model.description
        default = str(getattr(description, "defaultFunctionName", "")) or MAIN
        described = next((function for function in getattr(description, "functions", ()) if function.name == default), description)
        stored = dict(model.mlProgram.functions.items())
        if default not in stored:
            raise self._wrong(f"the program has no function '{default}'; it has {', '.join(sorted(stored)) or 'none'}")
        functions = {MAIN if name == default else str(name): self._function(str(name), function) for name, function in sorted(stored.items())}
        main = functions[MAIN]
        inputs, outputs = self._features(described.input), self._features(described.output)
        self._check_fit(main, inputs, outputs)
        return MilProgram(self._path, int(model.specificationVersion), inputs, outputs, functions)

    def _model(self) -> Message:
        from google.protobuf.message import DecodeError

        manifest_file = self._path / "Manifest.json"
        try:
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
            root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        except OSError as problem:
            raise self._wrong(f"Manifest.json cannot be read: {problem.strerror}") from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise self._wrong(f"Manifest.json does not name the model ({type(problem).__name__}: {problem})") from problem
        place = self._inside(self._path / "Data", str(root))
        self._model_folder = place.parent
        model = proto.model_messages().Model()
        try:
            model.ParseFromString(place.read_bytes())
        except OSError as problem:
            raise self._wrong(f"the model file {root} cannot be read: {problem.strerror}") from problem
        except DecodeError as problem:
            raise self._wrong(f"the model file {root} is not the protobuf of a Core ML model: {problem}") from problem
        return model

    def _inside(self, folder: Path, relative: str) -> Path:
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts:
            raise self._wrong(f"it names the file '{relative}', which is not inside the package")
        return folder / parts

    def _features(self, features: Iterable[Message]) -> tuple[Value, ...]:
        found = []
        for feature in features:
            kind = feature.type.WhichOneof("Type")
            if kind != "multiArrayType":
                raise self._wrong(f"'{feature.name}' is of type {kind}; only multi-arrays can be read. Export without image or dictionary types")
            array = feature.type.multiArrayType
            dtype = FEATURE_DTYPES.get(array.dataType)
            if dtype is None:
                raise self._wrong(f"'{feature.name}' has the array type {array.dataType}; known are {sorted(FEATURE_DTYPES.values())}")
            found.append(Value(str(feature.name), ValueType(dtype, tuple(int(size) for size in array.shape))))
        return tuple(found)

    def _check_fit(self, main: Function, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> None:
        types = main.types()
        self._check_interface("takes", inputs, {value.name: value.type for value in main.inputs})
        self._check_interface("gives", outputs, {name: types[name] for name in main.block.outputs})

    def _check_interface(self, does: str, described: tuple[Value, ...], of_function: Mapping[str, ValueType]) -> None:
        names = {value.name for value in described}
        if names != of_function.keys():
            raise self._wrong(f"the model {does} {sorted(names)}, its function {sorted(of_function)}")
        for value in described:
            stated = of_function[value.name]
            sizes = tuple(size or 0 for size in value.type.shape)
            if stated.dtype != value.type.dtype or (sizes and not stated.fits(sizes)):
                raise self._wrong(f"the model {does} '{value.name}' as {value.type}, its function as {stated}")

    def _function(self, name: str, function: Message) -> Function:
        specializations = dict(function.block_specializations.items())
        if function.opset not in specializations:
            raise self._wrong(f"function '{name}' is written for {function.opset or 'no operator set'}; it has blocks for {sorted(specializations)}")
        inputs = self._values(function.inputs)
        block = self._block(specializations[function.opset], {value.name for value in inputs}, name)
        return Function(name, str(function.opset), inputs, block)

    def _values(self, values: Iterable[Message]) -> tuple[Value, ...]:
        return tuple(Value(str(value.name), self._type(value.type, str(value.name))) for value in values)

    def _block(self, block: Message, outer: set[str], place: str) -> Block:
        inputs = self._values(block.inputs)
        known = outer | {value.name for value in inputs}
        operations = []
        for number, operation in enumerate(block.operations):
            read = self._operation(operation, known, f"{place}, operation {number}")
            twice = [value.name for value in read.outputs if value.name in known]
            if twice:
                raise self._wrong(f"'{twice[0]}' is defined again by {read.type} '{read.name}' ({read.place})")
            known |= {value.name for value in read.outputs}
            operations.append(read)
        missing = [str(name) for name in block.outputs if name not in known]
        if missing:
            raise self._wrong(f"the block of {place} gives '{missing[0]}', which nothing defines")
        return Block(inputs, tuple(str(name) for name in block.outputs), tuple(operations))

    def _operation(self, operation: Message, known: set[str], place: str) -> Operation:
        outputs = self._values(operation.outputs)
        kind = str(operation.type)
        attributes = {str(key): self._constant(value, f"{key} of {kind} in {place}") for key, value in operation.attributes.items()}
        given = attributes.pop("name", None)
        name = given.text if given is not None else outputs[0].name if outputs else kind
        inputs: dict[str, tuple[Argument, ...]] = {}
        for key, argument in operation.inputs.items():
            bound: list[Argument] = []
            for item in argument.arguments:
                if item.WhichOneof("binding") == "value":
                    bound.append(self._constant(item.value, name))
                    continue
                if item.name not in known:
                    raise self._wrong(f"{kind} '{name}' ({place}) reads '{item.name}' as {key}; nothing in front of it defines that name")
                bound.append(str(item.name))
            inputs[str(key)] = tuple(bound)
        if kind == "const":
            self._check_const(name, outputs, attributes, place)
        blocks = tuple(self._block(block, set(known), f"{place}, block {number}") for number, block in enumerate(operation.blocks))
        return Operation(name, kind, inputs, outputs, attributes, blocks, place)

    def _check_const(self, name: str, outputs: tuple[Value, ...], attributes: Mapping[str, Constant], place: str) -> None:
        if len(outputs) != 1 or "val" not in attributes:
            raise self._wrong(f"the constant '{name}' ({place}) has {len(outputs)} outputs and {'no' if 'val' not in attributes else 'a'} value")
        stated, found = outputs[0].type, attributes["val"].type
        if stated.dtype != found.dtype or len(stated.shape) != len(found.shape) or not stated.fits(tuple(size or 0 for size in found.shape)):
            raise self._wrong(f"the constant '{name}' ({place}) is stated as {stated} and holds {found}")

    def _type(self, kind: Message, owner: str) -> ValueType:
        which = kind.WhichOneof("type")
        if which == "listType":
            member = self._type(kind.listType.type, owner)
            length = kind.listType.length
            known = int(length.constant.size) if length.WhichOneof("dimension") == "constant" else None
            return ValueType(member.dtype, (known,), is_list=True)
        if which != "tensorType":
            raise self._wrong(f"'{owner}' is of a type that cannot be read ({which or 'none'}); tensors and lists can")
        tensor = kind.tensorType
        if tensor.dataType not in DTYPES:
            raise self._wrong(f"'{owner}' has the data type {tensor.dataType}, which MIL does not know")
        if tensor.rank != len(tensor.dimensions):
            raise self._wrong(f"'{owner}' is of rank {tensor.rank} and has {len(tensor.dimensions)} sizes")
        sizes = tuple(int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions)
        return ValueType(DTYPES[tensor.dataType], sizes)

    def _constant(self, value: Message, owner: str) -> Constant:
        kind = self._type(value.type, owner)
        which = value.WhichOneof("value")
        if which == "blobFileValue":
            return Constant(kind, self._blob(value.blobFileValue, kind, owner))
        if which != "immediateValue":
            raise self._wrong(f"the constant '{owner}' has no value")
        immediate = value.immediateValue
        if immediate.WhichOneof("value") == "list":
            members = [self._constant(member, owner) for member in immediate.list.values]
            if kind.dtype == "string":
                return Constant(kind, tuple(member.text for member in members))
            return Constant(kind, np.stack([member.array for member in members]) if members else np.zeros(0, kind.numpy_dtype()))
        if immediate.WhichOneof("value") != "tensor":
            raise self._wrong(f"the constant '{owner}' holds a {immediate.WhichOneof('value') or 'nothing'}; tensors and lists can be read")
        if kind.dtype == "string":
            texts = tuple(str(text) for text in immediate.tensor.strings.values)
            return Constant(kind, texts[0] if len(texts) == 1 and not kind.shape else texts)
        return Constant(kind, self._immediate(immediate.tensor, kind, owner))

    def _immediate(self, tensor: Message, kind: ValueType, owner: str) -> Array:
        shape = self._closed(kind, owner)
        field = tensor.WhichOneof("value")
        count = math.prod(shape)
        if field == "bytes":
            content = bytes(tensor.bytes.values)
            if len(content) != bytes_of(kind.dtype, shape):
                raise self._wrong(f"the constant '{owner}' is {kind}, which takes {bytes_of(kind.dtype, shape)} bytes, and holds {len(content)}")
            return unpacked(content, kind.dtype, shape)
        values = [] if field is None else list(getattr(tensor, field).values)
        if len(values) != count:
            raise self._wrong(f"the constant '{owner}' is {kind}, {count} values, and holds {len(values)}")
        try:
            return np.array(values, dtype=kind.numpy_dtype()).reshape(shape)
        except (OverflowError, ValueError) as problem:
            raise self._wrong(f"the constant '{owner}' is {kind} and holds values that it cannot ({problem})") from problem

    def _blob(self, reference: Message, kind: ValueType, owner: str) -> Blob:
        name = str(reference.fileName)
        if not name.startswith(MODEL_PATH):
            raise self._wrong(f"the constant '{owner}' lies in the file '{name}', which is not inside the package")
        place = self._inside(self._model_folder, name.removeprefix(MODEL_PATH))
        if place not in self._weight_files:
            self._weight_files[place] = WeightFile(place)
        return self._weight_files[place].blob(int(reference.offset), kind.dtype, self._closed(kind, owner), owner)

    def _closed(self, kind: ValueType, owner: str) -> tuple[int, ...]:
        if kind.dtype == "string":
            raise self._wrong(f"the constant '{owner}' is a text in the weight file")
        closed = tuple(size for size in kind.shape if size is not None)
        if len(closed) != len(kind.shape):
            raise self._wrong(f"the constant '{owner}' is {kind}, with a size left open")
        return closed

    def _wrong(self, what: str) -> ExportError:
        return ExportError(f"{self._path} cannot be read: {self._part}{what}. {ADVICE}")
