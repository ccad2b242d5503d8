"""Replays the test vectors of an mcompress bundle and says PASS or FAIL.

    python verify.py            (inside the bundle)

Needs numpy, and for each kind of file its runtime: onnxruntime, ai-edge-litert (or tflite-runtime), executorch, or coremltools on macOS. A
file whose runtime is not installed is named and not counted as passed. Exit code 0: everything that could be executed computes what it must,
and at least one file was executed; 1 otherwise. Digests are checked before anything else is read.

This file is part of mcompress (`mcompress.export.replay`) and is copied into each bundle as `verify.py`, so it imports nothing of mcompress.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Tensor = NDArray[np.generic]
    Real = NDArray[np.float32]

SCHEMA = 2
CHUNK_BYTES = 1 << 20
IMAGE_AXES = 4
PLAIN = "ND"
"""The layout of a tensor that has another number of axes than an image: they are in the network's order."""


class Facts(TypedDict):
    """One entry of `inputs` or `outputs` in manifest.json."""

    name: str
    shape: list[int]
    dtype: str
    layout: str
    scale: float | None
    zero_point: int | None


class Tolerance(TypedDict):
    """What a difference may be: within `max_abs`, or SQNR at least `or_sqnr_db`."""

    max_abs: float
    or_sqnr_db: float | None


class VectorInput(TypedDict):
    """One input of a test vector: its name in the file, and its files, relative to the bundle."""

    name: str
    npy: str
    bin: str


class Vector(TypedDict):
    """Files of one test vector, relative to the bundle. The `.npy` are read by `mcompress verify`, and checked here with the others."""

    name: str
    inputs: list[VectorInput]
    """In the order of the file's inputs."""
    expected_bin: str
    reference_npy: str


class ModelFile(TypedDict):
    """One entry of `files`; only the keys that a replay needs."""

    path: str
    backend: str
    inputs: list[Facts]
    outputs: list[Facts]
    tolerance: Tolerance
    vectors: list[Vector]


class Content(TypedDict):
    """One entry of `contents`."""

    path: str
    sha256: str


class Choice(TypedDict):
    """One entry of `choose`; only the key that a replay needs."""

    file: str


class Drawn(TypedDict):
    """One entry of `drawn` in `drawing`; only the key that a replay needs."""

    picture: str | None


class WholePicture(TypedDict):
    """`check` of `drawing`; only the files."""

    noise: str
    picture: str
    drawn: list[Drawn]


class TokenizerFiles(TypedDict):
    """`tokenizer` of `drawing`; only the files."""

    folder: str
    files: list[str]


class Drawing(TypedDict):
    """`drawing`, of text to image; only what names files that are read."""

    tokenizer: TokenizerFiles
    check: WholePicture


class _Always(TypedDict):
    schema: int
    manifest_sha256: str
    files: list[ModelFile]
    contents: list[Content]


class ManifestData(_Always, total=False):
    """manifest.json; only the keys that a replay needs. Only networks of several widths have `choose`, only text to image has `drawing`."""

    choose: list[Choice]
    drawing: Drawing | None


class Problem(NamedTuple):
    """Something that makes a bundle untrustworthy; `kind` is `usage` (it cannot be taken at all) or `digest` (it was changed)."""

    kind: str
    message: str


class Difference(NamedTuple):
    """Largest absolute difference, and signal to noise in dB (infinite when equal)."""

    max_abs: float
    sqnr_db: float


