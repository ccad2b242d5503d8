"""The bundle as its `talk.py` uses it: the manifest, which file to run, and that file in its runtime.

Needs numpy and onnxruntime or ai-edge-litert (or tflite-runtime). This file is part of mcompress and is copied into the bundles of talking faces.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import numpy as np

from mcompress.compress.tasks.talking_face.mel import MelSettings
from mcompress.export.bundle_files import INSTALL, RUNTIMES, BundleFile, Refused, host_ms, is_installed, load, read_manifest
from mcompress.export.replay import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mcompress.export.replay import Real, Tensor

ELSEWHERE = {
    "executorch": "ExecuTorch's Python runtime needs torch, and this script does without",
    "coreml": "Core ML files run on Apple's systems, from the Swift loader in swift/",
}


class Step(TypedDict):
    """One processing step of the manifest."""

    operation: str
    arguments: dict[str, float | int | str]


class TalkingFile(BundleFile):
    """One entry of `files`; only the keys that are used here."""

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
    manifest = cast("_ManifestData", read_manifest(folder))
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
        ready = [file for file in able if is_installed(RUNTIMES[file["backend"]])]
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
    if not is_installed(RUNTIMES[backend]):
        raise Refused(f"--file {name} needs {RUNTIMES[backend][0]}, which is not installed; {INSTALL[backend]}")
    return named[0], ()


def _fastest(ready: Sequence[TalkingFile]) -> tuple[TalkingFile, tuple[str, ...]]:
    recommended = [file for file in ready if file["recommended"]]
    among = recommended or ready
    times = {file["path"]: host_ms(file) for file in among}
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


class Generator:
    """A loaded file that makes one face from a window of speech."""

    def __init__(self, talking: Talking, file: TalkingFile, threads: int) -> None:
        """Raises `Refused` for a file that is not the one that was verified, and for one that the runtime does not take."""
        self._inputs, self._output = file["inputs"], file["outputs"][0]
        self._speech_input = talking.speech_input
        self._face: Tensor = np.zeros(0, np.float32)
        self._execute = load(talking.folder, file, threads)

    def look_at(self, face: Real) -> None:
        """The masked frame and the reference, (1, 6, height, width), from now on."""
        (facts,) = (one for one in self._inputs if one["name"] != self._speech_input)
        self._face = encode(face, facts)

    def __call__(self, window: Real) -> Real:
        """Mel columns (bands, columns) to a face (3, height, width)."""
        natives = [encode(window[None, None], one) if one["name"] == self._speech_input else self._face for one in self._inputs]
        face: Real = decode(self._execute(natives), self._output)[0]
        return face
