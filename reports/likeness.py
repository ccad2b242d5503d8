"""How like the teacher's and the float student's the pictures of each executed file are, worded as rows: mean, worst case, and on which picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mcompress.export.fidelity import REFERENCES, TEACHER, value_of
from mcompress.record import ExportRecord, Fidelity, Run, WorstPicture
from mcompress.reports import components, wording

FIELDS: Mapping[str, str] = {"psnr_db": "PSNR", "ssim": "SSIM", "largest_shift": "colour shift", "delta_e": "CIEDE2000"}
"""Of `mcompress.record.Likeness`, as people read them."""
UNITS: Mapping[str, tuple[int, str]] = {"psnr_db": (1, " dB"), "ssim": (4, ""), "largest_shift": (2, " steps"), "delta_e": (2, "")}
TRUTH = "the truth"


@dataclass(frozen=True)
class Cell:
    """One measure over all held-out pictures."""

    mean: str
    worst: str = ""
    picture: str = ""
    """The one that is worst."""


@dataclass(frozen=True)
class PictureRow:
    """One file against one reference; the cells are those of `FIELDS`, in order. Against the truth there is the task's metric alone."""

    file: str
    against: str
    cells: tuple[Cell, ...]
    network: str = ""
    """Which of several it is of; empty in a run of one."""


def said(field: str, value: float) -> str:
    """A field of `Likeness` with its unit."""
    digits, unit = UNITS[field]
    return f"{value:.{digits}f}{unit}"


def picture_rows(run: Run) -> list[PictureRow]:
    """Per executed file: against the truth, where there is one, the teacher and the float student. None for a run that compared no pictures."""
    return [replace(row, network=components.network_of(run, export.component)) for export in compared(run) for row in _rows(export)]


def compared(run: Run) -> list[ExportRecord]:
    """The files whose pictures were compared with those of other networks."""
    return [export for export in run.exports if export.fidelity]


def worst_shown(run: Run) -> WorstPicture | None:
    """Of the file that stands for the compressed network: the picture that is least like the teacher's."""
    own = [export for export in compared(run) if export.component is None]
    shown = next((e for e in own if "compressed" in run.models and e.quality == run.models["compressed"].quality), None)
    return shown.fidelity[TEACHER].worst.get("psnr_db") if shown and TEACHER in shown.fidelity else None


def _rows(export: ExportRecord) -> Iterator[PictureRow]:
    name = wording.file_name(export)
    for metric, mean in export.quality.items():
        if wording.against_teacher(metric):
            continue  # the row of the teacher says it
        worst = export.quality_worst.get(metric)
        label = wording.metric(metric)[0]
        cell = Cell(f"{label} {wording.quality(metric, mean)}", *((wording.quality(metric, worst.value), worst.picture) if worst else ()))
        yield PictureRow(name, TRUTH, (cell, *(Cell("") for _ in tuple(FIELDS)[1:])))
    for reference, found in export.fidelity.items():
        yield PictureRow(name, REFERENCES.get(reference, reference), tuple(_cell(found, field) for field in FIELDS))


def _cell(found: Fidelity, field: str) -> Cell:
    mean, worst = value_of(found.mean, field), found.worst.get(field)
    if mean is None or worst is None:
        return Cell("not measured")
    channels = f" ({', '.join(f'{value:+.2f}' for value in found.mean.colour_shift)})" if field == "largest_shift" else ""
    return Cell(said(field, mean) + channels, said(field, worst.value), worst.picture)
