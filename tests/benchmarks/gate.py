"""How often the measured tier of `mcompress check` is wrong: false alarms on equal files, misses on files that are 5 % slower at most.

    python tests/benchmarks/gate.py [--for SECONDS] [--backend onnx --backend tflite]

Everything is real: networks are exported through `mcompress.export` and executed in their runtimes by the function that the command calls, with its
default settings. "Equal" are two files of one architecture with other weights. "Slower" has one block more than N equal ones: 1/N more work, and less
than 1/N more time, since the layers at both ends take some of it. N is the first of `BLOCKS` for which a calibration, apart from the comparisons and
longer than they are, finds no more than 1.05 times the baseline's latency. The summary also has the median over all passes of the comparisons.
What is concluded from a pass follows from its ratio and its interval, so that a later rule can be applied to the results of an earlier one.

Every calibration and every comparison is written to `results/gate.json` as soon as it is done; a run that was stopped continues where it was, on the
same processor and runtimes only. `--for` ends a run after so many seconds, for machines that are shared.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, TypedDict

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.environment import cpu_name, package_versions
from mcompress.export import backend_of
from mcompress.reports.gate.measuring import SECONDS, OutOfTime, time_files
from mcompress.reports.gate.timing import Timing
from mcompress.targets.exports import ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.gate import Gate

RESULTS = Path(__file__).parent / "results" / "gate.json"
WORK = Path("runs") / "benchmark-gate"
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig()}
PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
EQUAL, SLOWER = 200, 100
CHANNELS, SIDE = 32, 64
BLOCKS = (20, 21, 22, 23)
MOST = 1.05
CALIBRATION_PASSES, CALIBRATION_S = 8, 8.0
PERCENT = Gate().measured_percent

logger = logging.getLogger("gate")


class Row(TypedDict):
    """One comparison; `alarm` is the gate's verdict, `decided` whether it had one."""

    backend: str
    kind: Literal["equal", "slower"]
    alarm: bool
    decided: bool
    ratios: list[float]
    intervals: list[list[float]]
    noise: list[float]
    rounds: int
    baseline_ms: float | None
    seconds: float


class State(TypedDict):
    """`results/gate.json` without its summary."""

    note: str
    settings: dict[str, JsonValue]
    calibration: dict[str, dict[str, list[float]]]
    """Backend -> number of blocks -> ratio of each pass."""
    comparisons: list[Row]


