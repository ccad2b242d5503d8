"""The generated protobuf classes of Core ML's model format, without the rest of coremltools.

`import coremltools` imports torch and takes seconds. Its `proto` folder holds generated classes that need protobuf only, so that folder is loaded as
a package of its own. Where coremltools is already imported, its classes are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from mcompress.errors import MissingBackendError

_PACKAGE = "mcompress_coreml_proto"


@cache
def model_messages() -> ModuleType:
    """The module `Model_pb2`. Raises `MissingBackendError` if coremltools is not installed."""
    return _module("Model_pb2")


@cache
def mil_messages() -> ModuleType:
    """The module `MIL_pb2`. Raises `MissingBackendError` if coremltools is not installed."""
    return _module("MIL_pb2")


def _module(name: str) -> ModuleType:
    imported = sys.modules.get(f"coremltools.proto.{name}")
    if imported is not None:
        return imported
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or not found.submodule_search_locations:
            raise MissingBackendError("reading a Core ML package needs coremltools; install it with: pip install 'mcompress[coreml]'")
        package = ModuleType(_PACKAGE, "coremltools.proto, loaded alone.")
        package.__path__ = [str(Path(place) / "proto") for place in found.submodule_search_locations]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
