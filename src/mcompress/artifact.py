"""A model on disk: `spec.json`, `weights.safetensors`, and where they exist `plan.json`, `recovered.safetensors`, `teachers/`, `narrower/`
and `details.json`. Never a pickle."""

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
from mcompress.compress.stage import CompanionNetwork, StageOutput
from mcompress.targets.schema import Fallback, Measurement

WEIGHTS, RECOVERED, TEACHERS, NARROWER = "weights.safetensors", "recovered.safetensors", "teachers", "narrower"
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
        return _read_network(self.folder, self.spec)

    def teachers(self) -> dict[str, CompanionNetwork]:
        """The networks that go along with it to later stages."""
        specs = {folder: _read_spec(folder) for folder in _folders(self.folder / TEACHERS)}
        return {folder.name: CompanionNetwork(spec, _read_network(folder, spec)) for folder, spec in specs.items()}

    def narrower(self) -> dict[str, Artifact]:
        """The networks that ship beside it, by the name of their width, from wide to narrow; each an artifact of its own."""
        found = {}
        for folder in reversed(_folders(self.folder / NARROWER)):
            spec = _read_spec(folder)
            found[folder.name] = Artifact(folder, spec, model_digest(spec, load_file(folder / WEIGHTS)), None, None, (), ())
        return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _read_spec(folder: Path) -> ModelSpec:
    return ModelSpec.from_json((folder / "spec.json").read_text(encoding="utf-8"))


def _read_network(folder: Path, spec: ModelSpec) -> nn.Module:
    network = build(spec)
    network.load_state_dict(load_file(folder / WEIGHTS))
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
    state = _write_network(folder, output.spec, output.model)
    digest = model_digest(output.spec, state, output.plan, output.recovered)
    # Later stages learn from the teachers and go on with the narrower networks, so they are part of what a later result depends on.
    for kind, companions in ((TEACHERS, output.teachers), (NARROWER, output.narrower)):
        for name, companion in sorted(companions.items()):
            place = folder / kind / name
            place.mkdir(parents=True)
            written = model_digest(companion.spec, _write_network(place, companion.spec, companion.network))
            digest = hashlib.sha256(f"{digest}{name}{written}".encode()).hexdigest()
    if output.plan is not None:
        (folder / "plan.json").write_text(output.plan.to_json(), encoding="utf-8")
    if output.recovered:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in output.recovered.items()}, folder / RECOVERED)
    (folder / "details.json").write_text(json.dumps(output.details, allow_nan=False), encoding="utf-8")
    record: dict[str, JsonValue] = {
        "digest": digest,
        "measurements": _MEASUREMENTS.dump_python(output.measurements, mode="json"),
        "fallbacks": _FALLBACKS.dump_python(output.fallbacks, mode="json"),
    }
    (folder / "output.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def _write_network(folder: Path, spec: ModelSpec, network: nn.Module) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    return state


def load_artifact(folder: Path) -> Artifact:
    """Read what `save_output` wrote; the caller has checked the files' digests."""
    record = json.loads((folder / "output.json").read_text(encoding="utf-8"))
    plan_file = folder / "plan.json"
    return Artifact(
        folder,
        _read_spec(folder),
        record["digest"],
        PrecisionPlan.from_json(plan_file.read_text(encoding="utf-8")) if plan_file.exists() else None,
        load_file(folder / RECOVERED) if (folder / RECOVERED).exists() else None,
        _MEASUREMENTS.validate_python(record["measurements"]),
        _FALLBACKS.validate_python(record["fallbacks"]),
    )
