"""Where the constants of `targets/devices/snapdragon865.yaml` come from: fit them to published latencies, check them leave-one-out, write the file.

    python tests/benchmarks/fit_snapdragon865.py > targets/devices/snapdragon865.yaml

About a minute on one core. The loss is the sum of absolute log ratios of estimate to published latency, with a weak pull to the starting values, so
that a constant which the networks do not determine stays where it starts. Published figures: Qualcomm measured w8a8 files on hosted QCS8250 boards
(SM8250, the Snapdragon 865's family) and published them in quic/ai-hub-models, `qai_hub_models/models/<model>/perf.yaml`; Paddle-Lite published
single-thread figures of a Xiaomi Mi 10 (Snapdragon 865) in `docs/performance/benchmark.md`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference_networks import NETWORKS

from mcompress.compress.cost import operator_table
from mcompress.targets.device import BYTES, Constant, PrecisionName, Unit
from mcompress.targets.latency import padded_elements, padded_macs
from mcompress.targets.operators import Kind, OperatorTable

DATE = "2026-11-21"
TFLITE_GPU = "TFLite GPU delegate, AI Hub Models v0.44.0"
TFLITE_NPU = "TFLite NPU delegate, AI Hub Models v0.39.0"
ORT_CPU = "ONNX Runtime, AI Hub Models v0.44.0"
AI_HUB = "quic/ai-hub-models perf.yaml, RB5 (Proxy), w8a8, "
PADDLE = "Paddle-Lite release/v2.11 docs/performance/benchmark.md, Xiaomi Mi 10, Armv8, one thread"

# Paddle-Lite's INT8 ResNet50 on one thread, 64.50 ms, over ONNX Runtime's on all threads, 21.483 ms.
THREADS = 64.50 / 21.483

Array = NDArray[np.float64]
RATES: tuple[Kind, ...] = ("convolution", "grouped_convolution", "depthwise_convolution", "matmul")
FITTED = (*RATES, "bandwidth_gbs", "dispatch_us", "invoke_us", "shuffle")


@dataclass(frozen=True)
class Fit:
    """What is fitted for one unit, and from where it starts."""

    unit: str
    precision: PrecisionName
    """In which the unit computes."""
    alignment: int
    pads_memory: bool
    published_ms: dict[str, float]
    start: tuple[float, ...]
    """In the order of `FITTED`."""
    helpers: dict[str, float]
    """Latencies from elsewhere that only steady the fit; not counted in its error."""


GPU = Fit(
    "gpu", "fp16", 4, True,
    {
        "resnet18": 12.79, "resnet50": 24.99, "wideresnet50": 56.246, "squeezenet1_1": 3.876, "resnext50": 23.217, "resnext101": 75.252,
        "regnet": 18.249, "densenet121": 33.486, "mobilenet_v2": 4.525, "quicksrnetsmall": 5.115, "quicksrnetmedium": 7.138, "xlsr": 5.394,
        "real_esrgan_x4plus": 1385.344,
    },
    (225.0, 150.0, 40.0, 100.0, 12.0, 15.0, 1500.0, 1.0), {},
)  # fmt: skip
CPU = Fit(
    "cpu", "int8", 8, False,
    {
        "resnet18": 9.912, "resnet50": 21.483, "wideresnet50": 60.446, "squeezenet1_1": 2.579, "resnext50": 27.756, "resnext101": 78.124,
        "regnet": 17.539, "xlsr": 7.054, "vit": 429.052,
    },
    (200.0, 150.0, 30.0, 60.0, 8.0, 10.0, 100.0, 1.0),
    {"mobilenet_v1": 11.18 / THREADS, "mobilenet_v2": 10.37 / THREADS},
)  # fmt: skip
NPU = Fit(
    "npu", "int8", 32, True,
    {
        "resnet18": 7.307, "resnet50": 12.056, "wideresnet50": 24.175, "squeezenet1_1": 4.068, "quicksrnetsmall": 11.735,
        "quicksrnetmedium": 13.236,
    },
    (450.0, 100.0, 60.0, 100.0, 8.0, 15.0, 800.0, 1.0), {},
)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """One network as arrays over its operators."""

    macs: Array
    """10^6, padded."""
    megabytes: Array
    rate: NDArray[np.int64]
    shuffle: NDArray[np.bool_]


def constants(fit: Fit, without: str | None = None) -> dict[str, float]:
    """Fit to all published networks of the unit but one."""
    names = [name for name in (*fit.published_ms, *fit.helpers) if name != without]
    published = np.log([(fit.published_ms | fit.helpers)[name] for name in names])
    rows = [features(fit, name) for name in names]
    start = np.log(fit.start)

    def loss(x: Array) -> float:
        residual = np.log([predicted_ms(np.exp(x), row) for row in rows]) - published
        return float(np.sum(np.sqrt(residual**2 + 1e-3)) + 0.1 * np.sum((x - start) ** 2))

    best, least = start, np.inf
    for attempt in range(3):
        x = start + (np.random.default_rng(attempt).normal(0, 0.4, len(start)) if attempt else 0.0)
        for _ in range(3):
            found = minimize(loss, x, method="Nelder-Mead", options={"maxiter": 2500, "xatol": 1e-4, "fatol": 1e-6})
            x = found.x
        if found.fun < least:
            best, least = found.x, found.fun
    return {name: float(f"{value:.4g}") for name, value in zip(FITTED, np.exp(best), strict=True)}


def predicted_ms(values: Array | Sequence[float], row: Features) -> float:
    """The model of `mcompress.targets.latency`, on arrays."""
    rates, (bandwidth, dispatch_us, invoke_us, shuffle) = np.asarray(values[:4]), values[4:]
    memory_ms = row.megabytes / bandwidth * np.where(row.shuffle, shuffle, 1.0)
    return float(np.maximum(row.macs / rates[row.rate], memory_ms).sum() + len(row.macs) * dispatch_us / 1e3 + invoke_us / 1e3)


@cache
def table(network: str) -> OperatorTable:
    """Operators of a reference network."""
    build, shape, _ = NETWORKS[network]
    with torch.device("meta"):
        model = build()
    return operator_table(model, shape)


def features(fit: Fit, network: str) -> Features:
    """`network` as the unit sees it."""
    unit, operators = empty_unit(fit), table(network).operators
    return Features(
        np.array([padded_macs(op, unit) / 1e6 for op in operators]),
        np.array([padded_elements(op, unit) * BYTES[fit.precision] / 1e6 for op in operators]),
        np.array([RATES.index(op.kind) if op.kind in RATES else 0 for op in operators]),
        np.array([op.kind == "shuffle" for op in operators]),
    )


def empty_unit(fit: Fit) -> Unit:
    """A unit with the fit's geometry; its speeds are not read."""
    any_constant = Constant(value=1.0, source="placeholder of the fit, never written", date=DATE, runtime="none")
    return Unit(
        name=fit.unit, title=fit.unit, channel_alignment=fit.alignment, pads_memory=fit.pads_memory, runs={"int8": ()},
        computes_in={"int8": fit.precision}, gmacs={}, bandwidth_gbs={fit.precision: any_constant}, dispatch_us=any_constant,
        invoke_us=any_constant, boundary_us=any_constant,
    )  # fmt: skip


