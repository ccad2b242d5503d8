"""Are the weights in a saved Core ML package those of the network? Compared per output channel, from the bytes of the file.

coremltools multiplies a constant behind a convolution into its weights (`conv(x) * 0.2`), so a channel may differ by a factor, which is then said.
Weights are read from the file one operator after another, and the network's are not copied: large networks are larger than what is left of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.coreml_names import source_of
from mcompress.export.mil.evaluate import constant_value
from mcompress.export.mil.program import Function, Operation
from mcompress.export.mil.types import Array
from mcompress.record import OperatorFallback

if TYPE_CHECKING:
    from torch import Tensor, fx
    from torch.export import ExportedProgram

WEIGHTED = frozenset(("conv", "conv_transpose", "linear"))
TOLERANCES = {"fp32": 1e-6, "fp16": 2e-3, "int8": 0.1}
"""Relative, per channel. Half precision has a relative step of 1e-3; a channel's INT8 weights are rounded to 1/127 of the largest of them."""
KINDS = frozenset(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"))
STEM = "do not use this file; export again"


@dataclass(frozen=True)
class StoredWeights:
    """What an operator of the file multiplies with."""

    values: Array
    """Floating-point, in the type of the file; INT8 weights as what Core ML makes of them."""
    precision: str
    """`int8`, `fp16` or `fp32`: what is stored."""


@dataclass(frozen=True)
class WeightMatch:
    """Where the weights of one operator of the program are in the file."""

    source: str
    operator: str
    scaled: bool
    """Whether channels differ by a factor."""


def match_weights(main: Function, program: ExportedProgram) -> tuple[WeightMatch, ...]:
    """For every convolution and linear layer of the program with constant weights, the operation of the file that has them.

    Operations that carry the program's names are compared with the operator of that name; of the others the one with equal weights is taken. Raises
    `ExportError` for weights that are not in the file, and for a convolution or linear layer in the file that the network does not have.
    """
    calls = {node.name for node in program.graph.nodes if node.op == "call_function"}
    expected = torch_weights(program)
    operations, producers = [operation for operation in main.operations if operation.type in WEIGHTED], main.producers()
    unclaimed = {operation.name: operation for operation in operations}
    named = {source: operation for operation in operations if (source := source_of(operation.name, calls)) is not None}
    matches = []
    for name, weight in expected.items():
        mine = named.get(name)
        if mine is not None:
            matches.append(_compared(name, weight, mine, stored_weights(mine, main, producers)))
            del unclaimed[mine.name]
    for name, weight in expected.items():
        if name not in named:
            found = _search(name, weight, unclaimed, main, producers) or _merged(name, expected, matches, program)
            if found is None:
                raise ExportError(f"the weights of '{name}' (shape {tuple(weight.shape)}) are not in the saved package; {STEM}")
            matches.append(found)
            unclaimed.pop(found.operator, None)
    strange = [operation.name for operation in unclaimed.values() if source_of(operation.name, calls - expected.keys()) is None]
    if strange:
        raise ExportError(f"the saved package has the {unclaimed[strange[0]].type} '{strange[0]}', which the network does not have; {STEM}")
    return tuple(matches)


def scaled_weights(matches: tuple[WeightMatch, ...]) -> list[OperatorFallback]:
    """One entry per operator whose weights equal the network's up to a factor only."""
    reason = "coremltools multiplied a constant into the weights of '{}'; equal up to that factor"
    return [OperatorFallback(operator=match.operator, reason=reason.format(match.source)) for match in matches if match.scaled]


def torch_weights(program: ExportedProgram) -> dict[str, Tensor]:
    """Operator -> its weights, in the program's own memory, for convolutions and linear layers whose weights are parameters or buffers."""
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    weights: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        kind = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))
        if node.op == "call_function" and kind in KINDS and node.args[1].name in names:
            weights[node.name] = program.state_dict[names[node.args[1].name]].detach()
    return weights


