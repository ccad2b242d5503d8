"""The programs of a phone as scripts that print what the real ones print, the files that they time, and what is read of them.

What benchmark_model prints is LiteRT's real format, with made-up numbers, small enough for a program that ends at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcompress.export.profile import FailedJob, Job, Profile, Rules, profile_files
from mcompress.export.profile_phone import Programs
from mcompress.targets.connect import connect

FAST = Rules(50, 0.5, 2.0, 0.1, 0.05)
BENCHMARK = """STARTING!
Log parameter values verbosely: [0]
Min num runs: [50]
Num threads: [2]
Graph: [model.tflite]
#threads used for CPU inference: [2]
Loaded model model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
The input model file size (MB): 0.012788
Initialized session in 18.777ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=9 first=64 curr=56 min=54 max=65 avg=57.7582 std=4

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=58 curr=53 min=53 max=60 avg=55.0432 std=1.562{percentiles}

Inference timings in us: Init: 18777, First inference: 64, Warmup (avg): 57.7582, Inference (avg): 55.0432
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime.
Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""
PERCENTILES = " p5=53 median=54 p95=58"
OUTPUT = BENCHMARK.format(percentiles=PERCENTILES)
TABLE = """Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         AllocateTensors\t    0.102\t    0.102\t  0.683%\t100.000%\t     0.000\t        1\tAllocateTensors/0

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, QU8) IGEMM\t    0.267\t    0.278\t  37.83%\t  37.83%\t     0.000\t        1\tDelegate/Convolution (NHWC, QU8) IGEMM:0
\tAdd (ND)\t    0.243\t    0.122\t  36.81%\t  74.64%\t     0.000\t        1\tDelegate/Add (ND):1

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tAdd (ND)\t    0.243\t    0.122\t  36.81%\t  74.64%\t     0.000\t        1\tDelegate/Add (ND):1

Number of nodes executed: 2
"""
CSV = """Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 1.5, 1.25, 50%, 50%, 0, 1, "[conv, relu]:0"
ADD, 0.5, 0.25, 10%, 60%, 0, 1, [sum]:1
Number of nodes executed: 2
"""
RUNNER = "".join(f"I 00:00:00.0{i:02d}0 executorch:executor_runner.cpp:523] Iteration {i} of 40: 0.{10 + i % 4}5000 ms\n" for i in range(1, 41))


def program(folder: Path, name: str, script: str) -> Path:
    """An executable script."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
    path.chmod(0o755)
    return path


def printing(text: str) -> str:
    """The line of a script that writes this text to standard output."""
    return f"cat <<'X'\n{text}\nX\n"


def benchmark(folder: Path, *, output: str = OUTPUT, first: str = "", then: str = "") -> Path:
    """benchmark_model, which prints what the real one prints, or `output`; what a script does before that and after it may be given."""
    return program(folder, "benchmark_model", first + printing(output) + then)


def model(folder: Path, name: str = "a.tflite", content: bytes = b"a model") -> Job:
    """A file to be timed quickly; what it holds only these programs can time."""
    path = folder / name
    path.write_bytes(content)
    return Job(path, {".tflite": "tflite", ".pte": "executorch", ".onnx": "onnx"}[path.suffix], rules=FAST)


def profiled(jobs: Sequence[Job], programs: Programs) -> list[Profile | FailedJob]:
    """What comes of the jobs on the only phone that adb sees."""
    with connect("adb") as phone:
        return list(profile_files(phone, jobs, programs=programs))
