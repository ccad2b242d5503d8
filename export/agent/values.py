"""The values that the inputs of a file are set to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from .protocol import Unusable
from .sizes import shown_shape

if TYPE_CHECKING:
    from types import ModuleType


def input_values(np: ModuleType, shape: Sequence[int], dtype: str) -> object:
    """Random values: 0 to 1 for real numbers, the whole range for 8-bit ones (quantized pictures), 0 or 1 for others (they may be indices)."""
    random = np.random.RandomState(0)
    try:
        if dtype.startswith("float"):
            return random.random_sample(tuple(shape)).astype(dtype)
        if dtype in ("int8", "uint8"):
            low = -128 if dtype == "int8" else 0
            return random.randint(low, low + 256, tuple(shape)).astype(dtype)
        if dtype == "bool" or dtype.startswith(("int", "uint")):
            return random.randint(0, 2, tuple(shape)).astype(dtype)
    except (MemoryError, ValueError) as problem:  # numpy raises either for an array that is too large
        raise Unusable("inputs of shape %s do not fit into memory" % shown_shape(shape)) from problem
    raise Unusable("the file has an input of type %s, for which no values can be made; allowed: real numbers, whole numbers, bool" % dtype)