def stored_weights(operation: Operation, main: Function, producers: Mapping[str, Operation]) -> StoredWeights:
    """The operation's weights as Core ML computes with them, read now; `producers` are those of `main`. Raises `ExportError` if they are not
    constant.
    """
    (argument,) = operation.inputs.get("weight", (None,))
    while (maker := producers.get(argument) if isinstance(argument, str) else None) is not None and maker.type == "cast":
        (argument,) = maker.inputs["x"]
    values = None
    if argument is not None:
        values = maker.attributes["val"].array if maker is not None and maker.type == "const" else constant_value(main, argument)
    if values is None:
        raise ExportError(f"the weights of {operation.type} '{operation.name}' in the saved package are not constant; {STEM}")
    compressed = maker is not None and maker.type.startswith("constexpr_")
    return StoredWeights(values, "int8" if compressed else "fp16" if values.dtype == np.float16 else "fp32")


def _compared(name: str, weight: Tensor, operation: Operation, stored: StoredWeights) -> WeightMatch:
    factors = _factors(weight, stored)
    if factors is None:
        place = f"in the saved package, whose '{operation.name}' has others"
        raise ExportError(f"the weights of '{name}' (shape {tuple(weight.shape)}) are not {place}; {STEM}")
    return WeightMatch(name, operation.name, _away_from_one(factors) > TOLERANCES[stored.precision])


def _search(name: str, weight: Tensor, unclaimed: Mapping[str, Operation], main: Function, producers: Mapping[str, Operation]) -> WeightMatch | None:
    found = []
    for operation in unclaimed.values():
        stored = stored_weights(operation, main, producers)
        factors = _factors(weight, stored)
        if factors is not None:
            found.append((_away_from_one(factors), operation.name, stored.precision))
    if not found:
        return None
    away, operator, precision = min(found)
    return WeightMatch(name, operator, away > TOLERANCES[precision])


def _merged(name: str, expected: Mapping[str, Tensor], matches: Sequence[WeightMatch], program: ExportedProgram) -> WeightMatch | None:
    """Where another operator computes the same of the same tensor, and coremltools has kept one of the two: blocks that were doubled are such."""
    nodes = {node.name: node for node in program.graph.nodes}
    for match in matches:
        one, other = nodes[name], nodes[match.source]
        alike = (one.target, one.args[0], one.args[3:], one.kwargs) == (other.target, other.args[0], other.args[3:], other.kwargs)
        if alike and _equal(expected[name], expected[match.source]) and _same_bias(one, other, program):
            return WeightMatch(name, match.operator, match.scaled)
    return None


def _same_bias(one: fx.Node, other: fx.Node, program: ExportedProgram) -> bool:
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    given = [node.args[2] if len(node.args) > 2 else None for node in (one, other)]
    if given[0] is given[1]:
        return True
    held = [program.state_dict[names[str(each)]] for each in given if str(each) in names]
    return len(held) == len(given) and _equal(*held)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _away_from_one(factors: NDArray[np.float64]) -> float:
    return float(np.abs(factors - 1).max(initial=0.0))


def _factors(expected: Tensor, stored: StoredWeights) -> NDArray[np.float64] | None:
    """Per slice along either of the first two axes (output channels), the factor between the two; None if they are not proportional."""
    if stored.values.shape != tuple(expected.shape):
        return None
    if _is_rounded(expected, stored.values):
        return np.ones(1)
    tolerance, wanted = TOLERANCES[stored.precision], expected.double().numpy()
    for axis in (0, 1):
        a, b = (np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1) for value in (wanted, stored.values.astype(np.float64)))
        norm = np.sum(a * a, axis=1)
        factors = np.where(norm > 0, np.sum(a * b, axis=1) / np.maximum(norm, 1e-30), 1.0)
        residual = np.linalg.norm(b - factors[:, None] * a, axis=1)
        if np.all(residual <= tolerance * np.linalg.norm(b, axis=1) + 1e-6):
            return np.asarray(factors, dtype=np.float64)
    return None


def _is_rounded(expected: Tensor, values: Array) -> bool:
    """Whether these are the network's weights, rounded to the type that they are stored in: what most are, and quickly seen."""
    import torch

    return np.array_equal(expected.to(torch.float16 if values.dtype == np.float16 else torch.float32).numpy(), values)
