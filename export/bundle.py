"""The bundle: what an app team receives. It states its inputs and outputs, carries test vectors, and proves itself on their machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.errors import ExportError, MissingBackendError, ParityError, UsageError
from mcompress.export import backend_named, documents, replay
from mcompress.export.backend import FloatArray, Runner
from mcompress.export.interface import TensorFacts
from mcompress.export.manifest import (
    Content,
    Manifest,
    ModelFile,
    ProcessingStep,
    Quality,
    Recommended,
    Runtime,
    Source,
    Tolerance,
    VectorFiles,
)
from mcompress.export.replay import Result, digest_of, size_of
from mcompress.record import ExportRecord, Run
from mcompress.targets.schema import Target

FLOAT_TOLERANCE = 1e-3  # share of the output range; design.md's parity limit of float files, and what another CPU's order of additions stays below
INT8_STEPS = 2  # two runtimes may round the last operator and the one before it differently
INT8_SQNR_DB = 35.0  # design.md's parity limit of quantized files: other CPUs' integer kernels round inside the network as well
PHONE_THREADS = 4  # the big cores of a phone's CPU

RUNTIMES: Mapping[str, tuple[str, str]] = {
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "tflite": ("LiteRT (TensorFlow Lite)", "ai-edge-litert"),
    "executorch": ("ExecuTorch", "executorch"),
    "coreml": ("Core ML", "coremltools"),
}
DELEGATES: Mapping[str, tuple[str, str]] = {
    "onnx": ("cpu", "CPUExecutionProvider"),
    "tflite": ("cpu", "XNNPACK"),
    "executorch": ("cpu", "XNNPACK"),
    "coreml": ("all", "Core ML's own choice of CPU, GPU and Neural Engine"),
}


@dataclass(frozen=True)
class TestVector:
    """One held-out input and what it becomes; float32 NCHW in real values."""

    name: str
    input: FloatArray
    reference: FloatArray
    """What PyTorch computes: the model, or its fake-quantized form for a mixed file."""
    expected: FloatArray | None = None
    """What the file itself computed in its runtime; None if it could not be executed, then the reference is expected."""

    __test__ = False  # not a class of tests


@dataclass(frozen=True)
class ExportedFile:
    """A file (or Core ML folder) to be shipped under its own name."""

    record: ExportRecord
    path: Path
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    vectors: tuple[TestVector, ...]
    """One or two are enough; each is stored raw."""
    least_runtime: str | None = None
    """The oldest runtime that the file's format asks for, for example `iOS17`; left out, the version that executed it is stated."""
    run_with: Recommended | None = None


