"""INT8 kernels for exactly the operators that the plan makes INT8.

The converter leaves every INT8 operator as a float operator between a DEQUANTIZE and a QUANTIZE at the plan's scales (its own INT8 mode would make
INT8 of everything that stands between two such pairs, also of what the plan keeps in float). Here those that the plan says become the format's INT8
operators: weights INT8 per output channel, bias INT32, activations at the scales of the conversions around them, which go away. What moves values
follows; a clamp that clips nothing which INT8 could hold goes away. A conversion stays where an INT8 and a float operator meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, PrecisionPlan
from mcompress.export.tflite_edit import OperatorObject, Sheet, shape_of
from mcompress.export.tflite_kinds import ARITHMETIC, BOUNDS, IMAGE, LIMITS, MOVING, SINGLE_POOLS, WEIGHTED, runtime_of, single_pool, version_of
from mcompress.export.tflite_scales import WEIGHT_MAX, FloatArray, Scale, parameters, quantized_weights, scale_of

_REQUANTIZE_VERSION = 2


@dataclass
class _Work:
    """Walks the operators once; `stored` has the float tensors that are dequantized INT8 tensors."""

    sheet: Sheet
    plan: Mapping[str, str]
    readers: dict[int, list[OperatorObject]]
    stored: dict[int, int] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    """INT8 tensor -> the one that holds the same numbers."""
    floats: set[int] = field(default_factory=set)
    """Float tensors that were dequantized already."""
    done: list[OperatorObject] = field(default_factory=list)
    weights: dict[tuple[int, int], tuple[int, FloatArray]] = field(default_factory=dict)
    runtimes: set[str] = field(default_factory=set)


def integer_kernels(sheet: Sheet, plan: PrecisionPlan) -> None:
    """Make INT8 operators of those that `plan` says, in place; inputs and outputs of the graph that only INT8 operators touch become INT8."""
    readers: dict[int, list[OperatorObject]] = {}
    for operator in sheet.operators:
        for tensor in operator.inputs:
            readers.setdefault(int(tensor), []).append(operator)
    work = _Work(sheet, {operator.name: operator.precision for operator in plan.operators}, readers)
    for tensor in sheet.inputs:
        scale = _wanted(work, tensor)
        if scale is not None:
            _store(work, tensor, scale)
            sheet.replace_port(tensor, work.stored[tensor])
            sheet.tensors[work.stored[tensor]].name = sheet.tensors[tensor].name
    for operator in sheet.operators:
        _take(work, operator)
    for tensor in sheet.outputs:
        held = work.stored.get(tensor)
        if held is not None and tensor not in work.floats:
            sheet.tensors[held].name = sheet.tensors[tensor].name
            sheet.replace_port(tensor, held)
    sheet.operators = work.done
    sheet.at_least_runtime(work.runtimes)


def _take(work: _Work, operator: OperatorObject) -> None:
    kind = work.sheet.kind(operator)
    if kind == "DEQUANTIZE" and scale_of(work.sheet, _first(operator.inputs)) is not None:
        work.stored[_first(operator.outputs)] = _held(work, _first(operator.inputs))
    elif kind == "QUANTIZE" and _first(operator.inputs) in work.stored:
        _requantize(work, operator)
    elif _is_planned(work, operator) and (_moved(work, operator, kind) or _clamped(work, operator, kind) or _computed(work, operator, kind)):
        return
    else:
        for tensor in dict.fromkeys(int(index) for index in operator.inputs):
            _dequantize(work, tensor)
        operator.inputs = [_held(work, int(index)) for index in operator.inputs]
        work.done.append(operator)


def _is_planned(work: _Work, operator: OperatorObject) -> bool:
    """Whether all of the plan's operators that it is part of, by its own name and by that of the value that is then quantized, are INT8."""
    (result,) = [int(index) for index in operator.outputs][:1] or [-1]
    behind = [reader for reader in work.readers.get(result, []) if work.sheet.kind(reader) == "QUANTIZE"]
    value = [name for reader in behind for name in work.sheet.names(_first(reader.outputs))]
    # A merged operator may carry the name of one that shares a constant with it: the value behind it is certain.
    names = value or work.sheet.names(result)
    return len(operator.outputs) == 1 and all(work.plan.get(name, "int8") == "int8" for name in names)


