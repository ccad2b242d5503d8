"""Whole pictures of a text-to-image run: the original, the compressed networks in PyTorch, and the files of every backend draw the held-out captions.

Everybody starts from the same noise. Files must draw what PyTorch draws; what pictures are worth, the task says. One cache entry for each painter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from mcompress.artifact import Artifact
from mcompress.budget import check_pictures
from mcompress.cache import Cache, Entry
from mcompress.components import Component
from mcompress.compress.tasks.text_to_image.gallery import Gallery, psnr_db
from mcompress.compress.tasks.text_to_image.showing import places_shown, write_grid
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.console import Reporter
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.export.backend import captured
from mcompress.export.drawing import FLOAT_DB
from mcompress.export.manifest import Manifest
from mcompress.exporting import ExportResult
from mcompress.painters import Painter, in_pytorch, of_files, sets_of, shown_sets
from mcompress.picture_calls import COMPRESSED, calls_of
from mcompress.planning import STAGE_VERSIONS, Plan
from mcompress.record import GALLERY, HIGHEST_DB, GalleryRecord, PainterRecord, Run
from mcompress.targets.schema import Fallback

SHOWN_ROWS = 10
PICTURES_FILE, RECORD_FILE = "pictures.npy", "painter.json"


@dataclass(frozen=True)
class _Drawn:
    record: PainterRecord
    entry: Entry

    @cached_property
    def pictures(self) -> Tensor:
        """(N, 3, H, W) in [-1, 1], of the captions that were drawn."""
        return torch.from_numpy(np.load(self.entry.folder / PICTURES_FILE)).float() / 127.5 - 1.0


@dataclass(frozen=True)
class _Studio:
    """What all painters share."""

    made: Plan
    gallery: Gallery
    cache: Cache
    log: Path
    force: bool

    def drawn(self, painter: Painter, like: _Drawn | None) -> _Drawn:
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
            **({} if painter.places is None else {"captions": [*painter.places]}),
        }

        def compute(folder: Path, _work: Path) -> None:
            with captured(self.log):
                pictures = self.gallery.draw(painter.painters(), painter.places)
            eight_bit = ((pictures + 1.0) * 127.5).round().to(torch.uint8)
            np.save(folder / PICTURES_FILE, eight_bit.numpy())
            record = self._record(painter, eight_bit.float() / 127.5 - 1.0, like)
            (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")

        entry = self.cache.get(key, compute, force=self.force)
        return _Drawn(PainterRecord.model_validate_json((entry.folder / RECORD_FILE).read_text(encoding="utf-8")), entry)

    def _record(self, painter: Painter, pictures: Tensor, like: _Drawn | None) -> PainterRecord:
        on = "PyTorch fp32" if not painter.files else ", ".join(painter.files)
        found = None if like is None else psnr_db(pictures, like.pictures).clamp(max=HIGHEST_DB)
        return PainterRecord(
            name=painter.name,
            kind=painter.kind,
            steps=painter.sampling.steps,
            guidance=painter.sampling.guidance,
            files=painter.files,
            measurements=self.gallery.judge(pictures, on) if painter.places is None else (),
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
    places = places_shown(len(gallery.captions), SHOWN_ROWS)
    networks = list(in_pytorch(made, made.task, final, components, sampling, places))
    sets, missing = sets_of(run, exports, components)
    jobs = [*networks, *(of_files(made, name, files, sampling) for name, files in sets.items())]
    report, drawn = reporter.progress("draw the held-out captions"), dict[str, _Drawn]()
    for index, painter in enumerate(jobs):
        report(index, len(jobs), painter.name)
        drawn[painter.name] = studio.drawn(painter, drawn[COMPRESSED] if painter.kind == "files" else None)
    report(len(jobs), len(jobs), "")
    offered = shown_sets(sets)
    shown = [*networks, *(painter for painter in jobs if painter.name in offered)]
    columns = {one.title: drawn[one.name].pictures[[*places] if one.places is None else slice(None)] for one in shown}
    write_grid(folder / GALLERY, [gallery.captions[place] for place in places], {"true picture": gallery.truths()[[*places]], **columns})
    record = GalleryRecord(
        captions=tuple(gallery.captions),
        painters=tuple(drawn[one.name].record for one in jobs if one.places is None),
        shown=tuple(one.name for one in shown),
        latency=calls_of(run, made.task.sampling, sampling),
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
