"""Quantizers side by side: how much of the output an all-INT8 network keeps, and how fast the artifact is.

    python tests/benchmarks/quantizers.py write MFAGAN IMDN RRDBNet-6
    python tests/benchmarks/quantizers.py measure MFAGAN IMDN RRDBNet-6
    python tests/benchmarks/quantizers.py steps MFAGAN IMDN RRDBNet-6

`write` trains each network shortly on the embedded photographs (once) and quantizes it with every peer and with mcompress, all on the same
calibration crops, everything INT8 that can be. `measure` executes every artifact in its own runtime, one thread: output SQNR against the float
network on crops of held-out photographs, and latency, in rounds in which every artifact has its turn. `steps` simulates the recovery's steps, each
alone and all together. Results are in `results/quantizers.json`; a run of one network leaves the others' results as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import fx, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from everything_int8 import everything_int8, quiet, simulated_db
from quantizer_networks import RECIPES, SEED, calibration_inputs, embedded_task, held_out_inputs, trained
from quantizer_peers import PEERS, PeerFile, node_macs
from side_by_side import times_ms

from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.recovery.distilled import DistillSettings
from mcompress.compress.quantize.recovery.recover import RecoveryOptions, recover
from mcompress.environment import cpu_name, package_versions
from mcompress.export import backend_named
from mcompress.targets.exports import ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

RESULTS = Path(__file__).parent / "results" / "quantizers.json"
WORK = Path("runs") / "benchmark-quantizers"
CONFIGS: dict[str, ExportConfig] = {"executorch": ExecuTorchConfig(), "onnx": OnnxConfig(), "tflite": TFLiteConfig()}
OURS = "mcompress"
LIST, RECOVERED, PLAN = "files.json", "recovered.safetensors", "plan.json"
ROUNDS = 40  # of latency
DISTILL_STEPS = 200
PACKAGES = ("torch", "torchao", "executorch", "nncf", "onnxruntime", "ai-edge-quantizer", "ai-edge-litert", "litert-torch")

logger = logging.getLogger("quantizers")
FloatArray = NDArray[np.float32]


class Row(TypedDict):
    """One artifact; `ours` says whether mcompress wrote it."""

    quantizer: str
    ours: bool
    runtime: str
    file: str
    int8_share: float
    sqnr_db: float
    latency_ms: float
    latencies_ms: list[float]


def write(name: str) -> None:
    """Every artifact of one network, and `files.json` that lists them; each in a process of its own, because the libraries disturb one another."""
    (WORK / name).mkdir(parents=True, exist_ok=True)
    (WORK / name / LIST).unlink(missing_ok=True)
    network = trained(name, WORK / "networks")
    _recover(name, network)
    for maker in [*PEERS, *CONFIGS]:
        done = subprocess.run([sys.executable, __file__, "write-one", name, "--maker", maker], check=False)
        listed = json.loads((WORK / name / LIST).read_text(encoding="utf-8")) if (WORK / name / LIST).exists() else []
        if not listed or listed[-1]["maker"] != maker:  # some libraries crash when the process ends, with the file written
            logger.warning("%s did not write %s (exit status %d)", maker, name, done.returncode)


def write_one(name: str, maker: str) -> None:
    """One artifact: `maker` is a peer, or the backend with which mcompress writes."""
    recipe, folder = RECIPES[name], WORK / name
    network, inputs = trained(name, WORK / "networks"), calibration_inputs(embedded_task(), recipe)
    started = time.monotonic()
    if maker in PEERS:
        made = PEERS[maker](network, inputs, folder / maker.replace(", ", "_").replace(" ", "_"))
    else:
        module = graph_of(export_program(network, inputs[0]))
        module.load_state_dict(load_file(folder / RECOVERED))
        plan = PrecisionPlan.from_json((folder / PLAN).read_text(encoding="utf-8"))
        written = backend_named(maker).write(CONFIGS[maker], module, {"input": inputs[0]}, plan, folder / f"{OURS}_{maker}")
        made = PeerFile(written.path, maker, _share(module, plan))
    path = folder / LIST
    listed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    ours = maker not in PEERS
    listed.append(
        {
            "maker": maker,
            "quantizer": OURS if ours else maker,
            "ours": ours,
            "file": made.path.name,
            "backend": made.backend,
            "int8_share": round(made.int8_share, 4),
        }
    )
    path.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    logger.info("%s: %s, %.0f %% of the MACs in INT8, %.0f s", name, maker, 100 * made.int8_share, time.monotonic() - started)


def _recover(name: str, network: nn.Module) -> None:
    """The network and the plan that mcompress writes, kept for `write_one`."""
    inputs = calibration_inputs(embedded_task(), RECIPES[name])
    module = graph_of(export_program(network, inputs[0]))
    plan = everything_int8(module, inputs)
    started = time.monotonic()
    recovered = recover(RecoveryOptions(((0.0, 1.0),)), module, plan, lambda: ((one,) for one in inputs), SEED, NoCheckpoints(), quiet)
    for step in recovered.steps:
        kept = "kept" if step.kept else "not kept"
        logger.info("%s: %s %.2f -> %.2f dB on held-back inputs, %s", name, step.name, step.before_db, step.after_db, kept)
    logger.info("%s: recovery took %.0f s", name, time.monotonic() - started)
    save_file({key: value.contiguous() for key, value in recovered.module.state_dict().items()}, WORK / name / RECOVERED)
    (WORK / name / PLAN).write_text(replace(plan, ranges=recovered.ranges).to_json(), encoding="utf-8")


def _share(module: fx.GraphModule, plan: PrecisionPlan) -> float:
    macs = {node.name: node_macs(node) for node in module.graph.nodes if node.target in kinds.WEIGHTED}
    return sum(value for node, value in macs.items() if node in plan.int8_names()) / sum(macs.values())


class _Session:
    """A file in its own runtime, one thread; takes and gives float32 NCHW, `prepare` gives what `execute` takes."""

    def __init__(self, path: Path, backend: str) -> None:
        self.prepare: Callable[[FloatArray], NDArray[np.generic]]
        self.execute: Callable[[NDArray[np.generic]], NDArray[np.generic]]
        self.decode: Callable[[NDArray[np.generic]], FloatArray]
        if backend == "onnx":
            self._onnx(path)
        else:
            runner = backend_named(backend).load(path, 1)
            self.runtime, self.prepare, self.execute, self.decode = runner.runtime, runner.inputs[0].encode, runner.execute, runner.outputs[0].decode

    def _onnx(self, path: Path) -> None:
        """Without mcompress's reader, which refuses files that other writers word differently."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0].name
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self.prepare = self.decode = lambda value: value.astype(np.float32)
        self.execute = lambda value: session.run(None, {given: value})[0]


