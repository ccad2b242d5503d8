"""What every runtime has: a module that may be missing, a version, and files that it opens or refuses."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, NamedTuple, Tuple, TypeVar

from .protocol import MissingRuntime, Operator, Unusable
from .sizes import Sizes

if TYPE_CHECKING:
    from types import ModuleType

Value = TypeVar("Value")

MISSING = {
    "onnx": "onnxruntime is not installed for {python}; install it with: {python} -m pip install onnxruntime numpy",
    "tflite": "neither ai-edge-litert nor tflite-runtime is installed for {python}; install one with: {python} -m pip install ai-edge-litert numpy",
    "executorch": "executorch is not installed for {python}; install it with: {python} -m pip install executorch",
}


class Loaded(NamedTuple):
    """A file ready to be executed: `run` executes it once on inputs that are set already."""

    runtime: str
    sizes: Sizes
    run: Callable[[], object]
    operators: Callable[[], Tuple[List[Operator], List[str]]]
    """Operator times from the runtime's profiler, and what it could not say. A second session: profiling would slow down the first."""


def imported(backend: str, name: str) -> ModuleType:
    """A runtime's module. Raises `MissingRuntime` with what to install, or with what is wrong with it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as problem:  # an OSError where a package loads its library itself
        absent = (problem.name or "").split(".")[0] if isinstance(problem, ModuleNotFoundError) else None
        if absent in (name.split(".")[0], "numpy"):
            raise MissingRuntime(MISSING[backend].format(python=sys.executable)) from problem
        raise MissingRuntime("%s is installed and cannot be loaded: %s" % (name, problem)) from problem


def opened(path: Path, call: Callable[[], Value]) -> Value:
    """What a runtime makes of a file. Raises `Unusable` with what it says instead."""
    try:
        return call()
    except Exception as problem:  # runtimes raise whatever they like
        said = "%s: %s" % (type(problem).__name__, str(problem).strip()[:1500])
        hint = "the file has %d bytes; if it is cut off or damaged, copy or export it again" % path.stat().st_size
        raise Unusable("the runtime cannot load it (%s); %s" % (said, hint)) from problem


def version(distribution: str) -> str:
    """Of an installed distribution, or of its nightly one."""
    from importlib import metadata

    for name in (distribution, distribution + "-nightly"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"
