"""A saved Core ML package as a runner: executed by our own evaluator, on any system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import FloatArray, Port, encode_all, layout_of
from mcompress.export.mil import EVALUATOR
from mcompress.export.mil.evaluate import Arithmetic, Evaluation
from mcompress.export.mil.program import MilProgram, Value, read_program

_RUNTIMES: dict[Arithmetic, str] = {
    "as written": f"{EVALUATOR}, simulated FP16",
    "fp32": f"{EVALUATOR}, FP32",
}


class MilRunner:
    """What `Runner` in export/backend.py asks for, for a package with one output. Uses numpy's threads.

    `as written` simulates the FP16 of the file, `fp32` computes everything in FP32. Raises `ExportError` for a damaged package and for operators that
    cannot be computed, all of them named.
    """

    def __init__(self, path: Path, arithmetic: Arithmetic = "as written") -> None:
        self.program: MilProgram = read_program(path)
        self._evaluation = Evaluation(self.program, arithmetic)
        if not self.program.inputs or len(self.program.outputs) != 1:
            counts = f"{len(self.program.inputs)} inputs and {len(self.program.outputs)} outputs"
            raise ExportError(f"{path} has {counts}; a runner takes inputs and one output")
        self.runtime = _RUNTIMES[arithmetic]
        self.inputs: tuple[Port, ...] = tuple(_port(value, path) for value in self.program.inputs)
        self.outputs: tuple[Port, ...] = (_port(self.program.outputs[0], path),)

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Inputs of the package's own types and layout (NCHW); its output in its type."""
        (result,) = self._evaluation.outputs(self._by_name(encoded)).values()
        return result.astype(self.outputs[0].dtype)

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(*encode_all(self.inputs, values)))

    def in_fp32(self) -> MilRunner:
        """The same package with FP32 arithmetic."""
        return MilRunner(self.program.path, "fp32")

    def intermediates(self, *encoded: NDArray[np.generic]) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Every tensor that the program computes, by its name in the file (that of the operation's output), in execution order.

        Constants are left out. Each is freed after its last reader, unless the caller keeps it; none may be changed in place.
        """
        for _, results in self._evaluation.steps(self._by_name(encoded)):
            yield from results.items()

    def _by_name(self, encoded: Sequence[NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return {port.name: one for port, one in zip(self.inputs, encoded, strict=True)}


def _port(value: Value, path: Path) -> Port:
    sizes = tuple(size for size in value.type.shape if size is not None)
    if len(sizes) != len(value.type.shape):
        raise ExportError(f"{path} leaves sizes of '{value.name}' open ({value.type}); only packages of fixed sizes can be run")
    return Port(value.name, sizes, value.type.numpy_dtype().name, layout_of(sizes))