class Result(NamedTuple):
    """One file: `passed`, `failed` or `not executed`, the worst difference over its vectors, and why."""

    file: str
    backend: str
    status: str
    max_abs: float | None
    sqnr_db: float | None
    reason: str

    @property
    def verdict(self) -> str:
        """PASS, FAIL or NOT EXECUTED."""
        return {"passed": "PASS", "failed": "FAIL"}.get(self.status, "NOT EXECUTED")

    @property
    def detail(self) -> str:
        """What was measured and what is allowed, or why it was not executed."""
        if self.max_abs is None or self.sqnr_db is None:
            return self.reason
        if not math.isfinite(self.max_abs):
            return f"it gave NaN, infinity or another shape than expected ({self.reason})"
        if self.max_abs == 0.0:
            return f"equal to what is expected ({self.reason})"
        return f"largest difference {self.max_abs:.3g}, SQNR {self.sqnr_db:.1f} dB ({self.reason})"


class NotExecuted(Exception):  # noqa: N818
    """A file that cannot be executed here."""


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a folder: over each sorted relative path (UTF-8, zero byte), its length (8 bytes, little-endian) and contents."""
    sha = hashlib.sha256()
    if path.is_file():
        _feed(sha.update, path)
        return sha.hexdigest()
    for inner in sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix()):
        sha.update(inner.relative_to(path).as_posix().encode() + b"\0" + inner.stat().st_size.to_bytes(8, "little"))
        _feed(sha.update, inner)
    return sha.hexdigest()


def _feed(update: Callable[[bytes], None], path: Path) -> None:
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            update(chunk)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def manifest_digest(manifest: Mapping[str, object]) -> str:
    """SHA-256 of the manifest's canonical JSON without its own digest."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_bundle(folder: Path) -> tuple[ManifestData | None, list[Problem]]:
    """The manifest, and what is wrong: schema, paths, links, unknown files, digests. Model files are hashed and not parsed."""
    path = folder / "manifest.json"
    if not path.is_file() or path.is_symlink():
        return None, [Problem("usage", f"'{folder}' is not a bundle: it has no manifest.json. Give the folder `bundle` of a run.")]
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        return None, [Problem("usage", f"{path} is not JSON ({error}). Take the bundle again from where it was made.")]
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        return None, [Problem("usage", f"{path} states no schema; it is not an mcompress manifest.")]
    if manifest["schema"] != SCHEMA:
        other = "or a newer one" if manifest["schema"] > SCHEMA else "or make the bundle again with this one"
        said = f"{path} has schema {manifest['schema']}; this program reads schema {SCHEMA}. Use the mcompress that made it, {other}."
        return None, [Problem("usage", said)]
    if manifest.get("manifest_sha256") != manifest_digest(manifest):
        return None, [
            Problem(
                "digest", f"{path} was changed after it was written: its own SHA-256 does not match. Take the bundle again from where it was made."
            )
        ]
    try:
        whole = cast("ManifestData", manifest)
        problems = _content_problems(folder, whole)
    except (KeyError, TypeError, AttributeError) as error:
        return None, [
            Problem("usage", f"{path} lacks what a manifest of schema {SCHEMA} has ({error!r}). Take the bundle again from where it was made.")
        ]
    return (None if problems else whole), problems


def _content_problems(folder: Path, manifest: ManifestData) -> list[Problem]:
    listed = {entry["path"]: entry["sha256"] for entry in manifest["contents"]}
    files = [file["path"] for file in manifest["files"]]
    chosen = [choice["file"] for choice in manifest.get("choose", [])]
    vectors = [vector for file in manifest["files"] for vector in file["vectors"]]
    used = [*files, *(name for one in vectors for name in (one["expected_bin"], one["reference_npy"]))]
    used += [*(name for one in vectors for name in _input_paths(one)), *_drawing_paths(manifest.get("drawing"))]
    problems = [problem for name in dict.fromkeys((*listed, *used)) for problem in _path_problems(folder, name)]
    problems += [Problem("usage", f"manifest.json uses '{name}' and states no digest of it.") for name in dict.fromkeys(used) if name not in listed]
    problems += [Problem("usage", f"`choose` names '{name}', which is none of the model files in `files`.") for name in chosen if name not in files]
    problems += _strangers(folder, set(listed))
    if problems:
        return problems  # nothing is hashed through a path that is not trusted
    for name, stated in listed.items():
        seen = digest_of(folder / name)
        if seen != stated:
            problems.append(
                Problem("digest", f"{name} was changed: SHA-256 is {seen[:16]}..., the manifest states {stated[:16]}... Take the bundle again.")
            )
    return problems


