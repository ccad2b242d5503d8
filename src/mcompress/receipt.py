"""The receipt of a finished run: what its result depended on, and the digest of everything it left.

A run whose receipt still holds has nothing to do. Checking that takes a second, because it needs no torch: the receipt names files, versions and the
processor, and covers more than any cache key does (all of mcompress's code, for example). If anything differs, the run goes the long way, on which
each cached step is still found by its own key.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import JsonValue

from mcompress.cache import file_digest, json_digest, problem_of
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.record import GALLERY, VIDEO, Run
from mcompress.targets.device_files import DEVICE_SUFFIXES
from mcompress.targets.load import digest
from mcompress.targets.own_modules import edited_since_loaded, source_digests
from mcompress.targets.schema import Target
from mcompress.targets.stages import QuantizeConfig

logger = logging.getLogger(__name__)
NAME = "receipt.json"
OUTPUTS = ("run.json", "report.html", "target.yaml", "bundle", "samples", "stages", "components", VIDEO, GALLERY)


Inputs = dict[str, JsonValue]

READ_OF_A_MODEL = (".json", ".txt", ".safetensors")
"""Suffixes of configurations, vocabularies and weights in a diffusers folder."""


def write_receipt(folder: Path, target: Target, inputs: Inputs | None, entries: Iterable[Path]) -> None:
    """Note what the run in `folder` depended on and left; `entries` are the cache entries that it used.

    `inputs` were taken before the run began. If they have changed since, nobody knows which of them the result was computed from: no receipt.
    """
    if inputs is None or inputs != inputs_of(target):
        logger.warning("something that the run depends on changed while it ran; the next run looks at every step again")
        (folder / NAME).unlink(missing_ok=True)
        return
    # From the run's folder, so that a copy of runs and cache together is complete.
    used: list[JsonValue] = [*sorted({os.path.relpath(entry.resolve(), folder.resolve()) for entry in entries})]
    _save(folder, {"inputs": inputs, "outputs": _outputs(folder), "entries": used})


def still_holds(folder: Path, inputs: Inputs | None) -> bool:
    """Whether a run with these inputs would change nothing in `folder`."""
    try:
        facts = _read(folder)
        if inputs is None or facts["inputs"] != inputs or facts["outputs"] != _outputs(folder):
            return False
        entries = facts["entries"]
        return isinstance(entries, list) and all(problem_of(folder.resolve() / str(entry)) is None for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.info("no receipt that could be used: %s", error)
        return False


def settled(folder: Path) -> Run:
    """The record of a run whose receipt holds, with every stage marked as cached; its time and memory stay those of the work."""
    record = Run.load(folder)
    if all(stage.cached for stage in record.stages):
        return record
    record = record.model_copy(update={"stages": tuple(stage.model_copy(update={"cached": True}) for stage in record.stages)})
    record.save(folder)
    _save(folder, {**_read(folder), "outputs": _outputs(folder)})
    return record


def _read(folder: Path) -> dict[str, JsonValue]:
    return dict(json.loads((folder / NAME).read_text(encoding="utf-8")))


def _save(folder: Path, facts: dict[str, JsonValue]) -> None:
    temporary = folder / f"{NAME}.tmp"
    temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    temporary.replace(folder / NAME)


def inputs_of(target: Target) -> Inputs | None:
    """Everything that decides what a run of `target` gives; None where something that it names cannot be read (planning says what)."""
    try:
        files: dict[str, JsonValue] = {str(path): file_digest(path) for path in _named_files(target)}
        modules: dict[str, JsonValue] = {module: dict(_sources(module)) for module in _named_modules(target)}
    except (OSError, ValueError) as error:
        logger.info("no receipt: %s", error)
        return None
    return {
        "target": digest(target),
        "code": _code_digest(),
        "files": files,
        "modules": modules,
        "packages": dict(package_versions()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": thread_count(target),
    }


def _outputs(folder: Path) -> dict[str, JsonValue]:
    """File below `folder` -> digest, of everything that a run leaves there for others."""
    files = [path for name in OUTPUTS for path in ([folder / name] if (folder / name).is_file() else _below(folder / name))]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _code_digest() -> str:
    """Over everything that mcompress is made of: code, devices, templates, embedded weights."""
    root = Path(__file__).parent
    files = [path for part in sorted(root.iterdir()) for path in ([part] if part.is_file() else _below(part))]
    return json_digest({path.relative_to(root).as_posix(): file_digest(path) for path in files if path.suffix not in (".pyc", ".pyo")})


def _named_files(target: Target) -> Iterator[Path]:
    """What the target names: data folders, checkpoints, a precision plan, and a device file of the user's own."""
    if target.device.endswith(DEVICE_SUFFIXES):
        yield Path(target.device)
    for folder in target.data.folders:
        yield from _below(folder)
    for network in (target.model.teacher, target.model.student, target.model.expert):
        if network is not None and network.checkpoint is not None:
            yield from _of_a_model(network.checkpoint) if network.checkpoint.is_dir() else [network.checkpoint]
    for stage in (*target.stages, *(stage for config in target.components.values() for stage in config.stages)):
        if isinstance(stage, QuantizeConfig) and stage.plan is not None:
            yield stage.plan


def _named_modules(target: Target) -> list[str]:
    """The modules of the user's own networks."""
    networks = [network.network for network in (target.model.teacher, target.model.student) if network is not None]
    return sorted({network.partition(":")[0] for network in networks if ":" in network})


def _sources(module: str) -> dict[str, str]:
    edited = edited_since_loaded(module)
    if edited:
        raise ValueError(f"{', '.join(edited)} changed after this process had imported it; what it computes with is no longer on the disk")
    return source_digests(module)


def _of_a_model(folder: Path) -> list[Path]:
    """What is read of a diffusers folder; a clone of one holds its history and the same weights in other formats besides."""
    return [
        path for path in _below(folder) if path.suffix in READ_OF_A_MODEL and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
