"""What a text-to-image report says first: numbers of whole pictures, to which every network contributes."""

from __future__ import annotations

from collections.abc import Iterator

from mcompress.record import ExportRecord, GalleryRecord, PainterRecord, Run
from mcompress.reports import components, wording
from mcompress.reports.components import COMPRESSED, ORIGINAL, OWN
from mcompress.reports.drawing import measured, said
from mcompress.reports.drawing_latency import MODELS, causes, steps_of
from mcompress.reports.headlines import Headline, shipped, times

JUDGED = "attribute accuracy"


def drawn_headlines(run: Run) -> list[Headline]:
    """None for a run that drew nothing."""
    return [] if run.gallery is None else list(_headlines(run, run.gallery))


def shown_files(found: GalleryRecord) -> PainterRecord | None:
    """The files among those that stand in the picture; of several the last, which is the mixed one where that is offered."""
    painters = [painter for name in found.shown if (painter := found.named(name)) is not None and painter.kind == "files"]
    return painters[-1] if painters else None


def _headlines(run: Run, found: GalleryRecord) -> Iterator[Headline]:
    networks = components.networks(run)
    if found.latency.get(ORIGINAL) and found.latency.get(COMPRESSED):
        before, after = found.picture_ms(ORIGINAL), found.picture_ms(COMPRESSED)
        each = found.latency[COMPRESSED][0].each
        steps = [steps_of(found, model) for model in (ORIGINAL, COMPRESSED)]
        fewer = f", in {steps[0]} and in {steps[1]} steps" if all(steps) else ""
        own = causes({model: found.picture_ms(model) for model in MODELS if found.latency.get(model)}, "\N{MULTIPLICATION SIGN}")
        detail = f"{wording.number(before)} ms to {wording.number(after)} ms{fewer}{f': {own}' if own else ''}; {wording.HOW[each.how]} for {each.on}"
        yield times("time for a picture", before, after, detail, "less")
        calls = [{one.component: one.calls for one in found.latency[model]} for model in (ORIGINAL, COMPRESSED)]
        if all(name in counts for counts in calls for name in networks):
            first, last = (sum(counts[name] * pair[place].macs for name, pair in networks.items()) for place, counts in enumerate(calls))
            detail = f"{wording.count(first)} to {wording.count(last)} per picture, all calls of all networks"
            yield times("multiply-adds", first, last, detail, "fewer")
    if OWN in networks:
        yield from _sizes(run)
    yield from _accuracy(found)


def _sizes(run: Run) -> Iterator[Headline]:
    networks = components.networks(run)
    first, last = (max(pair[place].peak_activation_bytes for pair in networks.values()) for place in (0, 1))
    yield times(
        "activation memory", first, last, f"{wording.size(first)} to {wording.size(last)} at the peak of the largest network, as fp32", "less"
    )
    own = shipped(run)
    files = [] if own is None else [own, *(file for name in run.components if (file := _file(run, name, own.backend)) is not None)]
    if own is not None and len(files) == len(networks):
        before, after = sum(pair[0].weight_bytes for pair in networks.values()), sum(file.bytes for file in files)
        many = f"{len(files)} {own.backend} files" if len(files) > 1 else f"a {own.backend} file"
        yield times("to download", before, after, f"{wording.size(before)} of weights to {wording.size(after)} in {many}", "less")


def _file(run: Run, component: str, backend: str) -> ExportRecord | None:
    """The file of a network that goes along in a set of files of this backend."""
    inside = [export for export in components.exports_of(run, component) if export.shipped and export.backend == backend]
    return next((file for file in inside if file.recommended), None) or min(inside, key=lambda file: file.bytes, default=None)


def _accuracy(found: GalleryRecord) -> Iterator[Headline]:
    original, files = found.named(ORIGINAL), shown_files(found) or found.named(COMPRESSED)
    before, after = (None if painter is None else measured(painter, JUDGED) for painter in (original, files))
    if before is None or after is None or files is None or original is None:
        return
    change = f"{after.value - before.value:+.1f} points".replace("-", "\N{MINUS SIGN}")
    by = f"the {files.name} files" if files.kind == "files" else "PyTorch"
    detail = f"{said(before)} in {original.steps} steps to {said(after)} in {files.steps} ({by}), over {after.n} held-out captions"
    yield Headline(change, f"{JUDGED} against the original", detail)
