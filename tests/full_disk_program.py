"""Fills the small file system that it is given and lets each writer run into its end; prints what came of it as JSON. See `test_full_disk.py`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mcompress.artifact import load_artifact, save_output
from mcompress.cache import Cache, disk_full_named
from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import StageOutput
from mcompress.errors import DiskFullError
from mcompress.record import EnvironmentRecord, Run, TargetRecord
from mcompress.targets.schema import Fallback

LEFT_BYTES = 32_768
SPEC = ModelSpec("imdn", {"features": 16, "blocks": 1})


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nearly no space is left."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - LEFT_BYTES)
    yield
    filler.unlink()


def message_of(write: Callable[[], object], disk: Path) -> str:
    try:
        with disk_full_named(disk):
            write()
    except DiskFullError as error:
        return f"exit {error.exit_code}: {error}"
    return "written"


def checkpoints(disk: Path) -> dict[str, object]:
    store = FileCheckpoints(disk / "distill.pt")
    store.save({"step": 3, "weights": torch.zeros(10)})
    larger = {"step": 4, "weights": torch.zeros(100_000)}
    with full(disk):
        message = message_of(lambda: store.save(larger), disk)
        kept = (store.load() or {}).get("step")
    again = message_of(lambda: store.save(larger), disk)
    return {"message": message, "kept": kept, "again": again, "then": (store.load() or {}).get("step"), "problem": store.problem}


def weights(disk: Path) -> dict[str, object]:
    cache, output = Cache(disk / "cache"), StageOutput(build(SPEC), SPEC)
    cache.get({"name": "small"}, lambda folder, _work: (folder / "x").write_text("x"))

    def stage() -> str:
        entry = cache.get({"name": "stage"}, lambda folder, _work: save_output(output, folder))
        return load_artifact(entry.folder).digest

    with full(disk):
        message = message_of(stage, disk)
        kept = cache.get({"name": "small"}, lambda _folder, _work: None).cached and not cache.has({"name": "stage"})
    return {"message": message, "kept": kept, "again": message_of(stage, disk), "then": len(stage()) == 64}


def record(disk: Path) -> dict[str, object]:
    environment = EnvironmentRecord(python="3.11", platform="here", packages={}, commit=None, seed=0)
    run = Run(target=TargetRecord(name="a", digest="b"), environment=environment, stages=(), models={}, exports=(), budget=(), fallbacks=())
    run.save(disk)
    longer = run.model_copy(update={"fallbacks": tuple(Fallback(where="there", what=str(n), reason="long " * 100) for n in range(1000))})
    with full(disk):
        message = message_of(lambda: longer.save(disk), disk)
        kept = Run.load(disk) == run
    again = message_of(lambda: longer.save(disk), disk)
    return {"message": message, "kept": kept, "again": again, "then": Run.load(disk) == longer}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    sys.stdout.write(json.dumps({"checkpoint": checkpoints(folder), "weights": weights(folder), "run.json": record(folder)}))
