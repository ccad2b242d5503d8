"""Google's Tensor, NVIDIA's Jetson boards and the Raspberry Pi."""

from __future__ import annotations

from dataclasses import replace

from device_fits.constants import Precisions, fitted, samples, times, to_prior
from device_fits.cpus import from_ncnn
from device_fits.figures import AGX_XAVIER, NCNN_RASPBERRY_PI_5, TALKING_FACES, XAVIER_NX, Figures
from device_fits.measured import Measured
from device_fits.plan import ALL, EVERY, FLOAT, Hop, Plan, assumed_hop
from device_fits.snapdragon import CPU_FILES, HVX_KINDS, adreno, cpu_888, hexagon_780
from mcompress.published import prior_of
from mcompress.targets.speeds import PrecisionName

TENSOR_RT_LEVELS: dict[PrecisionName, float] = {"fp32": 300.0, "fp16": 1200.0, "int8": 1800.0}
"""Where the fits of the Jetson boards start."""


def tensor_g1(data: Measured) -> Plan:
    plan = Plan(
        "tensor-g1", "Google Tensor G1", ("gs101", "pixel6", "pixel6pro", "pixel6a"), "android", 1536, "a quarter of the Pixel 6a's 6 GB", "gpu",
        assumed_hop(),
    )  # fmt: skip
    cores = "as the Snapdragon 888's, which few figures decide and whose largest core is the same (Cortex-X1)"
    plan.add("cpu", "Cortex-X1, A76, A55", CPU_FILES, ALL, times(cpu_888(data), "cpu", 1.0, cores))
    gpu = times(adreno(data, "snapdragon888"), "gpu", 1.0, "as the Snapdragon 888's GPU; no figure of a Mali-G78 MP20 is known to this project")
    plan.add("gpu", "Mali-G78 MP20", FLOAT, ALL, gpu, fallback="cpu")
    text = "as the Snapdragon 888's NPU; Google publishes neither operations per second nor latencies of its TPU"
    plan.add("npu", "Tensor Processing Unit", {"int8": "int8"}, HVX_KINDS, times(hexagon_780(data), "npu", 1.0, text), fallback="gpu")
    return plan


def jetson_xavier_nx(data: Measured) -> Plan:
    hop, memory = jetson_hop(), "half of the 8 GB of the smaller module"
    return _jetson(data, Plan("jetson-xavier-nx", "NVIDIA Jetson Xavier NX", ("xavier-nx",), "linux", 4000, memory, "gpu", hop), XAVIER_NX)


def jetson_agx_xavier(data: Measured) -> Plan:
    hop, memory = jetson_hop(), "half of the 16 GB of the first module"
    return _jetson(data, Plan("jetson-agx-xavier", "NVIDIA Jetson AGX Xavier", ("agx-xavier",), "linux", 8000, memory, "gpu", hop), AGX_XAVIER)


def jetson_hop() -> Hop:
    """Between CPU and GPU of a Jetson."""
    return assumed_hop("a tenth of the Snapdragon 865's, because CPU and GPU share a process and a memory", 100.0)


def _jetson(data: Measured, plan: Plan, figures: dict[str, Figures]) -> Plan:
    """TensorRT on the GPU."""
    cores = "as the Raspberry Pi 5's four Cortex-A76, which few figures decide; TensorRT does not use this unit"
    plan.add("cpu", "Carmel", CPU_FILES, ALL, times(cpu_of_raspberry_pi_5(data), "cpu", 1.0, cores))
    kept = "relative to convolutions, or to memory, as in the fit of the Snapdragon 865's GPU: two networks decide the level alone"
    found: Precisions = {}
    for computed, gmacs in TENSOR_RT_LEVELS.items():
        prior = replace(
            prior_of(data.gpu865.speeds, computed, rate_spread=0.1), gmacs=gmacs, gbs=40.0, dispatch_us=10.0, invoke_us=30.0, outputs=(8,),
            inputs=(1,), pads_memory=(False,),
        )  # fmt: skip
        mixture = "a mixture of INT8 and FP16 as if all were INT8, so that INT8 is no slower than this" if computed == "int8" else ""
        found[computed] = fitted(
            f"gpu-{computed}", samples(figures[computed]), to_prior(prior), TALKING_FACES, files=computed, words=mixture, kept=kept
        )
    plan.add("gpu", "Volta, with tensor cores", EVERY, ALL, found, fallback="cpu")
    return plan


def raspberry_pi_5(data: Measured) -> Plan:
    aliases = ("bcm2712", "raspberry-pi-5", "rpi5", "pi5")
    hop = assumed_hop("with one unit there is nowhere to go", 0.0)
    plan = Plan("raspberrypi5", "Raspberry Pi 5", aliases, "linux", 2000, "half of the 4 GB of the smaller board", "cpu", hop)
    plan.add("cpu", "four Cortex-A76", CPU_FILES, ALL, cpu_of_raspberry_pi_5(data))
    return plan


def cpu_of_raspberry_pi_5(data: Measured) -> Precisions:
    """By ncnn."""
    return from_ncnn(data, NCNN_RASPBERRY_PI_5, "Raspberry Pi 5, four threads")
