"""Transpositions that undo each other: the converter leaves them around quantized values, where it does not look for them."""

from __future__ import annotations

import numpy as np

from mcompress.export.tflite_edit import OperatorObject, Sheet, numbers
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
