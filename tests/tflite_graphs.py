"""TFLite files of a few operators, written by hand: what the tests of what reads such files give them, and LiteRT to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "complex64": schema.TensorType.COMPLEX64,
}
OPTIONS_OF = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "SUM": "ReducerOptions", "MEAN": "ReducerOptions",
    "BATCH_MATMUL": "BatchMatMulOptions", "MIRROR_PAD": "MirrorPadOptions", "SPLIT": "SplitOptions", "RESHAPE": "ReshapeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions", "SLICE": "SliceOptions", "ADD": "AddOptions", "STRIDED_SLICE": "StridedSliceOptions",
    "UNPACK": "UnpackOptions", "RANDOM_UNIFORM": "RandomOptions", "VAR_HANDLE": "VarHandleOptions",
}  # fmt: skip
"""Operator -> the table with its options, where a test runs or sets them."""


@dataclass(frozen=True)
class Made:
    """An operator; tensors are separated by spaces, and `_` is an input that is left out. Options are those of the schema's classes."""

    kind: str
    takes: str
    gives: str
    options: Mapping[str, object] = field(default_factory=dict)


def write_tflite(
    path: Path,
    operators: Sequence[Made],
    shapes: Mapping[str, Sequence[int]],
    inputs: str,
    outputs: str,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    types: Mapping[str, str] | None = None,
    signatures: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write the file and return its path. Tensors are of float32 where `types` says nothing; `signatures` have -1 where a size is open."""
    held, graph, model = dict(constants or {}), schema.SubGraphT(), schema.ModelT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    places = {name: index for index, name in enumerate([*shapes, *held])}
    graph.tensors, graph.operators = [], []
    for name in places:
        tensor = schema.TensorT()
        tensor.name, tensor.buffer = name.encode(), 0
        tensor.shape = list(held[name].shape if name in held else shapes[name])
        tensor.type = TYPES[str(held[name].dtype) if name in held else (types or {}).get(name, "float32")]
        if name in (signatures or {}):
            tensor.shapeSignature = list((signatures or {})[name])
        if name in held:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(held[name].tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    for made in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, made.kind), 1
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        model.operatorCodes.append(code)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs = [-1 if name == "_" else places[name] for name in made.takes.split()]
        operator.outputs = [places[name] for name in made.gives.split()]
        if made.kind in OPTIONS_OF:
            name = OPTIONS_OF[made.kind]
            operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, name), getattr(schema, f"{name}T")()
            for option, value in made.options.items():
                setattr(operator.builtinOptions, option, value)
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [places[name] for name in inputs.split()], [places[name] for name in outputs.split()]
    path.write_bytes(packed(model))
    return path


def packed(model: schema.ModelT) -> bytes:
    """The bytes of a file."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpacked(path: Path) -> schema.ModelT:
    """What is in a file, to be changed."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))


def executed(path: Path, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What LiteRT gives for these inputs."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], values[detail["name"]])
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
