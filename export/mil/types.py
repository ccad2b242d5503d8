"""MIL's types of values, and numpy's for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Of any type: which one, only the file says."""
FloatArray = NDArray[np.float32]

DTYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    13: "bf16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""`DataType` of MIL.proto -> the name that MIL's `cast` uses."""

FEATURE_DTYPES = {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}
"""`ArrayFeatureType.ArrayDataType` of FeatureTypes.proto, how a model describes what it takes and gives -> the same names."""

NUMPY = {
    "bool": np.dtype(np.bool_),
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "fp64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}
"""What a value of the type is kept in. Types of less than a byte are unpacked into int8 and uint8."""

PACKED_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
"""Types of less than a byte, and their bits."""

FLOATS = ("fp16", "fp32", "fp64")


@dataclass(frozen=True)
class ValueType:
    """Type of a value of the program. A list (of strings, say) has the type of its members and `is_list`."""

    dtype: str
    """A name out of `DTYPES`."""
    shape: tuple[int | None, ...]
    """None for a size that the file leaves open."""
    is_list: bool = False

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{'list of ' if self.is_list else ''}{self.dtype}[{sizes}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape is of this type."""
        if shape == self.shape:
            return True
        return len(shape) == len(self.shape) and all(mine is None or mine == its for mine, its in zip(self.shape, shape, strict=True))

    def numpy_dtype(self) -> np.dtype[np.generic]:
        """What values of this type are kept in."""
        return NUMPY[stored_as(self.dtype)]


def stored_as(dtype: str) -> str:
    """The type that holds one unpacked value: `int8` for `int4`."""
    return {"int4": "int8"}.get(dtype, "uint8") if dtype in PACKED_BITS else dtype
