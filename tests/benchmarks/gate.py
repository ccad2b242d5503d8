"""How often the measured tier of `mcompress check` is wrong: false alarms on equal files, misses on files that are about 5 % slower.

    python tests/benchmarks/gate.py [--for SECONDS] [--backend onnx --backend tflite]

Everything is real: networks are exported through `mcompress.export` and executed in their runtimes by the function that the command calls, with its
default settings. "Equal" are two files of one architecture with other weights. "Slower" is the same architecture with one wider layer, whose share of
the work is chosen by a calibration that takes longer than 30 comparisons: the number of blocks around the wide layer for which the latency is 1.05 to
1.06 times the baseline's, as near to 1.05 as whole blocks allow.

Every comparison is written to `results/gate.json` as soon as it is done; a run that was stopped continues where it was. `--for` ends a run after so
many seconds, for machines that are shared.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from mcompress.checking import SECONDS, time_files
from mcompress.environment import cpu_name, package_versions
from mcompress.export import backend_of
from mcompress.targets.exports import ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.gate import Gate

RESULTS = Path(__file__).parent / "results" / "gate.json"
WORK = Path("runs") / "benchmark-gate"
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig()}
PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
EQUAL, SLOWER = 200, 100
WIDTH, WIDE, SIDE = 32, 36, 64
BLOCKS = (8, 9, 10, 11)
WANTED = (1.05, 1.06)
CALIBRATION_PASSES, CALIBRATION_S = 6, 8.0
PERCENT = Gate().measured_percent

logger = logging.getLogger("gate")


def network(blocks: int, wide: int, seed: int) -> nn.Module:
    """Pairs of 3x3 convolutions and a pixel shuffle; one pair in the middle has `wide` channels inside."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1)]
    for block in range(blocks):
        inside = wide if block == blocks // 2 else WIDTH
        layers += [nn.Conv2d(WIDTH, inside, 3, padding=1), nn.ReLU(), nn.Conv2d(inside, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(WIDTH, 12, 3, padding=1), nn.PixelShuffle(2)).eval()


def exported(backend: str, blocks: int, wide: int, seed: int) -> Path:
    """The network as a file of a backend; written once."""
    WORK.mkdir(parents=True, exist_ok=True)
    stem = WORK / f"{backend}-{blocks}-{wide}-{seed}"
    found = list(WORK.glob(f"{stem.name}.{backend}"))
    if found:
        return found[0]
    config = CONFIGS[backend]
    return backend_of(config).write(config, network(blocks, wide, seed), torch.rand(1, 3, SIDE, SIDE), None, stem).path


def calibrate(backend: str) -> dict[str, float | int | str]:
    """The number of blocks with which the wider network is 1.05 to 1.06 times as slow; measured in fresh processes, both orders by turns."""
    tried: dict[int, float] = {}
    spread: dict[int, float] = {}
    for blocks in BLOCKS:
        files = (exported(backend, blocks, WIDTH, 0), exported(backend, blocks, WIDE, 0))
        passes = [time_files(*files, backend, 1e3, seconds=CALIBRATION_S).ratio for _ in range(CALIBRATION_PASSES // 2)]
        passes += [1 / time_files(*reversed(files), backend, 1e3, seconds=CALIBRATION_S).ratio for _ in range(CALIBRATION_PASSES // 2)]
        tried[blocks], spread[blocks] = statistics.median(passes), max(passes) - min(passes)
        logger.info("%s %d blocks: %.4f, spread %.4f", backend, blocks, tried[blocks], spread[blocks])
        if tried[blocks] < WANTED[1]:
            break
    fitting = {blocks: ratio for blocks, ratio in tried.items() if WANTED[0] <= ratio <= WANTED[1]}
    if not fitting:
        raise SystemExit(f"{backend}: no number of blocks in {BLOCKS} gives a ratio in {WANTED}: {tried}")
    blocks = min(fitting, key=lambda count: fitting[count])
    return {
        "blocks": blocks,
        "channels": WIDTH,
        "channels of the wide layer": WIDE,
        "ratio": round(fitting[blocks], 5),
        "spread over passes": round(spread[blocks], 5),
        "passes": CALIBRATION_PASSES,
        "seconds per pass": CALIBRATION_S,
    }


def load() -> dict:  # type: ignore[type-arg]
    if RESULTS.exists():
        return json.loads(RESULTS.read_text(encoding="utf-8"))
    return {"calibration": {}, "comparisons": []}


def save(state: dict) -> None:  # type: ignore[type-arg]
    state["summary"] = summary(state["comparisons"])
    state["settings"] = {
        "measured_percent": PERCENT,
        "seconds per pass": SECONDS,
        "cpu": cpu_name(),
        "runtimes": {name: package_versions()[package] for name, package in PACKAGES.items()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    text = json.dumps({key: state[key] for key in ("summary", "settings", "calibration")}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in state["comparisons"])
    temporary.write_text(f'{text[:-2]},\n "comparisons": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    temporary.replace(RESULTS)


def summary(rows: list[dict]) -> dict:  # type: ignore[type-arg]
    equal, slower = ([row for row in rows if row["kind"] == kind] for kind in ("equal", "slower"))
    return {
        "equal": {"comparisons": len(equal), "alarms": sum(row["alarm"] for row in equal), "first alarms": sum(row["first alarm"] for row in equal)},
        "slower": {"comparisons": len(slower), "alarms": sum(row["alarm"] for row in slower)},
        "longest comparison, s": max((row["seconds"] for row in rows), default=None),
        "mean comparison, s": round(statistics.mean(row["seconds"] for row in rows), 2) if rows else None,
    }


def schedule(backends: list[str]) -> list[tuple[str, str]]:
    """(backend, kind) of every comparison: two equal ones to a slower one, backends in turns."""
    return [(backends[(index // 3) % len(backends)], ("equal", "slower", "equal")[index % 3]) for index in range(EQUAL + SLOWER)]


def compare(backend: str, kind: str, blocks: int) -> dict:  # type: ignore[type-arg]
    baseline = exported(backend, blocks, WIDTH, 0)
    other = exported(backend, blocks, WIDE, 0) if kind == "slower" else exported(backend, blocks, WIDTH, 1)
    started = time.monotonic()
    timing = time_files(baseline, other, backend, PERCENT)
    return {
        "backend": backend,
        "kind": kind,
        "alarm": timing.slower(PERCENT),
        "first alarm": timing.passes[0].alarms(PERCENT),
        "ratios": [round(one.ratio, 5) for one in timing.passes],
        "intervals": [[round(one.low, 5), round(one.high, 5)] for one in timing.passes],
        "noise": [round(one.noise, 5) for one in timing.passes],
        "rounds": timing.passes[0].rounds,
        "baseline_ms": round(timing.passes[0].baseline_ms, 4),
        "seconds": round(time.monotonic() - started, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="limit_s", type=float, default=float("inf"), help="stop after so many seconds; what is left is done next time")
    parser.add_argument("--backend", action="append", choices=sorted(CONFIGS), help="repeatable; all of them if left out")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    until, state, backends = time.monotonic() + given.limit_s, load(), given.backend or sorted(CONFIGS)
    for backend in backends:
        if backend not in state["calibration"]:
            state["calibration"][backend] = calibrate(backend)
            save(state)
        if time.monotonic() > until:
            return 0
    for backend, kind in schedule(backends)[len(state["comparisons"]) :]:
        row = compare(backend, kind, int(state["calibration"][backend]["blocks"]))
        state["comparisons"].append(row)
        save(state)
        logger.info("%d %s", len(state["comparisons"]), row)
        if time.monotonic() > until:
            return 0
    logger.info("%s", json.dumps(state["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
