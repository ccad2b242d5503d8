"""What is offered, and what the budget is compared with."""

from __future__ import annotations

from typing import Literal

import pytest

from mcompress.budget import check_budget
from mcompress.offer import Offer, against_expectation, offered
from mcompress.record import CoverageRecord, ExportRecord, ModelRecord, ParityRecord
from mcompress.targets.schema import Budget, Measurement, QualityFloor


def ms(value: float, how: Literal["estimated", "host"] = "estimated", on: str = "phone gpu") -> Measurement:
    return Measurement(what="latency", value=value, unit="ms", how=how, on=on, band="median error 9 %", source="a test")


def export(variant: Literal["float", "mixed"], host_ms: float | None = None, quality: float | None = None, size: int = 1_000_000) -> ExportRecord:
    return ExportRecord(
        backend="tflite",
        variant=variant,
        file=f"bundle/x-{variant}.tflite",
        bytes=size,
        sha256="0" * 64,
        precision_counts={"int8": 1},
        parity=ParityRecord(reference="PyTorch", metric="m", value=0.0, limit=1.0, passed=True, runtime="r"),
        coverage=CoverageRecord(total=1, by_unit={"xnnpack": 1}),
        latency=() if host_ms is None else (ms(host_ms, "host", "this host"),),
        quality={} if quality is None else {"psnr_db": quality},
    )


def model(latency: Measurement, psnr_db: float = 30.0) -> ModelRecord:
    return ModelRecord(
        spec={}, params=1, macs=2_000_000_000, macs_output_convention=2_000_000_000, weight_bytes=1, peak_activation_bytes=3_000_000,
        activation_traffic_bytes=1, quality={"psnr_db": psnr_db}, latency=(latency,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("as_mixed", "variant", "latency"), [(ms(5.0), "mixed", 5.0), (ms(8.0), "mixed", 8.0), (ms(9.0), "float", 8.0), (None, "float", 8.0)]
)
def test_the_faster_form_is_offered_and_its_latency_counts(as_mixed: Measurement | None, variant: str, latency: float) -> None:
    offer = Offer(ms(8.0), as_mixed)
    assert offer.variant == variant
    assert offer.latency.value == latency
    records = offered([export("float"), export("mixed")], offer)
    assert [record.variant for record in records if record.recommended] == [variant]
    assert [record.latency[-1].value for record in records] == [8.0, 8.0 if as_mixed is None else as_mixed.value]


def test_quantization_that_does_not_pay_is_said() -> None:
    (said,) = against_expectation([export("float"), export("mixed")], Offer(ms(8.0), ms(9.0)))
    assert said.what == "the float file is recommended"
    assert "estimated 9.00 ms on phone gpu, the float file 8.00 ms" in said.reason


@pytest.mark.parametrize(("mixed_ms", "said"), [(4.0, 0), (10.4, 0), (10.6, 1)])
def test_a_mixed_file_that_is_slower_here_is_said(mixed_ms: float, said: int) -> None:
    found = list(against_expectation([export("float", 10.0), export("mixed", mixed_ms)], Offer(ms(8.0), ms(5.0))))
    assert len(found) == said


def test_the_budget_is_compared_with_what_is_offered() -> None:
    exports = offered([export("float", quality=29.9, size=9_000_000), export("mixed", quality=29.0, size=1_000_000)], Offer(ms(8.0), ms(9.0)))
    models = {"teacher": model(ms(80.0)), "compressed": model(ms(8.0))}
    budget = Budget(latency_ms=8.5, macs_g=1.0, peak_memory_mb=3.0, size_mb=2.0, quality=QualityFloor(metric="psnr_db", within=0.2))
    rows = {row.what: row for row in check_budget(budget, models, exports)}
    assert {what: (row.value, row.met) for what, row in rows.items()} == {
        "latency_ms": (8.0, True),
        "macs_g": (2.0, False),
        "peak_memory_mb": (3.0, True),
        "size_mb": (9.0, False),  # the float file's, because that is offered
        "psnr_db loss against the teacher": (pytest.approx(0.1), True),
    }


def test_the_worst_recommended_file_counts_and_an_unknown_quality_is_a_miss() -> None:
    budget = Budget(quality=QualityFloor(metric="psnr_db", at_least=29.5))
    models = {"teacher": model(ms(80.0)), "compressed": model(ms(5.0))}
    offer = Offer(ms(8.0), ms(5.0))
    (row,) = check_budget(budget, models, offered([export("mixed", quality=29.6), export("mixed", quality=29.4)], offer))
    assert (row.value, row.met) == (29.4, False)
    (row,) = check_budget(budget, models, offered([export("mixed")], offer))
    assert (row.value, row.met) == (None, False)