def _moved(work: _Work, operator: OperatorObject, kind: str) -> bool:
    given = [int(index) for index in operator.inputs if work.sheet.is_float(int(index))]
    held = [work.stored.get(tensor) for tensor in given]
    scales = {scale_of(work.sheet, tensor) for tensor in held if tensor is not None}
    if kind not in MOVING or None in held or len(scales) != 1:
        return False
    (scale,) = scales
    _emit(work, operator, kind, scale)
    return True


def _clamped(work: _Work, operator: OperatorObject, kind: str) -> bool:
    source, result = _first(operator.inputs), _first(operator.outputs)
    held = work.stored.get(source)
    given, wanted = (scale_of(work.sheet, held) if held is not None else None), _wanted(work, result)
    limit = work.sheet.constant(int(operator.inputs[1])) if kind in LIMITS else None
    if given is None or held is None or (kind not in BOUNDS and (limit is None or limit.size != 1)):
        return False
    low, high = BOUNDS.get(kind, (-np.inf, np.inf))
    if limit is not None:
        low, high = (float(limit.item()), np.inf) if kind == "MAXIMUM" else (-np.inf, float(limit.item()))
    inside = low <= given.scale * (INT8_MIN - given.zero_point) and high >= given.scale * (INT8_MAX - given.zero_point)
    if wanted in (None, given) and (inside or _keeps_all(given, low, high)):
        work.stored[result] = held
        if work.sheet.names(result):
            work.sheet.tensors[held].name = (work.sheet.tensors[held].name or b"") + b";" + (work.sheet.tensors[result].name or b"")
        return True
    if kind in LIMITS and wanted != given and wanted is not None:
        return False
    if kind == "RELU" and wanted in (None, given) and len(shape_of(work.sheet.tensors[source])) == IMAGE:
        # XNNPACK's delegate takes an INT8 ReLU only inside another operator: the pooling of single elements is none of its own there.
        operator.builtinOptionsType, operator.builtinOptions = SINGLE_POOLS, single_pool()
        kind = "MAX_POOL_2D"
    _emit(work, operator, kind, wanted or given, constants=(1,) if kind in LIMITS else ())
    return True


def _keeps_all(scale: Scale, low: float, high: float) -> bool:
    """Whether rounding the bounds to INT8 leaves every number as it is."""
    ends = scale.quantized(np.clip(np.array([low, high]), -1e30, 1e30))
    return bool(ends[0] <= INT8_MIN and ends[1] >= INT8_MAX)


def _computed(work: _Work, operator: OperatorObject, kind: str) -> bool:
    scale = _wanted(work, _first(operator.outputs))
    if scale is None:
        return False
    if kind in ARITHMETIC:
        given = [int(index) for index in operator.inputs]
        constants = tuple(place for place, tensor in enumerate(given) if (found := work.sheet.constant(tensor)) is not None and found.size == 1)
        if any(tensor not in work.stored and place not in constants for place, tensor in enumerate(given)):
            return False
        _emit(work, operator, kind, scale, constants=constants)
        return True
    if kind not in WEIGHTED:
        return False
    activation, weights, bias, axis = WEIGHTED[kind]
    inputs = [int(index) for index in operator.inputs]
    held, values = work.stored.get(inputs[activation]), work.sheet.constant(inputs[weights])
    offset = inputs[bias] if len(inputs) > bias else -1
    given_scale = scale_of(work.sheet, held) if held is not None else None
    if given_scale is None or values is None or (offset >= 0 and work.sheet.constant(offset) is None):
        return False
    inputs[weights], scales = _weights(work, inputs[weights], axis)
    if offset >= 0:
        inputs[bias] = _bias(work, offset, scales, given_scale)
    operator.inputs = inputs
    _emit(work, operator, kind, scale)
    return True


def _weights(work: _Work, tensor: int, axis: int) -> tuple[int, FloatArray]:
    """The INT8 weights of a float constant: symmetric, the largest magnitude of an output channel is 127."""
    if (tensor, axis) not in work.weights:
        integers, scales = quantized_weights(np.asarray(work.sheet.constant(tensor), dtype=np.float32), axis)
        made = work.sheet.add_tensor(work.sheet.tensors[tensor].name, integers.shape, "INT8", parameters(scales, 0, axis), integers)
        work.weights[tensor, axis] = made, scales
    return work.weights[tensor, axis]


