"""What a run would do: one row per step with what is cached, and which part of the key changed where something is not."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from mcompress.artifact import load_artifact, model_digest
from mcompress.cache import Cache, problem_of
from mcompress.exporting import export_jobs, export_key
from mcompress.planning import plan
from mcompress.targets.schema import Target


def preview(target: Target, out: Path) -> list[dict[str, str]]:
    """What a run would do: one row per step with what is cached, and which part of the key changed where something is not."""
    made, cache = plan(target), Cache(out / "cache")
    rows, parent = [], model_digest(made.start_spec, made.start.state_dict())
    known = True
    for name, stage in zip(target.stage_names(), target.stages, strict=True):
        state = "to compute (depends on the step before)"
        if known:
            parts = made.key_parts(name, stage, parent)
            state, folder = _state(cache, parts)
            known = folder is not None
            if folder is not None:
                parent = load_artifact(folder).digest
        rows.append({"step": name, "method": stage.method, "state": state})
    for config, variant in export_jobs(target):
        state = "to compute (depends on the step before)"
        if known:
            parts = export_key(made, parent, config, variant)
            state, _ = _state(cache, parts)
        rows.append({"step": f"export {variant}", "method": config.backend, "state": state})
    return rows


def _state(cache: Cache, parts: dict[str, JsonValue]) -> tuple[str, Path | None]:
    """What a run would find, and the folder of an entry that it would use."""
    folder = cache.find(parts)
    if folder is None:
        return _why(cache.nearest(parts)), None
    problem = problem_of(folder)
    return ("cached", folder) if problem is None else (f"damaged, to compute again ({problem})", None)


def _why(changed: list[str]) -> str:
    return f"to compute ({', '.join(changed)} changed)" if changed else "to compute"
