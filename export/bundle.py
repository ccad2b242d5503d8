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
from mcompress.export.choices import choices_of
from mcompress.export.comparison import Comparison, write_comparison
from mcompress.export.draw_check import check_pictures
from mcompress.export.drawing import DrawingFacts, drawing_of
from mcompress.export.interface import TensorFacts
from mcompress.export.manifest import Content, Manifest, ModelFile, ProcessingStep, Source, VectorFiles, VectorInput
from mcompress.export.manifest_drawing import UNET
from mcompress.export.manifest_speech import Speech
from mcompress.export.mil import EVALUATOR
from mcompress.export.parity import INT8_METRIC
from mcompress.export.replay import Result, digest_of, size_of
from mcompress.export.stated import (
    INT8_SQNR_DB,
    computed_by,
    default_unit,
    postprocessing_of,
    preprocessing_of,
    quality_of,
    runtime_of,
    scale_of,
    tolerance_of,
)
from mcompress.export.talking import face_postprocessing_of, face_preprocessing_of, speech_of, speech_preprocessing_of, streaming_of
from mcompress.record import ExportRecord, Run
from mcompress.targets.schema import Target

_OF_THE_FILE = ("name", "shape", "dtype", "layout", "scale", "zero_point")
"""What a file itself states of its tensors; their range and colours are known to the task only."""


@dataclass(frozen=True)
class TestVector:
    """What the network takes for one held-out sample, and what it becomes; float32 in real values, as the network has them (NCHW)."""

    name: str
    inputs: tuple[FloatArray, ...]
    """In the order of the file's inputs."""
    reference: FloatArray
    """What PyTorch computes: the model, or its fake-quantized form for a mixed file."""
    expected: FloatArray | None = None
    """What the file itself computed; None if it could not be executed, then the reference is expected."""

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
    """The oldest runtime that the file itself states, for example `iOS 17, macOS 14`; left out, the version that executed it is stated."""


