"""Which operators of the plan an operator of a .tflite file stands for, from the file: weights, names of tensors, and who reads whom.

A convolution is recognised by its weights, which must be exactly those of the network, quantized or not. Everything else by the operators in its
result's name; an INT8 tensor's name ends with the operator whose value it holds, and the work of a file's operator is what the program does between
the values that it reads and the value that it gives. A name that does not fit what is read before it counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mcompress.export.tflite_edit import OperatorObject, Sheet, named, numbers, shape_of
from mcompress.export.tflite_kinds import BOUNDS, MOVING, WEIGHTED
from mcompress.export.tflite_names import operators_in
from mcompress.export.tflite_planned import Program
from mcompress.export.tflite_weights import by_weights, digest, is_proportional

CONVERSIONS = frozenset(("QUANTIZE", "DEQUANTIZE"))
CLAMPS = frozenset(("relu", "relu6", "clamp", "hardtanh"))
TRACELESS = frozenset(
    ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "slice", "clone", "contiguous", "getitem", "expand")
)
"""A converter that changes layouts can leave nothing of them; nobody does their work then."""
MOVES = TRACELESS | {"pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "cat", "max_pool2d", "pad", "constant_pad_nd", "select"}
CUTTING = frozenset(("SLICE", "STRIDED_SLICE"))
STEPPED = frozenset(("instance_norm", "pad"))
"""They take several operators of the format, one after another (`spelled_out`)."""
KINDS: Mapping[str, frozenset[str]] = {
    "CONV_2D": frozenset(("conv1d", "conv2d", "conv_transpose2d", "linear")),
    "DEPTHWISE_CONV_2D": frozenset(("conv1d", "conv2d")),
    "TRANSPOSE_CONV": frozenset(("conv_transpose2d",)),
    "FULLY_CONNECTED": frozenset(("linear",)),
    "ADD": frozenset(("add",)),
    "SUB": frozenset(("sub",)),
    "LEAKY_RELU": frozenset(("leaky_relu",)),
}
"""What the main operator behind these is called in the plan; others can stand for anything that their name says."""


@dataclass
class _Search:
    sheet: Sheet
    program: Program
    by_weights: Mapping[bytes, list[str]]
    makers: Mapping[int, OperatorObject]
    quantized: Mapping[int, str]
    """Float tensor -> the value that its quantized form is named after."""
    values: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Match:
    """What an operator of the file stands for, in execution order, and why it is nothing although it should be something."""

    stands_for: tuple[str, ...]
    reason: str = ""


def matched(sheet: Sheet, program: Program) -> list[Match]:
    """One for each operator of the file; conversions and what the converter added stand for nothing."""
    quantized = {
        int(operator.inputs[0]): names[0]
        for operator in sheet.operators
        if sheet.kind(operator) == "QUANTIZE" and (names := _names(sheet, int(operator.outputs[0]), program))
    }
    makers = makers_of(sheet)
    search = _Search(sheet, program, by_weights(program, _types_of_weights(sheet, makers)), makers, quantized)
    search.values.update(zip(sheet.inputs, program.inputs, strict=False))
    return [_match(search, operator) for operator in sheet.operators]


def _types_of_weights(sheet: Sheet, makers: Mapping[int, OperatorObject]) -> set[str]:
    places = {kind: place for kind, (_, place, _, _) in WEIGHTED.items()}
    behind = [constant_behind(sheet, makers, int(one.inputs[places[kind]])) for one in sheet.operators if (kind := sheet.kind(one)) in places]
    return {named("TensorType").get(sheet.tensors[tensor].type, "") for tensor in behind}


def makers_of(sheet: Sheet) -> dict[int, OperatorObject]:
    """Tensor -> the operator that makes it."""
    return {int(tensor): operator for operator in sheet.operators for tensor in operator.outputs}


def _match(search: _Search, operator: OperatorObject) -> Match:
    sheet, kind, result = search.sheet, search.sheet.kind(operator), int(operator.outputs[0])
    given = [search.values[tensor] for index in operator.inputs if (tensor := int(index)) in search.values]
    if kind in CONVERSIONS:
        if given:
            search.values[result] = given[0]
        return Match(())
    names = _names(sheet, result, search.program)
    head, wrong = _weighted(search, operator, kind, names)
    if wrong:
        return Match((), wrong)
    value = _certain(search, result, names)
    if head is not None and value not in _behind(search, head):
        value = _fused(search, head, names, operator)
    value = value or _named(search, kind, names, operator)
    if value is None:
        if len(set(given)) == 1 and kind in MOVING:
            search.values[result] = given[0]
        return Match(())
    planned = search.program.operators[value]
    clips = kind == "MAX_POOL_2D" and planned.kind in CLAMPS
    if kind in MOVING and planned.kind not in MOVES and not head and not clips and not (planned.kind in STEPPED and value in given):
        # Padding in front of the operator, the cut behind a transposed convolution, or a layout that the converter needed.
        search.values[result] = given[0] if given else value
        return Match(tuple(name for name in given if kind in CUTTING and _is_transposed(search, name)))
    search.values[result] = value
    found = (value,) if value in given else _between(search, value, given, names, head)
    last_steps = {name for name in given if name in names and name != value and _kind(search, name) in STEPPED}
    found = (*(name for name in search.program.operators if name in last_steps), *found)
    search.taken.update(found)
    return Match(found)


def _between(search: _Search, value: str, given: Sequence[str], names: Sequence[str], head: str | None) -> tuple[str, ...]:
    """What the program does after `given` up to `value`: what the name says, and what leaves no trace. Without a name, all of it."""
    found: set[str] = set()
    open_ends = [value]
    complete = True
    while open_ends:
        name = open_ends.pop()
        if name in found or name in given:
            continue
        if name not in search.program.operators:
            complete = False
            continue
        planned = search.program.operators[name]
        if name not in (value, head) and name not in names and names and planned.kind not in MOVES | CLAMPS:
            complete = False
            continue
        found.add(name)
        open_ends += planned.sources
    if not complete:
        found = {name for name in found if name in (value, head) or name in names}
    found -= {name for name in found if search.program.operators[name].kind in TRACELESS and name != value and name not in names}
    found |= {head} if head else set()
    return tuple(name for name in search.program.operators if name in found and (name not in search.taken or name in (value, head)))


def _certain(search: _Search, tensor: int, names: Sequence[str]) -> str | None:
    """The value of an INT8 tensor, of one that is quantized next, and of what the network gives."""
    if tensor in search.sheet.outputs and search.program.output in search.program.operators:
        return search.program.output
    if tensor in search.quantized:
        return search.quantized[tensor]
    if names and search.sheet.tensors[tensor].type == numbers("TensorType")["INT8"]:
        value = names[-1]
        while following := [name for name in _readers(search, value) if name in names and name not in search.taken]:
            value = following[0]  # a ReLU that was moved in front of the cut is named before its convolution
        return value
    return None


def _named(search: _Search, kind: str, names: Sequence[str], operator: OperatorObject) -> str | None:
    """The value of a float tensor, whose name can have operators too many: those that share a constant with it."""
    read = {search.values.get(int(tensor)) for tensor in operator.inputs}
    fitting = [name for name in names if search.program.operators[name].kind in KINDS.get(kind, {search.program.operators[name].kind})] or list(names)
    if kind in BOUNDS or kind in ("MAXIMUM", "MINIMUM"):
        # Clamps of equal bounds share their constants, and so their names: what is read decides.
        after = [name for name, one in search.program.operators.items() if one.kind in CLAMPS and set(one.sources) & read]
        fitting = [name for name in after if name in names] or [name for name in after if name not in search.taken] or fitting
    new = [name for name in fitting if name not in search.taken]
    begun = [name for name in fitting if name in read and _kind(search, name) in STEPPED]
    fitting = [name for name in new if set(search.program.operators[name].sources) & read] or begun or new or fitting
    return _fused(search, fitting[-1], names, operator) if fitting else None


def _fused(search: _Search, head: str, names: Sequence[str], operator: OperatorObject) -> str:
    """The last of the operators that were merged behind `head`: named with it and reading it, or the clamp that the operator's options have."""
    clamp = bool(getattr(operator.builtinOptions, "fusedActivationFunction", 0))
    value = head
    while True:
        readers = _readers(search, value)
        following = [name for name in readers if name in names and name not in search.taken and name != head]
        clamps = [name for name in readers if search.program.operators[name].kind in CLAMPS and name not in search.taken]
        if clamp and len(readers) == 1 and clamps:
            value, clamp = clamps[0], False
        elif len(readers) == 1 and following:
            value = following[0]
        else:
            return value


