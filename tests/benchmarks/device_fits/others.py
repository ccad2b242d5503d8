"""Google's Tensor and the Raspberry Pi."""

from __future__ import annotations

from device_fits.constants import times
from device_fits.cpus import from_ncnn
from device_fits.measured import Measured
from device_fits.plan import ALL, CPU_RUNS, FLOAT, GPU_RUNS, Plan, assumed_hop
from device_fits.snapdragon import CPU_FILES, HVX_KINDS, adreno, hexagon_780


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


def raspberry_pi_5(data: Measured) -> Plan:
    aliases = ("bcm2712", "raspberry-pi-5", "rpi5", "pi5")
    hop = assumed_hop("with one unit there is nowhere to go", 0.0)
    plan = Plan("raspberrypi5", "Raspberry Pi 5", aliases, "linux", 2000, "half of the 4 GB of the smaller board", "cpu", hop)
    plan.add("cpu", "four Cortex-A76", CPU_FILES, ALL, from_ncnn(data, "raspberrypi5"), can=CPU_RUNS)
    return plan