def _bias(work: _Work, tensor: int, scales: FloatArray, given: Scale) -> int:
    values, steps = np.asarray(work.sheet.constant(tensor), dtype=np.float64), scales * np.float32(given.scale)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(values / steps.astype(np.float64)), limits.min, limits.max).astype(np.int32)
    return work.sheet.add_tensor(work.sheet.tensors[tensor].name, values.shape, "INT32", parameters(steps, 0, 0), integers)


def _emit(work: _Work, operator: OperatorObject, kind: str, scale: Scale | None, *, constants: Sequence[int] = ()) -> None:
    """Let the operator read and give INT8; `constants` are places of inputs that are one number."""
    if scale is None:
        return
    result, inputs = _first(operator.outputs), [int(index) for index in operator.inputs]
    for place in constants:
        value = np.asarray(work.sheet.constant(inputs[place]), dtype=np.float64)
        # A factor is 127 or -127 at its own scale, which is exact; a bound is compared with the values, and has theirs.
        own = scale if kind in LIMITS else Scale(float(np.float32(max(float(np.abs(value).max()), 1e-12) / WEIGHT_MAX)), 0)
        integers = own.quantized(value)
        packed = parameters(np.array([own.scale], np.float32), own.zero_point, 0)
        inputs[place] = work.sheet.add_tensor(work.sheet.tensors[inputs[place]].name, value.shape, "INT8", packed, integers)
    operator.inputs = [work.stored.get(tensor, tensor) for tensor in inputs]
    _store(work, result, scale)
    operator.outputs = [work.stored[result]]
    version = max(work.sheet.version(operator), version_of(kind)) if kind != "MUL" else version_of(kind)
    operator.opcodeIndex = work.sheet.code(kind, version)
    work.runtimes.add(runtime_of(kind))
    work.done.append(operator)


def _store(work: _Work, tensor: int, scale: Scale) -> None:
    """Add the INT8 tensor whose dequantized form `tensor` is; it is named after the operators that make it and the value that it holds."""
    names = [work.sheet.tensors[tensor].name or b""]
    names += [
        work.sheet.tensors[_first(reader.outputs)].name or b"" for reader in work.readers.get(tensor, []) if work.sheet.kind(reader) == "QUANTIZE"
    ]
    packed = parameters(np.array([scale.scale], np.float32), scale.zero_point, 0)
    work.stored[tensor] = work.sheet.add_tensor(b";".join(names), shape_of(work.sheet.tensors[tensor]), "INT8", packed)


def _requantize(work: _Work, operator: OperatorObject) -> None:
    """A QUANTIZE of a tensor that is INT8 already: nothing at the same scale, otherwise a conversion between two scales."""
    source, result = work.stored[_first(operator.inputs)], _first(operator.outputs)
    if scale_of(work.sheet, source) == scale_of(work.sheet, result):
        work.same[result] = source
        return
    operator.inputs = [source]
    operator.opcodeIndex = work.sheet.code("QUANTIZE", _REQUANTIZE_VERSION)
    work.done.append(operator)


def _dequantize(work: _Work, tensor: int) -> None:
    if tensor in work.stored and tensor not in work.floats:
        work.floats.add(tensor)
        work.done.append(work.sheet.operator("DEQUANTIZE", 2, [work.stored[tensor]], [tensor]))


def _held(work: _Work, tensor: int) -> int:
    while tensor in work.same:
        tensor = work.same[tensor]
    return tensor


def _wanted(work: _Work, tensor: int) -> Scale | None:
    """The one scale at which all that reads a float tensor quantizes it, directly or through what moves or clips values; None if not all do."""
    if tensor in work.sheet.outputs:
        return None
    found: set[Scale | None] = set()
    for reader in work.readers.get(tensor, []):
        kind = work.sheet.kind(reader)
        if kind == "QUANTIZE":
            found.add(scale_of(work.sheet, _first(reader.outputs)))
        elif kind in MOVING or (kind in LIMITS and tensor == _first(reader.inputs)):
            found.add(_wanted(work, _first(reader.outputs)) if _is_planned(work, reader) else None)
        else:
            found.add(None)
    return found.pop() if len(found) == 1 else None


def _first(tensors: Sequence[int]) -> int:
    return int(tensors[0])
