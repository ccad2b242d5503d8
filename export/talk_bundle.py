"""The bundle as its `talk.py` uses it: the manifest, which file to run, and that file in its runtime.

Needs numpy and onnxruntime or ai-edge-litert (or tflite-runtime). This file is part of mcompress and is copied into the bundles of talking faces.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from mcompress.compress.tasks.talking_face.mel import MelSettings
from mcompress.export.replay import SCHEMA, Facts, decode, digest_of, encode, manifest_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcompress.export.replay import Real, Tensor

    Execute = Callable[[Sequence[Tensor]], Tensor]

RUNTIMES = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
"""Packages, by backend, of which one is needed."""
INSTALL = {"onnx": "pip install onnxruntime", "tflite": "pip install ai-edge-litert"}
ELSEWHERE = {
    "executorch": "ExecuTorch's Python runtime needs torch, and this script does without",
    "coreml": "Core ML files run on Apple's systems, from the Swift loader in swift/",
}


class Refused(Exception):  # noqa: N818
    """Something that `talk.py` cannot take; the message says what to do."""


class Step(TypedDict):
    """One processing step of the manifest."""

    operation: str
    arguments: dict[str, float | int | str]


class Latency(TypedDict):
    """One measurement of the manifest; only the keys that are used here."""

    what: str
    value: float
    unit: str
    how: str


class TalkingFile(TypedDict):
    """One entry of `files`; only the keys that are used here."""

    path: str
    sha256: str
    backend: str
    recommended: bool
    latency: list[Latency]
    inputs: list[Facts]
    outputs: list[Facts]
    preprocessing: dict[str, list[Step]]
    postprocessing: list[Step]


class _SpeechData(TypedDict):
    input: str
    mel: dict[str, object]


class _StreamingData(TypedDict):
    frames_per_chunk: int
    look_ahead_s: float


class _ManifestData(TypedDict):
    files: list[TalkingFile]
    speech: _SpeechData | None
    streaming: _StreamingData | None


class Talking(NamedTuple):
    """What the manifest says of the files, of the sound and of how both go together."""

    folder: Path
    files: list[TalkingFile]
    speech_input: str
    mel: MelSettings
    look_ahead_s: float


def read_bundle(folder: Path) -> Talking:
    """The manifest of a talking face in `folder`. Raises `Refused` for anything else, and for one that was changed."""
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_bytes())
        known = data["schema"] == SCHEMA and data["manifest_sha256"] == manifest_digest(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no manifest of a bundle ({error!r}); take the bundle again from where it was made") from error
    if not known:
        raise Refused(f"{path} was changed after it was written, or has another schema than {SCHEMA}; take the bundle again from where it was made")
    manifest: _ManifestData = data
    speech, streaming = manifest["speech"], manifest["streaming"]
    if speech is None or streaming is None:
        raise Refused(f"the bundle {folder.name} does not hold a talking face; its manifest has no `speech`")
    if streaming["frames_per_chunk"] != 1:
        raise Refused(f"the bundle's files take {streaming['frames_per_chunk']} frames at once; this script gives one at a time")
    return Talking(folder, manifest["files"], speech["input"], MelSettings.from_dict(speech["mel"]), streaming["look_ahead_s"])


def choose(talking: Talking, name: str | None) -> tuple[TalkingFile, tuple[str, ...]]:
    """The file with this name, or, without one, of the recommended files whose runtime is installed (of all, where none of them is) the one that took
    the least time where the bundle was made, and a note that says why. Raises `Refused`.
    """
    able = [file for file in talking.files if file["backend"] in RUNTIMES]
    if not able:
        kinds = ", ".join(sorted({file["backend"] for file in talking.files}))
        raise Refused(f"the bundle holds files for {kinds}; this script runs ONNX and TFLite, so make a bundle that has one of them")
    shown = ", ".join(file["path"] for file in able)
    if name is None:
        ready = [file for file in able if _is_installed(file["backend"])]
        if ready:
            return _fastest(ready)
        lines = " or ".join(INSTALL[backend] for backend in sorted({file["backend"] for file in able}))
        raise Refused(f"the bundle holds {shown}, and no runtime is installed for it; {lines}")
    named = [file for file in talking.files if file["path"] == name]
    if not named:
        raise Refused(f"--file {name} is not in the bundle; it holds {shown}")
    backend = named[0]["backend"]
    if backend not in RUNTIMES:
        raise Refused(f"--file {name} cannot be run here: {ELSEWHERE.get(backend, f'there is no runner for {backend}')}; take {shown}")
    if not _is_installed(backend):
        raise Refused(f"--file {name} needs {RUNTIMES[backend][0]}, which is not installed; {INSTALL[backend]}")
    return named[0], ()


def _fastest(ready: Sequence[TalkingFile]) -> tuple[TalkingFile, tuple[str, ...]]:
    recommended = [file for file in ready if file["recommended"]]
    among = recommended or ready
    times = {file["path"]: _host_ms(file) for file in among}
    taken = min(among, key=lambda file: times[file["path"]])  # the first, where none was timed
    kind = f"{'recommended ' if recommended else ''}file{'s' if len(among) > 1 else ''} whose runtime is installed"
    if len(among) == 1:
        why = f"the only {kind}"
    elif times[taken["path"]] == inf:
        why = f"the first of the {kind}, none of which was timed where the bundle was made"
    else:
        others = ", ".join(f"{path} {'was not timed' if ms == inf else f'{ms:.3g} ms'}" for path, ms in times.items() if path != taken["path"])
        why = f"of the {kind} the fastest where the bundle was made, {times[taken['path']]:.3g} ms ({others})"
    return taken, (f"{taken['path']} is run: {why}; --file takes another",)


def _host_ms(file: TalkingFile) -> float:
    """What one execution took on the machine that made the bundle; infinite where it was not timed."""
    return min((one["value"] for one in file["latency"] if (one["what"], one["how"], one["unit"]) == ("latency", "host", "ms")), default=inf)


def _is_installed(backend: str) -> bool:
    return any(find_spec(package) is not None for package in RUNTIMES[backend])


class Generator:
    """A loaded file that makes one face from a window of speech."""

    def __init__(self, talking: Talking, file: TalkingFile, threads: int) -> None:
        """Raises `Refused` for a file that is not the one that was verified, and for one that the runtime does not take."""
        path = talking.folder / file["path"]
        if Path(file["path"]).name != file["path"] or not path.is_file() or digest_of(path) != file["sha256"]:
            raise Refused(f"{file['path']} is not the file that the manifest states; take the bundle again from where it was made")
        self._inputs, self._output = file["inputs"], file["outputs"][0]
        self._speech_input = talking.speech_input
        self._face: Tensor = np.zeros(0, np.float32)
        try:
            self._execute = {"onnx": _onnx, "tflite": _tflite}[file["backend"]](path, self._inputs, threads)
        except (RuntimeError, ValueError) as error:
            raise Refused(f"its runtime does not take {file['path']}: {error}") from error

    def look_at(self, face: Real) -> None:
        """The masked frame and the reference, (1, 6, height, width), from now on."""
        (facts,) = (one for one in self._inputs if one["name"] != self._speech_input)
        self._face = encode(face, facts)

    def __call__(self, window: Real) -> Real:
        """Mel columns (bands, columns) to a face (3, height, width)."""
        natives = [encode(window[None, None], one) if one["name"] == self._speech_input else self._face for one in self._inputs]
        face: Real = decode(self._execute(natives), self._output)[0]
        return face


def _onnx(path: Path, inputs: Sequence[Facts], threads: int) -> Execute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on x86 without VNNI; without effect elsewhere
    kinds = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    refusals = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))  # they have no base class of their own
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