def measure(name: str) -> dict[str, JsonValue]:
    """SQNR and latency of every artifact of one network."""
    recipe, task = RECIPES[name], embedded_task()
    network, folder = trained(name, WORK / "networks"), WORK / name
    inputs = [value.numpy() for value in held_out_inputs(task, recipe.side)]
    with torch.no_grad():
        exact = torch.cat([network(torch.from_numpy(value)) for value in inputs])
    every = json.loads((folder / LIST).read_text(encoding="utf-8"))
    deaths = {item["maker"]: _death_of(folder / item["file"], item["backend"]) for item in every}
    listed = [item for item in every if not deaths[item["maker"]]]
    written = {item["maker"] for item in every}
    failures: dict[str, JsonValue] = {maker: "no file was written: the process died" for maker in [*PEERS, *CONFIGS] if maker not in written}
    failures.update({maker: how for maker, how in deaths.items() if how})
    sessions = [_Session(folder / item["file"], item["backend"]) for item in listed]
    quality = []
    for session in sessions:
        outputs = [torch.from_numpy(session.decode(session.execute(session.prepare(value)))) for value in inputs]
        quality.append(sqnr_db(exact, torch.cat(outputs)))
    times = times_ms([partial(session.execute, session.prepare(inputs[0])) for session in sessions], ROUNDS)
    rows: list[Row] = [
        {
            "quantizer": item["quantizer"],
            "ours": item["ours"],
            "runtime": session.runtime,
            "file": item["file"],
            "int8_share": item["int8_share"],
            "sqnr_db": round(value, 3),
            "latency_ms": round(statistics.median(each), 4),
            "latencies_ms": [round(one, 4) for one in each],
        }
        for item, session, value, each in zip(listed, sessions, quality, times, strict=True)
    ]
    for row in rows:
        logger.info("%s: %-32s %-36s %6.2f dB %8.3f ms", name, row["quantizer"], row["runtime"], row["sqnr_db"], row["latency_ms"])
    return {
        "recipe": {**asdict(recipe)},
        "held_out_inputs": len(inputs),
        "failures": failures,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "artifacts": list(rows),  # type: ignore[dict-item]  # a Row is JSON
    }