def write_bundle(
    folder: Path,
    *,
    run: Run,
    target: Target,
    files: Sequence[ExportedFile],
    plan: PrecisionPlan | None,
    comparison: Comparison | None = None,
    narrower_plans: Mapping[str, PrecisionPlan] | None = None,
    drawing: DrawingFacts | None = None,
) -> Path:
    """Write the bundle into `folder` as a whole (a temporary sibling that takes its place) and return `folder`.

    The sources of `files` may lie anywhere, in `folder` as well. Without a `comparison` the gate cannot compare the bundle. `narrower_plans` are
    those of the narrower widths, by their names, and of networks that go along. With `drawing` the bundle draws, and `files` are those of a text
    encoder, a U-Net and a decoder. Raises `ExportError` for files that do not fit their facts, `OSError` if the disk is full.
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
    speech = speech_of(files[0].inputs) if target.model.task == "talking_face" else None
    shipped = tuple(_ship(file, run, temporary, speech, None if drawing is None else UNET) for file in files)
    manifest = Manifest(
        name=run.target.name,
        task=target.model.task,
        device=target.device,
        scale=scale_of(files[0].inputs, files[0].outputs[0]),
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
        files=shipped,
        choose=choices_of([file.record for file in files], run),
        speech=speech,
        streaming=None if speech is None else streaming_of(files[0].inputs, files[0].outputs, speech),
        drawing=None if drawing is None else drawing_of(drawing, shipped, temporary),
    )
    plans = {"precision_plan.json": plan} | {f"precision_plan-{name}.json": one for name, one in (narrower_plans or {}).items()}
    for name, one in plans.items():
        if one is not None:
            (temporary / name).write_text(one.to_json() + "\n", encoding="utf-8")
    if comparison is not None:
        write_comparison(temporary, comparison)
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


def verify_bundle(folder: Path) -> list[Result]:
    """Check digests, then execute every file through its exporter's runner and compare with its vectors; one result per file. Of text to image also
    draw a whole picture with each set of files, and compare it with PyTorch's: one result per set.

    Raises `UsageError` for something that is not a bundle of this schema or names paths outside itself, `ParityError` if anything was changed.
    A file whose runtime is missing here has the status `not executed`; a file that computes something else has `failed`, and does not raise.
    """
    manifest = read_manifest(folder)
    return [*(_verify_file(folder, file) for file in manifest.files), *(check_pictures(folder) if manifest.drawing is not None else ())]


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


def _verify_file(folder: Path, file: ModelFile) -> Result:
    facts, seen = plain_facts(file.outputs[0]), []
    try:
        runner = _load(file.backend, folder / file.path)
        other = _other_tensor(file, runner)
        if other is not None:
            return Result(file.path, file.backend, "failed", None, None, other)
        for vector in file.vectors:
            replay.check_names(vector.name, [one.name for one in vector.inputs], [one.name for one in file.inputs])
            got = runner.run(*(np.load(folder / one.npy, allow_pickle=False) for one in vector.inputs))
            seen.append(replay.difference(got, replay.decode(replay.read_raw(folder / vector.expected_bin, facts), facts)))
    except MissingBackendError as error:
        return Result(file.path, file.backend, "not executed", None, None, str(error))
    except ExportError as error:
        return Result(file.path, file.backend, "failed", None, None, f"its runtime refused it: {error}")
    except (ValueError, EOFError) as error:
        reason = f"a vector of it does not fit it or cannot be read: {error}. Take the bundle again from where it was made"
        return Result(file.path, file.backend, "failed", None, None, reason)
    if not seen:
        return Result(file.path, file.backend, "not executed", None, None, "the bundle holds no vector for it")
    found = replay.verdict(_plain_file(file), seen)
    return found._replace(reason=f"{found.reason}; computed by the {EVALUATOR}") if runner.runtime.startswith(EVALUATOR) else found


def _other_tensor(file: ModelFile, runner: Runner) -> str | None:
    """The first input or output that is not what the manifest states: an app that feeds the file as the manifest says would get rubbish."""
    for kind, stated, seen in (("input", file.inputs, runner.inputs), ("output", file.outputs, runner.outputs)):
        if len(stated) != len(seen):
            return f"it has {len(seen)} {kind}s; the manifest states {len(stated)}. Take the bundle again from where it was made"
        for facts, port in zip(stated, seen, strict=True):
            differing = [name for name in _OF_THE_FILE if getattr(facts, name) != getattr(port, name)]
            if differing:
                is_now = ", ".join(f"{name} {getattr(port, name)}" for name in differing)
                should = ", ".join(f"{name} {getattr(facts, name)}" for name in differing)
                return f"its {kind} '{port.name}' has {is_now}; the manifest states {should}. Take the bundle again from where it was made"
    return None


def _load(backend: str, path: Path) -> Runner:
    try:
        module = backend_named(backend)
    except KeyError as error:
        raise MissingBackendError(f"this mcompress has no runner for '{backend}'; use the mcompress that made the bundle, or a newer one") from error
    return module.load(path, threads=1)


def _ship(file: ExportedFile, run: Run, bundle: Path, speech: Speech | None, own: str | None) -> ModelFile:
    """`own`: the component that the run's own network is, where others go along."""
    if not file.inputs or len(file.outputs) != 1:
        raise ExportError(f"{file.path.name} has {len(file.inputs)} inputs and {len(file.outputs)} outputs; test vectors hold inputs and one output")
    destination = bundle / file.path.name
    (shutil.copytree if file.path.is_dir() else shutil.copyfile)(file.path, destination)
    record, gave = file.record, file.outputs[0]
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
        runtime=runtime_of(record, file.least_runtime),
        run_with=default_unit(record),
        inputs=file.inputs,
        outputs=file.outputs,
        preprocessing={facts.name: _steps_to(facts, speech) for facts in file.inputs},
        postprocessing=postprocessing_of(gave) if speech is None else face_postprocessing_of(gave),
        precision_counts=record.precision_counts,
        coverage=record.coverage,
        parity=record.parity,
        latency=record.latency,
        quality=quality_of(record, run),
        fidelity=record.fidelity,
        tolerance=tolerance_of(
            record.variant,
            gave,
            halves=record.precision_counts.get("fp16", 0) > 0,
            int8_db=min(INT8_SQNR_DB, record.parity.limit) if record.parity.metric == INT8_METRIC else INT8_SQNR_DB,
        ),
        vectors=tuple(_write_vector(bundle, file, index) for index in range(len(file.vectors))),
        width=record.width,
        component=record.component or own,
    )