def _input_paths(vector: Vector) -> list[str]:
    for words in (vector["name"], *(given["name"] for given in vector["inputs"])):
        if not isinstance(words, str):
            raise TypeError(f"a name of a vector is {words!r}")
    return [name for given in vector["inputs"] for name in (given["bin"], given["npy"])]


def _drawing_paths(drawing: Drawing | None) -> list[str]:
    if drawing is None:
        return []
    check, tokenizer = drawing["check"], drawing["tokenizer"]
    pictures = [drawn["picture"] for drawn in check["drawn"]]
    inside = [name for name in tokenizer["files"] if not name.startswith(f"{tokenizer['folder']}/")]
    if inside:
        raise TypeError(f"the tokenizer's file {inside[0]!r} is not in its folder")
    return [*tokenizer["files"], check["noise"], check["picture"], *(name for name in pictures if name is not None)]


def _path_problems(folder: Path, name: str) -> list[Problem]:
    pure = PurePosixPath(name)
    if pure.as_posix() != name or name == "." or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        return [
            Problem("usage", f"manifest.json names the path '{name}'; only relative paths inside the bundle are allowed. Do not use this bundle.")
        ]
    if not (folder / name).exists():
        return [Problem("usage", f"{name} is in the manifest but not in the bundle. Copy the bundle again as a whole.")]
    return []


def _strangers(folder: Path, listed: set[str]) -> list[Problem]:
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            problems.append(Problem("usage", f"{name} is a symbolic link; a bundle holds plain files only."))
        elif (
            path.is_file() and name != "manifest.json" and name not in listed and not any(p.as_posix() in listed for p in PurePosixPath(name).parents)
        ):
            problems.append(Problem("usage", f"{name} is not in the manifest; remove it from the bundle."))
    return problems


def encode(value: Real, facts: Facts) -> Tensor:
    """float32 real values as the network has them (NCHW) -> the file's own layout and type. Quantization rounds half to even and saturates."""
    array = np.transpose(value, (0, 2, 3, 1)) if facts["layout"] == "NHWC" else value
    if facts["scale"] is not None and facts["zero_point"] is not None:
        limits = np.iinfo(np.dtype(facts["dtype"]))
        array = np.clip(np.round(array / np.float32(facts["scale"])) + np.float32(facts["zero_point"]), limits.min, limits.max)
    return np.ascontiguousarray(array.astype(facts["dtype"]))


def decode(native: Tensor, facts: Facts) -> Real:
    """The file's own layout and type -> float32 real values as the network has them (NCHW)."""
    array = np.asarray(native).astype(np.float32)
    if facts["scale"] is not None and facts["zero_point"] is not None:
        array = (array - np.float32(facts["zero_point"])) * np.float32(facts["scale"])
    return np.ascontiguousarray(np.transpose(array, (0, 3, 1, 2)) if facts["layout"] == "NHWC" else array)


def read_raw(path: Path, facts: Facts) -> Tensor:
    """A raw little-endian tensor in the file's own layout and type."""
    array = np.fromfile(str(path), dtype=np.dtype(facts["dtype"]).newbyteorder("<"))
    if array.size != math.prod(facts["shape"]):
        raise ValueError(f"{path.name} holds {array.size} values; {facts['name']} with shape {tuple(facts['shape'])} has {math.prod(facts['shape'])}")
    return array.astype(facts["dtype"]).reshape(facts["shape"])


def check_names(vector: str, given: Sequence[str], taken: Sequence[str]) -> None:
    """Raise `ValueError` unless the vector holds just what the file takes: inputs of one shape could be swapped unseen."""
    if list(given) != list(taken):
        raise ValueError(f"the vector '{vector}' holds {', '.join(given) or 'nothing'}; the file takes {', '.join(taken)}")


