"""From the compressed network to executed files: write, read back, run, compare, time. One cache entry per backend and variant."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue, TypeAdapter
from torch import Tensor, nn

from mcompress.artifact import Artifact
from mcompress.cache import Cache, Entry
from mcompress.compress.cost import FP32_BYTES, operator_table
from mcompress.compress.models.spec import InputSpec, ModelSpec, holds_pictures
from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, with_parameters
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.stage import CompanionNetwork
from mcompress.console import Reporter
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.errors import MissingBackendError
from mcompress.evaluate import PARITY_INPUTS, References, Scores, mean, parity_inputs, score_file, scores_of
from mcompress.export import backend_of
from mcompress.export.backend import FloatArray, Port, Runner, Written, captured
from mcompress.export.bundle import ExportedFile, TestVector
from mcompress.export.fidelity import fidelity_of, quality_worst
from mcompress.export.interface import TensorFacts, facts_of
from mcompress.export.onnx_large import graph_file
from mcompress.export.parity import FLOAT_METRIC, FLOAT_REFERENCE, HALF_REFERENCE, INT8_METRIC, INT8_REFERENCE, Halved, not_executed
from mcompress.export.profile import BACKENDS, profile
from mcompress.export.proof import Networks, Proof, proven
from mcompress.export.replay import digest_of, size_of
from mcompress.export.walked import confirm
from mcompress.planning import STAGE_VERSIONS, Plan
from mcompress.record import ExportRecord, OperatorRecord, ParityRecord, PictureRecord, WalkedRecord, narrower_suffix
from mcompress.targets.exports import CoreMLConfig, ExportConfig
from mcompress.targets.schema import Fallback, Measurement, Target

logger = logging.getLogger("mcompress")
Variant = Literal["float", "mixed"]
VECTORS = 2
_PORTS = TypeAdapter(tuple[TensorFacts, ...])
_FALLBACKS = TypeAdapter(tuple[Fallback, ...])


@dataclass(frozen=True)
class ExportResult:
    """One written file with everything that was found out about it."""

    record: ExportRecord
    file: ExportedFile
    fallbacks: tuple[Fallback, ...]
    entry: Entry

    @property
    def scores(self) -> Scores:
        """Held-out sample -> metric -> what the file computed is worth; empty for a file that was not executed."""
        return scores_of(self.record.pictures)


@dataclass(frozen=True)
class Network:
    """What is exported: the float network, if it was quantized its plan and recovered parameters, and the digest of all of it."""

    model: nn.Module
    spec: ModelSpec
    plan: PrecisionPlan | None
    recovered: dict[str, Tensor] | None
    digest: str
    stem: str
    """What its files are called, before the variant."""
    width: float | None = None
    """Its share of the channels, where it is one of several widths."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What it takes, in its order."""
        return self.spec.inputs

    @cached_property
    def examples(self) -> dict[str, Tensor]:
        """Inputs to trace it with, by name in their order."""
        generator = torch.Generator().manual_seed(0)
        return {one.name: torch.rand(one.shape, generator=generator) for one in self.inputs}

    @cached_property
    def mixed(self) -> nn.Module:
        """What mixed files are written from: the network itself, or with the parameters that quantization recovered."""
        return self.model if self.recovered is None else with_parameters(self.model, tuple(self.examples.values()), self.recovered)

    @cached_property
    def quantized(self) -> Callable[..., Tensor]:
        """What every mixed file is compared with, made once for all of them. The network has a plan."""
        if self.plan is None:
            raise ValueError("there is no plan")
        simulated = Simulated(graph_of(export_program(self.mixed, *self.examples.values())), self.plan)
        return lambda *inputs: simulated(*inputs)


def export_all(
    made: Plan, final: Artifact, cache: Cache, log: Path, reporter: Reporter, *, force: bool, width: float | None = None
) -> list[ExportResult]:
    """Every backend of the target, float and (with a precision plan) mixed; `width` is the share of channels that a slimmable network has here."""
    network = Network(final.network(), final.spec, final.plan, final.recovered, final.digest, stem_of(made.target, width), width)
    teacher, student = CompanionNetwork(made.teacher_spec, made.teacher.eval()), CompanionNetwork(network.spec, network.model)
    jobs = export_jobs(made.target)
    report = reporter.progress(f"export, execute, compare, time{narrower_suffix(width, ' ')}")
    results = []
    with References(made.task, teacher, student, cache.root) as references:
        for index, (config, variant) in enumerate(jobs):
            report(index, len(jobs), f"{config.backend} {variant}")
            results.append(_export(made, network, references, config, variant, cache, log, force=force))
    report(len(jobs), len(jobs), "")
    return results


