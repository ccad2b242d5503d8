"""Whole pictures of a text-to-image run: the original, the compressed networks in PyTorch, and the files of every backend draw the held-out captions.

Everybody starts from the same noise. Files must draw what PyTorch draws; what pictures are worth, the task says. One cache entry for each painter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from mcompress.artifact import Artifact
from mcompress.budget import check_pictures
from mcompress.cache import Cache, Entry
from mcompress.components import Component
from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.performance import Run as Call
from mcompress.compress.tasks.text_to_image.gallery import Gallery, Painters, psnr_db
from mcompress.compress.tasks.text_to_image.showing import write_grid
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.console import Reporter
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.export import backend_named
from mcompress.export.backend import Runner, captured
from mcompress.export.drawing import FLOAT_DB
from mcompress.export.manifest import Manifest
from mcompress.exporting import ExportResult
from mcompress.planning import STAGE_VERSIONS, Plan
from mcompress.record import GALLERY, HIGHEST_DB, CallsRecord, ExportRecord, GalleryRecord, PainterRecord, Run
from mcompress.targets.schema import Fallback

COMPONENTS = ("text_encoder", "unet", "decoder")
UNET = "unet"
AT_ONCE = 30
"""Captions that PyTorch draws together; files take one."""
SHOWN_ROWS = 10
ORIGINAL, COMPRESSED = "original", "compressed"
PICTURES_FILE, RECORD_FILE = "pictures.npy", "painter.json"


@dataclass(frozen=True)
class _Painter:
    """Somebody who can draw: what determines the pictures, and how they come about."""

    name: str
    kind: Literal["original", "compressed", "files"]
    sampling: Sampling
    key: dict[str, JsonValue]
    painters: Callable[[], Painters]
    files: tuple[str, ...] = ()
    limit_db: float | None = None


@dataclass(frozen=True)
class _Drawn:
    record: PainterRecord
    entry: Entry

    @cached_property
    def pictures(self) -> Tensor:
        """(N, 3, H, W) in [-1, 1]."""
        return torch.from_numpy(np.load(self.entry.folder / PICTURES_FILE)).float() / 127.5 - 1.0


@dataclass(frozen=True)
class _Studio:
    """What all painters share."""

    made: Plan
    gallery: Gallery
    cache: Cache
    log: Path
    force: bool

    def drawn(self, painter: _Painter, like: _Drawn | None) -> _Drawn:
        """From the cache, or drawn now; `like` are the pictures that these should be like."""
        key: dict[str, JsonValue] = {
            "name": f"draw {painter.name}",
            "version": STAGE_VERSIONS["draw"],
            "data": self.made.data_digest,
            "sampling": asdict(painter.sampling),
            "like": None if like is None else like.entry.folder.name,
            "threads": thread_count(self.made.target),
            "packages": dict(package_versions()),
            "cpu": cpu_name(),
            **painter.key,
        }

        def compute(folder: Path, _work: Path) -> None:
            with captured(self.log):
                pictures = self.gallery.draw(painter.painters())
            eight_bit = ((pictures + 1.0) * 127.5).round().to(torch.uint8)
            np.save(folder / PICTURES_FILE, eight_bit.numpy())
            record = self._record(painter, eight_bit.float() / 127.5 - 1.0, like)
            (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")

        entry = self.cache.get(key, compute, force=self.force)
        return _Drawn(PainterRecord.model_validate_json((entry.folder / RECORD_FILE).read_text(encoding="utf-8")), entry)

    def _record(self, painter: _Painter, pictures: Tensor, like: _Drawn | None) -> PainterRecord:
        on = "PyTorch fp32" if not painter.files else ", ".join(painter.files)
        found = None if like is None else psnr_db(pictures, like.pictures).clamp(max=HIGHEST_DB)
        return PainterRecord(
            name=painter.name,
            kind=painter.kind,
            steps=painter.sampling.steps,
            guidance=painter.sampling.guidance,
            files=painter.files,
            measurements=self.gallery.judge(pictures, on),
            psnr_db=None if found is None else round(float(found.mean()), 3),
            least_psnr_db=None if found is None else round(float(found.min()), 3),
            limit_db=painter.limit_db,
        )


def with_gallery(
    made: Plan,
    run: Run,
    final: Artifact,
    exports: Sequence[ExportResult],
    components: Sequence[Component],
    cache: Cache,
    folder: Path,
    reporter: Reporter,
    *,
    force: bool,
) -> Run:
    """The record with what everybody drew; itself where the task is another one. The picture lies in the run's folder.

    Raises `ParityError` for files that compute NaN.
    """
    (folder / GALLERY).unlink(missing_ok=True)
    if not isinstance(made.task, TextToImage) or not components:
        return run
    gallery = made.task.gallery()
    studio = _Studio(made, gallery, cache, folder / "log.txt", force)
    sampling = final.spec.sampling or made.task.sampling
    in_pytorch = list(_in_pytorch(made, made.task, final, components, sampling))
    sets, missing = _sets(run, exports, components)
    jobs = [*in_pytorch, *(_of_files(made, name, files, sampling) for name, files in sets.items())]
    report, drawn = reporter.progress("draw the held-out captions"), dict[str, _Drawn]()
    for index, painter in enumerate(jobs):
        report(index, len(jobs), painter.name)
        drawn[painter.name] = studio.drawn(painter, drawn[COMPRESSED] if painter.kind == "files" else None)
    report(len(jobs), len(jobs), "")
    shown = [*(painter.name for painter in in_pytorch), *_shown(sets)]
    columns = {"true picture": gallery.truths(), **{name: drawn[name].pictures for name in shown}}
    write_grid(folder / GALLERY, [*gallery.captions], columns, SHOWN_ROWS)
    record = GalleryRecord(
        captions=tuple(gallery.captions),
        painters=tuple(one.record for one in drawn.values()),
        shown=tuple(shown),
        latency={ORIGINAL: _calls(run, "teacher", made.task.sampling), COMPRESSED: _calls(run, "compressed", sampling)},
        missing=(*gallery.missing, *missing),
    )
    rebuilt = (Fallback(where="cache", what=one.record.name, reason=one.entry.rebuilt_because) for one in drawn.values() if one.entry.rebuilt_because)
    return run.model_copy(
        update={
            "gallery": record,
            "budget": (*run.budget, *check_pictures(made.target.budget.quality, record, run.exports)),
            "fallbacks": (*run.fallbacks, *rebuilt),
            "not_measured": (*run.not_measured, *record.missing),
        }
    )


def with_script(run: Run, bundle: Path) -> Run:
    """The record with what the bundle's own script drew, of which its manifest tells; itself where nothing is drawn."""
    if run.gallery is None:
        return run
    drawing = Manifest.model_validate_json((bundle / "manifest.json").read_text(encoding="utf-8")).drawing
    if drawing is None:
        return run
    by_script = tuple(
        PainterRecord(
            name=f"draw.py with {one.backend} {one.variant} files",
            kind="files",
            steps=drawing.sampling.steps,
            guidance=drawing.sampling.guidance,
            measurements=(),
            psnr_db=one.psnr_db,
            least_psnr_db=one.psnr_db,
            limit_db=FLOAT_DB if one.variant == "float" else None,
        )
        for one in drawing.check.drawn
        if one.psnr_db is not None
    )
    return run.model_copy(update={"gallery": run.gallery.model_copy(update={"by_script": by_script})})


