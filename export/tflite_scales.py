"""Scales of a .tflite file's INT8 tensors: of one tensor, and of the output channels of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN
from mcompress.export.tflite_edit import Sheet

FloatArray = NDArray[np.float32]
WEIGHT_MAX = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero_point), q in [-128, 127]."""

    scale: float
    zero_point: int

    def quantized(self, values: NDArray[np.float64]) -> NDArray[np.int8]:
        """The nearest INT8 numbers, clipped."""
        return np.asarray(np.clip(np.rint(values / self.scale) + self.zero_point, INT8_MIN, INT8_MAX), dtype=np.int8)


def scale_of(sheet: Sheet, tensor: int) -> Scale | None:
    """The scale of a tensor that has one for all of it; None for another."""
    if tensor < 0:
        return None
    found = sheet.tensors[tensor].quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return None
    return Scale(float(found.scale[0]), int(found.zeroPoint[0]))


def quantized_weights(values: FloatArray, axis: int) -> tuple[NDArray[np.int8], FloatArray]:
    """Symmetric INT8 per output channel (dimension `axis`) and the scales: the largest magnitude of a channel is 127, as in `fake_quant`."""
    other = tuple(dimension for dimension in range(values.ndim) if dimension != axis)
    scales = np.maximum(np.abs(values).max(other) / np.float32(WEIGHT_MAX), np.float32(_SMALLEST_SCALE)).astype(np.float32)
    spread = scales.reshape([-1 if dimension == axis else 1 for dimension in range(values.ndim)])
    return np.clip(np.rint(values * (np.float32(1) / spread)), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8), scales


def parameters(scales: FloatArray, zero_point: int, axis: int) -> schema.QuantizationParametersT:
    """Scales along dimension `axis`, or one for all, as the file has them."""
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint = [float(scale) for scale in scales], [zero_point] * len(scales)
    made.quantizedDimension = axis
    return made
