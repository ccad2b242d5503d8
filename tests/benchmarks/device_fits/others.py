"""Google's Tensor, NVIDIA's Jetson boards and the Raspberry Pi."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from device_fits.constants import DONOR_TOO, IN_VIEW, Precisions, Words, fitted, samples, times
from device_fits.cpus import from_ncnn
from device_fits.figures import AGX_XAVIER, TALKING_FACES, XAVIER_NX, Figures, growth
from device_fits.measured import Measured
from device_fits.plan import ALL, CPU_RUNS, EVERY, FLOAT, GPU_RUNS, Hop, Plan, assumed_hop
from device_fits.snapdragon import CPU_FILES, HVX_KINDS, adreno, hexagon_780
from mcompress.calibration.latency_fit import Fit, Sample, fit
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
    plan.add("cpu", "Cortex-X1, A76, A55", CPU_FILES, ALL, times(from_ncnn(data, "snapdragon888"), "cpu", 1.0, cores), can=CPU_RUNS)
    gpu = times(adreno(data, "snapdragon888"), "gpu", 1.0, "as the Snapdragon 888's GPU; no figure of a Mali-G78 MP20 is known to this project")
    plan.add("gpu", "Mali-G78 MP20", FLOAT, ALL, gpu, can=GPU_RUNS, fallback="cpu")
    text = "as the Snapdragon 888's NPU; Google publishes neither operations per second nor latencies of its TPU"
    can = "an assumption: as the Snapdragon 888's NPU; Google does not publish what its TPU takes"
    plan.add("npu", "Tensor Processing Unit", {"int8": "int8"}, HVX_KINDS, times(hexagon_780(data), "npu", 1.0, text), can=can, fallback="gpu")
    return plan


def jetson_xavier_nx(data: Measured) -> Plan:
    hop, memory = jetson_hop(), "half of the 8 GB of the smaller module"
    plan = Plan("jetson-xavier-nx", "NVIDIA Jetson Xavier NX", ("xavier-nx",), "linux", 4000, memory, "gpu", hop)
    return _jetson(data, plan, XAVIER_NX, ratio_of=_alone)


def jetson_agx_xavier(data: Measured) -> Plan:
    hop, memory = jetson_hop(), "half of the 16 GB of the first module"
    plan = Plan("jetson-agx-xavier", "NVIDIA Jetson AGX Xavier", ("agx-xavier",), "linux", 8000, memory, "gpu", hop)
    return _jetson(data, plan, AGX_XAVIER, ratio_of=board_ratio)


def jetson_hop() -> Hop:
    """Between CPU and GPU of a Jetson."""
    return assumed_hop("a tenth of the Snapdragon 865's, because CPU and GPU share a process and a memory", 100.0)


def _jetson(data: Measured, plan: Plan, figures: dict[str, Figures], *, ratio_of: Callable[[Collection[str]], float]) -> Plan:
    """TensorRT on the GPU."""
    cores = "as the Raspberry Pi 5's four Cortex-A76, which few figures decide; TensorRT does not use this unit"
    plan.add("cpu", "Carmel", CPU_FILES, ALL, times(from_ncnn(data, "raspberrypi5"), "cpu", 1.0, cores), can=CPU_RUNS)
    kept = "relative to convolutions, or to memory, as in the fit of the Snapdragon 865's GPU: two networks decide the level alone"
    found: Precisions = {}
    for computed in TENSOR_RT_LEVELS:
        mixture = ", a mixture of INT8 and FP16 as if all were INT8, so that INT8 is no slower than this" if computed == "int8" else ""
        start = (
            f"of both boards together, AGX Xavier {board_ratio(XAVIER_NX['fp32']):.3g} times as fast as Xavier NX in all precisions, starting at the "
            f"Snapdragon 865's GPU{mixture}"
        )
        words = Words(start, kept, f"{DONOR_TOO}, {IN_VIEW}")
        again = partial(_of_both_boards, data, computed, ratio_of)
        found[computed] = fitted(f"gpu-{computed}", samples(figures[computed]), again, TALKING_FACES, files=computed, words=words, donor=data.gpu865)
    can = (
        "TensorRT is published in FP32, FP16 and a mixture of INT8 and FP16 on these boards (Nota-NetsPresso/nota-wav2lip at 01cfa87 of 2024-03-08); "
        "that it takes every kind of operator is an assumption"
    )
    plan.add("gpu", "Volta, with tensor cores", EVERY, ALL, found, can=can, fallback="cpu")
    return plan


def _of_both_boards(
    data: Measured, computed: PrecisionName, ratio_of: Callable[[Collection[str]], float], some: Sequence[Sample], family: str | None
) -> Fit:  # fmt: skip
    """One board's constants, fitted to the figures of both: the other's times how many times faster this one is (`ratio_of`)."""
    networks = {sample.name for sample in some}
    times_as_fast = board_ratio(networks)
    like = data.gpu865.unseen(family)
    prior = replace(
        prior_of(like, computed, rate_spread=0.1), gmacs=TENSOR_RT_LEVELS[computed], gbs=40.0, dispatch_us=10.0, invoke_us=30.0, outputs=(8,),
        inputs=(1,), pads_memory=(False,),
    )  # fmt: skip
    slow = {name: ms for name, ms in XAVIER_NX[computed].items() if name in networks}
    fast = {name: ms * times_as_fast for name, ms in AGX_XAVIER[computed].items() if name in networks}
    found, factor = fit((*samples(slow), *samples(fast)), prior), ratio_of(networks)
    moved = replace(found.arrays, gmacs=found.arrays.gmacs * factor, near_gbs=found.arrays.near_gbs * factor, far_gbs=found.arrays.far_gbs * factor)
    return replace(found, arrays=moved, dispatch_us=found.dispatch_us / factor, invoke_us=found.invoke_us / factor)


def board_ratio(networks: Collection[str]) -> float:
    """How many times as fast AGX Xavier is as Xavier NX: the geometric mean over all precisions of these networks."""
    pairs = {
        f"{name} {computed}": (ms, AGX_XAVIER[computed][name]) for computed, own in XAVIER_NX.items() for name, ms in own.items() if name in networks
    }
    return growth(pairs)


def _alone(networks: Collection[str]) -> float:
    return 1.0


def raspberry_pi_5(data: Measured) -> Plan:
    aliases = ("bcm2712", "raspberry-pi-5", "rpi5", "pi5")
    hop = assumed_hop("with one unit there is nowhere to go", 0.0)
    plan = Plan("raspberrypi5", "Raspberry Pi 5", aliases, "linux", 2000, "half of the 4 GB of the smaller board", "cpu", hop)
    plan.add("cpu", "four Cortex-A76", CPU_FILES, ALL, from_ncnn(data, "raspberrypi5"), can=CPU_RUNS)
    return plan
