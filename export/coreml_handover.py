"""A tensor that one model of a Core ML pipeline computes and the next one reads: how it leaves the one and enters the other.

The tensor keeps its name in both models. What goes between them, the feature, is float32 or int32, the types that every system takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mcompress.export.mil.proto import mil_messages, model_messages
from mcompress.export.mil.types import DTYPES, FEATURE_DTYPES

if TYPE_CHECKING:
    from google.protobuf.message import Message

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_FEATURE_NUMBERS = {dtype: number for number, dtype in FEATURE_DTYPES.items()}
_SCALE = ("scale", "zero_point", "axis")


class Handover:
    """One tensor of fp16, fp32 or int32, or of int8 or uint8 if a `quantize` gives it."""

    def __init__(self, value: Message, maker: Message, taken: Mapping[str, Message]) -> None:
        """`maker` gives `value`; `taken` has the values of the whole program by name."""
        self.value, self._maker = value, maker
        self.quantized = dtype_of(value) in ("int8", "uint8")
        """Whether the tensor is INT8."""
        self.constants: tuple[str, ...] = ()
        """What the second model needs besides, if it is: the scale, the zero point, as `maker` reads them."""
        self._floats = value
        if self.quantized:
            others = (argument for name, argument in maker.inputs.items() if name != "input")
            self.constants = tuple(str(item.name) for argument in others for item in argument.arguments if item.WhichOneof("binding") == "name")
            (source,) = maker.inputs["input"].arguments
            self._floats = _like(value, _free(f"{value.name}_dequantized", taken), dtype_of(taken[source.name]))
        self.feature = self._floats
        """What the models exchange."""
        if dtype_of(self._floats) == "fp16":
            self.feature = _like(value, _free(f"{value.name}_handed_over", taken), "fp32")

    def giving(self) -> Iterator[Message]:
        """Operations behind the first model's, which have the tensor."""
        if self.quantized:
            operation = _operation("dequantize", self._floats, {"input": str(self.value.name)})
            for name in _SCALE:
                if name in self._maker.inputs:
                    operation.inputs[name].CopyFrom(self._maker.inputs[name])
            yield operation
        if self.feature is not self._floats:
            yield from _cast(self._floats, self.feature)

    def taking(self) -> Iterator[Message]:
        """Operations in front of the second model's, which read the tensor."""
        if self.feature is not self._floats:
            yield from _cast(self.feature, self._floats)
        if self.quantized:
            operation = type(self._maker)()
            operation.CopyFrom(self._maker)
            operation.inputs["input"].arguments[0].name = self._floats.name
            yield operation


def feature(value: Message) -> Message:
    """How a model describes a tensor that it takes or gives."""
    described: Message = model_messages().Model().description.input.add()
    described.name = value.name
    described.type.multiArrayType.dataType = _FEATURE_NUMBERS[dtype_of(value)]
    described.type.multiArrayType.shape.extend(sizes_of(value))
    return described


def dtype_of(value: Message) -> str:
    """MIL's name of a tensor's type; empty for what is no tensor."""
    return DTYPES.get(value.type.tensorType.dataType, "") if value.type.WhichOneof("type") == "tensorType" else ""


def sizes_of(value: Message) -> tuple[int, ...]:
    """A tensor's shape; 0 where it is not fixed."""
    return tuple(int(size.constant.size) for size in value.type.tensorType.dimensions)


def _like(value: Message, name: str, dtype: str) -> Message:
    other = type(value)()
    other.CopyFrom(value)
    other.name, other.type.tensorType.dataType = name, _NUMBERS[dtype]
    return other


def _free(name: str, taken: Mapping[str, Message]) -> str:
    while name in taken:
        name += "_"
    return name


def _cast(source: Message, result: Message) -> Iterator[Message]:
    dtype = mil_messages().NamedValueType(name=f"{result.name}_dtype")
    dtype.type.tensorType.dataType = _NUMBERS["string"]
    constant = _operation("const", dtype, {})
    constant.attributes["val"].CopyFrom(_text(dtype_of(result)))
    yield constant
    yield _operation("cast", result, {"x": str(source.name), "dtype": str(dtype.name)})


def _operation(kind: str, output: Message, read: Mapping[str, str]) -> Message:
    operation: Message = mil_messages().Operation(type=kind)
    operation.outputs.append(output)
    operation.attributes["name"].CopyFrom(_text(str(output.name)))
    for name, value in read.items():
        operation.inputs[name].arguments.add(name=value)
    return operation


def _text(text: str) -> Message:
    value: Message = mil_messages().Value()
    value.type.tensorType.dataType = _NUMBERS["string"]
    value.immediateValue.tensor.strings.values.append(text)
    return value
