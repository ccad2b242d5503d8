"""What the listing commands print: what there is, what works here, what a bundle is worth."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pydantic import JsonValue

from mcompress.errors import MissingBackendError
from mcompress.targets import stages
from mcompress.targets.device_files import device_heads
from mcompress.targets.load import load_target, shipped_targets


def _models() -> dict[str, str]:
    from mcompress.compress.models import MODELS

    return {name: _first_line(builder) for name, builder in MODELS.items()}


def _devices() -> dict[str, str]:
    return {name: f"{head.title}; units: {', '.join(head.units)}" for name, head in device_heads().items()}


def _stages() -> dict[str, str]:
    kinds = (
        stages.SupernetSearchConfig,
        stages.SemiSupervisedSearchConfig,
        stages.EvolveSearchConfig,
        stages.BkSdmSearchConfig,
        stages.PruneConfig,
        stages.DistillConfig,
        stages.AdaptiveDistillConfig,
        stages.StepDistillConfig,
        stages.ConsistencyDistillConfig,
        stages.FeatureDistillConfig,
        stages.SlimConfig,
        stages.QuantizeConfig,
    )
    return {_stage_name(kind): f"{_first_sentence(kind)} Takes {', '.join(kind.model_fields)}." for kind in kinds}


def _stage_name(kind: type[stages.Stage]) -> str:
    """`search`, and for a method that has to be named `search, method: semi_supervised`."""
    stage, method = (str(kind.model_fields[name].default) for name in ("stage", "method"))
    return stage if stages.DEFAULT_METHODS.get(stage, method) == method else f"{stage}, method: {method}"


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


def _first_sentence(what: object) -> str:
    return " ".join((what.__doc__ or "").split()).partition(". ")[0].removesuffix(".") + "."


def _first_line(what: object) -> str:
    return (what.__doc__ or "").strip().splitlines()[0]


def doctor_rows() -> list[dict[str, str]]:
    """One row per backend, and one for video files: whether it works here, the version, or the line that installs it."""
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
    return [*rows, _video_row()]


def _video_row() -> dict[str, str]:
    """Video files of talking faces, in and out."""
    from mcompress.compress.tasks.talking_face.containers import require_av
    from mcompress.environment import package_versions

    try:
        require_av()
    except MissingBackendError as error:
        return {"name": "video", "state": "missing", "detail": str(error)}
    return {"name": "video", "state": "ok", "detail": f"av {package_versions()['av']}"}


def _versions(backend: str) -> str:
    from mcompress.environment import package_versions
    from mcompress.export import coreml

    of = {"onnx": ("onnx", "onnxruntime"), "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")}
    versions = package_versions()
    found = ", ".join(f"{name} {versions[name]}" for name in of.get(backend, (backend if backend != "coreml" else "coremltools",)))
    if backend != "coreml":
        return found
    return f"{found}; " + (
        "Core ML executes its files" if coreml.executes_here() else "mcompress's evaluator executes its files, and does not time them"
    )


def verify_rows(bundle: Path) -> list[dict[str, JsonValue]]:
    """One row per file of a bundle: PASS, FAIL or NOT EXECUTED, and why."""
    from mcompress.export.bundle import verify_bundle
    from mcompress.record import HIGHEST_DB, finite

    return [
        {
            "file": result.file,
            "verdict": result.verdict,
            "detail": result.detail,
            "max_abs": finite(result.max_abs),
            "sqnr_db": None if result.sqnr_db is None else finite(min(result.sqnr_db, HIGHEST_DB)),
        }
        for result in verify_bundle(bundle)
    ]
