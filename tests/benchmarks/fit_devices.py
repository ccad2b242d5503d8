"""Where the constants of `targets/devices/*.yaml` come from (but for the host's): fit them, check them leave-one-out, write the files.

    python tests/benchmarks/fit_devices.py --csv qualcomm_published_latency.csv [--out targets/devices] [DEVICE ...]

The CSV holds what Qualcomm measured on hosted devices and published in quic/ai-hub-models, `qai_hub_models/models/<model>/perf.yaml`, one row per
release, device, model, component, precision and runtime. All other figures are in the tables below. Under four minutes on one core; the same input
gives the same files. Where five networks or more are published for a unit, its constants are fitted; where there are fewer, or only figures
of other devices, the constants of the most similar unit are scaled, and nothing is said to be validated.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mcompress.calibration.device_file import device_text
from mcompress.calibration.latency_fit import RELATIVE_SLOWDOWN, Fit, Prior, Sample, as_run, fit, leave_one_out
from mcompress.compress.networks import network_table
from mcompress.published import prior_of, read_published
from mcompress.targets.columns import columns_of
from mcompress.targets.device import Device, Unit
from mcompress.targets.latency import SpeedArrays, unit_costs
from mcompress.targets.operators import Kind
from mcompress.targets.speeds import (
    BYTES,
    KINDS,
    Boundary,
    FilePrecision,
    MemorySpeed,
    Overhead,
    PrecisionName,
    Source,
    SpeedClass,
    Speeds,
)
from mcompress.targets.validation import Check, Validation

DATE = "2026-11-21"
RELEASES = ("v0.46.1", "v0.44.0", "v0.39.0")
"""Of quic/ai-hub-models; the first that has a network counts."""
LEAVE_ONE_OUT = "leave-one-out"

# --- published figures, milliseconds ---------------------------------------------------------------------------------------------------------------

Figures = Mapping[str, float]

NCNN = "Tencent/ncnn benchmark/README.md"
"""Networks of 224x224 with random weights, FP16 arithmetic where the core has it."""
NCNN_8_GEN_2: dict[str, Figures] = {
    "fp16": {"mobilenet_v2": 3.23, "resnet18": 6.63, "resnet50": 18.9},
    "int8": {"resnet18": 22.57, "resnet50": 19.2},
}
"""Four threads on the large cores."""
NCNN_888: dict[str, Figures] = {
    "fp16": {"mobilenet_v2": 7.63, "resnet18": 13.5, "resnet50": 29.6},
    "int8": {"resnet18": 15.3, "resnet50": 25.2},
}
"""Eight threads."""
NCNN_RASPBERRY_PI_5: dict[str, Figures] = {"fp16": {"mobilenet_v2": 10.5, "resnet50": 46.2}, "int8": {"resnet50": 40.8}}
"""Four threads."""
NCNN_M1: dict[str, Figures] = {"fp16": {"resnet50": 43.7}, "int8": {"resnet50": 31.6}}
"""One thread: a Firestorm core, as in the A14."""

S23: dict[str, Figures] = {
    "float": {
        "mobilenet_v2": 0.86, "mobilenet_v3_large": 0.964, "squeezenet1_1": 0.609, "shufflenet_v2": 0.697, "resnet18": 1.351, "resnet50": 2.246,
        "resnext50": 2.494, "wideresnet50": 4.831, "densenet121": 1.904, "vit": 12.72, "quicksrnetsmall": 1.404, "quicksrnetmedium": 1.361,
        "xlsr": 2.878,
        "real_esrgan_x4plus": 70.901, "esrgan": 67.727, "aotgan": 152.989, "lama_dilated": 86.106,
    },
    "w8a8": {
        "squeezenet1_1": 0.192, "shufflenet_v2": 0.323, "resnet18": 0.405, "resnet50": 0.771, "resnext50": 0.923, "wideresnet50": 1.777,
        "densenet121": 3.028, "vit": 12.199, "quicksrnetsmall": 1.045, "quicksrnetmedium": 1.083, "xlsr": 1.038, "real_esrgan_x4plus": 25.38,
    },
}  # fmt: skip
"""quic/ai-hub-models @43fc7215 (v0.33), Samsung Galaxy S23, TFLite on the NPU."""

MOBILEONE_12_PRO: Figures = {"mobileone_s0": 0.79, "mobileone_s1": 0.89, "mobileone_s2": 1.18, "mobileone_s3": 1.53, "mobileone_s4": 1.86}
"""apple/ml-mobileone README, iPhone 12 Pro, Core ML."""
APPLE: dict[str, dict[str, Figures]] = {
    "apple-a16": {"fp16": {"mobilenet_v2": 0.48, "resnet50": 1.52}, "int8": {"mobilenet_v2": 0.27, "resnet50": 0.94}},
    "apple-a17pro": {"fp16": {"mobilenet_v2": 0.49, "resnet50": 1.38}, "int8": {"mobilenet_v2": 0.20, "resnet50": 0.77}},
}
"""apple/coremltools docs-guides/source/opt-quantization-perf.md, iPhone 14 Pro and 15 Pro, medians; int8 is W8A8."""
A15_TO_A16 = math.sqrt((230 / 315) * (2.55 / 2.69))
"""Speed of the A15's engine: SnapFusion's UNet (arXiv 2306.00980) takes 315 and 230 ms on iPhone 13 Pro Max and 14 Pro, and Stable Diffusion 2.1
(apple/ml-stable-diffusion README) runs at 2.55 and 2.69 iterations a second."""

JETSON: dict[str, dict[str, Figures]] = {
    "jetson-xavier-nx": {
        "fp32": {"wav2lip": 16.16, "compressed_wav2lip": 1.73}, "fp16": {"wav2lip": 4.52, "compressed_wav2lip": 0.92},
        "int8": {"wav2lip": 3.59, "compressed_wav2lip": 0.81},
    },
    "jetson-agx-xavier": {
        "fp32": {"wav2lip": 9.27, "compressed_wav2lip": 1.12}, "fp16": {"wav2lip": 3.64, "compressed_wav2lip": 0.75},
        "int8": {"wav2lip": 3.19, "compressed_wav2lip": 0.64},
    },
}  # fmt: skip
"""Nota-NetsPresso/nota-wav2lip docs/assets/fig5.png (arXiv 2304.00471), TensorRT; `int8` is their mixture of FP16 and INT8."""

PADDLE = {"fp32": 160.97, "fp16": 82.00, "int8": 64.50}
"""ResNet50, Paddle-Lite release/v2.11 docs/performance/benchmark.md, Xiaomi Mi 10 (Snapdragon 865), Armv8, one thread."""
PADDLE_V1_V2 = {"mobilenet_v1": 11.18, "mobilenet_v2": 10.37}
"""The same table, INT8."""
CPU_8_GEN_1_TO_8_GEN_3 = {
    "bevdet": (2671.358, 1670.163), "wavlm": (2070.43, 1421.172), "statetransformer": (752.049, 504.429), "centerpoint": (5918.276, 3901.025),
}  # fmt: skip
CPU_8_GEN_3_TO_8_ELITE = {
    "bevdet": (1670.163, 1256.893), "wavlm": (1421.172, 1051.778), "statetransformer": (504.429, 392.99), "centerpoint": (3901.025, 3121.304),
}  # fmt: skip
"""quic/ai-hub-models v0.46.1, float files that TFLite runs on the CPU of both: the slower's and the faster's milliseconds."""
GEEKBENCH_8_GEN_2 = 4993 / 3785
"""Multi-core, 8 Gen 2 to 8 Gen 1 (nanoreview.net, qualcomm-snapdragon-8-gen-2-vs-qualcomm-snapdragon-8-gen-1)."""
GPU_STEPS = {
    "snapdragon888": (1.35, "35 % more than Adreno 650 as Qualcomm announced it"),
    "snapdragon8gen1": (1.35 * 1.55, "55 % more floating-point operations per second than Adreno 660 (nanoreview.net)"),
    "snapdragon8gen2": (1.35 * 1.55 * 12708 / 9076, "3DMark Wild Life 12708 to the 8 Gen 1's 9076 (nanoreview.net)"),
    "snapdragon8gen3": (
        1.35 * 1.55 * 23.049 / 11.892,
        "yolov6, of which TFLite runs 122 of 149 layers on the GPU, 11.892 ms to the 8 Gen 1's 23.049",
    ),
    "snapdragon8elite": (1.35 * 1.55 * 23.049 / 11.892 * 1.4, "40 % more than Adreno 750 as Qualcomm announced it"),
}
"""Speed relative to the Snapdragon 865's GPU, and the last step to it."""

