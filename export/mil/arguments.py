"""The arguments of one operation while it is computed: arrays for what the program computed, and constants as what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mcompress.errors import ExportError
from mcompress.export.mil.program import Operation
from mcompress.export.mil.types import NUMPY, Array, FloatArray

Given = Array | str | tuple[str, ...]


class Arguments:
    """What an operation reads. All methods raise `ExportError` for an argument that is missing or of another kind.

    An operator reads every argument that it knows, or says that it is `without_meaning`; `check_all_known` refuses what is left.
    """

    def __init__(self, operation: Operation, given: Mapping[str, tuple[Given, ...]]) -> None:
        self._operation, self._given = operation, given
        self._known: set[str] = set()

    @property
    def out_shape(self) -> tuple[int | None, ...]:
        """Shape of the first output as the file states it."""
        return self._operation.outputs[0].type.shape

    @property
    def out_dtype(self) -> str:
        """MIL's type of the first output as the file states it."""
        return self._operation.outputs[0].type.dtype

    @property
    def out_count(self) -> int:
        """How many outputs the file states."""
        return len(self._operation.outputs)

    def has(self, name: str) -> bool:
        """Whether the argument is given."""
        return bool(self._given.get(name))

    def stored(self, name: str) -> Array:
        """An array as it is kept: fp16 stays fp16. For operators that only move values."""
        value = self._one(name)
        if not isinstance(value, np.ndarray):
            raise self.wrong(f"its argument {name} is a text, {value!r}; numbers are needed")
        return value

    def array(self, name: str) -> Array:
        """An array to compute with: fp16 becomes fp32, everything else stays."""
        return computable(self.stored(name))

    def floats(self, name: str) -> FloatArray:
        """An array in fp32."""
        return np.asarray(self.stored(name), dtype=np.float32)

    def floats_if_given(self, name: str) -> FloatArray | None:
        """The same, or None."""
        return self.floats(name) if self.has(name) else None

    def several(self, name: str) -> list[Array]:
        """All arrays of an argument that takes several, as they are kept."""
        values = self._all(name)
        if not values or not all(isinstance(value, np.ndarray) for value in values):
            raise self.wrong(f"its argument {name} must be arrays")
        return [value for value in values if isinstance(value, np.ndarray)]

    def number(self, name: str, default: float | None = None) -> float:
        """One number."""
        return float(self._single(name)) if self.has(name) or default is None else default

    def integer(self, name: str, default: int | None = None) -> int:
        """One integer."""
        return int(self._single(name)) if self.has(name) or default is None else default

    def flag(self, name: str, *, default: bool) -> bool:
        """One truth value."""
        return bool(self._single(name)) if self.has(name) else default

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of integers; a scalar counts as a vector of one."""
        if not self.has(name) and default is not None:
            return list(default)
        return [int(value) for value in self.stored(name).ravel().tolist()]

    def text(self, name: str, default: str | None = None) -> str:
        """One text."""
        if not self.has(name) and default is not None:
            return default
        value = self._one(name)
        if not isinstance(value, str):
            raise self.wrong(f"its argument {name} must be a text")
        return value

    def dtype(self, name: str, default: str | None = None) -> np.dtype[np.generic]:
        """What values of the type that a text names are kept in."""
        wanted = self.text(name, default)
        if wanted not in NUMPY:
            raise self.wrong(f"its {name} is '{wanted}'; known are {', '.join(sorted(NUMPY))}")
        return NUMPY[wanted]

    def without_meaning(self, *names: str) -> None:
        """Arguments that the operator knows, and that change nothing here, given or not."""
        self._known.update(names)

    def check_all_known(self) -> None:
        """Raise `ExportError` naming the arguments that the operator, computed before, passed over: its result would be a guess."""
        if self._known.issuperset(self._given):
            return
        strange = sorted(name for name, values in self._given.items() if values and name not in self._known)
        if strange:
            raise self.wrong(f"it has arguments that are not known here: {', '.join(strange)}. Only Core ML itself can run this program")

    def wrong(self, what: str) -> ExportError:
        """An error that says which operation it is."""
        return ExportError(f"{self._operation.type} '{self._operation.name}' ({self._operation.place}): {what}")

    def _single(self, name: str) -> Array:
        value = np.asarray(self.stored(name))
        if value.size != 1:
            raise self.wrong(f"its argument {name} must be one number and has {value.size}")
        return value.reshape(())

    def _one(self, name: str) -> Given:
        values = self._all(name)
        if len(values) != 1:
            raise self.wrong(f"it needs one {name} and has {len(values)}")
        return values[0]

    def _all(self, name: str) -> tuple[Given, ...]:
        self._known.add(name)
        return self._given.get(name, ())


Operator = Callable[[Arguments], "Array | tuple[Array, ...]"]
"""Computes the outputs of an operation, in fp32 where they are floating-point; the evaluator rounds them to what the file states."""


def computable(value: Array) -> Array:
    """Half precision as single; everything else as it is."""
    return value.astype(np.float32) if value.dtype == np.float16 else value