def export_jobs(target: Target) -> list[tuple[ExportConfig, Variant]]:
    """Which files a target makes: per backend the float one and, with a quantize stage, the mixed one."""
    variants: tuple[Variant, ...] = ("float", "mixed") if any(stage.stage == "quantize" for stage in target.stages) else ("float",)
    return [(config, variant) for config in target.exports for variant in variants]


def stem_of(target: Target, width: float | None) -> str:
    """What the files of this width are called, before the variant: the target's name, and of a narrower network `<name>-w050`."""
    return f"{target.name}{narrower_suffix(width, '-')}"


def export_key(made: Plan, digest: str, config: ExportConfig, variant: Variant, width: float | None = None) -> dict[str, JsonValue]:
    """What determines an exported file and what is found out about it; `digest` is that of the compressed network and its plan."""
    of_width: dict[str, JsonValue] = {} if width is None else {"width": width}
    return {
        **of_width,
        "name": f"export {config.backend} {variant}",
        "version": STAGE_VERSIONS["export"],
        "config": config.model_dump(mode="json"),
        "model": digest,
        "teacher": made.teacher_digest,
        "stem": stem_of(made.target, width),
        "data": made.data_digest,
        "input_shape": list(made.teacher_spec.input_shape),
        "threads": thread_count(made.target),
        "packages": dict(package_versions()),
        "cpu": cpu_name(),
    }


def _export(
    made: Plan, network: Network, references: References, config: ExportConfig, variant: Variant, cache: Cache, log: Path, *, force: bool
) -> ExportResult:
    def compute(folder: Path, _work: Path) -> None:
        with captured(log):
            _write(made, network, references, config, variant, folder)

    return _read(cache.get(export_key(made, network.digest, config, variant, network.width), compute, force=force))


def _write(made: Plan, network: Network, references: References, config: ExportConfig, variant: Variant, folder: Path) -> None:
    backend, shape, task = backend_of(config), network.spec.input_shape, made.task.for_network(network.spec)
    plan = network.plan if variant == "mixed" else None
    written = backend.write(config, network.model if plan is None else network.mixed, network.examples, plan, folder / f"{network.stem}-{variant}")
    reference = network.model if plan is None else network.quantized
    inputs = parity_inputs(task, shape)
    runner = _runner(config, written, thread_count(made.target))
    pictures: dict[str, PictureRecord] = {}
    outputs: list[FloatArray | None] = [None] * VECTORS
    latency: tuple[Measurement, ...] = ()
    if isinstance(runner, str):
        proof = Proof(_not_executed(config, plan, runner))
    else:
        networks = Networks(network.model if plan is None else network.mixed, reference, inputs)
        limit = config.float_limit if plan is None else config.int8_limit_db
        proof = proven(config.backend, written, networks, plan, runner, limit, _halved(config, network, plan))
        pictures = score_file(task, runner.run, shape, references, folder / "pictures", "file")
        outputs = [runner.run(*values) for values in inputs[:VECTORS]]
        if config.backend in BACKENDS.values():
            shapes = [one.shape for one in network.inputs]
            latency = profile(config.backend, graph_file(written.path), shapes, precision=_label(written), threads=1, seconds=config.profile_s)
    walked, doubts = _walked(config, network, written)
    record = ExportRecord(
        backend=config.backend,
        variant=variant,
        file=f"bundle/{written.path.name}",
        bytes=size_of(written.path),
        sha256=digest_of(written.path),
        precision_counts=written.precision_counts,
        parity=proof.parity,
        divergence=proof.divergence,
        coverage=written.coverage,
        operators=tuple(OperatorRecord(**{name: getattr(one, name) for name in OperatorRecord.model_fields}) for one in written.operators),
        latency=latency,
        quality=mean(scores_of(pictures)),
        quality_worst=quality_worst(pictures),
        fidelity=fidelity_of(pictures),
        pictures=pictures,
        walked=walked,
        width=network.width,
    )
    with torch.no_grad():
        expected = [reference(*map(torch.from_numpy, values)).numpy() for values in inputs[:VECTORS]]
    written = replace(written, fallbacks=(*written.fallbacks, *doubts, *proof.doubts))
    _store(folder, record, written, made, network, (inputs[:VECTORS], outputs, expected))


def _walked(config: ExportConfig, network: Network, written: Written) -> tuple[WalkedRecord | None, tuple[Fallback, ...]]:
    """The second count of an ONNX file, and where it differs from the operator table."""
    if config.backend != "onnx":
        return None, ()
    cost, doubts = confirm(written.path, operator_table(network.model, *(one.shape for one in network.inputs)))
    if cost is None:
        return None, doubts
    return WalkedRecord(macs=cost.macs, peak_activation_bytes=cost.peak_activation_elements * FP32_BYTES, peak_at=cost.peak_at), doubts