def _death_of(path: Path, backend: str) -> str:
    """Empty if a process of its own loads the file and lives, otherwise how it ended: a runtime that crashes would end the comparison."""
    lines = (f"import sys; sys.path[:0] = {sys.path!r}", "from pathlib import Path", "from quantizers import _Session")
    code = "\n".join([*lines, f"_Session(Path({str(path)!r}), {backend!r})"])
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ''}"


def steps(name: str) -> dict[str, JsonValue]:
    """Simulated SQNR on held-out inputs of each step alone, and of all with one left out."""
    recipe, task = RECIPES[name], embedded_task()
    inputs, held_out = calibration_inputs(task, recipe), held_out_inputs(task, recipe.side)
    module = graph_of(export_program(trained(name, WORK / "networks"), inputs[0]))
    plan = everything_int8(module, inputs)
    found: dict[str, JsonValue] = {}
    for method in ("minmax", "percentile", "mse"):
        found[f"ranges {method}"] = round(simulated_db(module, module, everything_int8(module, inputs, method), held_out), 3)
    none = RecoveryOptions(((0.0, 1.0),), equalize=False, round_weights=False, correct_biases=False)
    ways = {
        "equalize alone": replace(none, equalize=True),
        "correct biases alone": replace(none, correct_biases=True),
        "round weights alone": replace(none, round_weights=True),
        "equalize, round weights": replace(none, equalize=True, round_weights=True),
        "equalize, round weights, correct biases": RecoveryOptions(((0.0, 1.0),)),
        "distill alone": replace(none, distill=DistillSettings(DISTILL_STEPS)),
        "all, distill": RecoveryOptions(((0.0, 1.0),), distill=DistillSettings(DISTILL_STEPS)),
    }
    for title, options in ways.items():
        recovered = recover(options, module, plan, lambda: ((one,) for one in inputs), SEED, NoCheckpoints(), quiet)
        found[title] = round(simulated_db(module, recovered.module, replace(plan, ranges=recovered.ranges), held_out), 3)
        logger.info("%s: %s: %s dB", name, title, found[title])
    return found


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = dict(package_versions())
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "write-one", "measure", "steps"])
    parser.add_argument("networks", nargs="+", choices=[name for name, recipe in RECIPES.items() if recipe.task == "super_resolution"])
    parser.add_argument("--maker", choices=[*PEERS, *CONFIGS], help="with write-one: which artifact")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    for name in arguments.networks:
        if arguments.what == "write":
            write(name)
            continue
        if arguments.what == "write-one":
            write_one(name, arguments.maker)
            continue
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"networks": {}, "steps": {}}
        if arguments.what == "measure":
            results["networks"][name] = {**measure(name), "processor": cpu_name(), "versions": _versions(), "threads": 1}
        else:
            results["steps"][name] = steps(name)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