def read_inputs(folder: Path, vector: Vector, facts: Sequence[Facts]) -> list[Tensor]:
    """The inputs of a vector in the file's own layouts and types, in the file's order. Raises `ValueError` for others than the file takes."""
    check_names(vector["name"], [one["name"] for one in vector["inputs"]], [one["name"] for one in facts])
    return [read_raw(folder / one["bin"], stated) for one, stated in zip(vector["inputs"], facts)]  # noqa: B905  (their lengths are equal)


def difference(got: Real, expected: Real) -> Difference:
    """Compare two float32 arrays of one shape; a NaN anywhere is an infinite difference."""
    if got.shape != expected.shape:
        return Difference(math.inf, -math.inf)
    noise = got.astype(np.float64) - expected.astype(np.float64)
    if not np.isfinite(noise).all():
        return Difference(math.inf, -math.inf)
    power = float(np.sum(noise**2))
    signal = float(np.sum(expected.astype(np.float64) ** 2))
    return Difference(float(np.abs(noise).max()), math.inf if power == 0.0 else 10.0 * math.log10(max(signal, 1e-30) / power))


def within(seen: Difference, tolerance: Tolerance) -> bool:
    """True if the difference is within `max_abs`, or the signal to noise at least `or_sqnr_db` where that is stated."""
    least = tolerance["or_sqnr_db"]
    return seen.max_abs <= tolerance["max_abs"] or (least is not None and seen.sqnr_db >= least)


def verdict(file: ModelFile, seen: list[Difference]) -> Result:
    """The result of a file from the differences of its vectors."""
    worst = Difference(max(d.max_abs for d in seen), min(d.sqnr_db for d in seen))
    tolerance = file["tolerance"]
    limit = f"at most {tolerance['max_abs']:.3g}" + (
        f", or SQNR at least {tolerance['or_sqnr_db']:g} dB" if tolerance["or_sqnr_db"] is not None else ""
    )
    passed = all(within(d, tolerance) for d in seen)
    return Result(file["path"], file["backend"], "passed" if passed else "failed", worst.max_abs, worst.sqnr_db, f"allowed: {limit}")


def _run_onnx(path: Path, natives: Sequence[Tensor], facts: Sequence[Facts]) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotExecuted(f"onnxruntime is not installed ({error}); pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on x86 without VNNI; without effect elsewhere
    kinds = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    refusals = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))  # they have no base class of their own
    try:
        graph = path / "model.onnx" if path.is_dir() else path  # a folder holds graph and weights of more than 2 GB
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, _by_name(natives, facts))[0])
    except refusals as error:
        raise RuntimeError(str(error)) from error


def _run_tflite(path: Path, natives: Sequence[Tensor], facts: Sequence[Facts]) -> Tensor:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise NotExecuted(f"no TFLite runtime is installed ({error}); pip install ai-edge-litert") from error
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    taken = [(str(one["name"]), str(np.dtype(one["dtype"])), tuple(map(int, one["shape"]))) for one in interpreter.get_input_details()]
    stated = [(one["name"], one["dtype"], tuple(one["shape"])) for one in facts]
    if taken != stated:
        shown = [", ".join(f"{dtype} {name} {shape}" for name, dtype, shape in tensors) for tensors in (taken, stated)]
        raise ValueError(f"{path.name} takes {shown[0]}; the manifest says {shown[1]}")
    for entry, native in zip(interpreter.get_input_details(), natives):  # noqa: B905  (as many as facts)
        interpreter.set_tensor(entry["index"], native)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def _run_executorch(path: Path, natives: Sequence[Tensor], _: Sequence[Facts]) -> Tensor:
    try:
        import torch
        from executorch.runtime import Runtime
    except ImportError as error:
        raise NotExecuted(f"executorch is not installed ({error}); pip install executorch") from error
    method = Runtime.get().load_program(str(path)).load_method("forward")
    return np.array(method.execute([torch.from_numpy(native) for native in natives])[0].numpy())