# --- networks --------------------------------------------------------------------------------------------------------------------------------------


def samples(figures: Figures) -> tuple[Sample, ...]:
    """Published figures with their tables."""
    return tuple(Sample(name, network_table(name), ms) for name, ms in sorted(figures.items()))


# --- fitting ---------------------------------------------------------------------------------------------------------------------------------------

COARSE: tuple[SpeedClass, ...] = (*KINDS, "volumetric_convolution")
CLASSES: tuple[SpeedClass, ...] = (*COARSE, "pointwise_convolution")
"""What whole networks tell apart on a CPU or a GPU, and on an NPU: with fewer classes or with more, networks that are left out are further off."""
NPU_SLOWDOWN: dict[SpeedClass, float] = {
    **RELATIVE_SLOWDOWN, "normalization": 1.0, "concatenate": 0.5, "elementwise": 0.7, "activation": 0.7, "pooling": 1.0,
}  # fmt: skip
"""An NPU's compiler merges these into their neighbours, or leaves the tensor in the memory beside the arithmetic."""
GPU_PRIOR = Prior("fp16", 200.0, 12.0, 15.0, 1500.0, outputs=(4, 8, 16), inputs=(1, 4), pads_memory=(True,), classes=COARSE, rate_spread=1.0)
CPU_PRIOR = Prior("int8", 200.0, 10.0, 10.0, 100.0, outputs=(8, 16), inputs=(1, 4), pads_memory=(False,), classes=COARSE, rate_spread=0.5)
HVX_PRIOR = Prior("int8", 450.0, 8.0, 15.0, 800.0, outputs=(16, 32), inputs=(1, 4), pads_memory=(True,), classes=CLASSES, rate_spread=1.0)
NPU_PRIOR = Prior(
    "fp16", 4000.0, 60.0, 2.0, 80.0, outputs=(32, 64), inputs=(1,), pads_memory=(True,), classes=CLASSES, rate_spread=1.0, slowdowns=NPU_SLOWDOWN
)
NPU_PRIORS: dict[PrecisionName, Prior] = {
    "fp16": NPU_PRIOR, "int8": replace(NPU_PRIOR, computed="int8", gmacs=12000.0, gbs=100.0, dispatch_us=1.0, outputs=(32,)),
}  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """Speeds with the keys of their sources, those sources, and the checks."""

    speeds: Speeds
    sources: dict[str, Source]
    validation: Validation | None = None
    found: Fit | None = None
    samples: tuple[Sample, ...] = ()
    prior: Prior | None = None


