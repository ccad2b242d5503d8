"""Which width of a slimmable network an app loads for the time that it has: the list `choose` of a bundle's manifest.

A runtime's list goes from its best and slowest file to its fastest. A file that another one beats, because that is at least as fast and at least as
good, is not in it: nobody should choose it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mcompress.export.manifest import Choice
from mcompress.export.stated import default_unit, quality_of
from mcompress.record import ExportRecord, Run
from mcompress.targets.schema import Fallback, Measurement


@dataclass(frozen=True)
class _Candidate:
    record: ExportRecord
    width: float
    latency: Measurement
    quality: dict[str, float]

    def worth_beside(self, other: _Candidate) -> tuple[str, float, float]:
        """Name of the task's metric, of which more is better, and how much both have of it; the widths where it was not measured of both."""
        metric = next((name for name in self.quality if name in other.quality), None)
        return ("width", self.width, other.width) if metric is None else (metric, self.quality[metric], other.quality[metric])

    def beats(self, other: _Candidate) -> bool:
        """Whether nobody would choose `other` where this one is."""
        _, own, its = self.worth_beside(other)
        faster, better = other.latency.value - self.latency.value, own - its
        return self.record.backend == other.record.backend and faster >= 0 and better >= 0 and (faster > 0 or better > 0)


def choices_of(records: Sequence[ExportRecord], run: Run) -> tuple[Choice, ...]:
    """The files to choose from, the slowest first; of each backend and width the recommended one. Nothing for a network of one width."""
    candidates = _candidates(records, run)
    return tuple(_choice(one) for one in candidates if not any(other.beats(one) for other in candidates))


def left_out(records: Sequence[ExportRecord], run: Run) -> Iterator[Fallback]:
    """The widths that are in no list, and why."""
    candidates = _candidates(records, run)
    for one in candidates:
        winner = next((other for other in candidates if other.beats(one)), None)
        if winner is not None:
            times = f"{winner.latency.value:.3g} against {one.latency.value:.3g} ms ({one.latency.how})"
            metric, more, less = winner.worth_beside(one)
            yield Fallback(
                where=f"export {one.record.label}",
                what="not in the list of widths to choose from",
                reason=f"{_name(winner.record)} is as fast and as good or better: {times}, {metric} {more:.4g} against {less:.4g}",
            )


def latency_on_device(record: ExportRecord) -> Measurement | None:
    """What the file is offered for: the estimate for the target's device; where the device is the machine that made it, what was measured there."""
    found = [measurement for measurement in record.latency if measurement.what == "latency"]
    return next((one for one in found if one.how == "estimated"), found[0] if found else None)


def _candidates(records: Sequence[ExportRecord], run: Run) -> list[_Candidate]:
    """Recommended files of several widths, the slowest first; wider before narrower, where that is equal."""
    found = [
        _Candidate(record, record.width, latency, quality_of(record, run).after)
        for record in records
        if record.recommended and record.width is not None and (latency := latency_on_device(record)) is not None
    ]
    return sorted(found, key=lambda one: (-one.latency.value, -one.width, one.record.backend))


def _choice(one: _Candidate) -> Choice:
    return Choice(
        within_ms=one.latency.value,
        file=_name(one.record),
        backend=one.record.backend,
        width=one.width,
        unit=default_unit(one.record).unit,
        how=one.latency.how,
        on=one.latency.on,
        band=one.latency.band,
        quality=one.quality,
    )


def _name(record: ExportRecord) -> str:
    return record.file.rpartition("/")[2]
