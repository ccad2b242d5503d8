"""ONNX files of a few nodes, written by hand: what the tests of what reads such files give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9
"""Of the format: the library's own default is newer than what some runtimes read."""


def info(name: str, shape: Sequence[int | str] | None = None, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """A tensor whose sizes are numbers, or names where they are open; without a shape not even its rank is said."""
    return helper.make_tensor_value_info(name, kind, shape)


def node(kind: str, takes: str, gives: str, *, name: str = "", domain: str = "", **attributes: object) -> NodeProto:
    """An operator; tensors are separated by spaces, and `_` is an input that is left out."""
    given = ["" if tensor == "_" else tensor for tensor in takes.split()]
    return helper.make_node(kind, given, gives.split(), name=name, domain=domain, **attributes)


def write_graph(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Iterable[str] | Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    functions: Sequence[FunctionProto] = (),
    value_info: Sequence[ValueInfoProto] = (),
) -> Path:
    """Write the file and return its path.

    Outputs have the shapes that are given, if any. Weights are shapes, of zeros, or values where something depends on them.
    A node without a name has that of its first result. Domains that the nodes name are there in version 1.
    """
    values = {name: given if isinstance(given, np.ndarray) else np.zeros(given, np.float32) for name, given in (weights or {}).items()}
    said = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs)
    for one in nodes:
        one.name = one.name or one.output[0]
    graph = helper.make_graph(
        nodes,
        "graph",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, shape) for name, shape in said.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
        value_info=value_info,
    )
    foreign = sorted({one.domain for one in nodes} - {""})
    domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in foreign)]
    onnx.save(helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=IR_VERSION), str(path))
    return path
