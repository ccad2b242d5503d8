"""Who draws the held-out captions of a text-to-image run: the original and the compressed networks in PyTorch, and the files of every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from mcompress.artifact import Artifact
from mcompress.components import Component
from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.performance import Run as Call
from mcompress.compress.tasks.text_to_image.gallery import Painters
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.environment import thread_count
from mcompress.export import backend_named
from mcompress.export.backend import Runner
from mcompress.export.drawing import FLOAT_DB
from mcompress.exporting import ExportResult
from mcompress.picture_calls import COMPONENTS, COMPRESSED, ORIGINAL, UNET
from mcompress.planning import Plan
from mcompress.record import ExportRecord, Run

Files = Mapping[str, tuple[ExportRecord, ExportResult]]


@dataclass(frozen=True)
class Painter:
    """Somebody who can draw: what determines the pictures, and how they come about."""

    name: str
    kind: Literal["original", "compressed", "files"]
    sampling: Sampling
    key: dict[str, JsonValue]
    painters: Callable[[], Painters]
    files: tuple[str, ...] = ()
    limit_db: float | None = None
    places: tuple[int, ...] | None = None
    """The captions that it draws to be looked at, and not judged; None for who draws all of them."""

    @property
    def title(self) -> str:
        """Its name with its steps."""
        return self.name if "step" in self.name else in_steps(self.name, self.sampling.steps)


def in_steps(name: str, steps: int) -> str:
    """`original, 8 steps`."""
    return f"{name}, {steps} step{'s' if steps != 1 else ''}"


def in_pytorch(
    made: Plan, task: TextToImage, final: Artifact, components: Sequence[Component], sampling: Sampling, places: tuple[int, ...]
) -> Iterator[Painter]:
    """The original as it draws, and in as few steps as the compressed network takes; the compressed networks.

    Both also in twice and in half as many steps, of the captions at `places` alone. Each from many steps to few.
    """
    own, plans, each = task.sampling, made.beside, task.original.pictures_at_once

    def originals(sampling: Sampling) -> Painters:
        return Painters(plans["text_encoder"].teacher.eval(), made.teacher.eval(), plans["decoder"].teacher.eval(), sampling, each)

    digests: dict[str, JsonValue] = {UNET: made.teacher_digest, **{name: plan.teacher_digest for name, plan in plans.items()}}
    original = Painter(ORIGINAL, "original", own, {"networks": digests}, partial(originals, own))
    last = {UNET: final, **{one.name: one.stages[-1].artifact for one in components}}

    def students(sampling: Sampling) -> Painters:
        networks = {name: last[name].network().eval() for name in COMPONENTS}
        return Painters(networks["text_encoder"], networks[UNET], networks["decoder"], sampling, each)

    theirs: dict[str, JsonValue] = {name: one.digest for name, one in last.items()}
    compressed = Painter(COMPRESSED, "compressed", sampling, {"networks": theirs}, partial(students, sampling))

    def otherwise(painter: Painter, makes: Callable[[Sampling], Painters], steps: int) -> Painter:
        changed = replace(painter.sampling, steps=steps)
        return replace(painter, name=in_steps(painter.name, steps), sampling=changed, painters=partial(makes, changed), places=places)

    yield original
    found = [otherwise(original, originals, steps) for steps in further_steps(own, sampling.steps, own.steps)]
    if sampling.steps < own.steps:
        found.append(replace(otherwise(original, originals, sampling.steps), places=None))
    yield from sorted(found, key=lambda one: -one.sampling.steps)
    found = [otherwise(compressed, students, steps) for steps in further_steps(sampling, sampling.steps, own.steps)]
    yield from sorted([*found, compressed], key=lambda one: -one.sampling.steps)


def further_steps(network: Sampling, taken: int, below: int) -> tuple[int, ...]:
    """Twice and half of `taken`, where these are whole numbers of steps, fewer than `below`, and with the method `lcm` at most its grid's."""
    most = min(below - 1, network.grid_steps) if network.method == "lcm" else below - 1
    return tuple(steps for steps in (2 * taken, *((taken // 2,) if taken % 2 == 0 else ())) if steps <= most)


def sets_of(run: Run, exports: Sequence[ExportResult], components: Sequence[Component]) -> tuple[dict[str, Files], list[str]]:
    """Backend and variant -> the file of each component that draws in it; of a mixed one that is not shipped, the float one stands in.

    Also what cannot draw: `what: why`.
    """
    results = {UNET: exports, **{one.name: one.exports for one in components}}
    records = {name: [record for record in run.exports if (record.component or UNET) == name and record.width in (None, 1.0)] for name in COMPONENTS}
    files = {
        name: dict(zip(((r.backend, r.variant) for r in records[name]), zip(records[name], results[name], strict=True), strict=True))
        for name in COMPONENTS
    }
    found, missing = dict[str, Files](), list[str]()
    variants: tuple[Literal["float", "mixed"], ...] = ("float", "mixed")
    for backend, variant in product(dict.fromkeys(record.backend for record in run.exports), variants):
        chosen = {}
        for name in COMPONENTS:
            wanted = files[name].get((backend, variant))
            chosen[name] = wanted if wanted is not None and (variant == "float" or wanted[0].shipped) else files[name][backend, "float"]
        if variant == "mixed" and all(record.variant == "float" for record, _ in chosen.values()):
            continue
        idle = next((record for record, _ in chosen.values() if record.parity.passed is None), None)
        if idle is not None:
            missing.append(f"pictures of the {backend} {variant} files: {idle.file} was not executed: {idle.parity.runtime}")
            continue
        found[f"{backend} {variant}"] = chosen
    return found, missing


def of_files(made: Plan, name: str, files: Files, sampling: Sampling) -> Painter:
    """The files of one backend and variant together."""
    threads = thread_count(made.target)

    def runners() -> Painters:
        loaded = {part: partial(_call, backend_named(record.backend).load(result.file.path, threads)) for part, (record, result) in files.items()}
        calls: dict[str, Call] = {part: loaded[part] for part in COMPONENTS}
        return Painters(calls["text_encoder"], calls[UNET], calls["decoder"], sampling)

    key: dict[str, JsonValue] = {"files": [record.sha256 for record, _ in files.values()]}
    limit = FLOAT_DB if name.endswith(" float") else None
    return Painter(name, "files", sampling, key, runners, tuple(record.file for record, _ in files.values()), limit)


def _call(runner: Runner, *inputs: Tensor) -> Tensor:
    return torch.from_numpy(runner.run(*(np.ascontiguousarray(one.numpy()) for one in inputs)))


def shown_sets(sets: Mapping[str, Files]) -> list[str]:
    """The files that stand in the picture: those that are offered for the device, else the first."""
    offered = [name for name, files in sets.items() if files[UNET][0].recommended]
    return (offered or list(sets))[:2]