def _run_coreml(path: Path, natives: Sequence[Tensor], facts: Sequence[Facts]) -> Tensor:
    if platform.system() != "Darwin":
        raise NotExecuted(
            "Core ML runs on macOS and iOS only; use swift/ there, or `mcompress verify` anywhere, which computes the file without Core ML"
        )
    try:
        import coremltools
    except ImportError as error:
        raise NotExecuted(f"coremltools is not installed ({error}); pip install coremltools") from error
    return np.asarray(next(iter(coremltools.models.MLModel(str(path)).predict(_by_name(natives, facts)).values())))


def _by_name(natives: Sequence[Tensor], facts: Sequence[Facts]) -> dict[str, Tensor]:
    return {stated["name"]: native for stated, native in zip(facts, natives)}  # noqa: B905  (as many as facts)


RUNNERS = {"onnx": _run_onnx, "tflite": _run_tflite, "executorch": _run_executorch, "coreml": _run_coreml}


def replay(folder: Path, file: ModelFile) -> Result:
    """Execute one file of a checked bundle on all of its vectors, in its own layout and type."""
    if file["backend"] not in RUNNERS:
        return Result(file["path"], file["backend"], "not executed", None, None, f"no runner for {file['backend']} here")
    facts_in, facts_out, seen = file["inputs"], file["outputs"][0], []
    try:
        for vector in file["vectors"]:
            got = RUNNERS[file["backend"]](folder / file["path"], read_inputs(folder, vector, facts_in), facts_in)
            seen.append(difference(decode(got, facts_out), decode(read_raw(folder / vector["expected_bin"], facts_out), facts_out)))
    except NotExecuted as error:
        return Result(file["path"], file["backend"], "not executed", None, None, str(error))
    except (RuntimeError, ValueError, OSError) as error:
        return Result(file["path"], file["backend"], "failed", None, None, f"its runtime refused it: {error}")
    if not seen:
        return Result(file["path"], file["backend"], "not executed", None, None, "the bundle holds no vector for it")
    return verdict(file, seen)


def _whole_pictures(folder: Path) -> list[Result]:
    """What the sets of files of a text-to-image bundle draw, by the scripts that lie beside this file in such bundles."""
    beside = Path(__file__).resolve().parent
    if not (beside / "draw_check.py").is_file() or not (beside / "draw.py").is_file():
        return [Result("whole pictures", "all", "not executed", None, None, "this verify.py is another bundle's; run the one inside this bundle")]
    sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
    if str(beside) not in sys.path:
        sys.path.insert(0, str(beside))  # python -I leaves it out
    found: list[Result] = import_module("draw_check").check_pictures(folder)  # not by `import`: other bundles have no such file
    return found


def main() -> int:
    """Check and replay the bundle that holds this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    manifest, problems = check_bundle(folder)
    if manifest is None:
        sys.stdout.write("".join(f"FAIL  {problem.message}\n" for problem in problems) + "FAIL\n")
        return 1
    results = [replay(folder, file) for file in manifest["files"]]
    pictures = [] if manifest.get("drawing") is None else _whole_pictures(folder)
    sys.stdout.write("".join(f"{result.verdict}  {result.file}: {result.detail}\n" for result in (*results, *pictures)))
    executed, drawn = (sum(result.status != "not executed" for result in some) for some in (results, pictures))
    passed = executed > 0 and all(result.status != "failed" for result in (*results, *pictures))
    also = f", {drawn} of {len(pictures)} whole pictures drawn" if pictures else ""
    sys.stdout.write(f"{'PASS' if passed else 'FAIL'}  {executed} of {len(results)} files executed{also}\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
