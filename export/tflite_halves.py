"""Weights in float16 for the operators that the plan makes fp16.

The format has no fp16 kernels. Weights are stored as float16 behind a DEQUANTIZE, which runtimes fold: that halves them. Whether the operators are
then computed in fp16 is the note `reduced_precision_support` of the file: for `fp16accfp16`, XNNPACK computes a partition in fp16 if the processor
can (Armv8.2 and newer) and no operator of the partition is INT8 (tensorflow/lite/delegates/xnnpack/xnnpack_delegate.cc, XNNPACK's
src/subgraph.c). It is one note for the whole file, so it is set only where the plan keeps nothing in fp32. On the GPU the app chooses: the delegate
computes in fp16 unless its option `inference_priority1` is MAX_PRECISION (tensorflow/lite/delegates/gpu/delegate_options.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.export.tflite_edit import OperatorObject, Sheet, shape_of
from mcompress.export.tflite_kinds import WEIGHTED

NOTE = "reduced_precision_support"
NOTE_VALUE = b"fp16accfp16"
LARGEST = float(np.finfo(np.float16).max)
_VERSION = 3
_RUNTIME = "1.15.0"


def half_weights(sheet: Sheet, plan: PrecisionPlan, output: str) -> None:
    """Store the weights of operators planned fp16 as float16, in place, and set the note if every float operator is planned fp16.

    `output` is the operator whose value the network gives: the graph's own output has no name of an operator.
    """
    planned = {operator.name: operator.precision for operator in plan.operators}
    conversions: list[OperatorObject] = []
    made: dict[int, int] = {}
    too_large = False
    for operator in sheet.operators:
        kind = sheet.kind(operator)
        result = int(operator.outputs[0])
        names = [name for name in ((output,) if result in sheet.outputs else sheet.names(result)) if name in planned]
        if kind not in WEIGHTED or not sheet.is_float(result) or not names or any(planned[name] == "fp32" for name in names):
            continue
        place = WEIGHTED[kind][1]
        tensor = int(operator.inputs[place])
        values = sheet.constant(tensor)
        if values is None:
            continue
        if float(np.abs(values).max(initial=0.0)) > LARGEST:
            too_large = True
            continue
        if tensor not in made:
            made[tensor] = _halved(sheet, tensor, conversions)
        operator.inputs = _with(operator.inputs, place, made[tensor])
    sheet.operators = [*conversions, *sheet.operators]
    if conversions:
        sheet.at_least_runtime([_RUNTIME])
    if not too_large and "fp16" in planned.values() and "fp32" not in planned.values():
        sheet.note(NOTE, NOTE_VALUE)


def _halved(sheet: Sheet, tensor: int, conversions: list[OperatorObject]) -> int:
    """The float32 tensor that a new DEQUANTIZE makes of the constant's float16 form."""
    name, shape = sheet.tensors[tensor].name, shape_of(sheet.tensors[tensor])
    values = np.asarray(sheet.constant(tensor), dtype=np.float32).astype(np.float16)
    half = sheet.add_tensor(name, shape, "FLOAT16", None, values)
    whole = sheet.add_tensor(name, shape, "FLOAT32", None)
    conversions.append(sheet.operator("DEQUANTIZE", _VERSION, [half], [whole]))
    return whole


def _with(tensors: Sequence[int], place: int, tensor: int) -> list[int]:
    return [tensor if index == place else int(old) for index, old in enumerate(tensors)]
