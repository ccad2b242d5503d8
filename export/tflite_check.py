"""Whether a .tflite file is sound, before the interpreter gets it: LiteRT trusts what it reads, and a damaged file can end the process."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from mcompress.errors import ExportError, UsageError
from mcompress.export.tables.tflite_file import decode
from mcompress.export.tflite_edit import Sheet, named, opened, shape_of

SIZES = {"FLOAT32": 4, "FLOAT16": 2, "INT32": 4, "INT64": 8, "INT8": 1, "UINT8": 1, "INT16": 2, "BOOL": 1}
"""Bytes of an element of the types whose buffers are compared with their shapes."""
_DAMAGED = (struct.error, ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError, MemoryError)
_MOST_BYTES = 2**40


def check(path: Path) -> None:
    """Raise `ExportError` for a file that contradicts itself: structure, sizes of constants, scales, numbers of tensors and buffers."""
    try:
        decode(path)
        wrong = _wrong(opened(path))
    except (UsageError, OSError) as problem:
        raise ExportError(f"{path.name} cannot be loaded: {problem}. Export it again.") from problem
    except _DAMAGED as problem:
        raise ExportError(f"{path.name} is damaged ({type(problem).__name__}: {problem}); export it again.") from problem
    if wrong:
        raise ExportError(f"{path.name} is damaged: {wrong}; export it again.")


def _wrong(sheet: Sheet) -> str:
    names = named("TensorType")
    for index, tensor in enumerate(sheet.tensors):
        what, shape = f"tensor {index}", shape_of(tensor)
        if tensor.type not in names or any(size < 0 for size in shape) or math.prod(shape) > _MOST_BYTES:
            return f"{what} has the type {tensor.type} and the shape {shape}"
        if not 0 <= tensor.buffer < len(sheet.model.buffers):
            return f"{what} names buffer {tensor.buffer}, and there are {len(sheet.model.buffers)}"
        data = sheet.model.buffers[tensor.buffer].data
        size = SIZES.get(names[tensor.type])
        if data is not None and len(data) and size is not None and len(data) != math.prod(shape) * size:
            return f"{what} of the type {names[tensor.type]} and the shape {shape} has {len(data)} bytes"
        wrong = _wrong_scales(tensor, shape)
        if wrong:
            return f"{what} {wrong}"
    return ""


def _wrong_scales(tensor: object, shape: tuple[int, ...]) -> str:
    found = getattr(tensor, "quantization", None)
    if found is None or found.scale is None or not len(found.scale):
        return ""
    scales = np.asarray(found.scale, dtype=np.float64).tolist()
    zero_points = [] if found.zeroPoint is None else list(found.zeroPoint)
    axis = int(found.quantizedDimension)
    if not all(math.isfinite(scale) and scale > 0 for scale in scales) or len(zero_points) not in (1, len(scales)):
        return f"has the scales {scales[:4]} and {len(zero_points)} zero points"
    if len(scales) > 1 and (not 0 <= axis < len(shape) or shape[axis] != len(scales)):
        return f"of the shape {shape} has {len(scales)} scales along dimension {axis}"
    return ""