def fitted(key: str, some: Sequence[Sample], prior: Prior, text: str, runtime: str, *, how: str = LEAVE_ONE_OUT, kept: str = "") -> Fitted:
    """A fit with its checks: leave-one-out where five networks or more are published."""
    found = fit(some, prior)
    names = tuple(sample.name for sample in some)
    sources = {
        key: Source(text=f"fit of tests/benchmarks/fit_devices.py to {text}", date=DATE, runtime=runtime, fitted_to=names),
        f"{key}-assumed": Source(
            text=kept or "a guess about this kind of unit, relative to its convolutions or to its memory: no network of the fit decides it",
            date=DATE, runtime="none",
        ),
    }  # fmt: skip
    checks = leave_one_out(some, prior, found) if len(some) >= 5 else ()
    validation = Validation(how=how, source=key, checks=checks) if checks else None
    return Fitted(found.speeds(fitted=key, assumed=f"{key}-assumed"), sources, validation, found, tuple(some), narrowed(prior, found))


def narrowed(prior: Prior, found: Fit) -> Prior:
    """The prior at the alignment that was found."""
    arrays = found.arrays
    return replace(prior, outputs=(arrays.outputs,), inputs=(arrays.inputs,), pads_memory=(arrays.pads_memory,))


def scaled(
    key: str, speeds: Speeds, text: str, *, rate: float = 1.0, memory: float | None = None, overhead: float | None = None, runtime: str = "none"
) -> Fitted:
    """Constants of a similar unit times factors: of arithmetic, of memory (the same where it is left out), of overheads (inverse of arithmetic)."""
    moved = rate if memory is None else memory
    less = 1 / rate if overhead is None else overhead
    own = speeds.memory
    changed = Speeds(
        alignment=speeds.alignment.model_copy(update={"source": key}),
        memory=MemorySpeed(gbs=four(own.gbs * moved), cache_mb=own.cache_mb, far_gbs=four(own.far_gbs * moved) if own.far_gbs else None, source=key),
        overhead=Overhead(dispatch_us=four(speeds.overhead.dispatch_us * less), invoke_us=four(speeds.overhead.invoke_us * less), source=key),
        operators={
            name: row.model_copy(update={"gmacs": four(row.gmacs * rate) if row.gmacs else None, "source": key})
            for name, row in speeds.operators.items()
        },
    )
    return Fitted(changed, {key: Source(text=text, date=DATE, runtime=runtime)})


def scaled_to(key: str, speeds: Speeds, computed: PrecisionName, figures: Figures, text: str, runtime: str) -> Fitted:
    """Constants of a similar unit, all made faster by the one factor that fits the few published figures best."""
    factor = math.exp(float(np.mean([math.log(milliseconds(speeds, computed, name) / ms) for name, ms in figures.items()])))
    names = ", ".join(figures)
    published = ", ".join(f"{ms:g}" for ms in figures.values())
    result = scaled(key, speeds, f"{text}; all constants times {factor:.3g}, which fits {names} ({published} ms) best",
                    rate=factor, runtime=runtime)  # fmt: skip
    sources = {key: result.sources[key].model_copy(update={"fitted_to": tuple(figures)})}
    return replace(result, sources=sources)


def milliseconds(speeds: Speeds, computed: PrecisionName, network: str) -> float:
    """The estimate for a network all of whose operators run on one unit."""
    columns = columns_of([network_table(network)])
    costs = unit_costs(columns, SpeedArrays.of(speeds), BYTES[computed])
    each = np.maximum(costs.compute_ms, costs.memory_ms) + costs.stream_ms + speeds.overhead.dispatch_us / 1e3
    return float(each.sum()) + speeds.overhead.invoke_us / 1e3


def as_many(speeds: Speeds, key: str, text: str, factor: float, width: float) -> Fitted:
    """Another precision of the same unit: rates times `factor`, elements per second as before though each has `width` times the bytes."""
    return scaled(key, speeds, text, rate=factor, memory=width, overhead=1.0)


def checked(found: Fitted, rows: Mapping[str, float], source: str) -> Validation:
    """Figures of files that the fit is not about: each estimated with constants that were fitted without the network."""
    if found.prior is None:
        raise ValueError("only a fit can be checked")
    checks = []
    for name, ms in sorted(rows.items()):
        rest = [sample for sample in found.samples if sample.name != name]
        estimated = float(fit(rest, found.prior).estimate_ms(columns_of([network_table(name)]))[0])
        checks.append(Check(network=name, measured_ms=ms, estimated_ms=estimated))
    return Validation(how="with constants fitted to float files of other networks", source=source, checks=tuple(checks))


def four(value: float) -> float:
    """Rounded to four digits."""
    return float(f"{value:.4g}")


