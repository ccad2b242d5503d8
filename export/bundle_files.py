"""What the scripts of a bundle share: its manifest, and its files in their runtimes.

Needs numpy and onnxruntime or ai-edge-litert (or tflite-runtime). This file is part of mcompress and is copied into the bundles that carry scripts.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from mcompress.export.replay import SCHEMA, Facts, digest_of, manifest_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mcompress.export.replay import Tensor

    Execute = Callable[[Sequence[Tensor]], Tensor]
    """Inputs in the file's own layouts and types, in its order, to its output."""
    Loader = Callable[[Path, Sequence[Facts], int], Execute]
    """File, its inputs, threads. Raises `RuntimeError` or `ValueError` for a file that the runtime does not take."""

RUNTIMES = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
"""Packages, by backend, of which one is needed."""
INSTALL = {"onnx": "pip install onnxruntime", "tflite": "pip install ai-edge-litert"}


class Refused(Exception):  # noqa: N818
    """Something that a script of a bundle cannot take; the message says what to do."""


class Latency(TypedDict):
    """One measurement of the manifest; only the keys that are used here."""

    what: str
    value: float
    unit: str
    how: str


class BundleFile(TypedDict):
    """One entry of `files`; only the keys that all scripts use."""

    path: str
    sha256: str
    backend: str
    recommended: bool
    latency: list[Latency]
    inputs: list[Facts]
    outputs: list[Facts]


def read_manifest(folder: Path) -> dict[str, object]:
    """The manifest in `folder`, as it was written. Raises `Refused` for anything else, and for one that was changed."""
    path = folder / "manifest.json"
    try:
        data: dict[str, object] = json.loads(path.read_bytes())
        known = data["schema"] == SCHEMA and data["manifest_sha256"] == manifest_digest(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no manifest of a bundle ({error!r}); take the bundle again from where it was made") from error
    if not known:
        raise Refused(f"{path} was changed after it was written, or has another schema than {SCHEMA}; take the bundle again from where it was made")
    return data


def is_installed(packages: Sequence[str]) -> bool:
    """Whether one of them is."""
    return any(find_spec(package) is not None for package in packages)


def host_ms(file: BundleFile) -> float:
    """What one execution took on the machine that made the bundle; infinite where it was not timed."""
    return min((one["value"] for one in file["latency"] if (one["what"], one["how"], one["unit"]) == ("latency", "host", "ms")), default=inf)


def load(folder: Path, file: BundleFile, threads: int, loaders: Mapping[str, Loader] | None = None) -> Execute:
    """A file in its runtime; `loaders`, by backend, if not `LOADERS`. Raises `Refused` for another file than the manifest states, and for one that
    the runtime does not take.
    """
    path = folder / file["path"]
    if Path(file["path"]).name != file["path"] or not path.exists() or digest_of(path) != file["sha256"]:
        raise Refused(f"{file['path']} is not the file that the manifest states; take the bundle again from where it was made")
    try:
        return (LOADERS if loaders is None else loaders)[file["backend"]](path, file["inputs"], threads)
    except (RuntimeError, ValueError) as error:
        raise Refused(f"its runtime does not take {file['path']}: {error}") from error


def _onnx(path: Path, inputs: Sequence[Facts], threads: int) -> Execute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on x86 without VNNI; without effect elsewhere
    kinds = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    refusals = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))  # they have no base class of their own
    try:
        graph = path / "model.onnx" if path.is_dir() else path  # a folder holds graph and weights of more than 2 GB
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise RuntimeError(str(error)) from error
    names = [one["name"] for one in inputs]
    return lambda natives: np.asarray(session.run(None, dict(zip(names, natives)))[0])  # noqa: B905  (one each)


def _tflite(path: Path, _inputs: Sequence[Facts], threads: int) -> Execute:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    taken = [entry["index"] for entry in interpreter.get_input_details()]  # in the order of the manifest, which was verified
    given = interpreter.get_output_details()[0]["index"]

    def execute(natives: Sequence[Tensor]) -> Tensor:
        for index, native in zip(taken, natives):  # noqa: B905  (one each)
            interpreter.set_tensor(index, native)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(given))

    return execute


LOADERS: Mapping[str, Loader] = {"onnx": _onnx, "tflite": _tflite}