def _runner(config: ExportConfig, written: Written, threads: int) -> Runner | str:
    """The loaded file, or for Core ML why neither Core ML nor our evaluator can execute it here."""
    try:
        return backend_of(config).load(written.path, threads)
    except MissingBackendError as error:
        if config.backend != "coreml":
            raise
        return str(error)


def _halved(config: ExportConfig, network: Network, plan: PrecisionPlan | None) -> Halved | None:
    """What a file that is FP16 throughout is compared with; None for all others."""
    if plan is not None or not isinstance(config, CoreMLConfig):
        return None
    program = export_program(network.model, *network.examples.values())
    return Halved(half_simulated(program), half_constants(program), config.half_limit_db)


def _not_executed(config: ExportConfig, plan: PrecisionPlan | None, why: str) -> ParityRecord:
    if plan is not None:
        return not_executed(INT8_REFERENCE, INT8_METRIC, config.int8_limit_db, why)
    if isinstance(config, CoreMLConfig):
        return not_executed(HALF_REFERENCE, INT8_METRIC, config.half_limit_db, why)
    return not_executed(FLOAT_REFERENCE, FLOAT_METRIC, config.float_limit, why)


def stated_inputs(ports: tuple[Port, ...], specs: tuple[InputSpec, ...]) -> tuple[TensorFacts, ...]:
    """What an app must know of the inputs of a file: the first may be a picture, in RGB, and what follows it is none (`ModelSpec`)."""
    (port, spec), *further = zip(ports, specs, strict=True)
    others = (facts_of(port, value_range=spec.value_range, picture=False, colour_order=None) for port, spec in further)
    return (stated(port, spec.value_range), *others)


def stated(port: Port, value_range: tuple[float, float]) -> TensorFacts:
    """What an app must know of a tensor that is a picture in RGB, or none."""
    if holds_pictures(port.shape if port.layout == "NCHW" else (port.shape[0], port.shape[-1], *port.shape[1:-1])):
        return facts_of(port, value_range=value_range)
    return facts_of(port, value_range=value_range, picture=False, colour_order=None)


def _label(written: Written) -> str:
    return "+".join(precision for precision, count in written.precision_counts.items() if count)


def _store(
    folder: Path,
    record: ExportRecord,
    written: Written,
    made: Plan,
    network: Network,
    vectors: tuple[list[tuple[FloatArray, ...]], list[FloatArray | None], list[FloatArray]],
) -> None:
    inputs = stated_inputs(written.inputs, network.inputs)
    outputs = tuple(stated(port, made.task.output_range) for port in written.outputs)
    facts: dict[str, JsonValue] = {
        "record": record.model_dump(mode="json"),
        "path": written.path.name,
        "inputs": _PORTS.dump_python(inputs, mode="json"),
        "outputs": _PORTS.dump_python(outputs, mode="json"),
        "fallbacks": _FALLBACKS.dump_python(written.fallbacks, mode="json"),
        "least_runtime": written.least_runtime,
        "names": [sample.name for sample in made.task.held_out()[:PARITY_INPUTS][:VECTORS]],
    }
    (folder / "export.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    given, found, expected = vectors
    for index, (values, reference) in enumerate(zip(given, expected, strict=True)):
        for position, value in enumerate(values):
            np.save(folder / f"input{index}.{position}.npy", value)
        np.save(folder / f"reference{index}.npy", reference)
        output = found[index]
        if output is not None:
            np.save(folder / f"output{index}.npy", output)


def _read(entry: Entry) -> ExportResult:
    folder = entry.folder
    facts = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    record = ExportRecord.model_validate(facts["record"])
    vectors = tuple(
        TestVector(
            name,
            tuple(np.load(folder / f"input{index}.{position}.npy") for position in range(len(facts["inputs"]))),
            np.load(folder / f"reference{index}.npy"),
            np.load(folder / f"output{index}.npy") if (folder / f"output{index}.npy").exists() else None,
        )
        for index, name in enumerate(facts["names"])
    )
    file = ExportedFile(
        record,
        folder / facts["path"],
        _PORTS.validate_python(facts["inputs"]),
        _PORTS.validate_python(facts["outputs"]),
        vectors,
        facts["least_runtime"],
    )
    fallbacks = _FALLBACKS.validate_python(facts["fallbacks"])
    if entry.rebuilt_because:
        fallbacks = (*fallbacks, Fallback(where="cache", what=record.label, reason=entry.rebuilt_because))
    return ExportResult(record, file, fallbacks, entry)
