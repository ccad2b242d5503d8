"""Latency of an exported file on this machine, in a fresh process: no warm caches of the exporter, no threads of PyTorch, and a peak memory of its
own.

`python -m mcompress.export.profile BACKEND FILE --shape 1,3,128,128` prints one JSON object; `profile` starts that process and reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

import numpy as np

from mcompress.environment import cpu_name
from mcompress.errors import ExportError
from mcompress.targets.schema import Measurement

WARM_UP_RUNS, WARM_UP_S = 3, 0.2
LEAST_RUNS, MOST_RUNS = 10, 50
TIMEOUT_S = 600.0


class ProfileResult(TypedDict):
    """What the child process prints; times in milliseconds, memory in megabytes (10^6 bytes)."""

    runtime: str
    p50_ms: float
    p90_ms: float
    mean_ms: float
    n: int
    load_ms: float
    peak_memory_mb: float | None


def profile(
    backend: str,
    path: Path,
    shape: tuple[int, ...],
    *,
    precision: str,
    threads: int,
    seconds: float,
) -> tuple[Measurement, ...]:
    """Latency (and peak memory of the process, runtime included) of `path` for inputs of `shape` (N, C, H, W).

    50 runs are made unless `seconds` pass first, but never fewer than 10. `precision` only labels the result. Raises `ExportError`.
    """
    command = [sys.executable, "-m", "mcompress.export.profile", backend, str(path), "--shape", ",".join(map(str, shape))]
    command += ["--threads", str(threads), "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # our own module
    except subprocess.TimeoutExpired as problem:
        raise ExportError(f"{backend} did not finish {LEAST_RUNS} runs of {path.name} within {TIMEOUT_S:g} s") from problem
    if done.returncode != 0:
        raise ExportError(f"{backend} could not run {path.name} (exit code {done.returncode}): {done.stderr.strip()[-800:]}")
    result: ProfileResult = json.loads(done.stdout)
    on = f"{cpu_name()} {result['runtime']} {precision} {threads} thread{'s' if threads > 1 else ''}"
    latency = Measurement(
        what="latency",
        value=result["p50_ms"],
        unit="ms",
        how="host",
        on=on,
        p50=result["p50_ms"],
        p90=result["p90_ms"],
        n=result["n"],
        source=f"fresh process, input {'x'.join(map(str, shape))}, mean {result['mean_ms']:.4g} ms",
    )
    if result["peak_memory_mb"] is None:
        return (latency,)
    memory = Measurement(what="peak memory of the process", value=result["peak_memory_mb"], unit="MB", how="host", on=on, source="runtime included")
    return latency, memory


def measure(backend: str, path: Path, shape: tuple[int, ...], threads: int, seconds: float) -> ProfileResult:
    """Load the file in this process and time it; the input is already in the file's own type and layout."""
    from mcompress.export import backend_named

    value = np.random.default_rng(0).random(shape, dtype=np.float32)
    started = time.perf_counter()
    runner = backend_named(backend).load(path, threads)
    load_ms = (time.perf_counter() - started) * 1e3
    encoded = runner.inputs[0].encode(value)
    warm_until = time.perf_counter() + WARM_UP_S
    warmed = 0
    while warmed < WARM_UP_RUNS or time.perf_counter() < warm_until:
        runner.execute(encoded)
        warmed += 1
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and time.perf_counter() < until):
        started = time.perf_counter()
        runner.execute(encoded)
        times.append((time.perf_counter() - started) * 1e3)
    p50, p90 = (float(found) for found in np.percentile(times, (50, 90)))
    return {
        "runtime": runner.runtime,
        "p50_ms": p50,
        "p90_ms": p90,
        "mean_ms": float(np.mean(times)),
        "n": len(times),
        "load_ms": load_ms,
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, 10^6 bytes; None where the system does not say."""
    facts = Path("/proc/self/status")
    if facts.exists():  # getrusage would include what the parent process held when it started this one
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        return None
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / 1e6 if platform.system() == "Darwin" else found * 1024 / 1e6


def main(arguments: list[str]) -> int:
    """Entry point of the child process: JSON alone on standard output, everything else on standard error."""
    parser = argparse.ArgumentParser(prog="python -m mcompress.export.profile", description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", required=True, type=lambda text: tuple(int(part) for part in text.split(",")))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args(arguments)
    answer = os.dup(1)
    os.dup2(2, 1)
    result = measure(given.backend, given.file, given.shape, given.threads, given.seconds)
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        json.dump(result, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
