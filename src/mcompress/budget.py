"""`check_budget`: each limit of the target against what was found for the files that are offered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from mcompress.export.stated import computed_in
from mcompress.record import ATTRIBUTE_ACCURACY, BudgetRecord, ExportRecord, GalleryRecord, ModelRecord, PainterRecord
from mcompress.targets.schema import Budget, How, QualityFloor

MIXED_LOSS = 1.0
"""Points of attribute accuracy that files of mixed precision may lose against the float ones."""
JUDGED_METRIC = "attribute_accuracy_percent"
"""The metric of single networks that says of one picture what `ATTRIBUTE_ACCURACY` says of all that are drawn."""


def check_budget(budget: Budget, models: Mapping[str, ModelRecord], exports: Sequence[ExportRecord]) -> Iterator[BudgetRecord]:
    """One line per limit. `models` holds `teacher` and `compressed`; of the exports only recommended ones count."""
    compressed = models["compressed"]
    shipped = [record for record in exports if record.recommended]
    if not shipped:
        yield from _nothing_runs(budget)
        return
    latency = compressed.latency[0]
    largest = max(shipped, key=lambda record: record.bytes)
    rows: list[tuple[str, float | None, float, How, str]] = [
        ("latency_ms", budget.latency_ms, latency.value, latency.how, ", ".join(filter(None, (latency.on, latency.band)))),
        (
            "macs_g",
            budget.macs_g,
            compressed.macs / 1e9,
            "host",
            f"counted from the operator table, {_exact(compressed)}{_confirmed('macs', exports)}",
        ),
        (
            "peak_memory_mb",
            budget.peak_memory_mb,
            max([compressed.peak_activation_bytes, *(e.walked.peak_activation_bytes for e in exports if e.walked)]) / 1e6,
            "host",
            f"counted from the operator table, fp32{_confirmed('memory', exports)}",
        ),
        ("size_mb", budget.size_mb, largest.bytes / 1e6, "host", f"the largest recommended file, {largest.file}"),
    ]
    for what, limit, value, how, note in rows:
        if limit is not None:
            yield BudgetRecord(what=what, limit=limit, value=value, how=how, met=value <= limit, note=note)
    yield from _quality(budget, models["teacher"], shipped)


def check_pictures(floor: QualityFloor | None, gallery: GalleryRecord, exports: Sequence[ExportRecord]) -> Iterator[BudgetRecord]:
    """Of pictures that all networks draw together, where their attributes were judged: mixed files against float ones, and offered files against the
    target's floor. A floor holds for one network at a time otherwise, and small losses add up.
    """
    sets = [painter for painter in gallery.painters if painter.kind == "files" and _accuracy(painter) is not None]
    for painter in sets:
        before = gallery.named(f"{painter.name.removesuffix(' mixed')} float") if painter.name.endswith(" mixed") else None
        if before is not None:
            what = f"points of {ATTRIBUTE_ACCURACY} that {painter.name} files lose"
            yield _lost(what, MIXED_LOSS, before, painter, "whole pictures, against those of the float files")
    offered = {export.file for export in exports if export.recommended and export.component is None}
    executed = [painter for painter in sets if offered & set(painter.files)]
    if floor is None or floor.metric != JUDGED_METRIC or not executed:
        return
    worst = min(executed, key=lambda painter: _accuracy(painter) or 0.0)
    note = f"whole pictures of the {worst.name} files, the worst whose U-Net is offered"
    if floor.at_least is not None:
        reached = _accuracy(worst)
        met = reached is not None and reached >= floor.at_least
        yield BudgetRecord(
            what=f"{ATTRIBUTE_ACCURACY} of whole pictures at least", limit=floor.at_least, value=reached, how="host", met=met, note=note
        )
    original = gallery.named("original")
    if floor.within is not None and original is not None:
        yield _lost(f"points of {ATTRIBUTE_ACCURACY} that whole pictures lose", floor.within, original, worst, f"{note}, against the original's")


def _lost(what: str, limit: float, before: PainterRecord, after: PainterRecord, note: str) -> BudgetRecord:
    was, is_now = _accuracy(before), _accuracy(after)
    loss = None if was is None or is_now is None else round(was - is_now, 3)
    return BudgetRecord(what=what, limit=limit, value=loss, how="host", met=loss is not None and loss <= limit, note=note)


def _accuracy(painter: PainterRecord) -> float | None:
    return next((one.value for one in painter.measurements if one.what == ATTRIBUTE_ACCURACY), None)


def _nothing_runs(budget: Budget) -> Iterator[BudgetRecord]:
    for what, limit in budget.model_dump(exclude={"quality"}, exclude_none=True).items():
        yield BudgetRecord(what=what, limit=limit, value=None, how=None, met=False, note="no exported file runs on the target's device")


def _exact(model: ModelRecord) -> str:
    return f"of which {model.assumed_macs / 1e9:.3g} G are assumed, of operators that it does not know" if model.assumed_macs else "exact work"


def _confirmed(what: Literal["macs", "memory"], exports: Sequence[ExportRecord]) -> str:
    """What walking an exported graph gives, to stand behind what the operator table gives."""
    for record in exports:
        if record.walked is not None:
            found = f"{record.walked.macs / 1e9:.3g} G" if what == "macs" else f"{record.walked.peak_activation_bytes / 1e6:.3g} MB"
            return f"; walking {record.file} gives {found}"
    return ""


def _quality(budget: Budget, teacher: ModelRecord, shipped: Sequence[ExportRecord]) -> Iterator[BudgetRecord]:
    """The floor holds for every recommended file that could be executed: the worst of them counts."""
    floor = budget.quality
    if floor is None:
        return
    executed = [record for record in shipped if floor.metric in record.quality]
    worst = min(executed, key=lambda record: record.quality[floor.metric], default=None)
    reached = worst.quality[floor.metric] if worst else None
    note = (
        f"held-out mean, computed by {worst.file} {computed_in(worst)}, the worst recommended file"
        if worst
        else f"no recommended file could compute {floor.metric}"
    )
    if floor.at_least is not None:
        met = reached is not None and reached >= floor.at_least
        yield BudgetRecord(what=f"{floor.metric} at least", limit=floor.at_least, value=reached, how="host", met=met, note=note)
    if floor.within is not None:
        loss = None if reached is None or floor.metric not in teacher.quality else teacher.quality[floor.metric] - reached
        met = loss is not None and loss <= floor.within
        yield BudgetRecord(what=f"{floor.metric} loss against the teacher", limit=floor.within, value=loss, how="host", met=met, note=note)