def growth(pairs: Mapping[str, tuple[float, float]]) -> float:
    """Geometric mean of slower to faster."""
    return math.exp(float(np.mean([math.log(slow / fast) for slow, fast in pairs.values()])))


# --- devices ---------------------------------------------------------------------------------------------------------------------------------------

ALL: tuple[Kind, ...] = KINDS
NPU_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "other")
HVX_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in ("grouped_convolution", "attention", "normalization", "other"))
Files = dict[FilePrecision, PrecisionName]
Fuses = Literal["onnxruntime"]
EVERY: Files = {"int8": "int8", "fp16": "fp16", "fp32": "fp32"}
FLOAT: Files = {"int8": "fp16", "fp16": "fp16", "fp32": "fp16"}
NPU_FILES: Files = {"int8": "int8", "w8a16": "fp16", "fp16": "fp16", "fp32": "fp16"}
HOP = Source(
    text="order of magnitude: v0.39.0 NPU runs of resnext50, regnet and resnext101 on RB5 (Proxy) leave 25 layers to other units and take 59, "
    "34 and 51 ms "
    "longer than v0.44.0 on the GPU alone: 1.4 to 2.3 ms per layer, two boundaries each",
    date=DATE, runtime="TFLite NPU delegate, AI Hub Models v0.39.0",
)  # fmt: skip
SLOW_HOP_US = 1000.0


@dataclass
class Plan:
    """A device while it is put together."""

    name: str
    title: str
    aliases: tuple[str, ...]
    os: str
    limit_mb: float
    memory_text: str
    preferred: str
    units: dict[str, Unit] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def add(
        self, name: str, title: str, files: Files, kinds: tuple[Kind, ...], speeds: Mapping[PrecisionName, Fitted], *, fallback: str | None = None,
        hop_us: float = SLOW_HOP_US, checks: Mapping[FilePrecision, Validation] | None = None, fuses: Fuses | None = None,
    ) -> None:  # fmt: skip
        """Add a unit."""
        self.sources["boundary"] = HOP if self.os == "android" else HOP.model_copy(update={"text": "as on other phones; " + HOP.text})
        for found in speeds.values():
            self.sources |= found.sources
        measured = {computed: VALIDATED.get((name, computed), computed) for computed in speeds}
        validation = {measured[computed]: found.validation for computed, found in speeds.items() if found.validation is not None}
        self.units[name] = Unit(
            name=name, title=title, runs=dict.fromkeys(files, kinds), computes_in=files, fallback_unit=fallback, fuses=fuses,
            boundary=Boundary(hop_us=hop_us, source="boundary"), speeds={computed: found.speeds for computed, found in speeds.items()},
            validation={**validation, **(checks or {})},
        )  # fmt: skip

    def device(self) -> Device:
        """Without sources that nothing names."""
        sources = {"memory": Source(text=f"an assumption: {self.memory_text}", date=DATE, runtime="none"), **self.sources}
        draft = Device.model_validate(
            {
                "name": self.name, "title": self.title, "aliases": self.aliases, "os": self.os, "sources": {k: s.model_dump() for k,
                s in sources.items()},
                "memory": {"limit_mb": self.limit_mb, "source": "memory"}, "preferred_unit": self.preferred,
                "units": {name: unit.model_dump() for name, unit in self.units.items()},
            }
        )  # fmt: skip
        named = {source for _, source in draft.cited()}
        return draft.model_copy(update={"sources": {key: source for key, source in draft.sources.items() if key in named}})


VALIDATED: dict[tuple[str, PrecisionName], FilePrecision] = {("gpu", "fp16"): "int8"}
"""Unit and precision of arithmetic -> precision of the files that were measured, where it is another one."""


class Published:
    """The CSV, and the fits to it that several devices start from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tflite = partial(self.fit, runtime="tflite")
        self.cpu865 = self.fit("cpu-int8", "RB5 (Proxy)", "CPU", "w8a8", ("v0.44.0",), CPU_PRIOR, runtime="onnx")
        self.gpu865 = tflite("gpu-fp16", "RB5 (Proxy)", "GPU", "w8a8", ("v0.44.0",), GPU_PRIOR)
        self.npu865 = tflite("npu-int8", "RB5 (Proxy)", "NPU", "w8a8", ("v0.39.0",), HVX_PRIOR)
        self.npus: dict[str, dict[PrecisionName, Fitted]] = {
            name: {
                "fp16": tflite("npu-fp16", board, "NPU", "float", RELEASES, NPU_PRIORS["fp16"]),
                "int8": tflite("npu-int8", board, "NPU", "w8a8", RELEASES, NPU_PRIORS["int8"]),
            }
            for name, board in BOARDS.items()
        }

    def figures(self, device: str, unit: str, precision: str, releases: Sequence[str], runtime: str) -> dict[str, float]:
        """Network -> milliseconds."""
        where = {"device": device, "runtime": runtime, "unit": unit, "precision": precision}
        return {row.network: row.latency_ms for row in read_published(self.path, where=where, unit=unit, precision="int8", releases=releases)}

    def fit(self, key: str, device: str, unit: str, precision: str, releases: tuple[str, ...], prior: Prior, *, runtime: str) -> Fitted:
        """A unit's fit."""
        some = samples(self.figures(device, unit, precision, releases, runtime))
        if runtime == "onnx":
            some = tuple(replace(sample, table=as_run(sample.table, "onnxruntime")) for sample in some)
        text = (
            f"quic/ai-hub-models perf.yaml, {device}, {precision}, {runtime} on {unit.upper()}, {', '.join(releases)}, networks that ran on it alone"
        )
        return fitted(key, some, prior, text, f"{RUNTIMES[runtime]}, AI Hub Models {releases[0]}")