# --- the file --------------------------------------------------------------------------------------------------------------------------------------

Entry = dict[str, object]
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
NPU_KINDS = tuple(k for k in ALL_KINDS if k not in ("grouped_convolution", "attention", "normalization", "other"))


def entry(value: float, source: str, runtime: str, fitted_to: Sequence[str] = ()) -> Entry:
    """One constant."""
    found: Entry = {"value": float(f"{value:.4g}"), "source": source, "date": DATE, "runtime": runtime}
    return found | ({"fitted_to": list(fitted_to)} if fitted_to else {})


def fitted(fit: Fit, source: str, runtime: str) -> tuple[dict[str, float], dict[str, Entry]]:
    """Values, and entries with their sources; what no network decides is said to be a guess."""
    values = constants(fit)
    used = {op.kind for name in (*fit.published_ms, *fit.helpers) for op in table(name).operators}
    how = f"fit of tests/benchmarks/fit_snapdragon865.py to {source}"
    entries = {
        name: entry(value, how, runtime, (*fit.published_ms, *fit.helpers))
        if name not in RATES or (name in used and (name != "matmul" or "vit" in fit.published_ms))
        else entry(value, "a guess: no published network with this kind of operator runs on this unit", runtime)
        for name, value in values.items()
    }
    return values, entries


