"""Executing .tflite files with LiteRT or TensorFlow Lite's own runtime."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, List, Tuple

from .litert_profiler import litert_operators
from .protocol import MissingRuntime, Operator, Unusable, WrongInput
from .runtimes import Loaded, imported, opened, version
from .sizes import Asked, shown_shape, sizes_of
from .values import input_values

if TYPE_CHECKING:
    from types import ModuleType

NO_TFLITE_PROFILER = "no operator times: {runtime} gives Python no profiler; install ai-edge-litert 2 or newer there, or use benchmark_model"


def load_tflite(path: Path, threads: int, asked: Asked) -> Loaded:
    """An interpreter with the runtime's default delegate (XNNPACK), its inputs set."""
    np = imported("tflite", "numpy")
    module, name = tflite_package()
    interpreter = opened(path, lambda: module.Interpreter(model_path=str(path), num_threads=threads))
    details = interpreter.get_input_details()
    stated = [[int(size) for size in (one["shape_signature"] if len(one.get("shape_signature", ())) else one["shape"])] for one in details]
    sizes = sizes_of([(one["name"], shape) for one, shape in zip(details, stated)], asked)
    resized = {one["name"]: sized["shape"] for one, shape, sized in zip(details, stated, sizes.inputs) if min(shape, default=1) < 1}
    for one in details:
        if one["name"] in resized:
            interpreter.resize_tensor_input(one["index"], resized[one["name"]])
    if resized:
        try:
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as problem:
            shown = " and ".join("%s=%s" % (one["name"], shown_shape(one["shape"])) for one in sizes.inputs)
            kind = WrongInput if asked.inputs else Unusable
            raise kind("the runtime does not take inputs of shape %s: %s" % (shown, str(problem).strip()[:1500])) from problem
    else:
        opened(path, interpreter.allocate_tensors)
    for one, sized in zip(details, sizes.inputs):
        interpreter.set_tensor(one["index"], input_values(np, sized["shape"], np.dtype(one["dtype"]).name))
    runtime = "%s %s CPU" % (name, version(name))

    def operators() -> Tuple[List[Operator], List[str]]:
        library = Path(str(module.__file__)).with_name("libLiteRt.so")
        if not library.exists():
            return [], [NO_TFLITE_PROFILER.format(runtime=runtime)]
        return litert_operators(library, path, threads, resized)

    return Loaded(runtime, sizes, interpreter.invoke, operators)


def tflite_package() -> Tuple[ModuleType, str]:
    """The module that has the interpreter, and the distribution that it is of. Raises `MissingRuntime`."""
    try:
        return imported("tflite", "ai_edge_litert.interpreter"), "ai-edge-litert"
    except MissingRuntime:
        try:
            return importlib.import_module("tflite_runtime.interpreter"), "tflite-runtime"
        except (ImportError, OSError):
            pass
        raise  # what is wrong with the newer one is what is to be mended
