"""What a reader is told of the precision plan: figures, proof, the front, recovery, sensitivities, and whether the files hold it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from reported_plan import TANGLED, quantize_details
from reported_run import exported, write_run
from rich.console import Console

from mcompress.record import OperatorRecord, Run
from mcompress.reports import precision_plots
from mcompress.reports.details import StageDetails
from mcompress.reports.headlines import shipped
from mcompress.reports.html import write_report
from mcompress.reports.precision import PrecisionPart, plan_line, precision_part, proof, total_ms, triple
from mcompress.reports.terminal import render


def details(**changes: object) -> StageDetails:
    return StageDetails.model_validate({**quantize_details(), **changes})


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return Run.load(run_folder)


@pytest.fixture(scope="module")
def section(run_folder: Path) -> str:
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    return page[page.index('<section id="precision">') : page.index('<section id="fallbacks">')]


@pytest.fixture
def part_of(run: Run) -> Callable[..., PrecisionPart]:
    def make(**changes: object) -> PrecisionPart:
        found = precision_part(run, {"quantize": details(**changes)})
        assert found is not None
        return found

    return make


def plain(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def test_every_figure_of_the_stage_is_in_the_section(section: str) -> None:
    text = plain(section)
    plan = details()
    assert plan.quality_lost is not None
    for words in (
        "30 / 2 / 1 operators in INT8 / FP16 / FP32 planned for cpu and gpu",
        "16.4 ms estimated, the sum over cpu and gpu, each of which runs the whole network 26.2 ms all float, 15.9 ms all INT8",
        "−0.038 dB PSNR against the float network at most 0.1 dB may be lost; output SQNR 42.3 dB",
        "What is lost was measured by running the plan. The ranges of INT8 come from 32 calibration samples.",
        "Proven optimal: no plan of this noise is faster by more than 0.0001 %.",
        "2 faster plans were run and rejected: they lose more than 0.1 dB.",
        "INT8 does not pay on gpu: 6.90 ms all INT8, 6.90 ms all float.",
        "correct biases all INT8 33.00 32.96 −0.04 not kept",
        "equalize all INT8 29.12 31.40 +2.28 kept",
        "29 / 2 / 1 (the plan) 16.4 0.042 41.7 42.0 93.5 %",
    ):
        assert words in text, words
    assert "does not pay on cpu" not in text
    for operator in plan.operators:
        assert f"<code>{operator.name}</code>" in section
    assert len(re.findall(r"<svg ", section)) == 2


def test_operators_stand_in_execution_order_and_the_sensitive_are_marked(section: str, part_of: Callable[..., PrecisionPart]) -> None:
    names = re.findall(r'<tr(?: class="picked")?><th scope="row"><code>(\w+)</code>', section)
    assert names == [str(row["operator"]) for row in quantize_details()["sensitivity"]]  # type: ignore[attr-defined]
    for row in part_of().operators:
        assert row.sensitive == (row.operator.sqnr_db is not None and row.operator.sqnr_db <= 52.3)
    assert {"conv2d_0", "conv2d_30"} <= {row.operator.name for row in part_of().operators if row.sensitive}


def test_what_the_files_hold_is_counted_over_the_plans_operators(run: Run, section: str) -> None:
    part = precision_part(run, {"quantize": details()})
    assert part is not None
    rows = {row.file: row for row in part.files}
    assert set(rows) == {f"snapdragon865-mixed{suffix}" for suffix in (".onnx", ".tflite", ".pte", ".mlpackage")}
    for row in rows.values():
        assert (row.planned, row.held, row.merged) == ("30 / 2 / 1", "30 / 2 / 1", 0)
    assert rows["snapdragon865-mixed.onnx"].computed == "30 / 0 / 3"
    assert rows["snapdragon865-mixed.mlpackage"].computed == ""
    assert [row.shipped for row in rows.values()] == [True, True, False, True]
    assert "snapdragon865-mixed.mlpackage 30 / 2 / 1 30 / 2 / 1 not executed here none" in plain(section)
    assert "snapdragon865-mixed.pte not in the bundle 30 / 2 / 1 30 / 2 / 1 30 / 0 / 3 4, with the reason" in plain(section)


def test_departures_and_merged_operators_show_in_the_counts(run: Run) -> None:
    export = exported("onnx", "mixed", ".onnx", 10, value=40.0, host=1.0, units={"cpu": 32})
    planned = details().operators
    split = OperatorRecord(name="tail", kind="Conv", stands_for=(planned[1].name,), precision="fp32", computed="fp32", unit="cpu")
    kept = tuple(one for one in export.operators if f"conv2d_{TANGLED}" not in one.stands_for)
    changed = run.model_copy(update={"exports": (export.model_copy(update={"operators": (*kept, split)}),)})
    part = precision_part(changed, {"quantize": details()})
    assert part is not None
    (row,) = part.files
    assert row.merged == 2  # the convolution and the ReLU that was fused into it
    assert (row.planned, row.held) == ("30 / 2 / 1", "27 / 2 / 2")
    nothing = run.model_copy(update={"exports": (export.model_copy(update={"operators": ()}),)})
    empty = precision_part(nothing, {"quantize": details()})
    assert empty is not None
    assert (empty.files[0].own, empty.files[0].merged) == (0, 33)


def test_the_proof_in_words() -> None:
    assert proof(details(optimality_gap=0.0)) == "proven optimal: no plan of this noise is faster by more than 0.0001 %"
    assert proof(details(optimality_gap=2e-4)) == "proven optimal: no plan of this noise is faster by more than 0.02 %"
    assert proof(details(optimality_gap=0.031)).startswith("not proven optimal: the solver was stopped where a plan of this noise could still be")
    by_quality = details(optimality_gap=0.0, goal="quality", latency_limit_ms=17.0)
    assert proof(by_quality) == "proven optimal: no plan of this latency has less noise by more than 0.0001 %"
    assert proof(details(given=True, optimality_gap=None)) == ""
    assert proof(details(optimality_gap=None)) == "not proven optimal: the fallbacks say why"


def test_a_plan_that_was_given_says_so(part_of: Callable[..., PrecisionPart], run: Run, tmp_path: Path) -> None:
    rows = [{**row, "sqnr_db": None} for row in quantize_details()["sensitivity"]]  # type: ignore[attr-defined]
    changes: dict[str, object] = {"given": True, "precision_front": [], "optimality_gap": None, "sensitivity": rows, "sensitivity_samples": 0}
    changes["planned_ms"] = {"chosen": {"cpu": 9.5, "gpu": None}, "all int8": {"cpu": 9.0, "gpu": 6.9}, "all float": {"cpu": 19.3, "gpu": 6.9}}
    part = part_of(**changes)
    assert part.figures[0].detail == "given with the target for cpu and gpu"
    assert part.remarks[0] == "The plan was given with the target and applied as it is; sensitivities and other plans were not computed."
    assert (part.front, part.sensitivity) == ("", "")
    assert part.units[1].cells[0] == ("no estimate", 0.0)
    assert total_ms(part.details, "chosen") is None
    (tmp_path / "stages" / "quantize").mkdir(parents=True)
    (tmp_path / "stages" / "quantize" / "details.json").write_text(json.dumps({**quantize_details(), **changes}))
    run.save(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Not measured: the plan was given." in page
    assert "Plans that were run" not in page
    assert plan_line(run, tmp_path).startswith("30 operators int8, 2 fp16, 1 fp32 (given with the target); 0.038 dB of PSNR lost of 0.1 allowed")


def test_the_plot_marks_the_plan_and_its_bounds() -> None:
    svg = precision_plots.front(details(), metric="PSNR", unit="dB")
    for words in (
        "the plan",
        "all INT8",
        "all float",
        "not allowed by the target",
        "PSNR lost, dB (lower is better)",
        "estimated latency, ms, summed over the units",
    ):
        assert f">{words}" in svg, words
    assert "6 precision plans" in svg
    assert svg == precision_plots.front(details(), metric="PSNR", unit="dB")
    limited = precision_plots.front(details(goal="quality", latency_limit_ms=17.0, within=0.1), metric="a $b$", unit="")
    assert "latency limit" in limited
    assert "not allowed by the target" not in limited
    assert "a $b$ lost" in limited
    lost = [{**point, "quality_lost": None, "sqnr_db": None} for point in quantize_details()["precision_front"]]  # type: ignore[attr-defined]
    assert "<svg" in precision_plots.front(details(precision_front=lost), metric="PSNR", unit="dB")


def test_milliseconds_of_one_unit_are_no_sum(run: Run, part_of: Callable[..., PrecisionPart], tmp_path: Path) -> None:
    alone: dict[str, object] = {"planned_units": ["gpu"], "planned_ms": {"chosen": {"gpu": 0.817}, "all float": {"gpu": 1.5}}}
    assert part_of(**alone).figures[1].label == "estimated on gpu"
    (tmp_path / "stages" / "quantize").mkdir(parents=True)
    (tmp_path / "stages" / "quantize" / "details.json").write_text(json.dumps(quantize_details() | alone))
    assert "; estimated 0.817 ms on gpu (all float 1.50); " in plan_line(run, tmp_path)


def test_where_int8_does_not_pay(part_of: Callable[..., PrecisionPart]) -> None:
    def verdict(chosen: float, in_int8: float, in_float: float) -> str:
        planned = {"chosen": {"cpu": chosen}, "all int8": {"cpu": in_int8}, "all float": {"cpu": in_float}}
        return part_of(planned_units=["cpu"], planned_ms=planned).units[0].verdict

    assert verdict(5.0, 6.0, 10.0) == ""
    assert verdict(10.0, 10.0, 10.0) == "INT8 does not pay on cpu: 10.0 ms all INT8, 10.0 ms all float"
    assert verdict(9.0, 12.0, 10.0) == "INT8 throughout does not pay on cpu, the plan's mixture does: 9.00 ms, 12.0 ms all INT8, 10.0 ms all float"


def test_a_run_without_quantization_has_no_section(run: Run) -> None:
    assert precision_part(run, {"distill": StageDetails.model_validate({"curve": []})}) is None


def test_the_terminal_says_the_plan_and_what_is_not_shipped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    render(run, console, folder=tmp_path)
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert (
        "Precision plan: 30 operators int8, 2 fp16, 1 fp32; estimated 16.4 ms, the sum over cpu and gpu, each of which runs the whole network "
        "(all float 26.2, all int8 15.9); 0.038 dB of PSNR lost of 0.1 allowed; proven optimal: no plan of this noise is faster by more than 0.0001 %"
    ) in text
    assert "Not in the bundle: snapdragon865-mixed.pte; the reason is among the fallbacks" in text
    assert "executorch mixed -" in text
    assert "- not in the bundle" in text
    alone = Console(file=io.StringIO(), width=200)
    render(run, alone, folder=None)
    assert isinstance(alone.file, io.StringIO)
    assert "Precision plan" not in alone.file.getvalue()


def test_the_headline_speaks_of_a_file_that_is_shipped(run: Run) -> None:
    small = exported("executorch", "mixed", ".pte", 10, value=42.0, host=1.0, units={"xnnpack": 1}, shipped=False)
    large = exported("onnx", "float", ".onnx", 1000, value=1e-6, host=1.0, units={"cpu": 1})
    assert shipped(run.model_copy(update={"exports": (small, large)})) == large


def test_nothing_lost_has_no_sign(part_of: Callable[..., PrecisionPart]) -> None:
    assert [part_of(quality_lost=lost).figures[-1].value for lost in (0.25, 0.0, -0.25)] == ["\N{MINUS SIGN}0.250 dB", "0 dB", "+0.250 dB"]


def test_triples() -> None:
    assert triple({"int8": 3, "fp32": 1}) == "3 / 0 / 1"
