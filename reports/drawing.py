"""Text to image in the report: the grid of pictures, what everybody's pictures are worth, and where the time of a whole picture goes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcompress.record import GALLERY, GalleryRecord, PainterRecord, Run
from mcompress.reports import components, wording
from mcompress.reports.cells import Cell
from mcompress.reports.components import ORIGINAL
from mcompress.reports.devices import DeviceRow, device_table
from mcompress.reports.drawing_latency import PictureLatency, picture_latency
from mcompress.reports.pictures import read_picture
from mcompress.targets.schema import Measurement

NOT_DRAWN = f"{GALLERY} is no longer in the run's folder; run the target again to have it made"


@dataclass(frozen=True)
class Grid:
    """The picture of captions and painters, as it lies in the run's folder."""

    uri: str
    width: int
    height: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class PainterRow:
    """Who drew, how, what the pictures are worth, and how like those of the compressed networks in PyTorch they are."""

    name: str
    note: str
    """Which files drew together: of a mixed file that is not shipped the float one stands in."""
    files: str
    """Their names."""
    steps: int
    guidance: str
    cells: tuple[Cell, ...]
    likeness: Cell
    passed: bool | None


@dataclass(frozen=True)
class Drawing:
    """The section."""

    gallery: GalleryRecord
    grid: Grid | None
    no_grid: str
    columns: tuple[str, ...]
    painters: tuple[PainterRow, ...]
    sources: tuple[str, ...]
    """What measurements are, where they say it."""
    by_script: tuple[str, ...]
    """Sets of files that the bundle's script drew with, and how like PyTorch's the picture is."""
    latency: PictureLatency | None
    device_columns: tuple[str, ...]
    devices: tuple[DeviceRow, ...]
    """Of one call of the U-Net; none where the run's record does not hold them."""


def drawing_part(run: Run, folder: Path) -> Drawing | None:
    """For the run in `folder`. None for a run that drew nothing."""
    found = run.gallery
    if found is None:
        return None
    grid = _grid(found, folder / GALLERY)
    columns = tuple(dict.fromkeys(one.what for painter in found.painters for one in painter.measurements))
    device_columns, devices = device_table(run.devices)
    sources = dict.fromkeys(
        f"{one.what[:1].upper()}{one.what[1:]}: {one.source}" for painter in found.painters for one in painter.measurements if one.source
    )
    return Drawing(
        gallery=found,
        grid=grid,
        no_grid="" if grid else NOT_DRAWN,
        columns=columns,
        painters=tuple(_row(run, found, painter, columns) for painter in found.painters),
        sources=tuple(sources),
        by_script=tuple(f"{painter.name}: {_by_script(painter)}" for painter in found.by_script),
        latency=picture_latency(found),
        device_columns=device_columns,
        devices=devices,
    )


def said(measurement: Measurement) -> str:
    """`97.9 %`; numbers without a unit with three digits."""
    if measurement.unit == "%":
        return f"{measurement.value:.1f} %"
    return f"{wording.number(measurement.value)} {measurement.unit}".strip()


def measured(painter: PainterRecord, what: str) -> Measurement | None:
    """What a painter's pictures are worth in this."""
    return next((one for one in painter.measurements if one.what == what), None)


def like_pytorch(painter: PainterRecord) -> Cell:
    """How like those of the compressed networks in PyTorch its pictures are: the worst of them, against the limit, and the mean."""
    if painter.least_psnr_db is None:
        return Cell()
    limit = "no limit" if painter.limit_db is None else f"limit {painter.limit_db:g} dB"
    mean = "" if painter.psnr_db is None else f"; mean {wording.quality('psnr_db', painter.psnr_db)}"
    return Cell(wording.quality("psnr_db", painter.least_psnr_db), f"{limit}{mean}")


def _by_script(painter: PainterRecord) -> str:
    like = like_pytorch(painter).value
    return like if painter.passed is None else f"{like}, {'passed' if painter.passed else 'FAILED'}"


def _grid(found: GalleryRecord, path: Path) -> Grid | None:
    pixels = read_picture(path) if found.shown else None
    if pixels is None:
        return None
    painters = [found.named(name) for name in found.shown]
    columns = tuple(_titled(painter) if painter else name for painter, name in zip(painters, found.shown, strict=True))
    height, width = pixels.shape[:2]
    return Grid(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}", width, height, columns)


def _titled(painter: PainterRecord) -> str:
    return painter.name if "step" in painter.name else f"{painter.name} ({painter.steps} step{'s' if painter.steps > 1 else ''})"


def _row(run: Run, found: GalleryRecord, painter: PainterRecord, columns: Sequence[str]) -> PainterRow:
    files = {export.file: export for export in run.exports}
    known = [files[name] for name in painter.files if name in files]
    note = ", ".join(f"{components.network_of(run, file.component)} {file.variant}" for file in known) or f"the {painter.kind} networks in PyTorch"
    return PainterRow(
        name=painter.name,
        note=note,
        files=", ".join(name.rsplit("/", 1)[-1] for name in painter.files),
        steps=painter.steps,
        guidance=f"{painter.guidance:g}" if painter.guidance != 1 else "none",
        cells=tuple(_cell(found, painter, what) for what in columns),
        likeness=like_pytorch(painter),
        passed=painter.passed,
    )


def _cell(found: GalleryRecord, painter: PainterRecord, what: str) -> Cell:
    """With the difference to the original, which is the first that is called so."""
    one, original = measured(painter, what), found.named(ORIGINAL)
    if one is None:
        return Cell("not judged")
    before = None if original is None or painter is original else measured(original, what)
    note = "" if before is None else f"{_signed(one.value - before.value, one.unit)} to the original"
    return Cell(said(one), note, f"{wording.provenance(one)}{': ' + one.source if one.source else ''}")


def _signed(difference: float, unit: str) -> str:
    shown = f"{abs(difference):.1f}" if unit == "%" else wording.number(abs(difference))
    sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else "\N{PLUS-MINUS SIGN}"
    return f"{sign}{shown}"