def _in_pytorch(made: Plan, task: TextToImage, final: Artifact, components: Sequence[Component], sampling: Sampling) -> Iterator[_Painter]:
    """The original as it draws, the original in as few steps as the compressed network takes, and the compressed networks."""
    own, plans = task.sampling, made.beside

    def originals(sampling: Sampling) -> Painters:
        return Painters(plans["text_encoder"].teacher.eval(), made.teacher.eval(), plans["decoder"].teacher.eval(), sampling, AT_ONCE)

    digests: dict[str, JsonValue] = {"unet": made.teacher_digest, **{name: plan.teacher_digest for name, plan in plans.items()}}
    yield _Painter(ORIGINAL, "original", own, {"networks": digests}, partial(originals, own))
    if sampling.steps < own.steps:
        fewer = replace(own, steps=sampling.steps)
        yield _Painter(f"original, {fewer.steps} steps", "original", fewer, {"networks": digests}, partial(originals, fewer))
    last = {UNET: final, **{one.name: one.stages[-1].artifact for one in components}}

    def compressed() -> Painters:
        networks = {name: last[name].network().eval() for name in COMPONENTS}
        return Painters(networks["text_encoder"], networks[UNET], networks["decoder"], sampling, AT_ONCE)

    yield _Painter(COMPRESSED, "compressed", sampling, {"networks": {name: one.digest for name, one in last.items()}}, compressed)


Files = Mapping[str, tuple[ExportRecord, ExportResult]]


def _sets(run: Run, exports: Sequence[ExportResult], components: Sequence[Component]) -> tuple[dict[str, Files], list[str]]:
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


def _of_files(made: Plan, name: str, files: Files, sampling: Sampling) -> _Painter:
    threads = thread_count(made.target)

    def runners() -> Painters:
        loaded = {part: partial(_call, backend_named(record.backend).load(result.file.path, threads)) for part, (record, result) in files.items()}
        calls: dict[str, Call] = {part: loaded[part] for part in COMPONENTS}
        return Painters(calls["text_encoder"], calls[UNET], calls["decoder"], sampling)

    key: dict[str, JsonValue] = {"files": [record.sha256 for record, _ in files.values()]}
    limit = FLOAT_DB if name.endswith(" float") else None
    return _Painter(name, "files", sampling, key, runners, tuple(record.file for record, _ in files.values()), limit)


def _call(runner: Runner, *inputs: Tensor) -> Tensor:
    return torch.from_numpy(runner.run(*(np.ascontiguousarray(one.numpy()) for one in inputs)))


def _shown(sets: Mapping[str, Files]) -> list[str]:
    """The files that stand in the picture: those that are offered for the device, else the first."""
    offered = [name for name, files in sets.items() if files[UNET][0].recommended]
    return (offered or list(sets))[:2]


def _calls(run: Run, model: str, sampling: Sampling) -> tuple[CallsRecord, ...]:
    """What a whole picture takes: with guidance the text encoder also reads the empty caption, and the U-Net is called with and without."""
    twice = 2 if sampling.guidance != 1 and sampling.method == "ddim" else 1
    names = {name: f"{name}_teacher" if model == "teacher" else name for name in COMPONENTS} | {UNET: model}
    counts = {"text_encoder": twice, UNET: twice * sampling.steps, "decoder": 1}
    return tuple(CallsRecord(component=name, calls=counts[name], each=run.models[names[name]].latency[0]) for name in COMPONENTS)
