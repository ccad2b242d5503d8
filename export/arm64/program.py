"""Runs one TFLite file on test vectors, inside the emulated machine: `python program.py request.json`.

It stands alone, with numpy and tflite-runtime, and writes one line of JSON: an `Answer`. Mcompress itself takes `replaced` and the types from it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tflite_runtime.interpreter import Interpreter

Kernels = Literal["xnnpack", "builtin"]
QS8, QU8 = 1, 2
"""XNNPACK's flags for signed and unsigned 8-bit operators. TFLite is built with them for Android; tflite-runtime's own packages are not."""


class Request(TypedDict):
    """What to run; paths are absolute. Without a `file`, only what is there is said."""

    packages: str
    """The folder with numpy and tflite-runtime."""
    file: str
    kernels: Kernels
    """Whose: XNNPACK's, with INT8 as Android's library has it, or those built into TensorFlow Lite alone."""
    inputs: list[list[str]]
    """For each vector, raw little-endian values of the file's inputs, in its order, layouts and types."""
    outputs: list[str]
    """Where the output for each vector is written, likewise."""


class Answer(TypedDict, total=False):
    """What came of it."""

    runtime: str
    operators: int
    delegated: int
    """So many of them XNNPACK computes."""
    refused: str
    """What the runtime said when it did not take the file; nothing was computed then."""
    step: Literal["load", "run"]
    """Where it did."""


class _XnnpackOptions(ctypes.Structure):
    """The C structure, all zeros by default; newer fields behind these stay zero."""

    _fields_ = (("num_threads", ctypes.c_int32), ("flags", ctypes.c_uint32), ("more", ctypes.c_uint64 * 14))


class _Xnnpack:
    """The delegate inside the runtime's library, in the form that `Interpreter` takes."""

    def __init__(self) -> None:
        from tflite_runtime import _pywrap_tensorflow_interpreter_wrapper as library

        create = ctypes.CDLL(library.__file__).TfLiteXNNPackDelegateCreate
        create.restype = ctypes.c_void_p
        self._options = _XnnpackOptions(num_threads=1, flags=QS8 | QU8)
        pointer: int | None = create(ctypes.byref(self._options))
        if pointer is None:
            raise RuntimeError("the runtime cannot make its XNNPACK delegate")
        self._pointer = pointer

    def _get_native_delegate_pointer(self) -> int:
        return self._pointer


def answer(request: Request) -> Answer:
    """Load and run the file."""
    sys.path.insert(0, request["packages"])
    import numpy as np
    import tflite_runtime
    import tflite_runtime.interpreter  # the first time, without a file, Python compiles all that later runs need

    said: Answer = {"runtime": f"tflite-runtime {tflite_runtime.__version__}, numpy {np.__version__}"}
    if not request["file"]:
        return said
    try:
        interpreter = _opened(request["file"], request["kernels"])
    except (RuntimeError, ValueError) as error:
        return {**said, "step": "load", "refused": str(error)}
    details, (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    try:
        for sources, destination in zip(request["inputs"], request["outputs"]):  # noqa: B905  (the lists are made together)
            if len(sources) != len(details):
                raise ValueError(f"the vector holds {len(sources)} inputs; the file takes {len(details)}")
            for given, source in zip(details, sources):  # noqa: B905
                value = np.fromfile(source, dtype=given["dtype"]).reshape(given["shape"])
                interpreter.set_tensor(given["index"], value)
            interpreter.invoke()
            interpreter.get_tensor(result["index"]).tofile(destination)
    except (RuntimeError, ValueError) as error:
        return {**said, "step": "run", "refused": str(error)}
    operators = interpreter._get_ops_details()  # no public call lists operators
    return {**said, "operators": len(_own(operators)), "delegated": len(replaced(operators))}


def _opened(file: str, kernels: Kernels) -> Interpreter:
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    delegates = [_Xnnpack()] if kernels == "xnnpack" else []
    interpreter = Interpreter(model_path=file, num_threads=1, experimental_op_resolver_type=plain, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    return interpreter


def replaced(details: Sequence[dict[str, object]]) -> set[object]:
    """Indices of the operators that delegates replace, of what `_get_ops_details` lists: everything between a delegate's outputs and its inputs."""

    def tensors(operator: dict[str, object], end: str) -> list[int]:
        return [int(index) for index in operator[end] if index >= 0]  # type: ignore[attr-defined]

    makers = {tensor: operator for operator in _own(details) for tensor in tensors(operator, "outputs")}
    found: set[object] = set()
    for delegate in (operator for operator in details if operator["op_name"] == "DELEGATE"):
        given, left = set(tensors(delegate, "inputs")), tensors(delegate, "outputs")
        while left:
            maker = makers.get(left.pop())
            if maker is not None and maker["index"] not in found:
                found.add(maker["index"])
                left += [tensor for tensor in tensors(maker, "inputs") if tensor not in given]
    return found


def _own(details: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The file's operators."""
    return [operator for operator in details if operator["op_name"] != "DELEGATE"]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))) + "\n")
