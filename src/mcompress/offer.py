"""Which of a backend's two files is offered for the target's device, float or mixed: the one that is estimated to be faster there.

A quantized network that is slower than what it replaces is not offered as the result; where this machine's timing contradicts the estimate, that is
said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.planning import Plan
from mcompress.record import ExportRecord
from mcompress.targets.latency import Precisions, estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Fallback, Measurement

NOTABLY_SLOWER = 1.05  # timings of one file on one machine repeat within a few per cent


@dataclass(frozen=True)
class Offer:
    """The compressed network's two forms on the target's unit."""

    as_float: Measurement
    as_mixed: Measurement | None
    """None without a quantize stage."""

    @property
    def variant(self) -> Literal["float", "mixed"]:
        """The form that is offered."""
        return "mixed" if self.as_mixed is not None and self.as_mixed.value <= self.as_float.value else "float"

    @property
    def latency(self) -> Measurement:
        """Of the form that is offered."""
        return self.of(self.variant)

    def of(self, variant: Literal["float", "mixed"]) -> Measurement:
        """Of either form."""
        return self.as_mixed if variant == "mixed" and self.as_mixed is not None else self.as_float


def make_offer(made: Plan, table: OperatorTable, plan: PrecisionPlan | None) -> Offer:
    """Estimate both forms of the compressed network."""
    return Offer(device_latency(made, table, None), None if plan is None else device_latency(made, table, plan))


def device_latency(made: Plan, table: OperatorTable, plan: PrecisionPlan | None) -> Measurement:
    """Estimate on the target's unit."""
    return estimate(table, made.device, made.unit.name, planned_precisions(table, plan))


def planned_precisions(table: OperatorTable, plan: PrecisionPlan | None) -> Precisions:
    """Table row -> precision: what the plan gives the module; float networks ship as fp16 to phones."""
    if plan is None:
        return "fp16"
    of_module = {operator.module: operator.precision for operator in plan.operators if operator.module}
    return {row.name: of_module.get(row.name, "fp16") for row in table.operators if row.macs}


def unplanned(table: OperatorTable, plan: PrecisionPlan | None) -> Iterator[Fallback]:
    """Rows that the plan does not name, such as a convolution called as a function: the estimate takes them as fp16, and says so."""
    modules = {operator.module for operator in plan.operators if operator.module} if plan is not None else set()
    for row in table.operators:
        if plan is not None and row.macs and row.name not in modules:
            yield Fallback(
                where="estimate", what=row.name, reason="the precision plan knows no module of this name; it is estimated and sized as fp16"
            )


def offered(records: Sequence[ExportRecord], offer: Offer) -> tuple[ExportRecord, ...]:
    """The exports with their estimate for the device, the offered ones marked as recommended."""
    return tuple(
        record.model_copy(update={"recommended": record.variant == offer.variant, "latency": (*record.latency, offer.of(record.variant))})
        for record in records
    )


def against_expectation(records: Sequence[ExportRecord], offer: Offer) -> Iterator[Fallback]:
    """Where quantization does not pay: on the device as estimated, or on this machine as measured."""
    by_backend = {(record.backend, record.variant): _host_ms(record) for record in records}
    for record in records:
        if record.variant != "mixed":
            continue
        if offer.as_mixed is not None and offer.variant == "float":
            estimated = f"estimated {offer.as_mixed.value:.2f} ms on {offer.as_mixed.on}, the float file {offer.as_float.value:.2f} ms"
            reason = f"{estimated}: INT8 does not pay there"
            yield Fallback(where=f"export {record.backend}", what="the float file is recommended", reason=reason)
        mixed, plain = by_backend[record.backend, "mixed"], by_backend.get((record.backend, "float"))
        if mixed and plain and mixed > NOTABLY_SLOWER * plain:
            reason = (
                f"{mixed:.2f} ms against {plain:.2f} ms for the float file, measured on this host; the recommendation follows the estimate for "
                "the target device, so measure both files there before shipping"
            )
            yield Fallback(where=f"export {record.backend}", what="the mixed file is slower than the float file here", reason=reason)


def _host_ms(record: ExportRecord) -> float | None:
    return next((m.value for m in record.latency if m.what == "latency" and m.how in ("host", "device")), None)
