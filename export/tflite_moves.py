"""What the converter leaves where moves meet: transpositions that undo each other, and concatenations of more tensors than XNNPACK takes."""

from __future__ import annotations

import numpy as np

from mcompress.export.spelled_out import MOST_JOINED
from mcompress.export.tflite_edit import OperatorObject, Sheet, named, numbers, shape_of
from mcompress.export.tflite_match import makers_of


def without_round_trips(sheet: Sheet) -> None:
    """Let who reads a tensor that was transposed there and back read the one before, in place."""
    makers = makers_of(sheet)
    kept: list[OperatorObject] = []
    same: dict[int, int] = {}
    for operator in sheet.operators:
        operator.inputs = [same.get(int(tensor), int(tensor)) for tensor in operator.inputs]
        before = makers.get(operator.inputs[0]) if sheet.kind(operator) == "TRANSPOSE" else None
        if before is not None and sheet.kind(before) == "TRANSPOSE" and _undoes(sheet, operator, before):
            source, result = int(before.inputs[0]), int(operator.outputs[0])
            if result not in sheet.outputs:
                same[result] = source
                continue
            if source in makers and source not in sheet.outputs:
                sheet.tensors[source].name = sheet.tensors[result].name
                sheet.replace_port(result, source)
                continue
        kept.append(operator)
    sheet.operators = _without_unread(sheet, kept)


def narrow_concatenations(sheet: Sheet) -> None:
    """Join at most `MOST_JOINED` tensors at once, in place: the converter merges concatenations, and XNNPACK's delegate leaves the wide ones out."""
    written: list[OperatorObject] = []
    for operator in sheet.operators:
        if sheet.kind(operator) == "CONCATENATION":
            while len(operator.inputs) > MOST_JOINED:
                written.append(_joined_first(sheet, operator))
        written.append(operator)
    sheet.operators = written


def _joined_first(sheet: Sheet, operator: OperatorObject) -> OperatorObject:
    """A concatenation of the neighbours that are smallest together; its result stands in their place."""
    inputs, axis = [int(tensor) for tensor in operator.inputs], int(operator.builtinOptions.axis)
    count = min(MOST_JOINED, len(inputs) - MOST_JOINED + 1)
    sizes = [shape_of(sheet.tensors[tensor])[axis] for tensor in inputs]
    start = min(range(len(inputs) - count + 1), key=lambda first: sum(sizes[first : first + count]))
    chosen, result = inputs[start : start + count], sheet.tensors[int(operator.outputs[0])]
    shape = [sum(sizes[start : start + count]) if place == axis % len(result.shape) else int(size) for place, size in enumerate(result.shape)]
    made = sheet.add_tensor(result.name, shape, named("TensorType")[result.type], result.quantization)
    first = sheet.operator("CONCATENATION", sheet.version(operator), chosen, [made])
    first.builtinOptionsType, first.builtinOptions = operator.builtinOptionsType, operator.builtinOptions
    operator.inputs = [*inputs[:start], made, *inputs[start + count :]]
    return first


def _without_unread(sheet: Sheet, operators: list[OperatorObject]) -> list[OperatorObject]:
    read = {*sheet.outputs, *[tensor for operator in operators for tensor in operator.inputs]}
    kept = [operator for operator in operators if any(int(tensor) in read for tensor in operator.outputs)]
    return kept if len(kept) == len(operators) else _without_unread(sheet, kept)


def _undoes(sheet: Sheet, second: OperatorObject, first: OperatorObject) -> bool:
    there, back = _order(sheet, first), _order(sheet, second)
    return there is not None and back is not None and [there[axis] for axis in back] == sorted(there)


def _order(sheet: Sheet, operator: OperatorObject) -> list[int] | None:
    tensor = sheet.tensors[int(operator.inputs[1])]
    data = sheet.model.buffers[tensor.buffer].data
    if data is None or tensor.type != numbers("TensorType")["INT32"]:
        return None
    return [int(axis) for axis in np.asarray(data, dtype=np.uint8).view("<i4")]
