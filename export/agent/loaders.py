"""Which runtime executes the files of which backend."""

from __future__ import annotations

import importlib

from .executorch_files import load_executorch
from .onnx_files import load_onnx
from .runtimes import version
from .tflite_files import load_tflite, tflite_package

LOADERS = {"onnx": load_onnx, "tflite": load_tflite, "executorch": load_executorch}
PRELOADED = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert.interpreter",),
    "executorch": ("torch", "executorch.extension.pybindings._portable_lib"),
}


def runtime_of(backend: str) -> str:
    """As `Result.runtime`, without a file. Raises `MissingRuntime`."""
    name = tflite_package()[1] if backend == "tflite" else {"onnx": "onnxruntime", "executorch": "executorch"}[backend]
    return "%s %s CPU" % (name, version(name))


def preload(backend: str) -> bool:
    """Import the runtime; False where it cannot be imported, which the loader says with its reason."""
    try:
        for name in PRELOADED.get(backend, ()):
            importlib.import_module(name)
    except (ImportError, OSError):
        return False
    return True