BOARDS = {"snapdragon8gen1": "QCS8450 (Proxy)", "snapdragon8gen3": "Samsung Galaxy S24", "snapdragon8elite": "Samsung Galaxy S25"}
RUNTIMES = {"tflite": "TFLite with delegate", "onnx": "ONNX Runtime", "qnn_dlc": "QNN"}
ASSUMED = "an assumption, not fitted: "


def snapdragon865(data: Published) -> Plan:
    plan = Plan(
        "snapdragon865", "Qualcomm Snapdragon 865", ("sm8250", "sm8250-ab", "kona", "qcs8250", "qrb5165", "rb5", "snapdragon-865"), "android", 2048,
        "a quarter of the 8 GB of the smallest common phone with this chip", "gpu",
    )  # fmt: skip
    plan.add("cpu", "Kryo 585 (Cortex-A77 and A55)", EVERY, ALL, cpu_precisions(data.cpu865, PADDLE), fuses="onnxruntime")
    plan.add("gpu", "Adreno 650", FLOAT, ALL, {"fp16": data.gpu865}, fallback="cpu")
    # Grouped convolutions, normalizations and attention of the published networks were left to other units; HVX has no FP16.
    plan.add("npu", "Hexagon 698 (HVX)", {"int8": "int8"}, HVX_KINDS, {"int8": data.npu865}, fallback="gpu")
    return plan


def cpu_precisions(int8: Fitted, resnet50: Figures) -> dict[PrecisionName, Fitted]:
    """FP16 and FP32 from INT8, by ResNet50's published ratio."""
    text = (
        "INT8 constants times the ratio of ResNet50 in INT8 to {} ({:g} / {:g} ms) in Paddle-Lite release/v2.11 "
        "docs/performance/benchmark.md, Xiaomi Mi 10, "
    )
    text += "Armv8, one thread; as many elements a second as in INT8"
    found: dict[PrecisionName, Fitted] = {"int8": int8}
    widths: dict[PrecisionName, float] = {"fp16": 2.0, "fp32": 4.0}
    for name, width in widths.items():
        words = text.format(name.upper(), resnet50["int8"], resnet50[name])
        found[name] = as_many(int8.speeds, f"cpu-{name}", words, resnet50["int8"] / resnet50[name], width)
    return found


NCNN_PRECISIONS: tuple[PrecisionName, ...] = ("int8", "fp16")


def from_ncnn(data: Published, figures: Mapping[str, Figures], where: str) -> dict[PrecisionName, Fitted]:
    """A CPU by ncnn's few figures: the Snapdragon 865's constants moved as a whole."""
    donor = cpu_precisions(data.cpu865, PADDLE)
    text = f"the Snapdragon 865's constants of this precision, scaled to {NCNN}, {where}"
    found = {name: scaled_to(f"cpu-{name}", donor[name].speeds, name, figures[name], text, "ncnn") for name in NCNN_PRECISIONS}
    ratio = PADDLE["fp16"] / PADDLE["fp32"]
    words = (
        f"FP16 constants times {ratio:.3g}, Paddle-Lite's ratio of ResNet50 in FP16 to FP32 on a Snapdragon 865; as many elements a second as in FP16"
    )
    return found | {"fp32": as_many(found["fp16"].speeds, "cpu-fp32", words, ratio, 2.0)}


def times(donor: Mapping[PrecisionName, Fitted], unit: str, factor: float, text: str) -> dict[PrecisionName, Fitted]:
    """All precisions of a unit, faster by one factor."""
    return {name: scaled(f"{unit}-{name}", found.speeds, text, rate=factor) for name, found in donor.items()}


def adreno(data: Published, device: str) -> dict[PrecisionName, Fitted]:
    """A newer Adreno."""
    factor, step = GPU_STEPS[device]
    return times({"fp16": data.gpu865}, "gpu", factor, f"{ASSUMED}the Snapdragon 865's constants times {factor:.3g}; the last step of it: {step}")


def cpu_8_gen_2(data: Published) -> dict[PrecisionName, Fitted]:
    return from_ncnn(data, NCNN_8_GEN_2, "Snapdragon 8 Gen 2, four threads on the large cores")


def cpu_of(data: Published, device: str) -> dict[PrecisionName, Fitted]:
    """CPUs between and after those that ncnn was timed on."""
    first, second = 1 / GEEKBENCH_8_GEN_2, growth(CPU_8_GEN_1_TO_8_GEN_3)
    steps = {"snapdragon8gen1": first, "snapdragon8gen3": first * second, "snapdragon8elite": first * second * growth(CPU_8_GEN_3_TO_8_ELITE)}
    text = (
        f"{ASSUMED}the Snapdragon 8 Gen 2's constants times {steps[device]:.3g}: Geekbench multi-core 3785 to 4993 (nanoreview.net) between 8 "
        f"Gen 1 and "
        f"8 Gen 2, then TFLite's float latencies on the CPU of {', '.join(CPU_8_GEN_1_TO_8_GEN_3)} (quic/ai-hub-models v0.46.1)"
    )
    return times(cpu_8_gen_2(data), "cpu", steps[device], text)


