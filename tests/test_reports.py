"""The report and the terminal table over a run folder as the pipeline writes it, with real photographs and invented numbers."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.nn import functional

from mcompress.compress.tasks.super_resolution.photos import HELD_OUT_PHOTOS, bicubic_upsample, embedded_photos, whole_pair
from mcompress.errors import UsageError
from mcompress.record import (
    BudgetRecord,
    CoverageRecord,
    EnvironmentRecord,
    ExportRecord,
    ModelRecord,
    OperatorFallback,
    ParityRecord,
    Run,
    StageRecord,
    TargetRecord,
)
from mcompress.reports import plots, wording
from mcompress.reports.html import headlines, write_report
from mcompress.reports.pictures import detail_region, photographs
from mcompress.reports.terminal import render
from mcompress.targets.schema import Fallback, Measurement

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HOSTILE = "<script>alert(1)</script> [bold]&"


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def save(image: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def write_samples(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Pictures whose quality lies where that of real networks would: mixtures of bicubic and truth, the compressed one with quantization noise."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    noise = torch.Generator().manual_seed(0)
    for photo in embedded_photos(HELD_OUT_PHOTOS).photos:
        low, high = whole_pair(photo)
        bicubic = bicubic_upsample(low)
        made = {
            "bicubic": bicubic,
            "teacher": torch.lerp(bicubic, high, 0.14),
            "student": torch.lerp(bicubic, high, 0.12),
            "compressed": torch.lerp(bicubic, high, 0.12) + 0.004 * torch.randn(high.shape, generator=noise),
        }
        for variant, picture in {"input": low, "truth": high, **made}.items():
            save(picture, folder / photo.name / f"{variant}.png")
        for variant, picture in made.items():
            scores.setdefault(variant, {})[photo.name] = {"psnr_db": psnr(picture.clamp(0, 1), high)}
    return scores


def mean(samples: dict[str, dict[str, float]]) -> dict[str, float]:
    return {"psnr_db": sum(v["psnr_db"] for v in samples.values()) / len(samples)}


def model(
    params: int, macs: int, peak: int, weights: int, samples: dict[str, dict[str, float]], estimate: float, host: float, precision: str
) -> ModelRecord:
    return ModelRecord(
        spec={"network": "mfagan"},
        params=params,
        macs=macs,
        macs_output_convention=macs,
        weight_bytes=weights,
        peak_activation_bytes=peak,
        activation_traffic_bytes=peak * 31,
        quality=mean(samples),
        quality_per_sample=samples,
        latency=(
            Measurement(
                what="latency",
                value=estimate,
                unit="ms",
                how="estimated",
                on=f"snapdragon865 gpu {precision}",
                band="not validated",
                source="operator table",
            ),
            Measurement(what="latency", value=host, unit="ms", how="host", on="PyTorch, 2 threads", p50=host, p90=host * 1.13, n=30),
        ),
    )


def exported(
    backend: str,
    variant: str,
    suffix: str,
    size: int,
    *,
    value: float | None,
    host: float | None,
    units: dict[str, int],
    recommended: bool = False,
    quality: dict[str, float] | None = None,
) -> ExportRecord:
    mixed = variant == "mixed"
    fallbacks = (OperatorFallback(operator="conv2d_21", reason="planned fp16, XNNPACK has no fp16 kernel on this host: fp32"),) if mixed else ()
    if "portable" in units:
        fallbacks += tuple(
            OperatorFallback(operator=f"pixel_shuffle_{i}", reason="not taken by the XNNPACK delegate") for i in range(units["portable"])
        )
    metric, limit = ("sqnr_db", 35.0) if mixed else ("max absolute difference / output range", 1e-3)
    latency = (
        ()
        if host is None
        else (Measurement(what="latency", value=host, unit="ms", how="host", on=f"{backend}, 1 thread", p50=host, p90=host * 1.2, n=50),)
    )
    return ExportRecord(
        backend=backend,
        variant="mixed" if mixed else "float",
        file=f"bundle/snapdragon865-{variant}{suffix}",
        bytes=size,
        sha256="0123456789abcdef" * 4,
        precision_counts={"int8": 27, "fp16": 4, "fp32": 1} if mixed else {"int8": 0, "fp16": 0, "fp32": 32},
        parity=ParityRecord(
            reference="the fake-quantized network in PyTorch" if mixed else "PyTorch",
            metric=metric,
            value=value,
            limit=limit,
            passed=None if value is None else (value >= limit if mixed else value <= limit),
            runtime="not executed: Core ML runs on Apple systems only" if value is None else f"{backend} runtime",
        ),
        coverage=CoverageRecord(total=sum(units.values()), by_unit=units, fallbacks=fallbacks),
        latency=latency,
        quality=quality or {},
        recommended=recommended,
    )


def write_run(folder: Path, *, name: str = "snapdragon865") -> Run:
    """A whole run folder as the pipeline leaves it."""
    scores = write_samples(folder / "samples")
    rng = np.random.default_rng(1)
    trials = []
    for _ in range(110):
        latency = float(rng.uniform(1.2, 11.8))
        quality = float(27.3 + 2.1 * math.log1p(latency) / math.log(12) - abs(rng.normal(0, 0.12)))
        macs = int(latency * 6e8)
        trials.append(
            {
                "quality": quality,
                "latency_ms": latency,
                "macs": macs,
                "peak_memory_mb": latency / 2,
                "spec_args": {"channels": 16},
                "state": "complete",
            }
        )
    trials += [{"quality": None, "latency_ms": float(x), "state": "over budget"} for x in rng.uniform(12.1, 18, 25)]
    done = sorted((t for t in trials if t["state"] == "complete"), key=lambda t: float(str(t["latency_ms"])))
    front: list[dict[str, object]] = []
    for trial in done:
        if not front or float(str(trial["quality"])) > float(str(front[-1]["quality"])):
            front.append(dict(trial))
    front[-2]["picked"] = True
    curve = [
        [step, {"supernet/truth": 0.07 * math.exp(-step / 400) + 0.03, "supernet/teacher": 0.05 * math.exp(-step / 300) + 0.01}]
        for step in range(10, 1501, 10)
    ]
    distilled = [
        [s, {"generator/l1": 0.03 + 0.01 * math.exp(-s / 300), "generator/output": 0.012 + 0.01 * math.exp(-s / 200)}] for s in range(10, 2001, 10)
    ]
    operators = [
        {
            "operator": f"conv2d_{i}",
            "module": f"blocks.{i // 6}.scales.{i % 6}",
            "kind": "conv2d",
            "precision": "fp16" if i in (0, 30) else "int8",
            "sqnr_db": 33.5 if i in (0, 30) else float(44 + 14 * rng.random()),
            "reason": "quantizing it alone leaves 33.5 dB" if i in (0, 30) else "above the floor",
        }
        for i in range(31)
    ]
    stages = {
        "search": {"front": front, "trials": trials, "rejected_over_budget": 25, "curve": curve, "supernet_seconds": 200.0},
        "prune": {
            "before": {"params": 61000},
            "after": {"params": 52000},
            "layers": [{"module": f"blocks.{i}.scales.0", "before": 32, "after": 24} for i in range(4)],
        },
        "distill": {"curve": distilled},
        "quantize": {"sensitivity": operators, "output_sqnr_db": 41.7, "keep_float_below_db": 40.0, "calibration_samples": 32},
    }
    for stage, details in stages.items():
        (folder / "stages" / stage).mkdir(parents=True)
        (folder / "stages" / stage / "details.json").write_text(json.dumps(details))
    digests = {stage: format(index, "x") * 64 for index, stage in enumerate(stages, start=10)}
    parents = ["9" * 64, *digests.values()]
    run = Run(
        target=TargetRecord(name=name, digest="f00d" * 16, title="Qualcomm Snapdragon 865", quick=False),
        environment=EnvironmentRecord(
            python="3.11.9",
            platform="Linux x86_64",
            packages={"torch": "2.13.0", "onnxruntime": "1.31.1", "executorch": "1.4.1"},
            commit="50aabac",
            seed=0,
            cpu="2 cores",
        ),
        stages=tuple(
            StageRecord(name=s, method="supernet", digest=digests[s], parent=p, cached=s == "search", seconds=93.4)
            for s, p in zip(stages, parents, strict=False)
        ),
        models={
            "teacher": model(764_387, 12_480_000_000, 25_200_000, 3_057_548, scores["teacher"], 96.0, 412.0, "fp16"),
            "student": model(61_296, 1_011_000_000, 3_145_728, 245_184, scores["student"], 10.6, 36.0, "fp16"),
            "compressed": model(52_112, 861_000_000, 3_145_728, 61_104, scores["compressed"], 6.9, 30.0, "int8"),
        },
        baseline={**scores["bicubic"], "mean": mean(scores["bicubic"])},
        exports=(
            exported("onnx", "float", ".onnx", 214_011, value=2.1e-6, host=19.1, units={"cpu fp32": 32}, quality=mean(scores["student"])),
            exported(
                "onnx", "mixed", ".onnx", 88_310, value=43.2, host=14.9, units={"cpu int8": 27, "cpu fp32": 5}, quality=mean(scores["compressed"])
            ),
            exported("tflite", "float", ".tflite", 211_904, value=3.3e-6, host=18.0, units={"xnnpack": 32}, quality=mean(scores["student"])),
            exported(
                "tflite",
                "mixed",
                ".tflite",
                71_220,
                value=41.9,
                host=12.3,
                units={"xnnpack": 31, "builtin": 1},
                recommended=True,
                quality=mean(scores["compressed"]),
            ),
            exported(
                "executorch", "mixed", ".pte", 79_104, value=42.4, host=10.8, units={"xnnpack": 29, "portable": 3}, quality=mean(scores["compressed"])
            ),
            exported("coreml", "mixed", ".mlpackage", 69_402, value=None, host=None, units={}),
        ),
        budget=(
            BudgetRecord(what="latency_ms", limit=12.0, value=6.9, how="estimated", met=True, note="snapdragon865 gpu int8, not validated"),
            BudgetRecord(what="peak_memory_mb", limit=3.2, value=3.15, how="estimated", met=True),
            BudgetRecord(what="size_mb", limit=0.05, value=0.071, how="host", met=False, note="snapdragon865-mixed.tflite"),
            BudgetRecord(what="quality", limit=29.6, value=None, how=None, met=False, note="no file was executed"),
        ),
        fallbacks=(Fallback(where="export coreml", what="latency", reason="Core ML runs on Apple systems only"),),
        not_measured=("latency on a Snapdragon 865: no phone was connected", "energy"),
        seconds=612.0,
        peak_memory_mb=2210.0,
    )
    run.save(folder)
    (folder / "target.yaml").write_text("name: snapdragon865\ndevice: snapdragon865\n# <b>&\n")
    return run


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    write_run(made)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what must be checked, and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.without_alt = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(values[key]) for key in ("src", "href", "srcset", "xlink:href", "action", "poster", "data") if values.get(key)]
        self.without_alt += tag == "img" and not values.get("alt")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_report_is_whole_and_well_formed(page: str, folder: Path) -> None:
    reader = read(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.without_alt == 0
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert {r[1:] for r in reader.references if r.startswith("#")} <= set(reader.ids)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in re.sub(r"url\(#p[0-9a-f]{6}-[\w-]+\)", "", page)
    assert str(folder) not in page
    assert len(page.encode()) < 8_000_000


def test_report_holds_every_number_of_the_run(page: str, folder: Path) -> None:
    run = Run.load(folder)
    text = " ".join("".join(read(page).text).split())
    for record in run.models.values():
        assert wording.count(record.params) in text
        assert wording.count(record.macs) in text
        assert wording.size(record.peak_activation_bytes) in text
        for measurement in record.latency:
            assert f"{wording.number(measurement.value)} ms" in text
        for values in record.quality_per_sample.values():
            assert f"PSNR {values['psnr_db']:.2f} dB" in text
    for export in run.exports:
        assert wording.file_name(export) in text
        assert wording.size(export.bytes) in text
        assert wording.parity(export.parity)[0] in text
    for fallback in wording.all_fallbacks(run):
        assert fallback.what in text
        assert fallback.reason in text
    for line in run.not_measured:
        assert line in text
    for stage in run.stages:
        assert stage.digest[:16] in text
    assert "<b>&" in text  # the target's text, escaped


def test_estimates_and_host_times_look_different(page: str) -> None:
    assert len(re.findall(r'class="bar estimated"', page)) == 3
    assert len(re.findall(r'class="bar host"', page)) == 3 + 5


def test_every_variant_is_shown_for_every_photograph(folder: Path) -> None:
    shown, count = photographs(folder / "samples")
    assert count == len(HELD_OUT_PHOTOS) == len(shown)
    for photo in shown:
        assert [detail.variant for detail in photo.details] == ["input", "bicubic", "teacher", "student", "compressed", "truth"]
        assert (photo.left, photo.right, photo.missing) == ("bicubic", "compressed", ())


def test_details_of_all_variants_show_one_region(tmp_path: Path) -> None:
    ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    (tmp_path / "a").mkdir()
    for variant in ("truth", "teacher", "compressed"):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{variant}.png")
    (photo,), _ = photographs(tmp_path)
    assert len({detail.uri for detail in photo.details}) == 1
    assert photo.missing == ("input", "bicubic", "student")


def test_region_is_where_bicubic_loses_most() -> None:
    truth = np.full((256, 320, 3), 128, np.uint8)
    truth[144:240, 200:296] += np.random.default_rng(0).integers(0, 100, (96, 96, 1)).astype(np.uint8)
    assert detail_region(truth, np.full_like(truth, 128)) == (144, 200, 96)
    assert detail_region(truth, None) == (144, 200, 96)
    assert detail_region(truth[:40, :50], None) == (0, 0, 40)


def test_report_is_the_same_for_the_same_run(page: str, folder: Path) -> None:
    write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_report_without_pictures_stages_and_files(tmp_path: Path) -> None:
    run = Run(
        target=TargetRecord(name="bare", digest="0" * 64, quick=True),
        environment=EnvironmentRecord(python="3.11", platform="x", packages={}, commit=None, seed=0),
        stages=(),
        models={},
        exports=(),
        budget=(),
        fallbacks=(Fallback(where=HOSTILE, what=HOSTILE, reason=HOSTILE),),
    )
    run.save(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "<script>alert" not in text
    assert "No file was exported." in text
    assert "quick run: tiny budgets, not a result" in text
    assert read(text).open == []
    console = Console(file=io.StringIO(), width=80)
    render(run, console)
    assert isinstance(console.file, io.StringIO)
    assert "Fallbacks: 1" in console.file.getvalue()


def test_names_of_the_user_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    hostile = run.model_copy(update={"target": run.target.model_copy(update={"title": HOSTILE})})
    hostile.save(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    console = Console(file=io.StringIO(), width=100)
    render(hostile, console)
    assert isinstance(console.file, io.StringIO)
    assert "[bold]&" in console.file.getvalue()


def test_headlines_tell_growth_from_shrinking(folder: Path) -> None:
    run = Run.load(folder)
    first = headlines(run)[0]
    assert (first.value, first.label) == (f"{12480 / 861:.1f}\N{MULTIPLICATION SIGN}", "fewer multiply-adds")
    swapped = run.model_copy(update={"models": {"teacher": run.models["compressed"], "compressed": run.models["teacher"]}})
    assert headlines(swapped)[0].label == "more multiply-adds"


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema": 2}'])
def test_folders_that_are_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_broken_details_are_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "stages" / "search" / "details.json").write_text('{"front": 3}')
    with pytest.raises(UsageError, match=r"details\.json: front"):
        write_report(tmp_path)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_terminal_table_fits_and_says_how(folder: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    run = Run.load(folder)
    render(run, console, folder=Path("runs/snapdragon865-f00df00d"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    flat = " ".join(text.split())
    for word in (
        "estimated",
        "host",
        "counted",
        "not measured",
        "not executed",
        "missed",
        "met",
        "unknown",
        "runs/snapdragon865-f00df00d/report.html",
    ):
        assert word in flat, word
    assert f"Fallbacks: {len(wording.all_fallbacks(run))}" in flat
    for export in run.exports:
        assert wording.size(export.bytes) in flat
    if width >= 100:
        for record in run.models.values():
            assert wording.count(record.params) in flat
            assert wording.quality("psnr_db", record.quality["psnr_db"]) in flat


def test_wording() -> None:
    assert [wording.number(v) for v in (0, 0.00123, 0.5, 1.234, 12.34, 123.4, 12345.6)] == ["0", "0.00123", "0.500", "1.23", "12.3", "123", "12,346"]
    assert [wording.size(v) for v in (12, 71_220, 3_390_000)] == ["12 B", "71.2 kB", "3.39 MB"]
    assert (wording.ratio(10, 2), wording.ratio(2, 10), wording.ratio(0, 1)) == ("5.00x", "5.00x larger", "not comparable")


def test_plots_take_the_colours_of_the_page() -> None:
    svg = plots.curves([(1, {"generator/l1": 0.2}), (2, {"generator/l1": 0.1})], title="distill")
    assert svg.startswith('<svg role="img" aria-label="Training curves of distill: generator/l1 over 2 steps."')
    assert "var(--accent)" in svg
    assert "#0" not in re.sub(r"#p[0-9a-f]{6}", "", svg)
    assert svg == plots.curves([(1, {"generator/l1": 0.2}), (2, {"generator/l1": 0.1})], title="distill")


def test_psnr_of_the_fixture_is_that_of_its_pictures(folder: Path) -> None:
    run = Run.load(folder)
    pictures = {v: np.asarray(Image.open(folder / "samples" / "coffee" / f"{v}.png"), np.float64) / 255 for v in ("truth", "teacher")}
    error = functional.mse_loss(torch.from_numpy(pictures["teacher"]), torch.from_numpy(pictures["truth"]))
    assert run.models["teacher"].quality_per_sample["coffee"]["psnr_db"] == pytest.approx(-10 * math.log10(float(error)), abs=0.05)
