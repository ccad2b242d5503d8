"""What the listing commands print: what there is, what a model costs, what works here, what a bundle is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pydantic import JsonValue

from mcompress.errors import MissingBackendError, StageError, UsageError
from mcompress.targets.device import list_devices, load_device
from mcompress.targets.load import load_target, shipped_targets
from mcompress.targets.schema import MOST_VALUES


def _models() -> dict[str, str]:
    from mcompress.compress.models import MODELS

    return {name: _first_line(builder) for name, builder in MODELS.items()}


def _devices() -> dict[str, str]:
    return {name: f"{device.title}; units: {', '.join(device.units)}" for name in list_devices() for device in (load_device(name),)}


def _stages() -> dict[str, str]:
    from mcompress.targets import stages

    kinds = (stages.SearchConfig, stages.PruneConfig, stages.DistillConfig, stages.QuantizeConfig)
    return {str(kind.model_fields["stage"].default): f"{_first_line(kind)} Takes {', '.join(kind.model_fields)}." for kind in kinds}


def _exporters() -> dict[str, str]:
    from mcompress.targets import exports

    kinds = (exports.OnnxConfig, exports.TFLiteConfig, exports.ExecuTorchConfig, exports.CoreMLConfig)
    return {str(kind.model_fields["backend"].default): _first_line(kind) for kind in kinds}


def _targets() -> dict[str, str]:
    return {name: load_target(Path(name)).device for name in shipped_targets()}


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "models": _models,
    "devices": _devices,
    "targets": _targets,
    "stages": _stages,
    "exporters": _exporters,
}


def _first_line(what: object) -> str:
    return (what.__doc__ or "").strip().splitlines()[0]


def count_model(model: str, shape: str, args: str) -> dict[str, int]:
    """Parameters, multiply-adds and memory of a model by name. Raises `UsageError` for a shape or arguments that cannot be read."""
    try:
        input_shape = tuple(int(part) for part in shape.replace("x", ",").split(","))
    except ValueError:
        input_shape = ()
    if len(input_shape) != 4 or min(input_shape) < 1:
        raise UsageError(
            f"--input is '{shape}'; it must be four positive whole numbers with commas between them (batch, channels, height, width), "
            "for example 1,3,128,128"
        )
    try:
        arguments = json.loads(args)
    except ValueError as error:
        raise UsageError(f"--args is not JSON: {error}; for example --args '{{\"blocks\": 6}}'") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"--args is {args}; it must be a JSON object, for example '{{\"blocks\": 6}}'")
    from mcompress.compress.cost import count
    from mcompress.compress.models.build import build, build_meta
    from mcompress.compress.models.spec import ModelSpec

    spec = ModelSpec(model, arguments, (), input_shape)
    try:
        return count(build_meta(spec), input_shape)
    except StageError as error:
        if math.prod(input_shape) > MOST_VALUES:
            raise _refused(model, shape, error) from error
    try:  # the network may need numbers to find its way, and if it does not, the message is about the input alone
        return count(build(spec), input_shape)
    except StageError as error:
        raise _refused(model, shape, error) from error


def _refused(model: str, shape: str, error: StageError) -> UsageError:
    return UsageError(f"--input is '{shape}', which {model} does not take: {error}")


def doctor_rows() -> list[dict[str, str]]:
    """One row per backend: whether it works here, the version, or the line that installs it."""
    from mcompress.export import EXPORTERS

    rows = []
    for config, module in EXPORTERS.items():
        name = str(config.model_fields["backend"].default)
        try:
            import_module(module).probe()
        except MissingBackendError as error:
            rows.append({"name": name, "state": "missing", "detail": str(error)})
        else:
            rows.append({"name": name, "state": "ok", "detail": _versions(name)})
    return rows


def _versions(backend: str) -> str:
    from mcompress.environment import package_versions

    of = {"onnx": ("onnx", "onnxruntime"), "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")}
    versions = package_versions()
    return ", ".join(f"{name} {versions[name]}" for name in of.get(backend, (backend if backend != "coreml" else "coremltools",)))


def verify_rows(bundle: Path) -> list[dict[str, JsonValue]]:
    """One row per file of a bundle: PASS, FAIL or NOT EXECUTED, and why."""
    from mcompress.export.bundle import verify_bundle

    return [
        {
            "file": result.file,
            "verdict": result.verdict,
            "detail": result.detail,
            "max_abs": result.max_abs,
            "sqnr_db": None if result.sqnr_db is None else min(result.sqnr_db, 200.0),
        }
        for result in verify_bundle(bundle)
    ]