def write_bundle(folder: Path, *, run: Run, target: Target, files: Sequence[ExportedFile], plan: PrecisionPlan | None) -> Path:
    """Write the bundle into `folder` as a whole (a temporary sibling that takes its place) and return `folder`.

    The sources of `files` may lie anywhere, in `folder` as well. Raises `ExportError` for files that do not fit their facts, `OSError` if the
    disk is full.
    """
    if not files:
        raise ExportError("a bundle needs at least one exported file; the target's exports produced none")
    names = [file.path.name for file in files]
    if len(set(names)) != len(names):
        raise ExportError(
            f"two exported files have one name: {', '.join(sorted(n for n in set(names) if names.count(n) > 1))}; name each after its variant"
        )
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    manifest = Manifest(
        name=run.target.name,
        task=target.model.task,
        device=target.device,
        scale=_scale_of(files[0]),
        quick=run.target.quick,
        weights_licence=documents.weights_licence(target),
        source=Source(
            target=run.target.name,
            target_sha256=run.target.digest,
            stages={stage.name: stage.digest for stage in run.stages},
            mcompress=version("mcompress"),
            commit=run.environment.commit,
            seed=run.environment.seed,
        ),
        files=tuple(_ship(file, run, temporary) for file in files),
    )
    if plan is not None:
        (temporary / "precision_plan.json").write_text(plan.to_json() + "\n", encoding="utf-8")
    documents.write_documents(temporary, manifest, run, target)
    models = {file.path for file in manifest.files}
    names = sorted({_top(path.relative_to(temporary).as_posix(), models) for path in temporary.rglob("*") if path.is_file()})
    contents = tuple(Content(path=name, bytes=size_of(temporary / name), sha256=digest_of(temporary / name)) for name in names)
    data = manifest.model_copy(update={"contents": contents}).model_dump(mode="json", by_alias=True)
    data["manifest_sha256"] = replay.manifest_digest(data)
    (temporary / "manifest.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)
    return folder


def verify_bundle(folder: Path, *, threads: int = 1) -> list[Result]:
    """Check digests, then execute every file through its exporter's runner and compare with its vectors; one result per file.

    Raises `UsageError` for something that is not a bundle of this schema or names paths outside itself, `ParityError` if anything was changed.
    A file whose runtime is missing here has the status `not executed`; a file that computes something else has `failed`, and does not raise.
    """
    manifest = read_manifest(folder)
    return [_verify_file(folder, file, threads) for file in manifest.files]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle whose paths and digests have been checked; raises as `verify_bundle` does."""
    data, problems = replay.check_bundle(folder)
    if problems or data is None:
        message = "\n".join(problem.message for problem in problems)
        raise UsageError(message) if any(problem.kind == "usage" for problem in problems) else ParityError(message)
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        details = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
        raise UsageError(f"{folder / 'manifest.json'} is not a manifest of schema {replay.SCHEMA}:\n{details}") from error


def _verify_file(folder: Path, file: ModelFile, threads: int) -> Result:
    try:
        runner = _load(file.backend, folder / file.path, threads)
    except MissingBackendError as error:
        return Result(file.path, file.backend, "not executed", None, None, str(error))
    except ExportError as error:
        return Result(file.path, file.backend, "failed", None, None, f"its runtime refused it: {error}")
    facts = _plain(file.outputs[0])
    seen = []
    for vector in file.vectors:
        got = runner.run(np.load(folder / vector.input_npy, allow_pickle=False))
        seen.append(replay.difference(got, replay.decode(replay.read_raw(folder / vector.expected_bin, facts), facts)))
    if not seen:
        return Result(file.path, file.backend, "not executed", None, None, "the bundle holds no vector for it")
    return replay.verdict(_plain_file(file), seen)


def _load(backend: str, path: Path, threads: int) -> Runner:
    try:
        module = backend_named(backend)
    except KeyError as error:
        raise MissingBackendError(f"this mcompress has no runner for '{backend}'; use the mcompress that made the bundle, or a newer one") from error
    return module.load(path, threads)


def _ship(file: ExportedFile, run: Run, bundle: Path) -> ModelFile:
    if len(file.inputs) != 1 or len(file.outputs) != 1:
        raise ExportError(f"{file.path.name} has {len(file.inputs)} inputs and {len(file.outputs)} outputs; test vectors hold one of each")
    destination = bundle / file.path.name
    (shutil.copytree if file.path.is_dir() else shutil.copyfile)(file.path, destination)
    record, took, gave = file.record, file.inputs[0], file.outputs[0]
    digest = digest_of(destination)
    if digest != record.sha256:
        raise ExportError(f"{file.path.name} changed between export and bundle: SHA-256 was {record.sha256[:16]}..., is {digest[:16]}...")
    return ModelFile(
        path=file.path.name,
        backend=record.backend,
        variant=record.variant,
        recommended=record.recommended,
        bytes=size_of(destination),
        sha256=digest,
        runtime=_runtime(file),
        run_with=file.run_with or _default_unit(record),
        inputs=file.inputs,
        outputs=file.outputs,
        preprocessing=_before(took),
        postprocessing=_after(gave),
        precision_counts=record.precision_counts,
        coverage=record.coverage,
        parity=record.parity,
        latency=record.latency,
        quality=_quality(record, run),
        tolerance=tolerance_of(record.variant, gave),
        vectors=tuple(_write_vector(bundle, file, index) for index in range(len(file.vectors))),
    )


def tolerance_of(variant: str, output: TensorFacts) -> Tolerance:
    """How far another machine may be from the expected output: float files by range, quantized ones by steps of the output or by SQNR."""
    low, high = output.value_range
    if variant == "float":
        return Tolerance(max_abs=FLOAT_TOLERANCE * (high - low), basis=f"{FLOAT_TOLERANCE:g} of the output range")
    step = output.scale if output.scale is not None else (high - low) / 255.0
    of = "of the output" if output.scale is not None else "of an 8-bit picture (the output is not quantized)"
    return Tolerance(max_abs=INT8_STEPS * step, or_sqnr_db=INT8_SQNR_DB, basis=f"{INT8_STEPS} quantization steps {of}, or {INT8_SQNR_DB:g} dB SQNR")


def _write_vector(bundle: Path, file: ExportedFile, index: int) -> VectorFiles:
    vector, took, gave = file.vectors[index], file.inputs[0], file.outputs[0]
    expected = vector.reference if vector.expected is None else vector.expected
    folder = bundle / "vectors"
    folder.mkdir(exist_ok=True)
    native = {"input": replay.encode(vector.input, _plain(took)), "expected": replay.encode(expected, _plain(gave))}
    for what, (array, facts) in {"input": (native["input"], took), "expected output": (native["expected"], gave)}.items():
        if tuple(array.shape) != facts.shape:
            raise ExportError(f"{file.path.name}: the {what} of vector '{vector.name}' has shape {tuple(array.shape)}; the file has {facts.shape}")
    stem = f"{index}-{_safe(vector.name)}"
    return VectorFiles(
        name=vector.name,
        input_npy=_store(folder, f"{stem}.input", vector.input, raw=False),
        input_bin=_store(folder, f"{stem}.input.{took.layout.lower()}.{took.dtype}", native["input"], raw=True),
        expected_bin=_store(folder, f"{stem}.expected.{_safe(file.path.name)}", native["expected"], raw=True),
        expected_from="PyTorch" if vector.expected is None else "this file in its runtime",
        reference_npy=_store(folder, f"{stem}.pytorch.{file.record.variant}", vector.reference, raw=False),
    )


def _store(folder: Path, stem: str, array: replay.Tensor, *, raw: bool) -> str:
    """Write once per content: files that take the same input share it. Returns the path inside the bundle."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    temporary = folder / "part"
    if raw:
        little.tofile(temporary)
    else:
        with temporary.open("wb") as stream:
            np.save(stream, little, allow_pickle=False)
    number = 0
    while True:
        path = folder / f"{stem}{f'-{number}' if number else ''}.{'bin' if raw else 'npy'}"
        if not path.exists():
            temporary.replace(path)
            break
        if digest_of(path) == digest_of(temporary):
            temporary.unlink()
            break
        number += 1
    return f"vectors/{path.name}"


def _before(took: TensorFacts) -> tuple[ProcessingStep, ...]:
    low, high = took.value_range
    height, width = _sides(took)
    steps = [
        ProcessingStep(operation="tile", arguments={"height": height, "width": width}),
        *([ProcessingStep(operation="colour_order", arguments={"order": took.colour_order})] if took.colour_order else []),
        ProcessingStep(operation="scale", arguments={"multiply": (high - low) / 255.0, "add": low}),
        ProcessingStep(operation="layout", arguments={"order": took.layout}),
    ]
    if took.scale is not None and took.zero_point is not None:
        steps.append(ProcessingStep(operation="quantize", arguments={"scale": took.scale, "zero_point": took.zero_point, "dtype": took.dtype}))
    return tuple(steps)


def _after(gave: TensorFacts) -> tuple[ProcessingStep, ...]:
    low, high = gave.value_range
    steps = []
    if gave.scale is not None and gave.zero_point is not None:
        steps.append(ProcessingStep(operation="dequantize", arguments={"scale": gave.scale, "zero_point": gave.zero_point, "dtype": gave.dtype}))
    return (
        *steps,
        ProcessingStep(operation="clip", arguments={"low": low, "high": high}),
        ProcessingStep(operation="scale", arguments={"multiply": 255.0 / (high - low), "add": -255.0 * low / (high - low)}),
        ProcessingStep(operation="round", arguments={"dtype": "uint8"}),
        ProcessingStep(operation="layout", arguments={"order": gave.layout}),
        *([ProcessingStep(operation="colour_order", arguments={"order": gave.colour_order})] if gave.colour_order else []),
    )


def _runtime(file: ExportedFile) -> Runtime:
    backend, runtime = file.record.backend, file.record.parity.runtime
    name, package = RUNTIMES[backend]
    if file.least_runtime is not None:
        return Runtime(name=name, least_version=file.least_runtime, basis="stated by the file's format; executed here by " + runtime)
    if backend == "coreml":
        return Runtime(name=name, least_version="not known", basis="not executed: Core ML runs on Apple systems only")
    return Runtime(name=name, least_version=version(package), basis="the version that executed it; older ones were not tried")


def _default_unit(record: ExportRecord) -> Recommended:
    unit, delegate = DELEGATES[record.backend]
    how = "executed so on the machine that made it" if record.parity.passed is not None else "not executed"
    return Recommended(unit=unit, delegate=delegate, threads=PHONE_THREADS, basis=f"{how}; not measured on a phone")


def _quality(record: ExportRecord, run: Run) -> Quality:
    teacher = run.models.get("teacher")
    if record.quality:
        after, source = record.quality, "this file in its runtime"
    else:
        model = run.models.get("distilled")
        after, source = (model.quality if model else {}), "PyTorch"
    return Quality.model_validate(
        {"before": teacher.quality if teacher else {}, "after": after, "after_from": source, "baseline": run.baseline.get("mean", {})}
    )


def _scale_of(file: ExportedFile) -> int:
    return max(1, _sides(file.outputs[0])[0] // _sides(file.inputs[0])[0])


def _sides(facts: TensorFacts) -> tuple[int, int]:
    height, width = facts.shape[1:3] if facts.layout == "NHWC" else facts.shape[2:4]
    return height, width


def _plain(facts: TensorFacts) -> replay.Facts:
    return {
        "name": facts.name,
        "shape": list(facts.shape),
        "dtype": facts.dtype,
        "layout": facts.layout,
        "scale": facts.scale,
        "zero_point": facts.zero_point,
    }


def _plain_file(file: ModelFile) -> replay.ModelFile:
    return {
        "path": file.path,
        "backend": file.backend,
        "inputs": [_plain(facts) for facts in file.inputs],
        "outputs": [_plain(facts) for facts in file.outputs],
        "tolerance": {"max_abs": file.tolerance.max_abs, "or_sqnr_db": file.tolerance.or_sqnr_db},
        "vectors": [],
    }


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)


def _top(name: str, models: set[str]) -> str:
    """The path under which a file is listed: its own, or that of the model folder that holds it."""
    first = name.split("/", 1)[0]
    return first if first in models else name