def snapdragon888(data: Published) -> Plan:
    plan = Plan("snapdragon888", "Qualcomm Snapdragon 888", ("sm8350", "lahaina", "snapdragon-888"), "android", 2048, "a quarter of 8 GB", "gpu")
    plan.add("cpu", "Kryo 680 (Cortex-X1, A78, A55)", EVERY, ALL, from_ncnn(data, NCNN_888, "Snapdragon 888, eight threads"))
    plan.add("gpu", "Adreno 660", FLOAT, ALL, adreno(data, "snapdragon888"), fallback="cpu")
    text = f"{ASSUMED}the Snapdragon 865's constants times 26 / 15, the ratio of the announced 26 and 15 TOPS"
    plan.add("npu", "Hexagon 780", {"int8": "int8"}, HVX_KINDS, times({"int8": data.npu865}, "npu", 26 / 15, text), fallback="gpu")
    return plan


def snapdragon_from_csv(
    data: Published, name: str, title: str, aliases: tuple[str, ...], cores: tuple[str, str, str], memory: tuple[float, str]
) -> Plan:
    """8 Gen 1, 8 Gen 3 and 8 Elite: the NPU from the CSV, the others scaled."""
    plan = Plan(name, title, aliases, "android", *memory, "npu")
    plan.add("cpu", cores[0], EVERY, ALL, cpu_of(data, name))
    plan.add("gpu", cores[1], FLOAT, ALL, adreno(data, name), fallback="cpu")
    rows = data.figures(BOARDS[name], "NPU", "w8a16", RELEASES, "qnn_dlc")
    plan.sources["npu-w8a16-check"] = Source(
        text=f"quic/ai-hub-models perf.yaml, {BOARDS[name]}, w8a16, qnn_dlc on NPU: only compared, nothing is fitted to it", date=DATE,
        runtime=f"QNN, AI Hub Models {RELEASES[0]}",
    )  # fmt: skip
    checks: dict[FilePrecision, Validation] = {"w8a16": checked(data.npus[name]["fp16"], rows, "npu-w8a16-check")}
    plan.add("npu", cores[2], NPU_FILES, NPU_KINDS, data.npus[name], fallback="gpu", checks=checks)
    return plan


def snapdragon8gen1(data: Published) -> Plan:
    return snapdragon_from_csv(
        data, "snapdragon8gen1", "Qualcomm Snapdragon 8 Gen 1", ("sm8450", "taro", "qcs8450", "snapdragon-8-gen-1"),
        ("Kryo (Cortex-X2, A710, A510)", "Adreno 730", "Hexagon (HTP v69)"), (2048, "a quarter of 8 GB"),
    )  # fmt: skip


def snapdragon8gen2(data: Published) -> Plan:
    plan = Plan("snapdragon8gen2", "Qualcomm Snapdragon 8 Gen 2", ("sm8550", "kalama", "qcs8550", "s23", "snapdragon-8-gen-2"), "android", 2048,
                "a quarter of 8 GB", "npu")  # fmt: skip
    plan.add("cpu", "Kryo (Cortex-X3, A715, A710, A510)", EVERY, ALL, cpu_8_gen_2(data))
    plan.add("gpu", "Adreno 740", FLOAT, ALL, adreno(data, "snapdragon8gen2"), fallback="cpu")
    kept = "relative to the others as in the fit of the Snapdragon 8 Gen 3 to v0.46.1: no network of this fit decides it"
    found: dict[PrecisionName, Fitted] = {}
    words: dict[PrecisionName, str] = {"fp16": "float", "int8": "w8a8"}
    for name, word in words.items():
        donor = data.npus["snapdragon8gen3"][name]
        prior = replace(prior_of(donor.speeds, name, rate_spread=0.4), outputs=(32,), inputs=(donor.speeds.alignment.inputs,), pads_memory=(True,))
        text = f"quic/ai-hub-models perf.yaml @43fc7215, Samsung Galaxy S23, {word}, tflite on NPU, starting at the Snapdragon 8 Gen 3's constants"
        found[name] = fitted(f"npu-{name}", samples(S23[word]), prior, text, "TFLite with delegate, AI Hub Models v0.33", kept=kept)
    plan.add("npu", "Hexagon (HTP v73)", NPU_FILES, NPU_KINDS, found, fallback="gpu")
    return plan


def snapdragon8gen3(data: Published) -> Plan:
    return snapdragon_from_csv(
        data, "snapdragon8gen3", "Qualcomm Snapdragon 8 Gen 3", ("sm8650", "pineapple", "s24", "snapdragon-8-gen-3"),
        ("Kryo (Cortex-X4, A720, A520)", "Adreno 750", "Hexagon (HTP v75)"), (2048, "a quarter of 8 GB"),
    )  # fmt: skip


def snapdragon8elite(data: Published) -> Plan:
    return snapdragon_from_csv(
        data, "snapdragon8elite", "Qualcomm Snapdragon 8 Elite", ("sm8750", "sun", "s25", "snapdragon-8-elite"), ("Oryon", "Adreno 830",
        "Hexagon (HTP v79)"),
        (3072, "a quarter of 12 GB"),
    )  # fmt: skip


