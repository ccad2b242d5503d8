"""A device of two units whose numbers are easy to reckon with, and one of three: what latencies are computed for by hand."""

from __future__ import annotations

from operator_rows import network

from mcompress.targets.device import Device
from mcompress.targets.device_files import parse_device
from mcompress.targets.latency import operator_latencies
from mcompress.targets.operators import Operator
from mcompress.targets.speeds import PrecisionName

RATES = "convolution: {source: a, gmacs: 100, ramp_inputs: 18, ramp_outputs: 4}\n" + "\n".join(
    f"          {name}: {{source: a, gmacs: {gmacs}}}"
    for name, gmacs in {"depthwise_convolution": 20, "grouped_convolution": 50, "transposed_convolution": 100, "matmul": 60, "attention": 40}.items()
)
TEXT = f"""\
name: test-device
title: A device for tests
os: linux
preferred_unit: npu
memory: {{source: a, limit_mb: 100}}
sources:
  a: {{text: an assumption for tests, date: '2026-01-02', runtime: none}}
units:
  npu:
    title: an NPU
    runs: {{int8: [convolution, depthwise_convolution, elementwise, activation, concatenate], fp16: [convolution, elementwise]}}
    computes_in: {{int8: int8, fp16: fp16}}
    fallback_unit: cpu
    boundary: {{source: a, hop_us: 500}}
    speeds:
      int8:
        alignment: {{source: a, outputs: 32, inputs: 4, pads_memory: true}}
        memory: {{source: a, gbs: 10}}
        overhead: {{source: a, dispatch_us: 7, invoke_us: 90}}
        operators:
          {RATES}
          concatenate: {{source: a, slowdown: 0.5}}
          clamp: {{source: a, slowdown: 4}}
      fp16:
        alignment: {{source: a, outputs: 32, inputs: 4, pads_memory: true}}
        memory: {{source: a, gbs: 10}}
        overhead: {{source: a, dispatch_us: 9, invoke_us: 110}}
        operators:
          {RATES.replace("gmacs: 100", "gmacs: 50")}
  cpu:
    title: a CPU
    runs: {{int8: all, fp16: all}}
    computes_in: {{int8: int8, fp16: int8}}
    boundary: {{source: a, hop_us: 1}}
    speeds:
      int8:
        alignment: {{source: a, outputs: 1, inputs: 1}}
        memory: {{source: a, gbs: 20, cache_mb: 1, far_gbs: 5}}
        overhead: {{source: a, dispatch_us: 3, invoke_us: 40}}
        operators:
          {RATES}
          shuffle: {{source: a, slowdown: 3}}
          normalization: {{source: a, slowdown: 6}}
"""
DEVICE: Device = parse_device(TEXT, "test.yaml")


def cost(operator: Operator, unit: str = "npu", precision: PrecisionName = "int8") -> float:
    return operator_latencies(network(operator), DEVICE, unit, precision)[0].latency_ms


THREE: Device = parse_device(
    TEXT.replace("    fallback_unit: cpu\n", "    fallback_unit: gpu\n").replace(
        "  cpu:\n",
        """\
  gpu:
    title: a GPU
    runs: {int8: [convolution, shuffle]}
    computes_in: {int8: fp16}
    fallback_unit: cpu
    boundary: {source: a, hop_us: 200}
    speeds:
      fp16:
        alignment: {source: a, outputs: 4, inputs: 4, pads_memory: true}
        memory: {source: a, gbs: 30}
        overhead: {source: a, dispatch_us: 20, invoke_us: 900}
        operators: {convolution: {source: a, gmacs: 100}}
  cpu:
""",
    ),
    "three.yaml",
)
