"""What is offered for the target's device: per backend, where its files run there and which of the two it is, float or mixed.

A backend reaches only some compute units of a device: XNNPACK the CPU, LiteRT's delegate the GPU as well, Core ML nothing outside Apple's systems. An
estimate is for a unit that the file can run on, or there is none. The faster file is offered; at equal speed the smaller one, which with few INT8
operators may be the float file. Where that or this machine's timing contradicts what quantization promises, it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.export.honoured import precision_of_steps, standing_for
from mcompress.planning import Plan
from mcompress.record import ExportRecord, OperatorRecord
from mcompress.targets.device import Unit
from mcompress.targets.latency import Precisions, estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.reach import unit_of
from mcompress.targets.schema import Fallback, Measurement
from mcompress.targets.speeds import PRECISIONS, PrecisionName

NOTABLY_SLOWER = 1.05  # timings of one file on one machine repeat within a few per cent
SAME = 0.01  # estimates closer than this share are equal
HOST = "host"
Variant = Literal["float", "mixed"]


@dataclass(frozen=True)
class Offer:
    """A backend's two files on the unit of the device that they run on."""

    unit: Unit
    as_float: Measurement
    as_mixed: Measurement | None
    """None without a quantize stage, or where the mixed file is not shipped."""
    floats: PrecisionName = "fp32"
    """What the files hold for an operator that is not INT8."""
    smaller: Variant = "mixed"
    """The file with fewer bytes."""

    @property
    def variant(self) -> Variant:
        """The file that is offered."""
        if self.as_mixed is None or self.as_mixed.value > (1.0 + SAME) * self.as_float.value:
            return "float"
        return self.smaller if self.saves_no_time else "mixed"

    @property
    def saves_no_time(self) -> bool:
        """Whether the mixed file is not faster than the float file."""
        return self.as_mixed is not None and self.as_mixed.value >= (1.0 - SAME) * self.as_float.value

    @property
    def latency(self) -> Measurement:
        """Of the file that is offered."""
        return self.of(self.variant)

    def of(self, variant: Variant) -> Measurement:
        """Of either file."""
        return self.as_mixed if variant == "mixed" and self.as_mixed is not None else self.as_float


def make_offers(made: Plan, table: OperatorTable, plan: PrecisionPlan | None, records: Sequence[ExportRecord]) -> dict[str, Offer]:
    """Backend -> its offer; a backend whose files do not run on the device is left out.

    On a phone latencies are estimates. Where the device is this machine, what was measured here counts.
    """
    measured = {(record.backend, record.variant): _host(record) for record in records} if made.device.name == HOST else {}
    offers: dict[str, Offer] = {}
    for config in made.target.exports:
        unit = unit_of(config, made.device, made.unit)
        if unit is None:
            continue
        as_float = measured.get((config.backend, "float")) or device_latency(made, table, None, unit, config.floats)
        as_mixed = None
        mixed = next((record for record in records if record.backend == config.backend and record.variant == "mixed" and record.shipped), None)
        if plan is not None and mixed is not None:
            estimated = device_latency(made, table, plan, unit, config.floats, mixed.operators)
            as_mixed = measured.get((config.backend, "mixed")) or estimated
        offers[config.backend] = Offer(unit, as_float, as_mixed, config.floats, _smaller(records, config.backend))
    return offers


def _smaller(records: Sequence[ExportRecord], backend: str) -> Variant:
    size = {record.variant: record.bytes for record in records if record.backend == backend}
    return "float" if len(size) == 2 and size["float"] <= size["mixed"] else "mixed"


def best_of(offers: Mapping[str, Offer]) -> Offer | None:
    """The fastest offer: what the latency budget is compared with. None if no exported file runs on the device."""
    return min(offers.values(), key=lambda offer: offer.latency.value, default=None)


def device_latency(
    made: Plan, table: OperatorTable, plan: PrecisionPlan | None, unit: Unit, floats: PrecisionName, written: Sequence[OperatorRecord] = ()
) -> Measurement:
    """Estimate on a unit of the target's device, for files that hold what `planned_precisions` says."""
    return estimate(table, made.device, unit.name, planned_precisions(table, plan, floats, written))


def planned_precisions(table: OperatorTable, plan: PrecisionPlan | None, floats: PrecisionName, written: Sequence[OperatorRecord] = ()) -> Precisions:
    """Table row -> precision in a file: what was read back from it, where `written` has that, else what the plan says.

    Without a plan, and for rows that it does not know, `floats`.
    """
    if plan is None:
        return floats
    standing = standing_for(written)
    of_row: dict[str, PrecisionName] = {}
    for operator in plan.operators:
        if operator.row:
            held = precision_of_steps((step.precision for step in standing.get(operator.name, ())), operator.precision)
            of_row[operator.row] = next((name for name in PRECISIONS if name == held), operator.precision)
    return {row.name: of_row.get(row.name, floats) for row in table.operators if row.macs or row.name in of_row}


