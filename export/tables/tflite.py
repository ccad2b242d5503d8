"""TFLite files as operator tables: float, float16 weights, INT8. Read with the flatbuffer schema that LiteRT ships; weights stay where they are.

Tensors of images lie channels last in such a file, and rows show them channels first. The transpositions that a converter puts around what it cannot
express so are views here (`mcompress.export.tables.graph`); LiteRT does carry them out.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.errors import UsageError
from mcompress.export.backend import require
from mcompress.export.tables.facts import FileFacts, Read
from mcompress.export.tables.graph import Graph, Shape
from mcompress.export.tables.making import Node, Window, activations, clamps, convolution, linear, padding, plain, product, recurrent, reduction
from mcompress.export.tables.tflite_operators import (
    FUSED,
    IMAGES,
    KEEP_LAYOUT,
    LIMITS,
    PARAMETERS_FROM,
    PARTS,
    PLAIN,
    RECURRENT,
    REDUCTIONS,
    RESHAPES,
)
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
TO_FIRST, TO_LAST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}, {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_DAMAGED = (struct.error, IndexError, ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError, OverflowError)
"""What reading a flatbuffer at offsets that are not there raises."""


def read(path: Path, input_shape: Shape | Mapping[str, Shape] | None) -> Read:
    """The first graph of the file. Raises `UsageError` for a file that is not TFLite, or is damaged."""
    require("tflite", {"ai_edge_litert": "ai-edge-litert"}, "It runs on Linux and macOS.")
    from ai_edge_litert import schema_py_generated as schema

    # Mapped, not read: most of a file is weights, of which only biases and parameters are looked at.
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(data[4:8]) != IDENTIFIER:
        raise UsageError(f"{path} is no TFLite file: it does not have the mark {IDENTIFIER.decode()} at byte 4")
    try:
        model = schema.Model.GetRootAsModel(data, 0)
        _check_buffers(model, len(data))
        reader = _Reader(path, model, input_shape)
    except _DAMAGED as error:
        raise UsageError(f"{path} is damaged or cut off ({type(error).__name__}: {error}); export or copy it again") from error
    return Read(reader.graph, FileFacts("tflite", f"schema {model.Version()}", reader.least_runtime(), reader.inputs))


def _check_buffers(model: schema.Model, size: int) -> None:
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        where = buffer._tab.Offset(4)
        if where and buffer._tab.Vector(where) + buffer.DataLength() > size:
            raise ValueError(f"buffer {index} ends behind the file")


@cache
def _operator_names() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


class _Reader:
    """Goes over the operators in their order."""

    def __init__(self, path: Path, model: schema.Model, input_shape: Shape | Mapping[str, Shape] | None) -> None:
        self.path, self.model, self.proto, self.graph = path, model, model.Subgraphs(0), Graph()
        proto = self.proto
        self.tensors = [proto.Tensors(index) for index in range(proto.TensorsLength())]
        self.names = _unique([tensor.Name() for tensor in self.tensors])
        operators = [proto.Operators(index) for index in range(proto.OperatorsLength())]
        self.kinds = [self._kind(operator) for operator in operators]
        self.took = [_numbers(operator.InputsAsNumpy()) for operator in operators]
        self.gave = [_numbers(operator.OutputsAsNumpy()) for operator in operators]
        self.readers: dict[int, list[int]] = {}
        for index, took in enumerate(self.took):
            for tensor in took:
                self.readers.setdefault(tensor, []).append(index)
        self.producers = {tensor: index for index, gave in enumerate(self.gave) for tensor in gave}
        self.outputs = set(_numbers(proto.OutputsAsNumpy()))
        entering = _numbers(proto.InputsAsNumpy())
        self.resized = self._resized(entering, input_shape)
        for index, name in enumerate(self.names):
            if index not in self.producers and index not in entering:
                self.graph.constant(name, self._shape(index))
        self.inputs = {self.names[index]: self._shape(index) for index in entering}
        for index in entering:
            shape = self._shape(index)
            self.graph.input(self.names[index], shape, channels_last=len(shape) in TO_FIRST and self._ends_in_images(index))
        for index, operator in enumerate(operators):
            self._visit(index, operator)
        for tensor in sorted(self.outputs):
            self.graph.output(self.names[tensor])

    def least_runtime(self) -> str:
        """What the converter noted."""
        for entry in (self.model.Metadata(index) for index in range(self.model.MetadataLength())):
            buffer = self.model.Buffers(entry.Buffer())
            if entry.Name() == b"min_runtime_version" and buffer.DataLength():
                return f"TensorFlow Lite {bytes(buffer.DataAsNumpy()).rstrip(bytes(1)).decode('ascii', errors='replace')} or newer"
        return ""

    def _visit(self, index: int, operator: schema.Operator) -> None:
        graph, kind = self.graph, self.kinds[index]
        took, gave = [self.names[t] if t >= 0 else "" for t in self.took[index]], [self.names[t] for t in self.gave[index]]
        if kind == "SHAPE" or all(graph.is_constant(name) for name in took):
            for tensor in self.gave[index]:
                graph.constant(self.names[tensor], self._shape(tensor))
            return
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            if self._is_lone(index):
                plain(graph, self._node(index, took[:1]), kind.lower(), "copy")
            else:
                graph.same(took[0], gave[0])
        elif kind == "TRANSPOSE":
            self._transpose(index, took[0], gave[0])
        elif kind in RESHAPES:
            self._reshape(index, took[0])
        elif kind == "BROADCAST_TO":
            graph.expand(took[0], gave[0], self._shape(self.gave[index][0]))
        elif kind in PARTS:
            source = next(name for name in took if not graph.is_constant(name))
            for tensor in self.gave[index]:
                graph.part(source, self.names[tensor], self._shape(tensor))
        else:
            self._compute(index, operator, took)
            self._activation(index, operator)

    def _compute(self, index: int, operator: schema.Operator, took: list[str]) -> None:
        graph, kind = self.graph, self.kinds[index]
        node = self._node(index, [name for name in took[: PARAMETERS_FROM.get(kind, len(took)) or None] if name])
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):
            self._convolution(index, operator, node)
        elif kind == "FULLY_CONNECTED":
            bias = len(self.took[index]) > 2 and self.took[index][2] >= 0 and not self._is_zero(self.took[index][2])
            inputs = node.inputs if bias else node.inputs[:2]
            inner = graph.shape(node.inputs[1])[-1]
            if graph.is_constant(node.inputs[1]):
                linear(graph, Node(node.name, inputs, node.outputs, node.precision), inner, has_bias=bias)
            else:
                rows = math.prod(graph.shape(node.inputs[0])) // inner
                product(graph, node, inner, (1, rows, inner))
        elif kind == "BATCH_MATMUL":
            self._product(operator, node)
        elif kind in RECURRENT:
            operation, weights = RECURRENT[kind]
            recurrent(graph, node, operation, [took[i] for i in weights if i < len(took) and took[i]])
        elif kind in REDUCTIONS:
            reduction(graph, node, REDUCTIONS[kind], self._values(self.took[index][1]))
        elif kind in ("PAD", "PADV2"):
            padding(graph, node, zeros=kind == "PAD" or self._is_zero(self.took[index][2]))
        elif kind in LIMITS and clamps(graph, node):
            plain(graph, replace(node, inputs=activations(graph, node)), "clamp", "activation")
        elif kind == "STABLEHLO_REDUCE_WINDOW":
            plain(graph, node, "max_pool" if self._is_lowest(self.took[index][1]) else "avg_pool", "pooling")
        elif kind in PLAIN:
            plain(graph, node, *PLAIN[kind])
            if PLAIN[kind][0] == "_softmax":
                graph.trace.steps[-1].axis = 1 if node.channels_last else len(node.result) - 1
        else:
            plain(graph, node, kind, "other")

    def _activation(self, index: int, operator: schema.Operator) -> None:
        """What the options of an operator say runs on its result, as a step of its own behind it."""
        options = self._options(operator)
        name = FUSED.get(options.FusedActivationFunction()) if hasattr(options, "FusedActivationFunction") else None
        if name is not None:
            node = self._node(index, [self.names[self.gave[index][0]]])
            plain(self.graph, node, name, "activation")

    def _convolution(self, index: int, operator: schema.Operator, node: Node) -> None:
        kind, graph = self.kinds[index], self.graph
        transposed = "TRANSPOSE" in kind
        # The first input of a transposed convolution is the shape of its output.
        source, weight, bias = (self.took[index][i] if i < len(self.took[index]) else -1 for i in ((2, 1, 3) if transposed else (0, 1, 2)))
        options, shape = self._options(operator), graph.shape(self.names[weight])
        channels = graph.shape(self.names[source])[-1]
        groups, per_group, kernel = 1, shape[-1], shape[1:-1]
        if kind == "DEPTHWISE_CONV_2D":
            groups, per_group = channels, 1
        elif kind in ("CONV_3D", "CONV_3D_TRANSPOSE"):
            kernel, per_group = shape[:3], shape[3]
        elif transposed:
            per_group = shape[0]
        else:
            groups = channels // per_group
        strides = [getattr(options, name)() for name in ("StrideD", "StrideH", "StrideW") if hasattr(options, name)]
        has_bias = bias >= 0 and not self._is_zero(bias)
        inputs = tuple(self.names[tensor] for tensor in (source, weight, bias) if tensor >= 0 and (tensor != bias or has_bias))
        window = Window(transposed, kernel, max(strides, default=1), groups, per_group, has_bias)
        convolution(graph, Node(node.name, inputs, node.outputs, node.precision, node.channels_last), window)

    def _product(self, operator: schema.Operator, node: Node) -> None:
        left = self.graph.shape(node.inputs[0])
        options = self._options(operator)
        rows, inner = (left[-1], left[-2]) if hasattr(options, "AdjX") and options.AdjX() else (left[-2], left[-1])
        if self.graph.is_constant(node.inputs[1]) and len(self.graph.shape(node.inputs[1])) <= 2:
            linear(self.graph, node, inner, has_bias=False)
        else:
            product(self.graph, node, inner, (math.prod(left[:-2]), rows, inner))

    def _transpose(self, index: int, source: str, result: str) -> None:
        order, shape = self._values(self.took[index][1]), self.graph.shape(source)
        last = self.graph.is_channels_last(source)
        if last and order == TO_FIRST.get(len(shape)):
            last = False
        elif not last and order == TO_LAST.get(len(shape)):
            # Behind the last operator it is the layout in which the file hands an image out.
            last = self.gave[index][0] in self.outputs or self._ends_in_images(self.gave[index][0])
        self.graph.transpose(source, result, order, channels_last=last)

    def _reshape(self, index: int, source: str) -> None:
        tensor, result = self.gave[index][0], self.names[self.gave[index][0]]
        before, shape, graph = self.graph.shape(source), self._shape(tensor), self.graph
        graph.reshape(source, result, shape)
        if len(shape) in TO_FIRST and len(before) != len(shape) and self._ends_in_images(tensor) and math.prod(shape) == shape[0] * shape[-1]:
            graph.lay_out(result)

    def _ends_in_images(self, tensor: int) -> bool:
        """Whether an operator on images reads the tensor, through what keeps its layout, or a transposition to channels first does."""
        seen, left = set[int](), [tensor]
        rank = len(self._shape(tensor))
        while left:
            one = left.pop()
            if one in seen:
                continue
            seen.add(one)
            for reader in self.readers.get(one, ()):
                kind = self.kinds[reader]
                if kind in IMAGES or (kind == "TRANSPOSE" and self._values(self.took[reader][1]) == TO_FIRST.get(rank)):
                    return True
                if kind in KEEP_LAYOUT:
                    left += [t for t in self.gave[reader] if len(self._shape(t)) == rank]
        return False

    def _is_lone(self, index: int) -> bool:
        """Whether neither side needs the conversion to compute as it does: at the border of the network, or between two float operators."""
        (source,), (result,) = self.took[index][:1], self.gave[index][:1]
        if source not in self.producers:
            return True
        made = self.producers[source]
        if self.kinds[made] in ("QUANTIZE", "DEQUANTIZE"):
            return self._is_lone(made) if self.kinds[made] == "QUANTIZE" else result in self.outputs
        if result in self.outputs:
            return True
        after = [self.kinds[reader] for reader in self.readers.get(result, ())]
        return self.kinds[index] == "QUANTIZE" and bool(after) and all(kind == "DEQUANTIZE" for kind in after)

    def _node(self, index: int, inputs: Sequence[str]) -> Node:
        used = [t for i, t in enumerate(self.gave[index]) if i == 0 or t in self.readers or t in self.outputs]
        outputs = {self.names[tensor]: self._shape(tensor) for tensor in used}
        first = next(iter(outputs.values()))
        kind = self.kinds[index]
        activations = [name for name in inputs if not self.graph.is_constant(name) and len(self.graph.shape(name)) == len(first)]
        last = len(first) in TO_FIRST and (kind in IMAGES or any(self.graph.is_channels_last(name) for name in activations[:1]))
        return Node(self.names[self.gave[index][0]], tuple(inputs), outputs, self._precision(index), last)

    def _precision(self, index: int) -> PrecisionName:
        """That of the result; fp16 where the weights alone are, w8a16 where activations have 16 bits."""
        from ai_edge_litert import schema_py_generated as schema

        kinds = schema.TensorType
        result = self.tensors[self.gave[index][0]].Type()
        if result in (kinds.INT8, kinds.UINT8):
            return "int8"
        if result == kinds.INT16:
            return "w8a16"
        half = any(t >= 0 and self.tensors[self._origin(t)].Type() in (kinds.FLOAT16, kinds.BFLOAT16) for t in self.took[index])
        return "fp16" if half or result in (kinds.FLOAT16, kinds.BFLOAT16) else "fp32"

    def _origin(self, tensor: int) -> int:
        """The constant that a DEQUANTIZE makes the tensor of."""
        made = self.producers.get(tensor)
        return self.took[made][0] if made is not None and self.kinds[made] == "DEQUANTIZE" and self.took[made][0] not in self.producers else tensor

    def _resized(self, entering: Sequence[int], given: Shape | Mapping[str, Shape] | None) -> dict[int, Shape]:
        """Shapes of all tensors for other input shapes, from LiteRT's interpreter; empty where the file's own are meant."""
        open_ = [tensor for tensor in entering if any(size < 0 for size in _numbers(self.tensors[tensor].ShapeSignatureAsNumpy()))]
        if given is None:
            if open_ and any(size < 1 for t in entering for size in self._stated(t)):
                names = " and ".join(f"'{self.names[tensor]}'" for tensor in open_)
                if len(entering) > 1:
                    how = f"give them, for example --input {self.names[open_[0]]}=1,128,128,3"
                    raise UsageError(f"the inputs {names} of {self.path} have no static shapes; {how}")
                raise UsageError(f"the input of {self.path} has no static shape; give it, for example --input 1,128,128,3")
            return {}
        places = {self.names[tensor]: tensor for tensor in entering}
        strange = [name for name in given if name not in places] if isinstance(given, Mapping) else []
        if strange:
            raise UsageError(f"--input names '{strange[0]}', but the inputs of {self.path} are {', '.join(places)}")
        shapes = {places[name]: shape for name, shape in given.items()} if isinstance(given, Mapping) else dict.fromkeys(entering[:1], given)
        shapes = {tensor: shape for tensor, shape in shapes.items() if shape != self._stated(tensor)}
        shown = " and ".join(f"{f'{self.names[tensor]}=' if isinstance(given, Mapping) else ''}{_shown(shape)}" for tensor, shape in shapes.items())
        for tensor in shapes:
            if tensor not in open_:
                raise UsageError(f"--input is {shown}, but {self.path} takes {_shown(self._stated(tensor))} only; leave --input out")
        if not shapes:
            return {}
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        interpreter = Interpreter(model_path=str(self.path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        try:
            for tensor, shape in shapes.items():
                interpreter.resize_tensor_input(tensor, shape)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"--input is {shown}, which {self.path} does not take: {str(error).splitlines()[0]}") from error
        return {detail["index"]: tuple(int(size) for size in detail["shape"]) for detail in interpreter.get_tensor_details()}

    def _shape(self, tensor: int) -> Shape:
        return self.resized[tensor] if tensor in self.resized else self._stated(tensor)

    def _stated(self, tensor: int) -> Shape:
        return _numbers(self.tensors[tensor].ShapeAsNumpy())

    def _values(self, tensor: int) -> tuple[int, ...]:
        """What a constant of integers holds."""
        from ai_edge_litert import schema_py_generated as schema

        data = self.model.Buffers(self.tensors[tensor].Buffer()).DataAsNumpy()
        kind = np.int64 if self.tensors[tensor].Type() == schema.TensorType.INT64 else np.int32
        return () if isinstance(data, int) else tuple(int(value) for value in np.asarray(data).view(kind))

    def _is_zero(self, tensor: int) -> bool:
        """Whether a constant holds zeros only: the bias that a converter adds because the kernel takes one."""
        data = self.model.Buffers(self.tensors[self._origin(tensor)].Buffer()).DataAsNumpy()
        return not isinstance(data, int) and not np.asarray(data).any()

    def _is_lowest(self, tensor: int) -> bool:
        """Whether a constant is a number below which there is none: where the search for a maximum begins."""
        from ai_edge_litert import schema_py_generated as schema

        if tensor in self.producers:
            return False
        kinds = schema.TensorType
        formats = {
            kinds.FLOAT32: ("<f", float(np.finfo(np.float32).min)),
            kinds.FLOAT16: ("<e", float(np.finfo(np.float16).min)),
            kinds.INT8: ("<b", -128.0),
        }
        known = formats.get(self.tensors[tensor].Type())
        data = self.model.Buffers(self.tensors[tensor].Buffer()).DataAsNumpy()
        if known is None or isinstance(data, int):
            return False
        form, least = known
        return float(struct.unpack_from(form, bytes(np.asarray(data)))[0]) <= least

    def _kind(self, operator: schema.Operator) -> str:
        code = self.model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        # An operator that is newer than the schema is unknown, and the file is sound.
        name = _operator_names().get(number, f"BUILTIN_{number}")
        if name == "CUSTOM":
            return str((code.CustomCode() or b"custom").decode("utf-8", errors="replace"))
        return name

    def _options(self, operator: schema.Operator) -> object:
        from ai_edge_litert import schema_py_generated as schema

        table = operator.BuiltinOptions()
        names = {value: name for name, value in vars(schema.BuiltinOptions).items() if isinstance(value, int)}
        kind = getattr(schema, names.get(operator.BuiltinOptionsType(), ""), None)
        if table is None or kind is None:
            return None
        options = kind()
        options.Init(table.Bytes, table.Pos)
        return options


def _numbers(values: object) -> tuple[int, ...]:
    """A vector of a flatbuffer; the integer 0 stands for one that is not there."""
    return () if isinstance(values, int) else tuple(int(value) for value in np.asarray(values))


def _unique(names: Sequence[bytes | None]) -> list[str]:
    used: dict[str, int] = {}
    unique = []
    for index, name in enumerate(names):
        text = (name or b"").decode("utf-8", errors="replace") or f"tensor_{index}"
        used[text] = used.get(text, 0) + 1
        unique.append(text if used[text] == 1 else f"{text}#{index}")
    return unique


def _shown(shape: Sequence[int]) -> str:
    return ",".join(str(size) for size in shape)
