"""What a run would do, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from mcompress.artifact import load_artifact, model_digest
from mcompress.cache import Cache, problem_of
from mcompress.exporting import export_jobs, export_key
from mcompress.planning import Plan, plan
from mcompress.record import narrower_suffix
from mcompress.targets.schema import Target
from mcompress.targets.stages import SlimConfig, width_name

BEHIND = "to compute (depends on the step before)"


@dataclass(frozen=True)
class Preview:
    """One row per step, with what is cached and which part of the key changed where something is not; and what is to be known of the data."""

    rows: list[dict[str, str]]
    data_notes: tuple[str, ...]


def preview(target: Target, out: Path) -> Preview:
    """What a run would do."""
    made, cache = plan(target), Cache(out / "cache")
    rows, parent = [], model_digest(made.start_spec, made.start.state_dict())
    known, slimmed = True, None
    for name, stage in zip(target.stage_names(), target.stages, strict=True):
        state = BEHIND
        if known:
            parts = made.key_parts(name, stage, parent)
            state, folder = _state(cache, parts)
            known = folder is not None
            if folder is not None:
                parent = load_artifact(folder).digest
                slimmed = folder if isinstance(stage, SlimConfig) else slimmed
        rows.append({"step": name, "method": stage.method, "state": state})
    widths = [width for stage in target.stages if isinstance(stage, SlimConfig) for width in stage.widths]
    rows += _exports(made, cache, parent if known else None, widths[0] if widths else None)
    for width in widths[1:]:
        rows += _narrower(made, cache, slimmed, width)
    return Preview(rows, made.data_notes)


def _exports(made: Plan, cache: Cache, digest: str | None, width: float | None) -> Iterator[dict[str, str]]:
    """The files of one width; `digest` is None where the steps before are to compute."""
    for config, variant in export_jobs(made.target):
        state = BEHIND if digest is None else _state(cache, export_key(made, digest, config, variant, width))[0]
        yield {"step": f"export {variant}{narrower_suffix(width, ' ')}", "method": config.backend, "state": state}


def _narrower(made: Plan, cache: Cache, slimmed: Path | None, width: float) -> Iterator[dict[str, str]]:
    """The steps of a narrower network, of which `slimmed` holds what the slim stage made."""
    named = list(zip(made.target.stage_names(), made.target.stages, strict=True))
    behind = named[1 + next(index for index, (_, stage) in enumerate(named) if isinstance(stage, SlimConfig)) :]
    digest = None if slimmed is None else load_artifact(slimmed).narrower()[width_name(width)].digest
    for kind, stage in behind:
        name, state = f"{kind}-{width_name(width)}", BEHIND
        if digest is not None:
            state, folder = _state(cache, made.key_parts(name, stage, digest))
            digest = None if folder is None else load_artifact(folder).digest
        yield {"step": name, "method": stage.method, "state": state}
    yield from _exports(made, cache, digest, width)


def _state(cache: Cache, parts: dict[str, JsonValue]) -> tuple[str, Path | None]:
    """What a run would find, and the folder of an entry that it would use."""
    folder = cache.find(parts)
    if folder is None:
        return _why(cache.nearest(parts)), None
    problem = problem_of(folder)
    return ("cached", folder) if problem is None else (f"damaged, to compute again ({problem})", None)


def _why(changed: list[str]) -> str:
    return f"to compute ({', '.join(changed)} changed)" if changed else "to compute"
