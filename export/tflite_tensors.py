"""What every operator of a .tflite file gives: for finding the first one that is wrong.

LiteRT keeps results inside its XNNPACK delegate to itself; its way to see them is to run without the delegate, in other kernels than an app runs.
Here the file is changed instead, in memory: every operator's result becomes an output, so that the delegate has to give it away. Those are the
kernels that the file runs in; only what XNNPACK would merge across operators by itself is computed step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcompress.export.backend import BackendCall

FloatArray = NDArray[np.float32]
_READABLE = ("FLOAT32", "INT8")
_IMAGE = 4


def intermediates(path: Path, encoded: Sequence[NDArray[np.generic]], threads: int = 1) -> dict[str, FloatArray]:
    """The result of every operator for inputs of the file's own types and layouts, by `FileOperator.output`.

    float32 in the file's layout (`in_layout_of` helps); INT8 results as the numbers that they stand for. All of them are in memory at once.
    Raises `ExportError` for a file that cannot be run.
    """
    with BackendCall("tflite", f"look into {path.name}", "The file may be damaged; export it again."):
        from ai_edge_litert.interpreter import Interpreter

        from mcompress.export import tflite_edit
        from mcompress.export.tflite_check import check

        check(path)
        sheet = tflite_edit.opened(path)
        readable = {tflite_edit.numbers("TensorType")[name] for name in _READABLE}
        found = [int(tensor) for operator in sheet.operators for tensor in operator.outputs]
        seen = [tensor for tensor in dict.fromkeys(found) if sheet.tensors[tensor].type in readable]
        sheet.model.subgraphs[0].outputs = seen
        sheet.model.signatureDefs = []
        interpreter = Interpreter(model_content=tflite_edit.packed(sheet), num_threads=threads)
        interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), encoded, strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        return {str(detail["index"]): _real(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()}


def in_layout_of(value: FloatArray, expected: FloatArray) -> FloatArray | None:
    """`value` in the layout of the NCHW array `expected`: as it is or from NHWC, whichever is nearer; None where neither has its shape."""
    forms = [value] if value.shape == expected.shape else []
    if value.ndim == _IMAGE and tuple(value.shape[axis] for axis in (0, 3, 1, 2)) == expected.shape:
        forms.append(value.transpose(0, 3, 1, 2))
    return min(forms, key=lambda form: float(np.abs(form - expected).mean()), default=None)


def _real(value: NDArray[np.generic], detail: dict[str, object]) -> FloatArray:
    scale, zero_point = np.asarray(detail["quantization"], dtype=np.float64)
    values = np.asarray(value, dtype=np.float32)
    return (values - np.float32(zero_point)) * np.float32(scale) if scale else values
