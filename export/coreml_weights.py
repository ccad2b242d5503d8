"""Are the weights in a saved Core ML package those of the network? Compared per output channel, from the bytes of the file.

coremltools multiplies a constant behind a convolution into its weights (`conv(x) * 0.2`), so a channel may differ by a factor, which is then said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.coreml_names import source_of
from mcompress.export.mil.program import Argument, Constant, Function, Operation
from mcompress.record import OperatorFallback

if TYPE_CHECKING:
    from torch.export import ExportedProgram

WEIGHTED = frozenset(("conv", "conv_transpose", "linear"))
TOLERANCES = {"fp32": 1e-6, "fp16": 2e-3, "int8": 0.1}
"""Relative, per channel. Half precision has a relative step of 1e-3; a channel's INT8 weights are rounded to 1/127 of the largest of them."""
KINDS = frozenset(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"))
STEM = "do not use this file; export again"


@dataclass(frozen=True)
class StoredWeights:
    """What an operator of the file multiplies with."""

    values: NDArray[np.float64]
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
    operations = [operation for operation in main.operations if operation.type in WEIGHTED]
    producers = main.producers()
    unclaimed = {operation.name: operation for operation in operations}
    named = {source: operation for operation in operations if (source := source_of(operation.name, calls)) is not None}
    matches = []
    for name, weight in expected.items():
        mine = named.get(name)
        if mine is not None:
            matches.append(_compared(name, weight, mine, producers))
            del unclaimed[mine.name]
    for name, weight in expected.items():
        if name not in named:
            found = _search(name, weight, unclaimed, producers)
            matches.append(found)
            del unclaimed[found.operator]
    strange = [operation.name for operation in unclaimed.values() if source_of(operation.name, calls - expected.keys()) is None]
    if strange:
        raise ExportError(f"the saved package has the {unclaimed[strange[0]].type} '{strange[0]}', which the network does not have; {STEM}")
    return tuple(matches)


def scaled_weights(matches: tuple[WeightMatch, ...]) -> list[OperatorFallback]:
    """One entry per operator whose weights equal the network's up to a factor only."""
    reason = "coremltools multiplied a constant into the weights of '{}'; equal up to that factor"
    return [OperatorFallback(operator=match.operator, reason=reason.format(match.source)) for match in matches if match.scaled]


def torch_weights(program: ExportedProgram) -> dict[str, NDArray[np.float64]]:
    """Operator -> its weights, for convolutions and linear layers whose weights are parameters or buffers."""
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    weights: dict[str, NDArray[np.float64]] = {}
    for node in program.graph.nodes:
        kind = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))
        if node.op == "call_function" and kind in KINDS and node.args[1].name in names:
            weights[node.name] = program.state_dict[names[node.args[1].name]].detach().double().numpy()
    return weights


def stored_weights(operation: Operation, producers: Mapping[str, Operation]) -> StoredWeights:
    """The operation's weights as Core ML computes with them. Raises `ExportError` if they are not constant."""
    (argument,) = operation.inputs.get("weight", (None,))
    if isinstance(argument, str):
        maker = producers.get(argument)
        if maker is not None and maker.type == "constexpr_affine_dequantize":
            return StoredWeights(_affine(maker, producers), "int8")
        if maker is not None and maker.type == "constexpr_blockwise_shift_scale":
            return StoredWeights(_blockwise(maker, producers), "int8")
        if maker is not None and maker.type == "cast":
            return stored_weights(_with_weight(operation, maker), producers)
        argument = maker.attributes["val"] if maker is not None and maker.type == "const" else None
    if argument is None:
        raise ExportError(f"the weights of {operation.type} '{operation.name}' in the saved package are not constant; {STEM}")
    return StoredWeights(argument.array.astype(np.float64), argument.type.dtype)


def _with_weight(operation: Operation, cast: Operation) -> Operation:
    return Operation(
        operation.name,
        operation.type,
        {**operation.inputs, "weight": cast.inputs["x"]},
        operation.outputs,
        operation.attributes,
        operation.blocks,
        operation.place,
    )