def network(blocks: int, seed: int) -> nn.Module:
    """So many equal convolutions of 3x3, a first one, a last one and a pixel shuffle."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
    for _ in range(blocks):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(CHANNELS, 12, 3, padding=1), nn.PixelShuffle(2)).eval()


def exported(backend: str, blocks: int, seed: int) -> Path:
    """The network as a file of a backend; written once."""
    WORK.mkdir(parents=True, exist_ok=True)
    stem = WORK / f"{backend}-{blocks}-{seed}"
    found = stem.with_suffix(f".{backend}")
    if found.exists():
        return found
    config = CONFIGS[backend]
    return backend_of(config).write(config, network(blocks, seed), {"input": torch.rand(1, 3, SIDE, SIDE)}, None, stem).path


def calibrate(backend: str, blocks: int) -> list[float]:
    """How many times as slow one block more is, pass by pass; every pass is a process of its own, with the order by turns."""
    fewer, more = exported(backend, blocks, 0), exported(backend, blocks + 1, 0)
    there = [time_files(fewer, more, backend, 1e3, seconds=CALIBRATION_S).ratio for _ in range(CALIBRATION_PASSES // 2)]
    back = [1 / time_files(more, fewer, backend, 1e3, seconds=CALIBRATION_S).ratio for _ in range(CALIBRATION_PASSES // 2)]
    return [round(ratio, 5) for ratio in (*there, *back)]


def calibrated(tried: dict[str, list[float]]) -> int | None:
    """The number of blocks that the comparisons use, once it is known."""
    return next((int(blocks) for blocks, ratios in tried.items() if statistics.median(ratios) <= MOST), None)


def settings() -> dict[str, JsonValue]:
    """What must be the same for results to belong together."""
    versions = package_versions()
    return {
        "measured_percent": PERCENT,
        "seconds per pass": SECONDS,
        "seconds per pass of the calibration": CALIBRATION_S,
        "channels": CHANNELS,
        "side": SIDE,
        "cpu": cpu_name(),
        "runtimes": {name: versions[package] for name, package in PACKAGES.items()},
    }


def load() -> State:
    """What earlier runs did, here and with these settings."""
    if not RESULTS.exists():
        return {"note": "", "settings": settings(), "calibration": {}, "comparisons": []}
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    state: State = {key: found[key] for key in ("note", "settings", "calibration", "comparisons")}  # type: ignore[assignment]
    if state["settings"] != settings():
        raise SystemExit(f"{RESULTS} was made with {state['settings']}, this is {settings()}; move it away to begin anew")
    return state


def save(state: State) -> None:
    """Write all of it, as a whole."""
    text = json.dumps({"summary": summary(state), "date": f"{datetime.now(UTC):%Y-%m-%d}", **state, "comparisons": []}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in state["comparisons"])
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(text.replace('"comparisons": []', f'"comparisons": [\n  {rows}\n ]') + "\n", encoding="utf-8")
    temporary.replace(RESULTS)


def summary(state: State) -> dict[str, JsonValue]:
    """Counts over the comparisons so far, and what was found of the slowdown."""
    rows = state["comparisons"]
    found: dict[str, JsonValue] = {}
    for kind in ("equal", "slower"):
        chosen = [row for row in rows if row["kind"] == kind]
        found[kind] = {
            "comparisons": len(chosen),
            "alarms" if kind == "equal" else "caught": sum(row["alarm"] for row in chosen),
            "undecided": sum(not row["decided"] for row in chosen),
        }
    slowdowns: dict[str, float] = {
        backend: round(statistics.median(tried[str(blocks)]), 5)
        for backend, tried in state["calibration"].items()
        if (blocks := calibrated(tried)) is not None
    }
    found["slowdown, calibration"] = dict(slowdowns)
    passes = {
        backend: [ratio for row in rows if row["kind"] == "slower" and row["backend"] == backend for ratio in row["ratios"]] for backend in CONFIGS
    }
    medians = {backend: round(statistics.median(ratios), 5) for backend, ratios in passes.items() if ratios}
    found["slowdown, median of the comparisons"] = dict(medians)
    both = [round(100 * (ratio - 1), 2) for ratio in (*slowdowns.values(), *medians.values())]
    found["slowdown, percent from and to"] = [min(both), max(both)] if both else None
    found["longest comparison, s"] = max((row["seconds"] for row in rows), default=None)
    found["mean comparison, s"] = round(statistics.mean(row["seconds"] for row in rows), 2) if rows else None
    return found


def schedule(backends: list[str]) -> Iterator[tuple[str, Literal["equal", "slower"]]]:
    """(backend, kind) of every comparison: two equal ones to a slower one, backends in turns."""
    kinds: tuple[Literal["equal", "slower"], ...] = ("equal", "slower", "equal")
    for index in range(EQUAL + SLOWER):
        yield backends[(index // 3) % len(backends)], kinds[index % 3]


def compare(backend: str, kind: Literal["equal", "slower"], blocks: int) -> Row:
    """As the command does it."""
    baseline = exported(backend, blocks, 0)
    other = exported(backend, blocks + 1, 0) if kind == "slower" else exported(backend, blocks, 1)
    started = time.monotonic()
    try:
        timing = time_files(baseline, other, backend, PERCENT)
    except OutOfTime as error:
        logger.warning("%s", error)
        timing = Timing(())
    passes = timing.passes
    return {
        "backend": backend,
        "kind": kind,
        "alarm": bool(passes) and timing.slower(PERCENT),
        "decided": bool(passes) and timing.decided(PERCENT),
        "ratios": [round(one.ratio, 5) for one in passes],
        "intervals": [[round(one.low, 5), round(one.high, 5)] for one in passes],
        "noise": [round(one.noise, 5) for one in passes],
        "rounds": passes[0].rounds if passes else 0,
        "baseline_ms": round(passes[0].baseline_ms, 4) if passes else None,
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
    for backend, blocks in ((backend, blocks) for backend in backends for blocks in BLOCKS):
        tried = state["calibration"].setdefault(backend, {})
        if calibrated(tried) is None and str(blocks) not in tried:
            if time.monotonic() > until:
                return 0
            tried[str(blocks)] = calibrate(backend, blocks)
            logger.info("%s, %d blocks: one more takes %s", backend, blocks, tried[str(blocks)])
            save(state)
    chosen = {backend: calibrated(state["calibration"][backend]) for backend in backends}
    for backend, kind in islice(schedule(backends), len(state["comparisons"]), None):
        blocks_ = chosen[backend]
        if blocks_ is None:
            raise SystemExit(f"{backend}: one block more than {BLOCKS} is always more than {MOST}: {state['calibration'][backend]}")
        if time.monotonic() > until:
            return 0
        state["comparisons"].append(compare(backend, kind, blocks_))
        save(state)
        logger.info("%d %s", len(state["comparisons"]), state["comparisons"][-1])
    logger.info("%s", json.dumps(summary(state), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