def unplanned(table: OperatorTable, plan: PrecisionPlan | None) -> Iterator[Fallback]:
    """Rows that the plan does not name: the estimate takes them as float, and says so."""
    rows = {operator.row for operator in plan.operators} if plan is not None else set()
    for row in table.operators:
        if plan is not None and row.macs and row.name not in rows:
            yield Fallback(where="estimate", what=row.name, reason="the precision plan knows no such operator; it is estimated and sized as float")


def withheld(made: Plan, records: Sequence[ExportRecord]) -> tuple[ExportRecord, ...]:
    """The exports; a mixed file that is slower here than the float file in its runtime is marked as not shipped, unless the target asks for it."""
    asked = {config.backend for config in made.target.exports if config.keep_slower}
    return tuple(
        record.model_copy(update={"shipped": False})
        if record.variant == "mixed" and record.backend not in asked and _slower(records, record.backend) is not None
        else record
        for record in records
    )


def offered(records: Sequence[ExportRecord], offers: Mapping[str, Offer]) -> tuple[ExportRecord, ...]:
    """The exports with their latency on the device, the offered ones marked as recommended."""
    found = []
    for record in records:
        offer = offers.get(record.backend)
        if offer is not None and record.shipped:
            latency = offer.of(record.variant)
            known = latency in record.latency  # measured here, where the device is this machine
            record = record.model_copy(
                update={
                    "recommended": record.variant == offer.variant,
                    "unit": offer.unit.name,
                    "latency": record.latency if known else (*record.latency, latency),
                }
            )
        found.append(record)
    return tuple(found)


def against_expectation(made: Plan, records: Sequence[ExportRecord], offers: Mapping[str, Offer]) -> Iterator[Fallback]:
    """Files that do not run on the device or the unit that the target wants, and quantization that does not pay there or here."""
    if all(offer.unit.name != made.unit.name for offer in offers.values()):
        reason = f"search and pruning optimize for it, but no exported file runs there; {', '.join(sorted(offers)) or 'none of them'} run elsewhere"
        yield Fallback(where="target", what=f"{made.device.name} {made.unit.name}", reason=f"{reason}: set unit, or add a backend that reaches it")
    for config in made.target.exports:
        where, offer = f"export {config.backend}", offers.get(config.backend)
        if offer is None:
            reason = f"its files run on {', '.join(config.systems)}, the device on {made.device.os}: written and checked, but not recommended"
            yield Fallback(where=where, what=f"no estimate for {made.device.title}", reason=reason)
        elif offer.unit.name != made.unit.name:
            reason = f"its files do not reach the {made.unit.name}; they are estimated and offered for the {offer.unit.name}"
            yield Fallback(where=where, what=f"runs on the {offer.unit.name}", reason=reason)
        if offer is not None and offer.as_mixed is not None:
            yield from _quantization(where, offer)
    yield from _slower_here(records)


def _quantization(where: str, offer: Offer) -> Iterator[Fallback]:
    mixed, plain = offer.of("mixed"), offer.of("float")
    both = f"{mixed.how} {mixed.value:.2f} ms on {mixed.on}, the float file {plain.value:.2f} ms"
    if offer.variant == "float":
        bigger = ", and the mixed file is not smaller" if mixed.value <= (1.0 + SAME) * plain.value else ""
        yield Fallback(where=where, what="the float file is recommended", reason=f"{both}: INT8 does not pay there{bigger}")
    elif offer.saves_no_time:
        yield Fallback(where=where, what="INT8 saves no time", reason=f"{both}; the mixed file is recommended because it is smaller")


def _slower_here(records: Sequence[ExportRecord]) -> Iterator[Fallback]:
    for record in records:
        both = _slower(records, record.backend)
        if record.variant != "mixed" or both is None:
            continue
        mixed_ms, float_ms = both
        what = "the mixed file is slower than the float file here" if record.shipped else "the mixed file is not shipped"
        advice = (
            "the target asks for it (keep_slower)"
            if record.shipped
            else f"set keep_slower for {record.backend} if the target's device says otherwise"
        )
        reason = f"{mixed_ms:.2f} ms against {float_ms:.2f} ms for the float file in the same runtime, measured on this host; {advice}"
        yield Fallback(where=f"export {record.backend}", what=what, reason=reason)


def _slower(records: Sequence[ExportRecord], backend: str) -> tuple[float, float] | None:
    """Milliseconds of a backend's mixed and float file on this machine, if the mixed one is notably slower."""
    by_variant = {record.variant: _host(record) for record in records if record.backend == backend}
    mixed, plain = by_variant.get("mixed"), by_variant.get("float")
    return (mixed.value, plain.value) if mixed and plain and mixed.value > NOTABLY_SLOWER * plain.value else None


def _host(record: ExportRecord) -> Measurement | None:
    return next((m for m in record.latency if m.what == "latency" and m.how in ("host", "device")), None)