def _behind(search: _Search, head: str) -> set[str]:
    """`head` and everything that is computed from it alone, one reader after another."""
    found = {head}
    value = head
    while len(readers := _readers(search, value)) == 1 and readers[0] not in found:
        value = readers[0]
        found.add(value)
    return found


def _is_transposed(search: _Search, name: str) -> bool:
    """Whether this is a transposed convolution, or the clamp that was merged into one."""
    kind = _kind(search, name)
    return kind in KINDS["TRANSPOSE_CONV"] or (
        kind in CLAMPS and any(_kind(search, source) in KINDS["TRANSPOSE_CONV"] for source in search.program.operators[name].sources)
    )


def _kind(search: _Search, name: str) -> str:
    """Of an operator of the program; empty for an input of the network."""
    return search.program.operators[name].kind if name in search.program.operators else ""


def _readers(search: _Search, name: str) -> list[str]:
    return [other for other, one in search.program.operators.items() if name in one.sources]


def _weighted(search: _Search, operator: OperatorObject, kind: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The operator whose weights these are; or why they are nobody's."""
    if kind not in WEIGHTED:
        return None, ""
    tensor = constant_behind(search.sheet, search.makers, int(operator.inputs[WEIGHTED[kind][1]]))
    held = stored(search.sheet, tensor)
    if held is None:
        return None, ""
    same = search.by_weights.get(digest(held, scales_of(search.sheet, tensor)), [])
    chosen = [name for name in same if name in names] or [name for name in same if name not in search.taken] or same
    if chosen:
        return chosen[0], ""
    for name in names:
        one = search.program.operators[name]
        if any(is_proportional(held, form, axis) for form, axis in one.forms()):
            return name, ""
    return None, "its weights are not those of any operator of the network"


def constant_behind(sheet: Sheet, makers: Mapping[int, OperatorObject], tensor: int) -> int:
    """The constant itself, where a tensor is its dequantized form."""
    maker = makers.get(tensor)
    return int(maker.inputs[0]) if maker is not None and sheet.kind(maker) == "DEQUANTIZE" else tensor


def stored(sheet: Sheet, tensor: int) -> NDArray[np.generic] | None:
    """What a constant of float32, float16 or int8 holds; None for another tensor."""
    formats = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT8": "i1"}
    kind = named("TensorType").get(sheet.tensors[tensor].type, "")
    data = sheet.model.buffers[sheet.tensors[tensor].buffer].data
    if data is None or kind not in formats:
        return None
    return np.asarray(data, dtype=np.uint8).view(formats[kind]).reshape(shape_of(sheet.tensors[tensor]))


def scales_of(sheet: Sheet, tensor: int) -> NDArray[np.float32]:
    """The scales of a quantized tensor; none for another."""
    found = sheet.tensors[tensor].quantization
    return np.asarray([] if found is None or found.scale is None else found.scale, dtype=np.float32)


def _names(sheet: Sheet, tensor: int, program: Program) -> tuple[str, ...]:
    text = (sheet.tensors[tensor].name or b"").decode("utf-8", errors="replace")
    return tuple(name for name in operators_in(text) if name in program.operators)
