"""The operators of the exported program as a .tflite file is compared with them: who reads whom, and weights as the format stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from mcompress.compress.quantize import kinds

FloatArray = NDArray[np.float32]
_LINEAR, _IMAGE = 2, 4
_TRANSPOSED = "conv_transpose"


@dataclass(frozen=True, eq=False)
class Planned:
    """One operator of the program."""

    name: str
    kind: str
    sources: tuple[str, ...]
    """The operators and inputs of the network whose values it reads."""
    held: Tensor | None = None
    """Its weights in the network's own memory, if they are constant."""

    def forms(self) -> Iterator[tuple[FloatArray, int]]:
        """The forms in which a file can hold its weights, each with the axis of the output channels; made when asked for, each time."""
        if self.held is not None:
            yield from _forms(self.held.detach().cpu().float().numpy(), self.kind)


@dataclass(frozen=True, eq=False)
class Program:
    """Operators in execution order, by name."""

    operators: dict[str, Planned]
    output: str
    """The operator or input whose value the network gives."""
    inputs: tuple[str, ...]


def planned_program(module: fx.GraphModule) -> Program:
    """What the plan calls operators: the nodes of `module` that compute a floating-point tensor."""
    nodes = dict.fromkeys(kinds.operators(module.graph))
    operators = {
        node.name: Planned(node.name, kinds.kind_of(node), tuple(dict.fromkeys(_values(node, nodes))), _held(module, node)) for node in nodes
    }
    (end,) = [node for node in module.graph.nodes if node.op == "output"]
    given = tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    return Program(operators, next(iter(_values(end, nodes)), ""), given)


def _values(node: fx.Node, operators: dict[fx.Node, None]) -> list[str]:
    found: list[str] = []
    for source in node.all_input_nodes:
        if source in operators or source.op == "placeholder":
            found.append(source.name)
        elif not kinds.is_constant(source):
            found += _values(source, operators)
    return found


def _held(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    source = node.args[1] if node.target in kinds.WEIGHTED and len(node.args) > 1 else None
    if not isinstance(source, fx.Node) or not kinds.is_constant(source):
        return None
    held: object = module
    for part in str(source.target).split("."):
        held = getattr(held, part)
    return held if isinstance(held, Tensor) else None


def _forms(values: FloatArray, kind: str) -> Iterator[tuple[FloatArray, int]]:
    if values.ndim == _LINEAR:
        yield np.ascontiguousarray(values), 0
    elif values.ndim != _IMAGE:
        spatial = np.moveaxis(values, 1, -1)
        yield np.ascontiguousarray(spatial[:, None]), 0
        yield np.ascontiguousarray(spatial[:, :, None]), 0
    elif kind.startswith(_TRANSPOSED):
        stored = values.transpose(1, 2, 3, 0)
        yield np.ascontiguousarray(stored), 0
        yield np.ascontiguousarray(stored[:, ::-1, ::-1]), 0  # with stride 1 it is a convolution with the kernel turned around
    else:
        yield np.ascontiguousarray(values.transpose(0, 2, 3, 1)), 0
        if values.shape[1] == 1:
            yield np.ascontiguousarray(values.transpose(1, 2, 3, 0)), 3
