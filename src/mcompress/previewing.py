"""What a run would do: one row per step with what is cached, and which part of the key changed where something is not."""

from __future__ import annotations

from pathlib import Path

from mcompress.artifact import load_artifact, model_digest
from mcompress.cache import Cache, digest_of
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
            known = cache.has(parts)
            state = "cached" if known else _why(cache.nearest(parts))
            if known:
                parent = load_artifact(cache.root / digest_of(parts)).digest
        rows.append({"step": name, "method": stage.method, "state": state})
    for config, variant in export_jobs(target):
        state = "to compute (depends on the step before)"
        if known:
            parts = export_key(made, parent, config, variant)
            state = "cached" if cache.has(parts) else _why(cache.nearest(parts))
        rows.append({"step": f"export {variant}", "method": config.backend, "state": state})
    return rows


def _why(changed: list[str]) -> str:
    return f"to compute ({', '.join(changed)} changed)" if changed else "to compute"
