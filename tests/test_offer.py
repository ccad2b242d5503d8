"""What is offered, and what the budget is compared with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import pytest
from operator_rows import row

from mcompress.budget import check_budget
from mcompress.cache import Entry
from mcompress.compress.quantize.plan import PlannedOperator, PrecisionPlan
from mcompress.export.bundle import ExportedFile
from mcompress.exporting import ExportResult
from mcompress.offer import Offer, against_expectation, make_offers, offered, planned_precisions, unplanned, withheld
from mcompress.planning import Plan
from mcompress.record import CoverageRecord, ExportRecord, ModelRecord, OperatorRecord, ParityRecord, PictureRecord, WalkedRecord
from mcompress.recording import shown_file
from mcompress.targets.device import Unit
from mcompress.targets.device_files import load_device
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, Export, OnnxConfig, TFLiteConfig
from mcompress.targets.operators import OperatorTable
from mcompress.targets.reach import floats_on, unit_of
from mcompress.targets.schema import Budget, Measurement, QualityFloor, Target


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


FILES_OF_TWO: tuple[tuple[str, Literal["float", "mixed"]], ...] = (("onnx", "float"), ("onnx", "mixed"), ("tflite", "mixed"))
AN_ENTRY = Entry(Path(), cached=False, seconds=0.0)
GPU, CPU = (load_device("snapdragon865").units[name] for name in ("gpu", "cpu"))


@pytest.mark.parametrize(
    ("as_mixed", "variant", "latency"), [(ms(5.0), "mixed", 5.0), (ms(8.0), "mixed", 8.0), (ms(9.0), "float", 8.0), (None, "float", 8.0)]
)
def test_the_faster_file_is_offered_and_at_equal_speed_the_smaller(as_mixed: Measurement | None, variant: str, latency: float) -> None:
    offer = Offer(GPU, ms(8.0), as_mixed)
    assert offer.variant == variant
    assert offer.latency.value == latency
    records = offered([export("float"), export("mixed")], {"tflite": offer})
    assert [record.variant for record in records if record.recommended] == [variant]
    assert [record.latency[-1].value for record in records] == [8.0, 8.0 if as_mixed is None else as_mixed.value]
    assert {record.unit for record in records} == {"gpu"}


def test_a_backend_that_does_not_run_on_the_device_is_not_recommended_and_has_no_estimate() -> None:
    (record,) = offered([export("mixed")], {})
    assert (record.recommended, record.unit, record.latency) == (False, None, ())


@pytest.mark.parametrize(
    ("config", "wanted", "unit"),
    [
        (TFLiteConfig(), GPU, "gpu"),
        (TFLiteConfig(), CPU, "cpu"),
        (ExecuTorchConfig(), GPU, "cpu"),
        (OnnxConfig(), GPU, "cpu"),
        (CoreMLConfig(), GPU, None),
    ],
)
def test_where_a_backends_files_run(config: Export, wanted: Unit, unit: str | None) -> None:
    found = unit_of(config, load_device("snapdragon865"), wanted)
    assert (found.name if found else None) == unit


def test_a_float_network_runs_as_what_is_written_for_the_unit() -> None:
    phone, apple = load_device("snapdragon865"), load_device("apple-a16")
    assert floats_on([CoreMLConfig(), TFLiteConfig()], phone, phone.units["gpu"]) == "fp32"
    assert floats_on([TFLiteConfig(), CoreMLConfig()], apple, apple.units["npu"]) == "fp16"


def table(*names: str) -> OperatorTable:
    return OperatorTable(tuple(row(inputs=8, outputs=8, side=4, name=name) for name in names), 576)


def test_rows_have_the_precision_that_was_planned_for_them_or_read_back_from_the_file() -> None:
    entries = [
        PlannedOperator("a", "body", "conv2d", "int8", "planned", row="body.0"),
        PlannedOperator("b", "tail", "conv2d", "fp16", "sensitive", row="tail"),
        PlannedOperator("c", "tail", "relu", "fp16", "fused"),
    ]
    plan = PrecisionPlan(tuple(entries), {})
    rows = table("body.0", "tail", "conv_7")
    assert planned_precisions(rows, plan, "fp32") == {"body.0": "int8", "tail": "fp16", "conv_7": "fp32"}
    read = [OperatorRecord(name="n", kind="Conv", stands_for=("b", "c"), precision="fp32", computed="fp32", unit="cpu")]
    assert planned_precisions(rows, plan, "fp32", read)["tail"] == "fp32"
    last = OperatorRecord(name="m", kind="Clip", stands_for=("b",), precision="fp16", computed="fp16", unit="cpu")
    assert planned_precisions(rows, plan, "fp32", [*read, last])["tail"] == "fp32", "one of its steps departs from the plan"
    assert planned_precisions(rows, None, "fp32") == "fp32"
    assert [fallback.what for fallback in unplanned(rows, plan)] == ["conv_7"]


def test_the_compressed_network_is_shown_by_a_file_that_is_in_the_bundle() -> None:
    alone = PictureRecord(quality={"psnr_db": 30.0})
    float_file, slow, mixed = (
        ExportResult(export(variant).model_copy(update={"backend": backend, "pictures": {"flower": alone}}), cast("ExportedFile", None), (), AN_ENTRY)
        for backend, variant in FILES_OF_TWO
    )
    everything = [float_file, slow, mixed]
    assert shown_file(everything, [True, False, True], "mixed") is mixed
    assert shown_file(everything, [True, True, True], "mixed") is slow
    assert shown_file(everything, [True, False, False], "mixed") is float_file


def planned(backends: str, unit: str = "gpu", *, keep_slower: bool = False) -> Plan:
    exports = [{"backend": name, "keep_slower": keep_slower} for name in backends.split()]
    target = Target.model_validate({"name": "t", "device": "snapdragon865", "unit": unit, "stages": [{"stage": "quantize"}], "exports": exports})
    device = load_device("snapdragon865")
    return cast("Plan", SimpleNamespace(target=target, device=device, unit=device.units[unit]))


def test_where_files_cannot_run_is_said() -> None:
    said = {(f.where, f.what) for f in against_expectation(planned("executorch coreml"), [], {"executorch": Offer(CPU, ms(8.0), ms(5.0))})}
    assert said == {
        ("target", "snapdragon865 gpu"),
        ("export executorch", "runs on the cpu"),
        ("export coreml", "no estimate for Qualcomm Snapdragon 865"),
    }


@pytest.mark.parametrize(
    ("mixed_ms", "what"), [(9.0, "the float file is recommended"), (8.0, "INT8 saves no time"), (7.95, "INT8 saves no time"), (7.0, None)]
)
def test_quantization_that_does_not_pay_is_said(mixed_ms: float, what: str | None) -> None:
    said = list(against_expectation(planned("tflite"), [export("float"), export("mixed")], {"tflite": Offer(GPU, ms(8.0), ms(mixed_ms))}))
    assert [f.what for f in said] == ([] if what is None else [what])
    assert all(f"estimated {mixed_ms:.2f} ms on phone gpu, the float file 8.00 ms" in f.reason for f in said)


def test_at_equal_speed_the_smaller_file_is_offered() -> None:
    table = OperatorTable((row(name="a"),), 576)
    plan = PrecisionPlan(operators=(PlannedOperator(name="conv2d", module="a", kind="conv2d", precision="fp32", reason="r", row="a"),), ranges={})
    made = planned("tflite")
    for sizes, variant, what in (((9_000, 8_000), "mixed", "INT8 saves no time"), ((8_000, 9_000), "float", "the float file is recommended")):
        records = [export("float", size=sizes[0]), export("mixed", size=sizes[1])]
        offers = make_offers(made, table, plan, records)
        assert offers["tflite"].variant == variant
        (said,) = against_expectation(made, records, offers)
        assert said.what == what
        assert said.reason.endswith("because it is smaller" if variant == "mixed" else "the mixed file is not smaller")


@pytest.mark.parametrize(("mixed_ms", "keep", "shipped", "said"), [(4.0, False, True, None), (10.4, False, True, None),
    (10.6, False, False, "the mixed file is not shipped"), (10.6, True, True, "the mixed file is slower than the float file here")])  # fmt: skip
def test_a_mixed_file_that_is_slower_here_is_shipped_only_if_the_target_asks(mixed_ms: float, keep: bool, shipped: bool, said: str | None) -> None:
    made = planned("tflite", keep_slower=keep)
    records = withheld(made, [export("float", 10.0), export("mixed", mixed_ms)])
    assert [record.shipped for record in records] == [True, shipped]
    offer = Offer(GPU, ms(8.0), ms(5.0) if shipped else None)
    assert [fallback.what for fallback in against_expectation(made, records, {"tflite": offer})] == ([] if said is None else [said])
    marked = offered(records, {"tflite": offer})
    assert [record.variant for record in marked if record.recommended] == (["mixed"] if shipped else ["float"])
    assert marked[1].unit == ("gpu" if shipped else None)


def test_the_budget_is_compared_with_what_is_offered() -> None:
    records = [export("float", quality=29.9, size=9_000_000), export("mixed", quality=29.0, size=1_000_000)]
    exports = offered(records, {"tflite": Offer(GPU, ms(8.0), ms(9.0))})
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


def test_a_second_count_that_is_larger_counts() -> None:
    walked = WalkedRecord(macs=2_000_000_000, peak_activation_bytes=4_000_000, peak_at="Erf")
    (record,) = offered([export("mixed").model_copy(update={"walked": walked})], {"tflite": Offer(GPU, ms(8.0), ms(5.0))})
    (row,) = check_budget(Budget(peak_memory_mb=3.5), {"teacher": model(ms(80.0)), "compressed": model(ms(5.0))}, [record])
    assert (row.value, row.met) == (4.0, False)


def test_the_worst_recommended_file_counts_and_an_unknown_quality_is_a_miss() -> None:
    budget = Budget(quality=QualityFloor(metric="psnr_db", at_least=29.5))
    models = {"teacher": model(ms(80.0)), "compressed": model(ms(5.0))}
    offers = {"tflite": Offer(GPU, ms(8.0), ms(5.0))}
    (row,) = check_budget(budget, models, offered([export("mixed", quality=29.6), export("mixed", quality=29.4)], offers))
    assert (row.value, row.met) == (29.4, False)
    (row,) = check_budget(budget, models, offered([export("mixed")], offers))
    assert (row.value, row.met) == (None, False)


def test_nothing_that_runs_on_the_device_meets_no_limit() -> None:
    models = {"teacher": model(ms(80.0)), "compressed": model(ms(5.0))}
    rows = list(check_budget(Budget(latency_ms=8.5, size_mb=2.0), models, [export("mixed")]))
    assert [(row.what, row.value, row.met) for row in rows] == [("latency_ms", None, False), ("size_mb", None, False)]
