"""The widths of a slimmable network beside each other: what each costs, and what the file of each runtime that is offered for it takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mcompress.export.choices import choices_of, latency_on_device
from mcompress.record import ExportRecord, Run, narrower_suffix
from mcompress.reports import wording


@dataclass(frozen=True)
class WidthCell:
    """The offered file of one width in one runtime, in words; empty where none is offered."""

    latency: str
    how: str
    quality: str
    chosen: bool
    """Whether it is in the list from which an app chooses; another width is as fast and as good where it is not."""


@dataclass(frozen=True)
class WidthRow:
    """One width: its share of the channels, what it costs, and a cell per backend."""

    share: str
    macs: str
    parameters: str
    cells: tuple[WidthCell, ...]


@dataclass(frozen=True)
class WidthTable:
    """All widths, from wide to narrow."""

    backends: tuple[str, ...]
    rows: tuple[WidthRow, ...]


def width_table(run: Run) -> WidthTable | None:
    """None for a network of one width."""
    widths = sorted({export.width for export in run.exports if export.width is not None}, reverse=True)
    if not widths:
        return None
    backends = tuple(dict.fromkeys(export.backend for export in run.exports))
    return WidthTable(backends, tuple(_rows(run, widths, backends)))


def _rows(run: Run, widths: list[float], backends: tuple[str, ...]) -> Iterator[WidthRow]:
    offered = {(export.backend, export.width): export for export in run.exports if export.recommended}
    chosen = {choice.file for choice in choices_of([export for export in run.exports if export.shipped], run)}
    for width in widths:
        model = run.models.get(narrower_suffix(width, "") or "compressed")
        cells = tuple(_cell(offered.get((backend, width)), chosen) for backend in backends)
        macs, parameters = ("not known", "not known") if model is None else (wording.count(model.macs), wording.count(model.params))
        yield WidthRow(f"{width:g}", macs, parameters, cells)


def _cell(export: ExportRecord | None, chosen: set[str]) -> WidthCell:
    latency = latency_on_device(export) if export is not None else None
    if export is None or latency is None:
        return WidthCell("", "", "", chosen=False)
    quality = ", ".join(wording.quality(name, value) for name, value in export.quality.items()) or "not measured"
    return WidthCell(wording.latency(latency), wording.provenance(latency), quality, wording.file_name(export) in chosen)