def apple_engine(data: Published) -> Fitted:
    """The A14's Neural Engine."""
    donor = data.npus["snapdragon8gen1"]["fp16"].speeds
    prior = replace(prior_of(donor, "fp16", rate_spread=0.4), outputs=(32,), inputs=(1,), pads_memory=(True,))
    kept = "relative to the others as on the Snapdragon 8 Gen 1's NPU in FP16: no network of this fit decides it"
    return fitted("npu-fp16", samples(MOBILEONE_12_PRO), prior, "apple/ml-mobileone README, iPhone 12 Pro", "Core ML", kept=kept)


def apple(data: Published, name: str, title: str, aliases: tuple[str, ...], limit_mb: float, memory: str) -> Plan:
    """A chip of an iPhone."""
    plan = Plan(name, title, aliases, "ios", limit_mb, memory, "npu")
    newer = "" if name == "apple-a14" else "as on the A14, for want of figures; newer chips are faster; "
    cpu: dict[PrecisionName, Fitted] = {
        precision: scaled_to(
            f"cpu-{precision}", cpu_precisions(data.cpu865, PADDLE)[precision].speeds, precision, NCNN_M1[precision],
            f"{newer}the Snapdragon 865's constants of this precision, scaled to {NCNN}, Apple M1 (the A14's cores), one thread", "ncnn",
        )
        for precision in NCNN_PRECISIONS
    }  # fmt: skip
    ratio = PADDLE["fp16"] / PADDLE["fp32"]
    cpu["fp32"] = as_many(cpu["fp16"].speeds, "cpu-fp32", f"{newer}FP16 constants times {ratio:.3g}, as on a Snapdragon 865", ratio, 2.0)
    plan.add("cpu", "performance cores", EVERY, ALL, cpu)
    text = (
        f"{ASSUMED}{newer}the Snapdragon 865's constants times 0.654 / 1.228, the TFLOPS of both (topcpu.net, nanoreview.net); memory times "
        "34.1 / 44 GB/s"
    )
    plan.add(
        "gpu",
        "Apple GPU",
        FLOAT,
        ALL,
        {"fp16": scaled("gpu-fp16", data.gpu865.speeds, text, rate=0.654 / 1.228, memory=34.1 / 44, overhead=0.5)},
        fallback="cpu",
    )
    engine = apple_engine(data)
    # The Neural Engine computes in FP16, whatever a file's floats are. From the A16 on, W8A8 is published as faster; W8 alone is not.
    files: Files = dict(FLOAT)
    speeds: dict[PrecisionName, Fitted] = {"fp16": engine}
    docs = "apple/coremltools docs-guides/source/opt-quantization-perf.md"
    if name in APPLE:
        figures, files = APPLE[name], {"int8": "int8", "fp16": "fp16", "fp32": "fp16"}
        phone = "iPhone 14 Pro" if name == "apple-a16" else "iPhone 15 Pro"
        speeds = {
            "fp16": scaled_to("npu-fp16", engine.speeds, "fp16", figures["fp16"], f"the A14's constants, scaled to {docs}, {phone}", "Core ML"),
            "int8": scaled_to(
                "npu-int8", engine.speeds, "int8", figures["int8"],
                f"the A14's FP16 constants, scaled to {docs}, {phone}, W8A8", "Core ML",
            ),
        }  # fmt: skip
    elif name == "apple-a15":
        a16 = scaled_to("npu-fp16", engine.speeds, "fp16", APPLE["apple-a16"]["fp16"], "on the way to the A15", "Core ML")
        text = (
            f"the A16's constants, which are scaled to {docs}, times {A15_TO_A16:.3g}: SnapFusion's UNet takes 315 ms on iPhone 13 Pro Max and "
            f"230 ms on "
            "14 Pro (arXiv 2306.00980), Stable Diffusion 2.1 runs at 2.55 and 2.69 iterations a second (apple/ml-stable-diffusion README)"
        )
        speeds = {"fp16": scaled("npu-fp16", a16.speeds, text, rate=A15_TO_A16, runtime="Core ML")}
    plan.add("npu", "Apple Neural Engine", files, NPU_KINDS, speeds, fallback="gpu")
    return plan


def tensor_g1(data: Published) -> Plan:
    plan = Plan(
        "tensor-g1", "Google Tensor G1", ("gs101", "pixel6", "pixel6pro", "pixel6a"), "android", 1536, "a quarter of the Pixel 6a's 6 GB", "gpu"
    )
    cpu = from_ncnn(data, NCNN_888, "Snapdragon 888, eight threads")
    plan.add(
        "cpu",
        "Cortex-X1, A76, A55",
        EVERY,
        ALL,
        times(cpu, "cpu", 1.0, f"{ASSUMED}as the Snapdragon 888's, whose largest core is the same (Cortex-X1)"),
    )
    gpu = times(
        adreno(data, "snapdragon888"), "gpu", 1.0, f"{ASSUMED}as the Snapdragon 888's GPU; no figure of a Mali-G78 MP20 is known to this project"
    )
    plan.add("gpu", "Mali-G78 MP20", FLOAT, ALL, gpu, fallback="cpu")
    text = f"{ASSUMED}as the Snapdragon 888's NPU; Google publishes neither operations per second nor latencies of its TPU"
    plan.add("npu", "Tensor Processing Unit", {"int8": "int8"}, HVX_KINDS, times({"int8": data.npu865}, "npu", 26 / 15, text), fallback="gpu")
    return plan