def _affine(maker: Operation, producers: Mapping[str, Operation]) -> NDArray[np.float64]:
    """`(quantized_data - zero_point) * scale` along `axis`; its arguments are attributes in iOS 16 and 17."""
    data = _argument(maker, "quantized_data", producers).astype(np.float64)
    scale, zero = (_argument(maker, key, producers).astype(np.float64) for key in ("scale", "zero_point"))
    axis = int(_argument(maker, "axis", producers))
    shape = [data.shape[axis] if dimension == axis else 1 for dimension in range(data.ndim)]
    scale, zero = (value.reshape(shape) if value.size > 1 else value.reshape(()) for value in (scale, zero))
    return np.asarray((data - zero) * scale, dtype=np.float64)


def _blockwise(maker: Operation, producers: Mapping[str, Operation]) -> NDArray[np.float64]:
    """`(data - offset) * scale`; scale and offset repeat over blocks of equal size, along every axis."""
    data = _argument(maker, "data", producers).astype(np.float64)
    for key in ("offset", "scale"):
        if key == "offset" and key not in maker.inputs and key not in maker.attributes:
            continue
        value = _argument(maker, key, producers).astype(np.float64)
        for axis, size in enumerate(data.shape):
            value = np.repeat(value, size // value.shape[axis], axis=axis)
        data = data - value if key == "offset" else data * value
    return data


def _argument(maker: Operation, key: str, producers: Mapping[str, Operation]) -> NDArray[np.generic]:
    given: Argument | None = maker.attributes.get(key) or next(iter(maker.inputs.get(key, ())), None)
    if isinstance(given, str):
        given = producers[given].attributes.get("val") if given in producers else None
    if not isinstance(given, Constant):
        raise ExportError(f"{maker.type} '{maker.name}' in the saved package has no constant `{key}`; {STEM}")
    return given.array


def _compared(name: str, weight: NDArray[np.float64], operation: Operation, producers: Mapping[str, Operation]) -> WeightMatch:
    stored = stored_weights(operation, producers)
    factors = _factors(weight, stored)
    if factors is None:
        raise ExportError(f"the weights of '{name}' (shape {weight.shape}) are not in the saved package, whose '{operation.name}' has others; {STEM}")
    return WeightMatch(name, operation.name, _away_from_one(factors) > TOLERANCES[stored.precision])


def _search(name: str, weight: NDArray[np.float64], unclaimed: Mapping[str, Operation], producers: Mapping[str, Operation]) -> WeightMatch:
    found = []
    for operation in unclaimed.values():
        stored = stored_weights(operation, producers)
        factors = _factors(weight, stored)
        if factors is not None:
            found.append((_away_from_one(factors), operation.name, stored.precision))
    if not found:
        raise ExportError(f"the weights of '{name}' (shape {weight.shape}) are not in the saved package; {STEM}")
    away, operator, precision = min(found)
    return WeightMatch(name, operator, away > TOLERANCES[precision])


def _away_from_one(factors: NDArray[np.float64]) -> float:
    return float(np.abs(factors - 1).max(initial=0.0))


def _factors(expected: NDArray[np.float64], stored: StoredWeights) -> NDArray[np.float64] | None:
    """Per slice along either of the first two axes (output channels), the factor between the two; None if they are not proportional."""
    if stored.values.shape != expected.shape:
        return None
    tolerance = TOLERANCES[stored.precision]
    for axis in (0, 1):
        a, b = (np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1) for value in (expected, stored.values))
        norm = np.sum(a * a, axis=1)
        factors = np.where(norm > 0, np.sum(a * b, axis=1) / np.maximum(norm, 1e-30), 1.0)
        residual = np.linalg.norm(b - factors[:, None] * a, axis=1)
        if np.all(residual <= tolerance * np.linalg.norm(b, axis=1) + 1e-6):
            return np.asarray(factors, dtype=np.float64)
    return None
