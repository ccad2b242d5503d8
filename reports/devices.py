"""What the original and the compressed model are estimated to take on every device that mcompress knows, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcompress.record import DeviceLatency
from mcompress.reports import wording
from mcompress.reports.cells import Cell

Kind = tuple[Literal["teacher", "compressed"], Literal["fp32", "fp16", "mixed"]]
"""A model and what its file holds."""
FLOATS: Mapping[str, str] = {"fp32": "FP32", "fp16": "FP16", "mixed": "mixed"}


@dataclass(frozen=True)
class DeviceRow:
    """One device: a cell per column, what the fastest compressed file gains, and the error bands of its estimates."""

    title: str
    unit: str
    cells: tuple[Cell, ...]
    faster: str
    from_to: str
    bands: tuple[str, ...]


def device_table(found: Sequence[DeviceLatency]) -> tuple[tuple[str, ...], tuple[DeviceRow, ...]]:
    """The columns, a model and what its file holds each, and a row for each device."""
    kinds = tuple(dict.fromkeys((one.model, one.files) for one in found))
    columns = tuple(f"{'original' if model == 'teacher' else model}, {FLOATS[files]}" for model, files in kinds)
    return columns, tuple(_rows(found, kinds))


def _rows(found: Sequence[DeviceLatency], kinds: Sequence[Kind]) -> Iterator[DeviceRow]:
    for device in dict.fromkeys(one.device for one in found):
        lines = {(one.model, one.files): one for one in found if one.device == device}
        first = next(iter(lines.values()))
        known = [one for one in lines.values() if one.latency is not None]
        before = next((one for one in known if one.model == "teacher"), None)
        after = min((one for one in known if one.model == "compressed"), key=_ms, default=None)
        faster = f"{wording.number(_ms(before) / _ms(after))}\N{MULTIPLICATION SIGN}" if before and after else "not known"
        from_to = f"{FLOATS[before.files]} to {FLOATS[after.files]}" if before and after else ""
        bands = dict.fromkeys(f"{FLOATS[one.files]}: {one.latency.band}" for one in known if one.latency is not None)
        cells = tuple(_latency(lines.get(kind)) for kind in kinds)
        yield DeviceRow(first.title, first.unit, cells, faster, from_to, tuple(bands))


def _ms(one: DeviceLatency) -> float:
    return one.latency.value if one.latency is not None else float("inf")


def _latency(one: DeviceLatency | None) -> Cell:
    if one is None or one.latency is None:
        return Cell("none", "not recorded" if one is None else one.why, "")
    note = f"computed in {one.computed_in}" if one.computed_in not in ("", one.files) else ""
    return Cell(wording.latency(one.latency), note, wording.provenance(one.latency))