def rates(entries: dict[str, Entry], values: dict[str, float], runtime: str, scale: float = 1.0, source: str = "") -> dict[str, Entry]:
    """Rates of all kinds that multiply; `scale` and `source` for a precision that is derived from the fitted one."""
    alike = entry(values["convolution"] * scale, "taken to be as fast as a convolution: exact work, no published network to fit it to", runtime)
    attention = entry(values["matmul"] * scale, "taken to be as fast as a matrix product: no published network to fit it to", runtime)
    own = {k: entries[k] if not source else entry(values[k] * scale, source, runtime) for k in RATES}
    return own | {"transposed_convolution": alike, "attention": attention}


def validation(fit: Fit, source: str) -> Entry:
    """Every network estimated with constants that were fitted without it."""
    checks = []
    for name, published in fit.published_ms.items():
        held_out = constants(fit, without=name)
        estimated = predicted_ms([held_out[key] for key in FITTED], features(fit, name))
        shape = list(NETWORKS[name][1])
        checks.append({"network": name, "input_shape": shape, "published_ms": published, "estimated_ms": round(estimated, 3), "source": source})
    return {"how": "leave-one-out", "checks": checks}


def device() -> Entry:
    """The whole device file."""
    gpu_source, npu_source, cpu_source = AI_HUB + "TFLite on GPU, v0.44.0", AI_HUB + "TFLite on NPU, v0.39.0", AI_HUB + "ONNX Runtime on CPU, v0.44.0"
    gpu, gpu_entries = fitted(GPU, gpu_source, TFLITE_GPU)
    npu, npu_entries = fitted(NPU, npu_source, TFLITE_NPU)
    cpu, cpu_entries = fitted(CPU, cpu_source, ORT_CPU)
    boundary = entry(
        1000, "order of magnitude: v0.39.0 NPU runs of resnext50, regnet and resnext101 leave 25 layers to other units and take 59, 34 and 51 ms "
        "longer than v0.44.0 on the GPU alone: 1.4 to 2.3 ms per layer, two boundaries each", TFLITE_NPU,
    )  # fmt: skip
    scaled = "INT8 constant times the ratio of ResNet50 in INT8 to {} (64.50 / {} ms) in " + PADDLE
    fp32, fp16 = scaled.format("FP32", "160.97"), scaled.format("FP16", "82.00")
    as_many = "as many elements per second as in INT8: {} times the bytes; not measured"
    shared: Entry = {"cpu": list(ALL_KINDS), "npu": list(NPU_KINDS)}
    units: Entry = {
        "cpu": {
            "name": "cpu", "title": "Kryo 585 (Cortex-A77 and A55)", "channel_alignment": CPU.alignment, "pads_memory": CPU.pads_memory,
            "runs": dict.fromkeys(("int8", "fp16", "fp32"), shared["cpu"]),
            "computes_in": {"int8": "int8", "fp16": "fp16", "fp32": "fp32"},
            "gmacs": {
                "int8": rates(cpu_entries, cpu, ORT_CPU),
                "fp16": rates(cpu_entries, cpu, ORT_CPU, 64.50 / 82.00, fp16),
                "fp32": rates(cpu_entries, cpu, ORT_CPU, 64.50 / 160.97, fp32),
            },
            "bandwidth_gbs": {
                "int8": cpu_entries["bandwidth_gbs"],
                "fp16": entry(2 * cpu["bandwidth_gbs"], as_many.format("two"), ORT_CPU),
                "fp32": entry(4 * cpu["bandwidth_gbs"], as_many.format("four"), ORT_CPU),
            },
            "slowdown": {"shuffle": cpu_entries["shuffle"]},
            "dispatch_us": cpu_entries["dispatch_us"], "invoke_us": cpu_entries["invoke_us"], "boundary_us": boundary,
            "validation": {"int8": validation(CPU, cpu_source)},
        },
        "gpu": {
            "name": "gpu", "title": "Adreno 650", "channel_alignment": GPU.alignment, "pads_memory": GPU.pads_memory,
            "runs": dict.fromkeys(("int8", "fp16", "fp32"), shared["cpu"]),
            # The TFLite GPU delegate dequantizes INT8 files and, as these figures were taken, computes in FP16.
            "computes_in": {"int8": "fp16", "fp16": "fp16", "fp32": "fp16"}, "fallback_unit": "cpu",
            "gmacs": {"fp16": rates(gpu_entries, gpu, TFLITE_GPU)}, "bandwidth_gbs": {"fp16": gpu_entries["bandwidth_gbs"]},
            "slowdown": {"shuffle": gpu_entries["shuffle"]},
            "dispatch_us": gpu_entries["dispatch_us"], "invoke_us": gpu_entries["invoke_us"], "boundary_us": boundary,
            "validation": {"int8": validation(GPU, gpu_source)},
        },
        "npu": {
            "name": "npu", "title": "Hexagon 698 (HVX)", "channel_alignment": NPU.alignment, "pads_memory": NPU.pads_memory,
            # Grouped convolutions, normalizations and attention of the published networks were left to other units.
            "runs": {"int8": shared["npu"]}, "computes_in": {"int8": "int8"}, "fallback_unit": "gpu",
            "gmacs": {"int8": rates(npu_entries, npu, TFLITE_NPU)}, "bandwidth_gbs": {"int8": npu_entries["bandwidth_gbs"]},
            "slowdown": {"shuffle": npu_entries["shuffle"]},
            "dispatch_us": npu_entries["dispatch_us"], "invoke_us": npu_entries["invoke_us"], "boundary_us": boundary,
            "validation": {"int8": validation(NPU, npu_source)},
        },
    }  # fmt: skip
    return {
        "name": "snapdragon865", "title": "Qualcomm Snapdragon 865",
        "aliases": ["sm8250", "sm8250-ab", "kona", "qcs8250", "qrb5165", "rb5", "snapdragon-865"], "os": "android",
        "memory_limit_mb": entry(2048, "an assumption: a quarter of the 8 GB of the smallest common phone with this chip", "none"),
        "preferred_unit": "gpu", "units": units,
    }  # fmt: skip


def compact(value: object) -> object:
    """Constants, checks and lists of scalars on one line each."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: compact(item) for key, item in value.items()})
        if not any(isinstance(item, dict) for item in value.values()) and ("source" in value or "int8" in value):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq([compact(item) for item in value])
        if not any(isinstance(item, dict) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    return value


def main() -> None:
    """Write the file to standard output."""
    torch.set_num_threads(1)
    yaml = YAML()
    yaml.width, yaml.representer.ignore_aliases = 150, lambda _: True
    text = io.StringIO()
    yaml.dump(compact(device()), text)
    sys.stdout.write(
        "# Snapdragon 865 (SM8250). Written by tests/benchmarks/fit_snapdragon865.py, which holds the derivation; a first estimate.\n"
        "# `estimated_ms` is what the constants give for a network when they are fitted without it.\n" + text.getvalue()
    )


if __name__ == "__main__":
    main()