def _steps_to(took: TensorFacts, speech: Speech | None) -> tuple[ProcessingStep, ...]:
    if speech is None:
        return preprocessing_of(took)
    return speech_preprocessing_of(took, speech) if took.name == speech.input else face_preprocessing_of(took)


def _write_vector(bundle: Path, file: ExportedFile, index: int) -> VectorFiles:
    vector, gave = file.vectors[index], file.outputs[0]
    if len(vector.inputs) != len(file.inputs):
        raise ExportError(f"{file.path.name} has {len(file.inputs)} inputs; the vector '{vector.name}' holds {len(vector.inputs)}")
    expected = _native(file, vector, "expected output", vector.reference if vector.expected is None else vector.expected, gave)
    folder = bundle / "vectors"
    folder.mkdir(exist_ok=True)
    stem, inputs = f"{index}-{_safe(vector.name)}", []
    for value, took in zip(vector.inputs, file.inputs, strict=True):
        alone = len(file.inputs) == 1
        native = _native(file, vector, "input" if alone else f"input '{took.name}'", value, took)
        named = f"{stem}.{'input' if alone else _safe(took.name)}"
        raw = _store(folder, f"{named}.{took.layout.lower()}.{took.dtype}", native, raw=True)
        inputs.append(VectorInput(name=took.name, npy=_store(folder, named, value, raw=False), bin=raw))
    return VectorFiles(
        name=vector.name,
        inputs=tuple(inputs),
        expected_bin=_store(folder, f"{stem}.expected.{_safe(file.path.name)}", expected, raw=True),
        expected_from="PyTorch" if vector.expected is None else computed_by(file.record),
        reference_npy=_store(folder, f"{stem}.pytorch.{file.record.variant}", vector.reference, raw=False),
    )


def _native(file: ExportedFile, vector: TestVector, what: str, value: FloatArray, facts: TensorFacts) -> replay.Tensor:
    """In the file's own layout and type."""
    array = replay.encode(value, plain_facts(facts)) if value.ndim == len(facts.shape) else value
    if array.shape != facts.shape:
        raise ExportError(f"{file.path.name}: the {what} of vector '{vector.name}' has shape {tuple(array.shape)}; the file has {facts.shape}")
    return array


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


def plain_facts(facts: TensorFacts) -> replay.Facts:
    """What the manifest says of one tensor, as the bundle's own `verify.py` reads it."""
    return {
        "name": facts.name,
        "shape": list(facts.shape),
        "dtype": facts.dtype,
        "layout": facts.layout,
        "scale": facts.scale,
        "zero_point": facts.zero_point,
    }


def plain_vector(vector: VectorFiles) -> replay.Vector:
    """The same of one test vector."""
    return {
        "name": vector.name,
        "inputs": [{"name": one.name, "npy": one.npy, "bin": one.bin} for one in vector.inputs],
        "expected_bin": vector.expected_bin,
        "reference_npy": vector.reference_npy,
    }


def _plain_file(file: ModelFile) -> replay.ModelFile:
    return {
        "path": file.path,
        "backend": file.backend,
        "inputs": [plain_facts(facts) for facts in file.inputs],
        "outputs": [plain_facts(facts) for facts in file.outputs],
        "tolerance": {"max_abs": file.tolerance.max_abs, "or_sqnr_db": file.tolerance.or_sqnr_db},
        "vectors": [],
    }


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)


def _top(name: str, models: set[str]) -> str:
    """The path under which a file is listed: its own, or that of the model folder that holds it."""
    first = name.split("/", 1)[0]
    return first if first in models else name
