"""A run folder as the pipeline writes it, with real photographs and invented numbers: what the tests of the reports read."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reported_plan import operators_of, quantize_details

from mcompress.breakdown import breakdown_of, ceilings_of
from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS, embedded_photos
from mcompress.compress.tasks.super_resolution.photos import bicubic_upsample, whole_pair
from mcompress.export.fidelity import fidelity_of, quality_worst
from mcompress.record import (
    BudgetRecord,
    CoverageRecord,
    EnvironmentRecord,
    ExportRecord,
    Likeness,
    ModelRecord,
    OperatorFallback,
    ParityRecord,
    PictureRecord,
    Run,
    StageRecord,
    TargetRecord,
    WalkedRecord,
)
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import Precisions
from mcompress.targets.operators import Kind, Operator, OperatorTable
from mcompress.targets.schema import Fallback, Measurement


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


def operator(
    name: str,
    kind: Kind,
    operation: str,
    channels: tuple[int, int],
    side: int,
    *,
    kernel: int = 1,
    groups: int = 1,
    fused: tuple[str, ...] = (),
    inputs: int = 1,
) -> Operator:
    """A row over square pictures: `channels` in and out; `inputs` pictures are read. A shuffle writes pictures of twice the side."""
    read, written = channels
    multiplies = kind.endswith("convolution")
    weights = written * read // groups * kernel**2 if multiplies else 0
    out = 2 * side if kind == "shuffle" else side
    return Operator(
        name=name,
        kind=kind,
        operation=operation,
        fused=fused,
        input_shape=(1, read, side, side),
        output_shape=(1, written, out, out),
        groups=groups,
        kernel=(kernel, kernel) if multiplies else (),
        stride=1,
        macs=weights * side**2,
        macs_output_convention=weights * side**2,
        elements_read=inputs * read * side**2,
        elements_written=written * out**2,
        weight_elements=weights,
        live_elements=(inputs * read + written) * side**2,
    )


def network(width: int, blocks: int, side: int = 64) -> OperatorTable:
    """Super-resolution by four: blocks of two convolutions, one of them depthwise where the network is narrow, and two pixel shuffles."""
    rows = [operator("head", "convolution", "convolution", (3, width), side, kernel=3)]
    for i in range(blocks):
        if width <= 32:
            rows.append(operator(f"blocks.{i}.depth", "depthwise_convolution", "convolution", (width, width), side, kernel=3, groups=width))
            rows.append(operator(f"blocks.{i}.point", "convolution", "convolution", (width, width), side, fused=("leaky_relu",)))
        else:
            rows += [operator(f"blocks.{i}.conv{n}", "convolution", "convolution", (width, width), side, kernel=3, fused=("relu",)) for n in (1, 2)]
        rows.append(operator(f"blocks.{i}.add", "elementwise", "add", (width, width), side, inputs=2))
    for n in (1, 2):
        rows.append(operator(f"up{n}", "convolution", "convolution", (width, 4 * width), side, kernel=3))
        rows.append(operator(f"shuffle{n}", "shuffle", "pixel_shuffle", (4 * width, width), side))
        side *= 2
    rows.append(operator("tail", "convolution", "convolution", (width, 3), side, kernel=3))
    return OperatorTable(tuple(rows), sum(row.weight_elements for row in rows))


def with_milliseconds(run: Run, *, device: Device | None = None, unit: str = "gpu", precisions: Precisions = "int8") -> Run:
    """The run with the breakdowns and ceilings that the pipeline records, of two invented networks on a real device."""
    known = device or load_device("snapdragon865")
    found = {
        "teacher": breakdown_of(network(64, 16), known, unit, "fp16", floats="fp16"),
        "compressed": breakdown_of(network(24, 6), known, unit, precisions, floats="fp16"),
    }
    models = {name: run.models[name].model_copy(update={"breakdown": breakdown}) for name, breakdown in found.items()}
    return run.model_copy(update={"models": run.models | models, "roofline": ceilings_of(known, tuple(found.values()))})


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


def some_pictures(*, mixed: bool) -> dict[str, PictureRecord]:
    """Four photographs, the later the worse, as a mixed or a float file might compute them."""
    found = {}
    for index, name in enumerate(("flower", "chelsea", "coffee", "rocket")):
        student = Likeness(
            psnr_db=44.0 - index if mixed else 118.0, ssim=0.991 - index / 1000 if mixed else 1.0, colour_shift=(0.2 * index, -0.1, 0.0),
            largest_shift=max(0.2 * index, 0.1), delta_e=0.4 + index / 10,
        )  # fmt: skip
        teacher = Likeness(psnr_db=36.5 - index, ssim=0.96, colour_shift=(0.3, -0.7, 0.1), largest_shift=0.7, delta_e=1.1)
        found[name] = PictureRecord(quality={"psnr_db": 31.0 - index}, against={"teacher": teacher, "float_student": student})
    return found


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
    shipped: bool = True,
    quality: dict[str, float] | None = None,
) -> ExportRecord:
    mixed = variant == "mixed"
    operators = operators_of(variant, halves=backend == "coreml")
    wider = "fp16 in the file, computed in fp32 here: XNNPACK has no fp16 kernel on this host"
    fallbacks = (OperatorFallback(operator="conv2d_30", reason=wider),) if mixed and backend != "coreml" else ()
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
    pictures = {} if quality is None else some_pictures(mixed=mixed)
    return ExportRecord(
        backend=backend,
        variant="mixed" if mixed else "float",
        file=f"bundle/snapdragon865-{variant}{suffix}",
        bytes=size,
        sha256="0123456789abcdef" * 4,
        precision_counts=dict(Counter(operator.precision for operator in operators)),
        parity=ParityRecord(
            reference="the fake-quantized network in PyTorch" if mixed else "PyTorch",
            metric=metric,
            value=value,
            limit=limit,
            passed=None if value is None else (value >= limit if mixed else value <= limit),
            runtime="not executed: Core ML runs on Apple systems only" if value is None else f"{backend} runtime",
        ),
        coverage=CoverageRecord(total=sum(units.values()), by_unit=units, fallbacks=fallbacks),
        walked=WalkedRecord(macs=1_234_000_000, peak_activation_bytes=7_654_321, peak_at="node_add_9 (Add)") if backend == "onnx" else None,
        latency=latency,
        quality=quality or {},
        pictures=pictures,
        fidelity=fidelity_of(pictures),
        quality_worst=quality_worst(pictures),
        recommended=recommended,
        operators=operators,
        shipped=shipped,
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
    rejected = [
        {"latency_ms": float(x), "macs": int(x * 6e8), "peak_memory_mb": x / 2, "over": {"latency_ms": x / 12 - 1}} for x in rng.uniform(12.1, 18, 25)
    ]
    done = sorted(trials, key=lambda t: float(str(t["latency_ms"])))
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
    stages = {
        "search": {"front": front, "trials": trials, "rejected": rejected, "rejected_over_budget": 25, "curve": curve, "supernet_seconds": 200.0},
        "prune": {
            "before": {"params": 61000},
            "after": {"params": 52000},
            "layers": [{"module": f"blocks.{i}.scales.0", "before": 32, "after": 24} for i in range(4)],
        },
        "distill": {"curve": distilled},
        "quantize": quantize_details(),
    }
    for stage, details in stages.items():
        (folder / "stages" / stage).mkdir(parents=True)
        (folder / "stages" / stage / "details.json").write_text(json.dumps(details))
    digests = {stage: format(index, "x") * 64 for index, stage in enumerate(stages, start=10)}
    parents = ["9" * 64, *digests.values()]
    in_float, mixed = mean(scores["student"]), mean(scores["compressed"])
    lite, torched = {"xnnpack": 31, "builtin": 1}, {"xnnpack": 29, "portable": 3}
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
            exported("onnx", "float", ".onnx", 214_011, value=2.1e-6, host=19.1, units={"cpu fp32": 32}, quality=in_float),
            exported("onnx", "mixed", ".onnx", 88_310, value=43.2, host=14.9, units={"cpu int8": 27, "cpu fp32": 5}, quality=mixed),
            exported("tflite", "float", ".tflite", 211_904, value=3.3e-6, host=18.0, units={"xnnpack": 32}, quality=in_float),
            exported("tflite", "mixed", ".tflite", 71_220, value=41.9, host=12.3, units=lite, recommended=True, quality=mixed),
            exported("executorch", "mixed", ".pte", 79_104, value=42.4, host=10.8, units=torched, shipped=False, quality=mixed),
            exported("coreml", "mixed", ".mlpackage", 69_402, value=None, host=None, units={}),
        ),
        budget=(
            BudgetRecord(what="latency_ms", limit=12.0, value=6.9, how="estimated", met=True, note="snapdragon865 gpu int8, not validated"),
            BudgetRecord(what="peak_memory_mb", limit=3.2, value=3.15, how="estimated", met=True),
            BudgetRecord(what="size_mb", limit=0.05, value=0.071, how="host", met=False, note="snapdragon865-mixed.tflite"),
            BudgetRecord(what="quality", limit=29.6, value=None, how=None, met=False, note="no file was executed"),
        ),
        fallbacks=(
            Fallback(where="export coreml", what="latency", reason="Core ML runs on Apple systems only"),
            Fallback(where="export executorch", what="the mixed file is not shipped", reason="10.8 ms against 9.1 ms for the float file"),
        ),
        not_measured=("latency on a Snapdragon 865: no phone was connected", "energy"),
        seconds=612.0,
        peak_memory_mb=2210.0,
    )
    run = with_milliseconds(run)
    run.save(folder)
    (folder / "target.yaml").write_text("name: snapdragon865\ndevice: snapdragon865\n# <b>&\n")
    return run