def jetson(data: Published, name: str, title: str, aliases: tuple[str, ...], limit_mb: float, memory: str) -> Plan:
    """Jetson boards: TensorRT on the GPU."""
    plan = Plan(name, title, aliases, "linux", limit_mb, memory, "gpu")
    figures = JETSON[name]
    cpu = from_ncnn(data, NCNN_RASPBERRY_PI_5, "Raspberry Pi 5")
    plan.add(
        "cpu", "Carmel", EVERY, ALL, times(cpu, "cpu", 1.0, f"{ASSUMED}as the Raspberry Pi 5's four Cortex-A76; TensorRT does not use this unit")
    )
    kept = "relative to convolutions, or to memory, as in the fit of the Snapdragon 865's GPU: two networks decide the level alone"
    found: dict[PrecisionName, Fitted] = {}
    levels: dict[PrecisionName, float] = {"fp32": 300.0, "fp16": 1200.0, "int8": 1800.0}
    for computed, gmacs in levels.items():
        prior = replace(
            prior_of(data.gpu865.speeds, computed, rate_spread=0.1), gmacs=gmacs, gbs=40.0, dispatch_us=10.0, invoke_us=30.0, outputs=(8,),
            inputs=(1,),
            pads_memory=(False,),
        )  # fmt: skip
        text = "Nota-NetsPresso/nota-wav2lip docs/assets/fig5.png: Wav2Lip's generator and its compressed form"
        text += ", in a mixture of INT8 and FP16 as if all were INT8, so that INT8 is no slower than this" if computed == "int8" else ""
        found[computed] = fitted(f"gpu-{computed}", samples(figures[computed]), prior, text, "TensorRT, version not stated", kept=kept)
    plan.add("gpu", "Volta, with tensor cores", EVERY, ALL, found, fallback="cpu", hop_us=100.0)
    return plan


def raspberry_pi_5(data: Published) -> Plan:
    plan = Plan(
        "raspberrypi5", "Raspberry Pi 5", ("bcm2712", "raspberry-pi-5", "rpi5", "pi5"), "linux", 2000, "half of the 4 GB of the smaller board", "cpu"
    )
    plan.add("cpu", "four Cortex-A76", EVERY, ALL, from_ncnn(data, NCNN_RASPBERRY_PI_5, "Raspberry Pi 5, four threads"))
    return plan


DEVICES: dict[str, Callable[[Published], Plan]] = {
    "snapdragon865": snapdragon865,
    "snapdragon888": snapdragon888,
    "snapdragon8gen1": snapdragon8gen1,
    "snapdragon8gen2": snapdragon8gen2,
    "snapdragon8gen3": snapdragon8gen3,
    "snapdragon8elite": snapdragon8elite,
    "apple-a14": lambda data: apple(
        data, "apple-a14", "Apple A14 Bionic", ("a14", "iphone12", "iphone12mini", "iphone12pro", "iphone12promax"), 2000,
        "half of the iPhone 12's 4 GB"
    ),
    "apple-a15": lambda data: apple(
        data, "apple-a15", "Apple A15 Bionic",
        ("a15", "iphone13", "iphone13mini", "iphone13pro", "iphone13promax", "iphone14", "iphone14plus"), 2000, "half of the iPhone 13's 4 GB",
    ),
    "apple-a16": lambda data: apple(
        data, "apple-a16", "Apple A16 Bionic", ("a16", "iphone14pro", "iphone14promax", "iphone15", "iphone15plus"), 3000,
        "half of the iPhone 14 Pro's 6 GB"
    ),
    "apple-a17pro": lambda data: apple(
        data, "apple-a17pro", "Apple A17 Pro", ("a17pro", "iphone15pro", "iphone15promax"), 4000, "half of the iPhone 15 Pro's 8 GB"
    ),
    "tensor-g1": tensor_g1,
    "jetson-xavier-nx": lambda data: jetson(data, "jetson-xavier-nx", "NVIDIA Jetson Xavier NX", ("xavier-nx",), 4000,
    "half of the 8 GB of the smaller module"),
    "jetson-agx-xavier": lambda data: jetson(data, "jetson-agx-xavier", "NVIDIA Jetson AGX Xavier", ("agx-xavier",), 8000,
    "half of the 16 GB of the first module"),
    "raspberrypi5": raspberry_pi_5,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; each appears whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "targets" / "devices")
    parser.add_argument("devices", nargs="*", help="all, if none is named")
    given = parser.parse_args(arguments)
    data = Published(given.csv)
    for name in given.devices or DEVICES:
        device = DEVICES[name](data).device()
        text = device_text(device, f"{device.title}. Written by tests/benchmarks/fit_devices.py, which holds the derivation.")
        unfinished = given.out / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(given.out / f"{name}.yaml")
        for unit in device.units.values():
            for precision, found in unit.validation.items():
                logging.info("%s %s %s: %s, rank correlation %.3f", name, unit.name, precision, found.band, found.summary.rank_correlation or 0.0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
