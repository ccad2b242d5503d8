"""A model on disk: `spec.json`, `weights.safetensors`, and where they exist `plan.json`, `recovered.safetensors` and `details.json`.
Never a pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue, TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcompress.compress.models.build import build, code_digest
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.stage import StageOutput
from mcompress.targets.schema import Fallback, Measurement

RECOVERED = "recovered.safetensors"
_MEASUREMENTS = TypeAdapter(tuple[Measurement, ...])
_FALLBACKS = TypeAdapter(tuple[Fallback, ...])


@dataclass(frozen=True)
class Artifact:
    """A stage's result as it lies on disk. The network is only built when somebody asks for it."""

    folder: Path
    spec: ModelSpec
    digest: str
    plan: PrecisionPlan | None
    recovered: dict[str, Tensor] | None
    """What mixed files are written with in place of the network's own parameters; see `StageOutput`."""
    measurements: tuple[Measurement, ...]
    fallbacks: tuple[Fallback, ...]

    def network(self) -> nn.Module:
        """Build the network and load its weights, in evaluation mode."""
        network = build(self.spec)
        network.load_state_dict(load_file(self.folder / "weights.safetensors"))
        return network.eval()


def model_digest(spec: ModelSpec, state: dict[str, Tensor], plan: PrecisionPlan | None = None, recovered: dict[str, Tensor] | None = None) -> str:
    """SHA-256 over specification, weights, plan and recovered weights: what the model computes, not when or how long it took to make."""
    sha = hashlib.sha256(spec.to_json().encode())
    if ":" in spec.network:  # a user's own network: its code is part of what it computes
        sha.update(code_digest(spec.network).encode())
    _add_tensors(sha, state)
    if plan is not None:
        sha.update(plan.to_json().encode())
    if recovered:
        _add_tensors(sha, recovered)
    return sha.hexdigest()


def _add_tensors(sha: hashlib._Hash, tensors: dict[str, Tensor]) -> None:
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())


def save_output(output: StageOutput, folder: Path) -> None:
    """Write a stage's result into `folder`, which exists and is empty."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in output.model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    (folder / "spec.json").write_text(output.spec.to_json(), encoding="utf-8")
    if output.plan is not None:
        (folder / "plan.json").write_text(output.plan.to_json(), encoding="utf-8")
    if output.recovered:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in output.recovered.items()}, folder / RECOVERED)
    (folder / "details.json").write_text(json.dumps(output.details, allow_nan=False), encoding="utf-8")
    record: dict[str, JsonValue] = {
        "digest": model_digest(output.spec, state, output.plan, output.recovered),
        "measurements": _MEASUREMENTS.dump_python(output.measurements, mode="json"),
        "fallbacks": _FALLBACKS.dump_python(output.fallbacks, mode="json"),
    }
    (folder / "output.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def load_artifact(folder: Path) -> Artifact:
    """Read what `save_output` wrote; the caller has checked the files' digests."""
    record = json.loads((folder / "output.json").read_text(encoding="utf-8"))
    plan_file = folder / "plan.json"
    return Artifact(
        folder,
        ModelSpec.from_json((folder / "spec.json").read_text(encoding="utf-8")),
        record["digest"],
        PrecisionPlan.from_json(plan_file.read_text(encoding="utf-8")) if plan_file.exists() else None,
        load_file(folder / RECOVERED) if (folder / RECOVERED).exists() else None,
        _MEASUREMENTS.validate_python(record["measurements"]),
        _FALLBACKS.validate_python(record["fallbacks"]),
    )
